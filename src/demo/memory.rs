//! Peak memory of this process and of the private Postgres's, from `/proc`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How often processes are looked at. Backends that live shorter than this may be missed.
const PAUSE: Duration = Duration::from_secs(1);
/// Most processes listed.
const LISTED: usize = 64;

/// The most memory each process had.
#[derive(Debug, Default)]
pub(crate) struct Peaks(BTreeMap<u32, (String, u64)>);

/// Watches this process and `postgres` with its children until `stop` fires.
pub(crate) async fn watch(postgres: Option<u32>, stop: CancellationToken) -> Peaks {
    let mut peaks = Peaks::default();
    loop {
        peaks.look(Path::new("/proc"), std::process::id(), postgres);
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => break,
        }
    }
    peaks.look(Path::new("/proc"), std::process::id(), postgres);
    peaks
}

impl Peaks {
    fn look(&mut self, proc: &Path, own: u32, postgres: Option<u32>) {
        let children = postgres.map(|postmaster| {
            // The kernel lists children per thread; the postmaster has one thread.
            std::fs::read_to_string(proc.join(format!("{postmaster}/task/{postmaster}/children"))).unwrap_or_default()
        });
        let children: Vec<u32> =
            children.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect();
        for pid in [own].into_iter().chain(postgres).chain(children) {
            let directory = proc.join(pid.to_string());
            let Ok(status) = std::fs::read_to_string(directory.join("status")) else { continue };
            let Some(peak) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(kilobytes) else {
                continue;
            };
            if pid != own && self.0.len() >= LISTED && !self.0.contains_key(&pid) {
                continue;
            }
            let name = if pid == own { "millrace".to_owned() } else { title(&directory) };
            let entry = self.0.entry(pid).or_default();
            *entry = (name, entry.1.max(peak * 1024));
        }
    }

    /// One object a process, the largest first.
    pub(crate) fn json(&self) -> Value {
        let mut processes: Vec<_> = self.0.iter().collect();
        processes.sort_by_key(|(pid, (_, peak))| (std::cmp::Reverse(*peak), **pid));
        let object = |(pid, (name, peak)): (&u32, &(String, u64))| json!({"process": name, "pid": pid, "bytes": peak});
        processes.into_iter().map(object).collect()
    }
}

fn kilobytes(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// How the process calls itself; Postgres says there what each of its processes does.
fn title(directory: &Path) -> String {
    let line = std::fs::read(directory.join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&line).replace('\0', " ");
    let text = text.trim();
    if text.starts_with("postgres:") { text.chars().take(80).collect() } else { "postgres".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_stay_when_a_process_ends() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: u32, peak: u64, title: &str| {
            let directory = proc.path().join(pid.to_string());
            std::fs::create_dir_all(directory.join(format!("task/{pid}"))).unwrap();
            std::fs::write(directory.join("status"), format!("Name:\tx\nVmHWM:\t  {peak} kB\n")).unwrap();
            std::fs::write(directory.join("cmdline"), title).unwrap();
        };
        process(1, 100, "millrace\0demo\0");
        process(2, 50, "/usr/lib/postgres\0-D\0x\0");
        process(3, 70, "postgres: lane writer");
        std::fs::write(proc.path().join("2/task/2/children"), "3 4 ").unwrap();
        let mut peaks = Peaks::default();
        peaks.look(proc.path(), 1, Some(2));
        std::fs::remove_dir_all(proc.path().join("3")).unwrap();
        process(2, 40, "/usr/lib/postgres\0");
        peaks.look(proc.path(), 1, Some(2));
        assert_eq!(
            peaks.json(),
            json!([
                {"process": "millrace", "pid": 1, "bytes": 102_400},
                {"process": "postgres: lane writer", "pid": 3, "bytes": 71_680},
                {"process": "postgres", "pid": 2, "bytes": 51_200},
            ])
        );
    }
}
