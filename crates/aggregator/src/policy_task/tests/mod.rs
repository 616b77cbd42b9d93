//! One term over objects that operators, other replicas and restored backups change meanwhile.

mod operators;
mod stage;
mod unreadable;
