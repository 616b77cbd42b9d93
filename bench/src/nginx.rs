//! nginx beside the aggregator: the same bytes as files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::unistd::Pid;

use crate::process::{Cpu, Running};

const CONFIG: &str = include_str!("../nginx.conf");
/// The port of nginx.
pub(crate) const PORT: u16 = 18_091;
/// The path of Debian's package, which is not in every `PATH`.
const USUAL: &str = "/usr/sbin/nginx";
const START: Duration = Duration::from_secs(10);

pub(crate) struct Nginx {
    process: Option<Running>,
    workers: Vec<Pid>,
}

/// The program, if it exists and has the modules that are needed.
pub(crate) fn find(program: &Path) -> anyhow::Result<PathBuf> {
    let candidates = [program, Path::new(USUAL)];
    let version = |path| Some((path, Command::new(path).arg("-V").output().ok()?.stderr));
    let (path, version) = candidates.into_iter().find_map(version).with_context(|| {
        format!(
            "{}: not found; install nginx (the package `nginx` of Debian and others), name it with --nginx, or measure without \
             it by --no-nginx",
            program.display()
        )
    })?;
    let version = String::from_utf8_lossy(&version);
    anyhow::ensure!(
        version.contains("--with-http_gzip_static_module"),
        "{}: built without the module gzip_static, which sends a body as it was compressed before",
        path.display()
    );
    Ok(path.to_owned())
}

/// The files that are served at the API's path.
pub(crate) struct Files<'a> {
    pub(crate) path: &'a str,
    pub(crate) plain: &'a [u8],
    pub(crate) gzip: &'a [u8],
}

impl Nginx {
    pub(crate) fn start(
        program: &Path,
        workers: usize,
        nodes: usize,
        files: &Files<'_>,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let name = files.path.trim_start_matches('/');
        let plain = directory.join("www").join(name);
        std::fs::create_dir_all(plain.parent().context("a path below the root")?)?;
        std::fs::write(&plain, files.plain)?;
        std::fs::write(plain.with_extension("gz"), files.gzip)?;
        // Workers of another user could not read our directory.
        let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
        let config = CONFIG
            .replace("@USER@", if is_root { "user root;" } else { "" })
            .replace("@WORKERS@", &workers.to_string())
            .replace("@PORT@", &PORT.to_string())
            .replace("@NODES@", &nodes.to_string());
        let path = directory.join("nginx.conf");
        std::fs::write(&path, config)?;
        let log = directory.join("nginx.log");
        let mut command = Command::new(program);
        command.arg("-p").arg(directory).arg("-c").arg(&path).stdin(Stdio::null());
        // Before nginx has read its configuration, it writes errors to the file of its package.
        command.args(["-e", "stderr"]).stderr(std::fs::File::create(&log)?);
        let mut process = Running::start(&mut command)?;
        let children = format!("/proc/{0}/task/{0}/children", process.pid()?);
        let deadline = Instant::now() + START;
        let workers = loop {
            let children = std::fs::read_to_string(&children).unwrap_or_default();
            let pids: Vec<Pid> =
                children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect();
            if pids.len() == workers {
                break pids;
            }
            if let Some(status) = process.child().try_wait()? {
                let errors = std::fs::read_to_string(&log)?;
                anyhow::bail!("nginx has ended: {status}\n{errors}");
            }
            anyhow::ensure!(Instant::now() < deadline, "nginx does not start");
            std::thread::sleep(Duration::from_millis(20));
        };
        Ok(Self { process: Some(process), workers })
    }

    /// The CPU time of the workers.
    pub(crate) fn cpu(&self) -> anyhow::Result<Vec<Cpu>> {
        self.workers.iter().map(|pid| Cpu::of(*pid)).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The signal lets nginx stop its workers, because a killed nginx would leave them running.
        if let Some(Err(error)) = self.process.take().map(Running::stop) {
            eprintln!("nginx: {error:#}");
        }
    }
}
