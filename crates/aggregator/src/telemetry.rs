//! Writes the log to standard error.

#[cfg(test)]
pub(crate) mod logged;

use std::io::{self, IsTerminal, Write, stderr};

use std::sync::{LazyLock, OnceLock};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::counters::{By, count};

use crate::config::{Format, Level, Logger};

/// Moves the cursor to the beginning of a terminal's line, and clears the line.
pub(crate) const CLEAR_LINE: &str = "\r\x1b[K";

/// Counts the entries that have the field `alert`, by its value: one of those in the code.
static ALERTS: LazyLock<By> = LazyLock::new(By::default);
/// Sets the level while the process runs.
static LEVEL: OnceLock<Box<dyn Fn(Level) + Send + Sync>> = OnceLock::new();

/// The counters of the entries with an alert.
pub(crate) fn alerts() -> By {
    ALERTS.clone()
}

/// Sets the level from now on.
pub(crate) fn set_level(level: Level) {
    if let Some(set) = LEVEL.get() {
        set(level);
    }
}

/// Sets up logging for the whole process. With `clear`, each entry first clears its line, because a progress line may
/// be there.
pub(crate) fn init(logger: Logger, clear: bool) {
    // The targets filter by the level, so that it can change.
    let lines =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(move || Lines { clear });
    match logger.format {
        Format::Json => {
            install(lines.json().flatten_event(true).with_current_span(false).finish(), logger.level);
        }
        Format::Text => {
            install(lines.with_ansi(stderr().is_terminal()).with_target(false).finish(), logger.level);
        }
    }
}

fn install<S>(lines: S, level: Level)
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync + 'static,
{
    let (targets, handle) = reload::Layer::new(targets(level));
    // An error means that a subscriber exists already, as in tests.
    if lines.with(CountAlerts).with(targets).try_init().is_ok() {
        let set = move |level| drop(handle.reload(self::targets(level)));
        drop(LEVEL.set(Box::new(set)));
    }
}

fn targets(level: Level) -> Targets {
    let level = match level {
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    // Off, because the caller of a library logs a failure once, and knows the purpose of the request.
    let quiet = if level == LevelFilter::DEBUG { LevelFilter::DEBUG } else { LevelFilter::OFF };
    Targets::new().with_default(level).with_target("kube_client", quiet).with_target("kube_runtime", quiet)
}

/// Counts the entries with an alert.
struct CountAlerts;

impl<S: Subscriber> Layer<S> for CountAlerts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let name = |field: &Field| field.name() == "alert";
        if event.metadata().fields().iter().any(|field| name(&field)) {
            event.record(&mut Alert);
        }
    }
}

/// Reads the field `alert`.
struct Alert;

/// Every alert that the code has.
const KNOWN: [&str; 15] = [
    "api_server",
    "auth",
    "brake",
    "certificate",
    "clock",
    "config",
    "discovery",
    "evidence",
    "exemption",
    "gateway",
    "leader",
    "notices",
    "output",
    "state",
    "unusable",
];

impl Visit for Alert {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "alert" {
            let known = KNOWN.iter().find(|known| **known == value);
            count(&ALERTS, "alert", known.copied().unwrap_or("other"));
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
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
