use super::*;

#[tokio::test]
async fn an_answer_that_needs_more_than_all_of_the_budget_takes_all_of_it() {
    let budget = Budget::new(4 << 20);
    let mut lease = budget.lease(true);
    lease.cover(1 << 30).await;
    assert_eq!(budget.probation.units.available_permits(), 0);
    drop(lease);
    assert_eq!(budget.probation.units.available_permits(), (1 << 20) / BYTES_PER_UNIT);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_have_taken_all_of_the_budget_and_need_more_end_one_after_the_other() {
    let budget = Budget::new(4 << 20);
    let mut leases: Vec<_> = (0..4).map(|_| budget.lease(false)).collect();
    for lease in &mut leases {
        lease.cover((3 << 18) + FREE_BYTES).await;
    }
    assert_eq!(budget.left(), 0);
    let begun = Instant::now();
    let end = async |mut lease: Lease| {
        lease.cover(2 << 20).await;
        let exceeds = lease.ends_at().is_some();
        // It needs more again, and nothing is left.
        lease.cover(3 << 20).await;
        exceeds
    };
    let all = futures_util::future::join_all(leases.into_iter().map(end));
    let exceeded = tokio::time::timeout(Duration::from_secs(1), all).await.expect("they end");
    assert!(exceeded.contains(&true) && begun.elapsed().is_zero());
    assert_eq!((budget.left(), budget.healthy.overdraft.available_permits()), (3 << 20, 1));
}

/// A budget without free units, the leases that hold them, and a lease with the overdraft. Any further body has to wait.
async fn all_taken(bodies: usize) -> (Budget, Vec<Lease>, Lease) {
    let budget = Budget::new(4 << 20);
    let mut leases: Vec<_> = (0..bodies).map(|_| budget.lease(false)).collect();
    for lease in &mut leases {
        lease.cover((3 << 20) / bodies + FREE_BYTES).await;
    }
    let mut overdrawn = budget.lease(false);
    overdrawn.cover(1 << 20).await;
    assert!(budget.left() == 0 && overdrawn.ends_at().is_some());
    (budget, leases, overdrawn)
}

/// Receives from an agent that sends a byte each `every`, until the body has to end.
async fn receive_slowly(lease: &mut Lease, every: Duration) -> Failure {
    loop {
        let byte = async {
            tokio::time::sleep(every).await;
            Ok(())
        };
        if let Err(failure) = lease.receive(byte).await {
            assert!(lease.is_ended());
            return failure;
        }
    }
}

/// As [`receive_slowly`]; nothing if the body goes on for `limit`.
async fn receive_for(limit: Duration, lease: &mut Lease, every: Duration) -> Option<Failure> {
    tokio::time::timeout(limit, receive_slowly(lease, every)).await.ok()
}

#[tokio::test(start_paused = true)]
async fn while_a_body_waits_for_memory_a_slow_one_ends_after_a_second_of_waits() {
    for every in [Duration::from_millis(1), Duration::from_millis(300), Duration::from_hours(1)] {
        let (budget, mut leases, _overdrawn) = all_taken(2).await;
        let (mut slow, mut quick) = (leases.pop().unwrap(), leases.pop().unwrap());
        // Nothing waits for memory, so these waits do not count.
        assert_eq!(receive_for(Duration::from_mins(1), &mut slow, every).await, None);
        let begun = Instant::now();
        let slow = async {
            let mut slow = slow;
            let failure = receive_slowly(&mut slow, every).await;
            assert_eq!(failure.reason, FailureReason::Stalled);
            assert!(failure.detail.contains("collector.byte_budget"), "{failure:?}");
            let after = begun.elapsed();
            assert!(after >= MAX_WAIT && after <= MAX_WAIT + 2 * CHECK_EVERY, "{after:?} with {every:?}");
        };
        let quick = async {
            // Bytes that have arrived already are no wait for the agent, even if decoding them takes long.
            for _ in 0..100 {
                quick.receive(async { Ok(()) }).await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            quick
        };
        let waiting = async {
            let mut lease = budget.lease(false);
            lease.cover(1 << 20).await;
            assert!(lease.ends_at().is_none());
            lease
        };
        let (_lease, mut quick, ()) = tokio::join!(waiting, quick, slow);
        // Nothing waits any more, so no other body has to end.
        assert_eq!(receive_for(Duration::from_hours(1), &mut quick, Duration::from_secs(2)).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn waits_count_together_in_all_times_of_shortage_and_only_in_these() {
    let (budget, mut leases, _overdrawn) = all_taken(1).await;
    let mut slow = leases.pop().unwrap();
    let every = Duration::from_millis(10);
    for _ in 0..3 {
        // Two bodies that wait at the same time count once.
        let mut waiting = [budget.lease(false), budget.lease(false)];
        let [a, b] = &mut waiting;
        let shortage = Duration::from_millis(300);
        let wait = |lease| tokio::time::timeout(shortage, Lease::cover(lease, 1 << 20));
        let ended = receive_for(shortage, &mut slow, every);
        let (a, b, ended) = tokio::join!(wait(a), wait(b), ended);
        assert!(a.is_err() && b.is_err() && ended.is_none());
        assert_eq!(receive_for(Duration::from_mins(1), &mut slow, every).await, None);
    }
    let mut waiting = budget.lease(false);
    let begun = Instant::now();
    let ((), ended) = tokio::join!(waiting.cover(1 << 20), async {
        let ended = receive_slowly(&mut slow, every).await;
        drop(slow);
        ended
    });
    assert_eq!(ended.reason, FailureReason::Stalled);
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_more_slow_bodies_end_than_a_waiting_one_needs() {
    let (budget, leases, _overdrawn) = all_taken(6).await;
    let waiting = async {
        let mut lease = budget.lease(false);
        lease.cover((1 << 20) + FREE_BYTES).await;
        lease
    };
    let slow = leases.into_iter().map(async |mut lease| {
        receive_for(Duration::from_secs(20), &mut lease, Duration::from_millis(20)).await.is_some()
    });
    let (_lease, ended) = tokio::join!(waiting, futures_util::future::join_all(slow));
    // Each holds half a MiB.
    assert_eq!(ended.iter().filter(|ended| **ended).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_holds_none_of_the_budget_goes_on_however_slow_its_agent_is() {
    let (budget, _leases, _overdrawn) = all_taken(1).await;
    let (mut small, mut waiting) = (budget.lease(false), budget.lease(false));
    small.cover(FREE_BYTES).await;
    let limit = Duration::from_secs(10);
    let waiting = tokio::time::timeout(limit, waiting.cover(1 << 20));
    let (small, waiting) = tokio::join!(receive_for(limit, &mut small, Duration::from_millis(50)), waiting);
    assert!(small.is_none() && waiting.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_exceeds_the_budget_ends_sooner_while_others_wait() {
    let every = Duration::from_millis(10);
    let (budget, _leases, mut overdrawn) = all_taken(1).await;
    // Nothing waits for memory.
    assert_eq!(receive_for(OVERDRAFT_TIME, &mut overdrawn, every).await, None);
    let waiting = async |time| {
        let mut waiting = budget.lease(false);
        assert!(tokio::time::timeout(time, waiting.cover(1 << 20)).await.is_err());
    };
    let begun = Instant::now();
    let (failure, ()) =
        tokio::join!(receive_slowly(&mut overdrawn, every), waiting(MAX_OVERDRAFT_WAIT + every));
    assert_eq!(failure.reason, FailureReason::Stalled);
    assert!(begun.elapsed() >= MAX_OVERDRAFT_WAIT && begun.elapsed() < OVERDRAFT_TIME);
}
