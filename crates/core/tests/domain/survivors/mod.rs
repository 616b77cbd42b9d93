//! What deliberate faults in the deciding code have shown to be tested by nothing else.

mod acts;
mod apps;
mod counted;
mod found;
mod heard_elsewhere;
mod hidden;
mod leaders;
mod nodes;
