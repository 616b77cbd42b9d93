//! The part of the configuration that reads files, and asks the clock.

use std::ffi::OsString;
use std::path::Path;

use jiff::Timestamp;

use super::checks::{Checks, ConfigError, Problem};
use super::{Auth, Config, DiscoveryMode, document, targets, token_file};
use crate::plain_file;

impl Config {
    /// Reads `path` and the environment `variables`, and checks the files that the configuration names.
    pub(crate) fn load(
        path: &Path,
        variables: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = plain_file::read_text(path, plain_file::MAX_TEXT)
            .map_err(|e| ConfigError::new(&name, format!("can't be read: {e}")))?;
        Self::check_with_files(&text, &name, variables, Timestamp::now())
    }

    /// [`Config::parse`], and the checks of the files that the configuration names, so that all mistakes are reported
    /// together.
    pub(crate) fn check_with_files(
        text: &str,
        name: &str,
        variables: impl IntoIterator<Item = (String, OsString)>,
        now: Timestamp,
    ) -> Result<Self, ConfigError> {
        let (config, origin) = document::read(text, name, variables)?;
        let (mut checks, mut warnings) = (config.check(), config.suspicious(now, &origin));
        check_targets(&config, &mut checks, &mut warnings);
        check_token_file(&config, &mut checks);
        check_kubeconfig(&config, &mut checks);
        config.checked(&checks, &warnings, &origin)
    }
}

/// A list that is wrong at the start is refused now; one that becomes wrong later is not. A list that names no target gives
/// a warning: agents may be added later, but until then nothing is collected.
fn check_targets(config: &Config, checks: &mut Checks, warnings: &mut Vec<Problem>) {
    const PATH: &str = "discovery.file";
    let is_used = config.discovery.mode == DiscoveryMode::File;
    let Some(file) = config.discovery.file.as_ref().filter(|_| is_used) else { return };
    let text = match plain_file::read_text(file, plain_file::MAX_TEXT) {
        Ok(text) => text,
        Err(e) => return checks.refuse(PATH, file.display(), format!("a file that can be read ({e})")),
    };
    match targets::parse(text.lines(), config.daemonset.api_port()) {
        Ok(targets) if targets.is_empty() => {
            warnings.push(Problem::new(PATH, format!("{}: {}", file.display(), targets::EMPTY)));
        }
        Ok(_) => {}
        Err(error) => checks.say(PATH, format!("{}: {error}", file.display())),
    }
}

fn check_token_file(config: &Config, checks: &mut Checks) {
    let is_used = config.auth() == Auth::Tokens;
    let Some(file) = config.api.token_file.as_ref().filter(|_| is_used) else { return };
    if let Err(error) = token_file::read(file) {
        checks.say("api.token_file", format!("{}: {error}", file.display()));
    }
}

fn check_kubeconfig(config: &Config, checks: &mut Checks) {
    let Some(file) = &config.kubernetes.kubeconfig else { return };
    if let Err(e) = plain_file::read_text(file, plain_file::MAX_TEXT) {
        let expected = format!("a kubeconfig file that can be read ({e})");
        checks.refuse("kubernetes.kubeconfig", file.display(), expected);
    }
}
