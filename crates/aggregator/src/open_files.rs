//! Raises the limit of open files and sockets of the process.
//!
//! Shells, and some container runtimes, set a soft limit of 1,024 for programs that use `select`. With that many
//! clients of the API, no socket would be left for the agents, and no file for the outputs.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. Warns if fewer than `needed` files may be open then.
pub(crate) fn raise_limit(needed: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = if limit == raised {
        limit.current
    } else if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files can't be raised");
        limit.current
    } else {
        limit.maximum
    };
    let is_short = |allowed: u64| usize::try_from(allowed).is_ok_and(|allowed| allowed < needed);
    if let Some(allowed) = allowed.filter(|allowed| is_short(*allowed)) {
        tracing::warn!(
            allowed,
            needed,
            "few files may be open: with many clients of the API and many agents, some requests and writes will fail; \
             raise the limit (ulimit -n)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let below = maximum.map_or(1 << 20, |maximum| maximum - 1);
        setrlimit(Resource::Nofile, Rlimit { current: Some(below), maximum }).unwrap();
        raise_limit(1);
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: maximum, maximum });
    }
}
