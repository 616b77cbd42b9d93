//! Behaviour that only deliberate faults in the deciding code have shown to be untested (surviving mutants).

mod acts;
mod apps;
mod believed;
mod bounds;
mod braked;
mod changes;
mod counted;
mod ended;
mod found;
mod graces;
mod heard_elsewhere;
mod hidden;
mod kept;
mod leaders;
mod nodes;
mod simulated;
mod tenants;
mod told;
mod withheld;
