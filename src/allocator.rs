//! The allocator, and its settings.

use std::{os::unix::process::CommandExt, process::Command};

/// One allocator for all threads: rows are made on one and freed on another, and hashing passwords takes aligned blocks of
/// megabytes, which glibc's does not reuse.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Memory that a tick has freed is what the next one takes: given back to the system after 10 ms, as it is by default, it
/// comes back as pages that the kernel has to clear, in blocks of 2 MB where those are huge. Measured over a backfill: the
/// kernel's part falls from a quarter of the CPU time to a twelfth.
const SETTINGS: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "1000"), ("MIMALLOC_ALLOW_THP", "0")];

/// Starts the program again, in the same process, with those settings that nobody has made: the allocator reads them from the
/// environment before `main`. Where that is not possible the program goes on as it is.
pub(crate) fn settle() {
    let missing = SETTINGS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<_> = missing.collect();
    let (false, Ok(program)) = (missing.is_empty(), std::env::current_exe()) else { return };
    let mut arguments = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let _not_possible = again.args(arguments).envs(missing).exec();
}
