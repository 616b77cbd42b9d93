//! Terms over objects that operators, other replicas and restored backups change meanwhile.

mod alerts;
mod changed;
mod clocks;
mod history;
mod lost;
mod operators;
mod shown;
mod stage;
mod stale_watches;
mod taking_over;
mod terms;
mod unreadable;
