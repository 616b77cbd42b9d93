use super::*;

const LIMITS: Limits = Limits { records: 1000, bytes: 1 << 20, process: 64, cmdline: 64, field: 64 };

fn intake(batch: Vec<u8>) -> Intake {
    Intake::new(Unpacker::new(Encoding::Identity).unwrap(), Decoder::new(&LIMITS), batch)
}

/// What an answer may have read grows when a round begins. What was lost before that is lost all the same.
#[test]
fn an_answer_that_was_cut_is_never_whole() {
    let reading = Arc::new(Reading::new(4 << 20, Duration::from_secs(1)));
    let mut read = reading.begin("a", false);
    let most = 1 << 10;
    let mut intake = intake(b" ".repeat(1 << 12));
    assert!(matches!(intake.turn(most), Ok(Turn::Cut)));
    reading.begin_round(|_| Some(false));
    let failure = read.cut(most);
    assert_eq!(failure.reason, FailureReason::Deferred);
    let (_, trouble) = intake.finish(Some(failure.clone()));
    assert_eq!(trouble, Some(failure));
}

#[test]
fn a_turn_is_short_and_the_next_one_goes_on_where_it_ended() {
    let record = r#"{"pod":"p","namespace":"ns-a","process":"x","timestamp":"2026-01-01T00:00:00Z"}"#;
    let body = format!("[{}]", vec![record; 10_000].join(","));
    let mut intake = intake(body.clone().into_bytes());
    let mut turns = 0;
    while matches!(intake.turn(usize::MAX), Ok(Turn::More)) {
        turns += 1;
        assert!(intake.unpacked <= turns * (TURN + STEP));
    }
    assert_eq!((turns, intake.unpacked), (body.len() / TURN, body.len()));
    let (answer, trouble) = intake.finish(None);
    assert_eq!((answer.records.len(), trouble), (1000, None));
}

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
