//! What the kernel says of this process.

use std::fs;

/// The ticks of the kernel's clock in a second, as `/proc` counts them: 100 on every platform of Linux.
const TICKS: f64 = 100.0;

/// The process, as the metrics `process_*` of other programs describe theirs. A value that can't be read is left out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    /// In user and system mode together.
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) open_files: Option<u64>,
    pub(super) max_open_files: Option<u64>,
    /// Seconds since the epoch.
    pub(super) started: Option<f64>,
}

impl Process {
    /// As it is now.
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name of the program, in parentheses, may have any character.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        // Counted from the state, which is the third field of all.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let ticks = |number| field(number).map(|ticks| as_f64(ticks) / TICKS);
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        Self {
            cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
            resident_bytes: field(24).map(|pages| pages.saturating_mul(page)),
            virtual_bytes: field(23),
            threads: field(20),
            open_files: fs::read_dir("/proc/self/fd")
                .ok()
                .and_then(|entries| u64::try_from(entries.count()).ok()),
            max_open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            started: boot_time().zip(ticks(22)).map(|(boot, since)| boot + since),
        }
    }
}

/// When the machine started, in seconds since the epoch.
fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse::<u64>().ok().map(as_f64)
}

/// Exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
pub(super) fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_all_of_it() {
        let process = Process::read();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(process.cpu_seconds.is_some_and(|seconds| (0.0..1e6).contains(&seconds)), "{process:?}");
        assert!(
            process.resident_bytes.is_some_and(|bytes| (1 << 20..1 << 40).contains(&bytes)),
            "{process:?}"
        );
        assert!(process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.threads.is_some_and(|threads| (1..10_000).contains(&threads)), "{process:?}");
        assert!(process.open_files.is_some_and(|files| files >= 3), "{process:?}");
        assert!(process.max_open_files >= process.open_files, "{process:?}");
        assert!(
            process.started.is_some_and(|started| (now - 100_000.0..=now + 2.0).contains(&started)),
            "{process:?}"
        );
    }
}
