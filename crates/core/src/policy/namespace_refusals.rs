//! Caches whether the policy refuses a namespace.

use std::cell::RefCell;

use super::Policy;
use crate::names::Text;

/// Returns what [`Policy::refuses`] returns, and caches the latest answer. Apps and violations are ordered by
/// namespace, so most calls ask about the same namespace as the call before.
pub(super) struct NamespaceRefusals<'a> {
    policy: &'a Policy,
    last: RefCell<Option<(Text, Option<&'static str>)>>,
}

impl<'a> NamespaceRefusals<'a> {
    pub(super) fn new(policy: &'a Policy) -> Self {
        Self { policy, last: RefCell::default() }
    }

    /// Why Apps of `namespace` may not be blocked; `None` if they may be.
    pub(super) fn of(&self, namespace: &Text) -> Option<&'static str> {
        let mut last = self.last.borrow_mut();
        match &*last {
            Some((known, answer)) if known == namespace => *answer,
            _ => {
                let answer = self.policy.refuses(namespace);
                *last = Some((namespace.clone(), answer));
                answer
            }
        }
    }
}
