use tokio::time::timeout;

use super::*;

const TERM: Duration = Duration::from_secs(8);

#[tokio::test(start_paused = true)]
async fn a_lost_permit_stays_lost() {
    let asked = Instant::now();
    let permit = WritePermit::begin(3, "a", asked, TERM);
    let copy = permit.clone();
    sleep(ms(7999)).await;
    assert!(permit.extend(asked + ms(2000), TERM));
    sleep(ms(2000)).await;
    assert!(copy.holds(), "the copies share one deadline");
    // An answer to an earlier request does not bring the end nearer.
    assert!(permit.extend(asked, TERM));
    assert!(copy.holds());
    sleep(ms(1)).await;
    assert!(
        !permit.extend(Instant::now(), TERM),
        "it is too late, although no caller has checked the permit yet"
    );
    assert!(!copy.holds());

    let permit = WritePermit::begin(4, "a", Instant::now(), TERM);
    permit.end();
    assert!(!permit.extend(Instant::now(), TERM));
    assert!(!permit.holds());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_took_longer_than_the_term_gives_no_permit() {
    assert!(!WritePermit::begin(1, "a", Instant::now() - TERM, TERM).holds());
    assert!(WritePermit::begin(1, "a", Instant::now() - TERM, TERM + ms(1)).holds());
}

#[tokio::test(start_paused = true)]
async fn work_goes_on_as_long_as_the_permit_is_extended() {
    let start = Instant::now();
    let permit = WritePermit::begin(1, "a", start, TERM);
    let owner = permit.clone();
    let renewals = async {
        for _ in 0..3 {
            sleep(ms(5000)).await;
            assert!(owner.extend(Instant::now(), TERM));
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = permit.while_held(std::future::pending::<()>()) => assert!(done.is_none()),
        () = renewals => {}
    }
    assert_eq!(start.elapsed(), ms(23_000));

    // A task that waits is woken by an end before the deadline.
    let permit = WritePermit::begin(2, "a", Instant::now(), TERM);
    let waits = tokio::spawn({
        let permit = permit.clone();
        async move { permit.while_held(std::future::pending::<()>()).await }
    });
    sleep(ms(100)).await;
    permit.end();
    assert!(timeout(ms(1), waits).await.unwrap().unwrap().is_none());
    assert_eq!(WritePermit::always().while_held(async { 1 }).await, Some(1));
}
