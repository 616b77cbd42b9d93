//! Laws of the parts that read input from agents, operators and clients of the API.
//!
//! Each function takes any bytes and panics if a law is broken. `make fuzz` passes made-up bytes to them. The tests pass
//! the inputs in `fuzz/corpus`, so that each change is checked against every input that once broke a law.
//!
//! Laws of public items are in `fuzz/laws`. These three are here because they need private items:
//!
//! - `config` parses the same file with the configuration's own YAML parser, and counts the mistakes of a refusal.
//! - `http` plays a connection below the collector's client.
//! - `query` calls the filter, the cursor and the page of violations without a server.

pub use crate::api::fuzz::query;
pub use crate::collector::fuzz::http;
pub use crate::config::fuzz::config;

#[cfg(test)]
#[path = "../../../fuzz/laws/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn answers_of_agents_as_they_come_over_the_wire() {
        replay("http", super::http);
    }

    #[test]
    fn configurations() {
        replay("config", super::config);
    }

    #[test]
    fn queries() {
        replay("query", super::query);
    }
}
