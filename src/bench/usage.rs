//! What this process has used, from `/proc`.

use std::time::Duration;

use anyhow::Context;

/// Ticks a second of the times in `/proc`: `USER_HZ`, the same on every Linux.
const TICKS: u64 = 100;

/// Processor time and memory so far.
#[derive(Debug)]
pub(crate) struct Usage {
    /// User and system time of all threads, also of those that have ended.
    pub(crate) cpu: Duration,
    /// Most memory resident at a time. The bench is one process, so what it shares with others is nothing but libraries.
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// Reads it.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub(crate) fn now() -> anyhow::Result<Self> {
        let read = |path| std::fs::read_to_string(path).with_context(|| format!("could not read {path}"));
        let cpu = cpu(&read("/proc/self/stat")?).context("could not read processor time from /proc/self/stat")?;
        let peak_bytes = peak(&read("/proc/self/status")?).context("could not read memory from /proc/self/status")?;
        Ok(Self { cpu, peak_bytes })
    }
}

/// Fields 14 and 15, counted from 1; the second is the program's name in parentheses and may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    Some(Duration::from_millis((times.next()? + times.next()?) * 1000 / TICKS))
}

fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_proc() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1750)));
        assert_eq!(peak("Name:\tx\nVmHWM:\t  99 kB\n"), Some(99 * 1024));
        assert_eq!((cpu("7 (a"), peak("")), (None, None));
        assert!(Usage::now().unwrap().peak_bytes > 0);
    }
}
