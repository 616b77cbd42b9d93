//! Waits for a condition. Tests let time pass in no other way, so that each wait has a condition.

use std::fmt::Display;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two checks.
const PAUSE: Duration = Duration::from_millis(50);

/// The result of a check: `Ok`, `Some` and `true` end the wait, other results are the last state.
pub trait Look {
    /// The result of the wait.
    type Found;

    /// The result, or the state instead.
    fn look(self) -> Result<Self::Found, String>;
}

impl<T> Look for Option<T> {
    type Found = T;

    fn look(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, E: Display> Look for Result<T, E> {
    type Found = T;

    fn look(self) -> Result<T, String> {
        // The alternate form of an `anyhow::Error` names its causes.
        self.map_err(|state| format!("{state:#}"))
    }
}

impl Look for bool {
    type Found = ();

    fn look(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not so".to_owned()) }
    }
}

/// Checks until the result is there, for at most `limit`. The error has the condition and the last state.
pub async fn until<L: Look>(
    what: &str,
    limit: Duration,
    look: impl AsyncFnMut() -> L,
) -> anyhow::Result<L::Found> {
    until_every(PAUSE, what, limit, look).await
}

/// The same, with a pause of its own between two checks: for checks that cost CPU time of the service.
pub async fn until_every<L: Look>(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> anyhow::Result<L::Found> {
    let deadline = Instant::now() + limit;
    let mut seen = "nothing yet".to_owned();
    loop {
        match timeout_at(deadline, look()).await.map(Look::look) {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(state)) => seen = state,
            Err(_) => bail!("waited {limit:?} for {what}; the last look did not end; before it: {seen}"),
        }
        if Instant::now() + pause > deadline {
            bail!("waited {limit:?} for {what}; last seen: {seen}");
        }
        sleep(pause).await;
    }
}

/// Checks for as long as `period`, and fails as soon as the condition is not met: for changes that must *not* happen.
pub async fn throughout<L: Look>(
    what: &str,
    period: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> anyhow::Result<()> {
    let end = Instant::now() + period;
    while Instant::now() < end {
        match timeout_at(end + period, look()).await.map(Look::look) {
            Ok(Ok(_)) => {}
            Ok(Err(state)) => bail!("not throughout {period:?}: {what}; seen: {state}"),
            Err(_) => bail!("not throughout {period:?}: {what}; a look did not end"),
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_says_what_was_waited_for_and_what_was_seen() {
        let error = until::<Result<(), &str>>("the moon", PAUSE * 3, async || Err("clouds")).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("the moon") && text.ends_with("last seen: clouds"), "{text}");
        let error = until::<bool>("an answer", PAUSE, async || std::future::pending().await).await;
        assert!(error.unwrap_err().to_string().contains("did not end"));
    }

    #[tokio::test]
    async fn it_ends_when_it_is_there() {
        let mut looks = 0;
        let found = until("the third look", Duration::from_secs(10), async || {
            looks += 1;
            (looks == 3).then_some("there")
        });
        assert_eq!(found.await.unwrap(), "there");
        throughout("calm", PAUSE, async || true).await.unwrap();
        throughout("calm", PAUSE, async || false).await.unwrap_err();
    }
}
