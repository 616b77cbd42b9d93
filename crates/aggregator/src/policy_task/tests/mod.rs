//! One term over objects that operators, other replicas and restored backups change meanwhile.

mod alerts;
mod changed;
mod clocks;
mod hearing;
mod history;
mod lost;
mod operators;
mod shown;
mod stage;
mod taking_over;
mod terms;
mod unreadable;
