//! Behaviour that only deliberate faults in the deciding code have shown to be untested (surviving mutants).

mod apps;
mod believed;
mod bounds;
mod braked;
mod changes;
mod commands;
mod counted;
mod ended;
mod found;
mod graces;
mod hidden;
mod leaders;
mod nodes;
mod notified;
mod other_replicas;
mod persisted;
mod simulated;
mod tenants;
mod withheld;
