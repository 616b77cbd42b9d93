//! Reads one process.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    files::{base_name, decode, read_bounded},
    sight::Unseen,
};

/// More than the 16 bytes that the kernel stores.
const COMM_LIMIT: u64 = 64;
/// How many bytes of a longer name the kernel stores, without the zero at the end.
const COMM_LENGTH: usize = 15;
/// More than the 52 numbers and the name that the kernel writes.
const STAT_LIMIT: u64 = 4096;
/// How many threads are tried where the first one has ended.
const MOST_THREADS: usize = 8;
/// The kernel appends it to the path of a program whose file has been removed.
const DELETED: &str = " (deleted)";

/// A process as the rules see it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    /// The name that is listed unless a rule matches another one; then its other names. Never empty.
    pub(super) names: Vec<String>,
    /// Its command line, with the arguments separated by spaces. Each byte that is not UTF-8 became U+FFFD, as in Go.
    pub(super) cmdline: String,
    /// Whether the command line was read to its end.
    pub(super) is_whole: bool,
    /// Bytes read.
    pub(super) bytes: u64,
}

impl Process {
    /// Reads the process in `directory` and up to `limit` bytes of its command line. `None` if it has ended or is a kernel
    /// thread.
    pub(super) fn read(directory: &Path, limit: u64, unseen: &mut Unseen) -> Option<Self> {
        let first = Self::read_thread(directory, limit, unseen);
        if first.is_some() {
            return first;
        }
        // The first thread of a program may end before the others. Then only the others have a command line and a program.
        let threads = fs::read_dir(directory.join("task")).ok()?.flatten().map(|entry| entry.path());
        let others = threads.filter(|thread| thread.file_name() != directory.file_name());
        others.take(MOST_THREADS).find_map(|thread| Self::read_thread(&thread, limit, unseen))
    }

    fn read_thread(directory: &Path, limit: u64, unseen: &mut Unseen) -> Option<Self> {
        let mut bytes = unseen.read(read_bounded(&directory.join("cmdline"), limit))?;
        let read = bytes.len() as u64;
        let first = bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        for byte in &mut bytes {
            if *byte == 0 {
                *byte = b' ';
            }
        }
        let cmdline = decode(bytes);
        let trimmed = cmdline.trim();
        let program = program(unseen.read_program(fs::read_link(directory.join("exe"))));
        // Zombies and kernel threads have neither a command line nor a program. A running program may empty its command line.
        if trimmed.is_empty() && program.is_none() {
            return None;
        }
        let comm = read_bounded(&directory.join("comm"), COMM_LIMIT).map(decode).unwrap_or_default();
        let comm = comm.trim_end_matches('\n');
        let names = names(&decode(first), trimmed, program, comm);
        let cmdline = if trimmed.len() == cmdline.len() { cmdline } else { trimmed.to_owned() };
        Some(Self { names, cmdline, is_whole: read < limit, bytes: read })
    }
}

/// When a process started, in ticks of the kernel's clock; 0 if that can't be read.
pub(super) fn started(directory: &Path) -> u64 {
    const FIELD: usize = 19;
    let stat = read_bounded(&directory.join("stat"), STAT_LIMIT).map(decode).unwrap_or_default();
    // The name is in parentheses, and may contain some itself.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_ascii_whitespace().nth(FIELD).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// The names of a process with the first argument `first`: from its command line, its program's file, and the kernel.
fn names(first: &str, cmdline: &str, program: Option<String>, comm: &str) -> Vec<String> {
    let comm = comm.strip_prefix("memfd:").unwrap_or(comm);
    // A path may contain spaces, and a process may write a title into its first argument. It is a path if it ends as
    // the program does.
    let of_path = base_name(first);
    let is_path = match &program {
        Some(program) => program == of_path,
        // The kernel may have cut its name.
        None => {
            !comm.is_empty() && (comm == of_path || comm.len() >= COMM_LENGTH && of_path.starts_with(comm))
        }
    };
    // A name that the kernel has cut is no name of its own: an exemption for the whole name would not match it.
    let is_cut =
        |whole: &str| comm.len() >= COMM_LENGTH && whole.len() > comm.len() && whole.starts_with(comm);
    let comm = if is_cut(program.as_deref().unwrap_or(of_path)) { "" } else { comm };
    let called = if is_path { Some(of_path) } else { cmdline.split_whitespace().next().map(base_name) };
    let mut names: Vec<String> = Vec::with_capacity(3);
    for name in [called.map(str::to_owned), program, Some(comm.to_owned())].into_iter().flatten() {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The name of the program behind a link `exe`: the name of its file, which may be removed, or of its memory file.
fn program(exe: Option<PathBuf>) -> Option<String> {
    let path = decode(exe?.as_os_str().as_bytes().to_vec());
    let path = path.trim_end_matches(DELETED);
    let name = base_name(path.strip_prefix("/memfd:").unwrap_or(path));
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: &str, exe: Option<&str>, comm: &str) -> Vec<String> {
        names(first, first, program(exe.map(PathBuf::from)), comm)
    }

    #[test]
    fn a_process_has_the_names_of_its_command_line_its_file_and_the_kernel() {
        for (first, exe, comm, expected) in [
            ("/opt/xmrig", Some("/opt/xmrig"), "xmrig", &["xmrig"][..]),
            ("/tmp/my dir/xmrig", Some("/tmp/my dir/xmrig"), "xmrig", &["xmrig"]),
            ("/tmp/my dir/xmrig", None, "xmrig", &["xmrig"]),
            ("/a b/a-name-of-more-than-15", None, "a-name-of-more-", &["a-name-of-more-than-15"]),
            (
                "a-name-of-more-than-15",
                Some("/tmp/x"),
                "a-name-of-more-",
                &["a-name-of-more-than-15", "x", "a-name-of-more-"],
            ),
            ("java", Some("/tmp/xmrig"), "java", &["java", "xmrig"]),
            ("python3", Some("/usr/bin/python3.11"), "miner", &["python3", "python3.11", "miner"]),
            ("nginx: worker process /x", Some("/usr/sbin/nginx"), "nginx", &["nginx:", "nginx"]),
            ("x", Some("/tmp/xmrig (deleted)"), "x", &["x", "xmrig"]),
            ("x", Some("/tmp/xmrig (deleted) (deleted)"), "x", &["x", "xmrig"]),
            ("x", Some("/memfd:xmrig (deleted)"), "3", &["x", "xmrig", "3"]),
            ("x", Some("/memfd:a/xmrig (deleted)"), "memfd:a/xmrig", &["x", "xmrig", "a/xmrig"]),
            ("x", Some("/memfd: (deleted)"), "x", &["x"]),
            ("", Some("/tmp/xmrig"), "", &["xmrig"]),
            ("/", None, "", &["/"]),
        ] {
            assert_eq!(of(first, exe, comm), expected, "{first} {exe:?} {comm}");
        }
    }

    #[test]
    fn the_start_is_found_behind_any_name() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(started(directory.path()), 0);
        let numbers: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) S 1 (b) S {}\n", numbers.join(" "));
        fs::write(directory.path().join("stat"), stat).unwrap();
        assert_eq!(started(directory.path()), 22);
        assert!(started(Path::new("/proc/self")) > 0);
    }
}
