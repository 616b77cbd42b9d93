use super::*;

const LIMITS: Limits = Limits { records: 1000, bytes: 1 << 20, process: 64, cmdline: 64, field: 64 };

fn intake(batch: Vec<u8>) -> Intake {
    Intake::new(Unpacker::new(Encoding::Identity).unwrap(), Decoder::new(&LIMITS), batch)
}

/// How much of an answer may be read grows when a round begins. Bytes that were lost before stay lost.
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
    let (_, shown) = intake.finish(Some(failure.clone()));
    assert_eq!(shown, Some(failure));
}

#[test]
fn a_turn_is_short_and_the_next_one_goes_on_where_it_ended() {
    let record = r#"{"pod":"p","namespace":"ns-a","process":"x","timestamp":"2026-01-01T00:00:00Z"}"#;
    let body = format!("[{}]", vec![record; 10_000].join(","));
    let mut intake = intake(body.clone().into_bytes());
    let mut turns = 0;
    while matches!(intake.turn(usize::MAX), Ok(Turn::More)) {
        turns += 1;
        assert!(intake.unpacked <= turns * (BYTES_PER_TURN + BYTES_PER_STEP));
    }
    assert_eq!((turns, intake.unpacked), (body.len() / BYTES_PER_TURN, body.len()));
    let (answer, failure) = intake.finish(None);
    assert_eq!((answer.records.len(), failure), (1000, None));
}
