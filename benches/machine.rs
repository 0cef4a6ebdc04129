//! What benches of the whole system measure of the machine: CPU time of process trees, and how long a flush takes.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::Path,
    time::Instant,
};

/// Writes of the flush test, and what each writes: a page of a database's log.
const FLUSHES: usize = 300;
const PAGE: [u8; 4096] = [7; 4096];
/// Units of CPU time in `/proc`, on every Linux that we know.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that a process, its descendants and those of them that have ended have used, in ticks.
pub(crate) fn tree_ticks(root: u32) -> Option<u64> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut used: HashMap<u32, u64> = HashMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some((parent, ticks)) = process(&entry.path()) else { continue };
        children.entry(parent).or_default().push(pid);
        used.insert(pid, ticks);
    }
    let mut tree = vec![root];
    let mut total = 0;
    while let Some(pid) = tree.pop() {
        total += used.get(&pid)?;
        tree.extend(children.remove(&pid).unwrap_or_default());
    }
    Some(total)
}

/// A process's parent, and the CPU time of it and of its children that have ended.
fn process(directory: &Path) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // The name may hold anything; what counts stands behind its closing bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = (11..15).map(number).sum::<Option<u64>>()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

/// Milliseconds of a write and its `fdatasync` in that directory, over space that the file has already: p50 and p99.
pub(crate) fn flushes(directory: &Path) -> std::io::Result<(f64, f64)> {
    let path = directory.join("flush");
    let mut file = File::create(&path)?;
    for _ in 0..FLUSHES {
        file.write_all(&PAGE)?;
    }
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let mut took = Vec::with_capacity(FLUSHES);
    for _ in 0..FLUSHES {
        let started = Instant::now();
        file.write_all(&PAGE)?;
        file.sync_data()?;
        took.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    fs::remove_file(&path)?;
    took.sort_unstable_by(f64::total_cmp);
    let percentile = |percent: usize| took.get(FLUSHES * percent / 100).copied().unwrap_or(f64::NAN);
    Ok((percentile(50), percentile(99)))
}
