//! Laws of everything that reads bytes which others have written: agents, operators, whoever asks the API.
//!
//! Each function takes any bytes at all and panics where a law is broken. `make fuzz` feeds them with bytes that nobody thought of;
//! the tests feed them with those in `fuzz/corpus`, so that what was found once is looked at with every change. The functions
//! lie beside what they judge, because they look at what is private there.

mod replay;
mod report;

pub use self::report::report;
pub use crate::api::fuzz::query;
pub use crate::collector::fuzz::http;
pub use crate::config::fuzz::config;
pub use crate::config::targets::fuzz::targets;
