use super::*;

#[tokio::test]
async fn an_answer_that_needs_more_than_all_of_the_budget_takes_all_of_it() {
    let budget = Budget::new(4 << 20);
    let mut lease = budget.lease(true);
    lease.cover(1 << 30).await.unwrap();
    assert_eq!(budget.probation.units.available_permits(), 0);
    drop(lease);
    assert_eq!(budget.probation.units.available_permits(), (1 << 20) / UNIT);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_have_taken_all_of_the_budget_and_need_more_end_one_after_the_other() {
    let budget = Budget::new(4 << 20);
    let mut leases: Vec<_> = (0..4).map(|_| budget.lease(false)).collect();
    for lease in &mut leases {
        lease.cover((3 << 18) + FREE).await.unwrap();
    }
    assert_eq!(budget.left(), 0);
    let begun = Instant::now();
    let end = async |mut lease: Lease| {
        lease.cover(2 << 20).await.unwrap();
        let exceeds = lease.ends_at().is_some();
        // It needs more again, and nothing is left.
        lease.cover(3 << 20).await.unwrap();
        exceeds
    };
    let all = futures_util::future::join_all(leases.into_iter().map(end));
    let exceeded = tokio::time::timeout(Duration::from_secs(1), all).await.expect("they end");
    assert!(exceeded.contains(&true) && begun.elapsed().is_zero());
    assert_eq!((budget.left(), budget.standing.overdraft.available_permits()), (3 << 20, 1));
}

/// A budget of which bodies hold everything, their leases, and one that exceeds it, so that others have to wait.
async fn all_taken(bodies: usize) -> (Budget, Vec<Lease>, Lease) {
    let budget = Budget::new(4 << 20);
    let mut leases: Vec<_> = (0..bodies).map(|_| budget.lease(false)).collect();
    for lease in &mut leases {
        lease.cover((3 << 20) / bodies + FREE).await.unwrap();
    }
    let mut beyond = budget.lease(false);
    beyond.cover(1 << 20).await.unwrap();
    assert!(budget.left() == 0 && beyond.ends_at().is_some());
    (budget, leases, beyond)
}

/// What an agent does that sends a byte from time to time.
async fn drip(lease: &mut Lease, every: Duration) -> Failure {
    loop {
        let byte = async {
            tokio::time::sleep(every).await;
            Ok(())
        };
        if let Err(failure) = lease.receive(byte).await {
            return failure;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_sends_slowly_keeps_its_memory_from_others_for_a_second_only() {
    for every in [Duration::from_millis(1), Duration::from_millis(300), Duration::from_hours(1)] {
        let (budget, mut leases, _beyond) = all_taken(2).await;
        let slow = leases.pop().unwrap();
        let mut quick = leases.pop().unwrap();
        // What is received at once does not count, however much it is.
        for _ in 0..1000 {
            quick.receive(async { Ok(()) }).await.unwrap();
        }
        let slow = async {
            let mut slow = slow;
            let begun = Instant::now();
            let failure = drip(&mut slow, every).await;
            assert_eq!(failure.reason, FailureReason::Stalled);
            assert!(failure.detail.contains("collector.byte_budget"), "{failure:?}");
            let after = begun.elapsed();
            assert!(after >= PATIENCE && after < PATIENCE + 3 * RECALL_EVERY, "{after:?} with {every:?}");
        };
        let waiting = async {
            let mut lease = budget.lease(false);
            lease.cover(1 << 20).await.unwrap();
            lease
        };
        let (lease, ()) = tokio::join!(waiting, slow);
        assert!(lease.ends_at().is_none());
        // Nothing waits any more, so no other body has to end.
        let unharmed =
            tokio::time::timeout(Duration::from_hours(1), drip(&mut quick, Duration::from_secs(2)));
        assert!(unharmed.await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_slow_bodies_end_as_a_waiting_one_needs_and_no_more() {
    let (budget, leases, _beyond) = all_taken(6).await;
    let waiting = async {
        let mut lease = budget.lease(false);
        lease.cover((1 << 20) + FREE).await.unwrap();
        lease
    };
    let slow = leases.into_iter().map(async |mut lease| {
        let drip = drip(&mut lease, Duration::from_millis(50));
        tokio::time::timeout(Duration::from_secs(20), drip).await.is_ok()
    });
    let (lease, ended) = tokio::join!(waiting, futures_util::future::join_all(slow));
    // Each holds half a MiB.
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 2);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn a_body_within_its_free_share_or_beyond_the_budget_is_not_recalled() {
    let (budget, leases, mut beyond) = all_taken(1).await;
    let mut small = budget.lease(false);
    small.cover(FREE).await.unwrap();
    let mut waiting = budget.lease(false);
    let patient = Duration::from_secs(10);
    let (small, beyond, waiting) = tokio::join!(
        tokio::time::timeout(patient, drip(&mut small, Duration::from_millis(50))),
        tokio::time::timeout(patient, drip(&mut beyond, Duration::from_millis(50))),
        tokio::time::timeout(patient, waiting.cover(1 << 20)),
    );
    assert!(small.is_err() && beyond.is_err() && waiting.is_err());
    drop(leases);
}
