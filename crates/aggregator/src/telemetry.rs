//! Writes the log to standard error.

#[cfg(test)]
pub(crate) mod logged;

use std::io::{self, IsTerminal, Write, stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Format, Level, Logger};

/// Moves the cursor to the beginning of a terminal's line, and clears the line.
pub(crate) const CLEAR_LINE: &str = "\r\x1b[K";

/// Sets up logging for the whole process. With `clear`, each entry first clears its line, because a progress line may
/// be there.
pub(crate) fn init(logger: Logger, clear: bool) {
    let level = match logger.level {
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(move || Lines { clear });
    // Off, because the caller of a library logs a failure once, and knows the purpose of the request.
    let quiet = if level == LevelFilter::DEBUG { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let targets = Targets::new()
        .with_default(level)
        .with_target("kube_client", quiet)
        .with_target("kube_runtime", quiet);
    let result = match logger.format {
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).finish().with(targets).try_init()
        }
        Format::Text => {
            lines.with_ansi(stderr().is_terminal()).with_target(false).finish().with(targets).try_init()
        }
    };
    // An error means that a subscriber exists already, as in tests.
    drop(result);
}

/// Writes to standard error. A line that can't be written is lost without an error. With an error, the subscriber
/// would print it to standard error and panic, but a terminal that closes must not end the service.
struct Lines {
    clear: bool,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stderr = stderr().lock();
        if self.clear {
            let _ = stderr.write_all(CLEAR_LINE.as_bytes());
        }
        let _ = stderr.write_all(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = stderr().flush();
        Ok(())
    }
}
