use std::collections::BTreeSet;

use super::*;

const MIB: usize = 1 << 20;
const MAX: usize = 8 * MIB;
/// The first budget of targets that are not on probation.
const ALL: usize = FIRST_BUDGET * MAX / 8 * 7;
const TIME: Duration = Duration::from_secs(10);
/// How many answers of `MAX` bytes fit into the budget of a round.
const FIT: usize = 16;
/// The same for targets on probation.
const FIT_ON_PROBATION: usize = 2;

/// Targets, each with the length of its answer.
type Fleet<'a> = [(&'a str, usize)];

/// Reads an answer of `bytes` bytes as far as the budget allows. The error is the reason why the rest is not read.
fn read_one(
    reading: &Arc<Reading>,
    address: &str,
    is_on_probation: bool,
    bytes: usize,
) -> Result<(), FailureReason> {
    let mut read = reading.begin(address, is_on_probation);
    (0..=bytes).step_by(MIB / 4).try_for_each(|bytes| read.note(bytes)).map_err(|failure| failure.reason)?;
    read.end();
    Ok(())
}

fn read(reading: &Arc<Reading>, fleet: &Fleet<'_>) -> Vec<Result<(), FailureReason>> {
    fleet.iter().map(|(address, bytes)| read_one(reading, address, false, *bytes)).collect()
}

/// In which rounds each target's answer was read whole.
fn whole_in(reading: &Arc<Reading>, fleet: &Fleet<'_>, rounds: usize) -> Vec<Vec<usize>> {
    let mut whole = vec![Vec::new(); fleet.len()];
    for round in 0..rounds {
        reading.begin_round(|_| Some(false));
        for (whole, result) in whole.iter_mut().zip(read(reading, fleet)) {
            if result.is_ok() {
                whole.push(round);
            }
        }
    }
    whole
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("node-{number}")).collect()
}

fn fleet(names: &[String], bytes: usize) -> Vec<(&str, usize)> {
    names.iter().map(|name| (name.as_str(), bytes)).collect()
}

#[test]
fn an_answer_is_read_up_to_its_limit_and_the_failure_says_so() {
    for max in [MAX, MIB / 2] {
        let reading = Arc::new(Reading::new(max, TIME));
        let mut read = reading.begin("a", false);
        read.note(max).unwrap();
        let failure = read.note(max + 1).unwrap_err();
        assert_eq!(failure.reason, FailureReason::TooLarge);
        assert!(failure.detail.contains("(collector.max_read)"), "{failure:?}");
    }
}

#[test]
fn large_answers_that_fit_into_a_round_are_read_whole_in_each() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    // The first part of each counts in no budget.
    let names = names(FIT);
    assert_eq!(whole_in(&reading, &fleet(&names, MAX), 5), vec![vec![0, 1, 2, 3, 4]; FIT]);
}

#[test]
fn an_answer_that_does_not_fit_into_the_round_is_deferred_after_its_first_part() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let names = names(FIT + 1);
    let results = read(&reading, &fleet(&names, MAX));
    assert_eq!(results[FIT], Err(FailureReason::Deferred));
    assert!(results[..FIT].iter().all(Result::is_ok));
    assert!(reading.begin("other", false).note(ALWAYS_READ).is_ok());
    let failure = reading.begin("other", false).note(ALWAYS_READ + 1).unwrap_err();
    assert!(failure.detail.contains("only the first 1.0 MiB"), "{failure:?}");
}

#[test]
fn large_answers_take_turns_and_each_is_read_whole_every_few_rounds() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let names = names(5 * FIT);
    for whole in whole_in(&reading, &fleet(&names, 7 * MIB), 40) {
        // Before it is known how long the answers are, too little is reserved for some.
        assert!(whole[0] < 10 && whole[whole.len() - 1] >= 34, "{whole:?}");
        let mut later = whole.windows(2).filter(|pair| pair[0] >= 10);
        assert!(later.all(|pair| pair[1] - pair[0] <= 6), "{whole:?}");
    }
}

#[test]
fn among_equal_waits_the_answer_that_needs_the_fewest_bytes_is_first() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let expecting = |expected| LargeTarget { expected, reservation: None, last_served: 0, last_large: 0 };
    reading.state().large.extend(names(FIT).into_iter().map(|name| (name.into(), expecting(MAX))));
    reading.state().large.insert("small".into(), expecting(2 * MIB));
    reading.begin_round(|_| Some(false));
    let reserved = |name: &str| reading.state().large[name].reservation.map(|reservation| reservation.bytes);
    assert_eq!(reserved("small"), Some(MIB));
    let all = names(FIT).iter().filter(|name| reserved(name) == Some(MAX - MIB)).count();
    assert_eq!(all, FIT - 1, "the first part of each answer needs no reservation");
}

#[test]
fn an_answer_whose_length_varies_is_read_whole_in_each_round_while_the_budget_is_free() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    for bytes in [2 * MIB, 7 * MIB, 2 * MIB, 7 * MIB, 0, 7 * MIB, 2 * MIB, MAX] {
        reading.begin_round(|_| Some(false));
        assert_eq!(read_one(&reading, "a", false, bytes), Ok(()), "{bytes}");
    }
}

#[test]
fn the_unused_rest_of_a_reservation_is_free_for_other_answers() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let names = names(FIT + 2);
    let all = fleet(&names, MAX);
    whole_in(&reading, &all, 5);
    reading.begin_round(|_| Some(false));
    let reserved: BTreeSet<_> = names
        .iter()
        .filter(|name| reading.state().large[name.as_str()].reservation.is_some())
        .cloned()
        .collect();
    assert!(reserved.len() <= FIT);
    for name in &reserved {
        read_one(&reading, name, false, 0).unwrap();
    }
    for name in names.iter().filter(|name| !reserved.contains(*name)) {
        assert_eq!(read_one(&reading, name, false, MAX), Ok(()));
    }
}

/// How targets leave their reservations unused.
#[derive(Clone, Copy, Debug)]
enum Misuse {
    /// They are in the list of targets and are not asked, because they keep failing.
    NotAsked,
    /// They are asked and give no answer with a body.
    Silent,
    /// They give a short answer.
    Short,
    /// They give a short answer, and a large one now and then, which is cut.
    ShortAndLarge,
    /// Each answer breaks off.
    Broken,
}

#[test]
fn unused_reservations_do_not_delay_other_targets() {
    let all = [Misuse::NotAsked, Misuse::Silent, Misuse::Short, Misuse::ShortAndLarge, Misuse::Broken];
    for idle in all {
        let is_asked = !matches!(idle, Misuse::NotAsked);
        let reading = Arc::new(Reading::new(MAX, TIME));
        let (idle_names, honest) = (names(4 * FIT), ["a", "b", "c"]);
        // First all of them send a large answer, so that all are remembered.
        whole_in(&reading, &fleet(&idle_names, MAX), 3);
        let mut whole = 0;
        for round in 0..40 {
            reading.begin_round(|name| (is_asked || !name.starts_with("node")).then_some(false));
            for name in &idle_names {
                match idle {
                    Misuse::NotAsked | Misuse::Silent => {}
                    Misuse::ShortAndLarge if round % 8 == 7 => {
                        let _ = read_one(&reading, name, false, 2 * MAX);
                    }
                    Misuse::Short | Misuse::ShortAndLarge => read_one(&reading, name, false, 0).unwrap(),
                    Misuse::Broken => {
                        let _ = reading.begin(name, false).note(2 * MIB);
                    }
                }
            }
            let results = honest.map(|name| read_one(&reading, name, false, 5 * MIB));
            whole += results.iter().filter(|result| result.is_ok()).count();
        }
        // At worst each of the others has one reservation that it does not use, before it is forgotten.
        let least = if matches!(idle, Misuse::Broken) { 20 } else { 90 };
        assert!(whole >= least, "{idle:?}: {whole} of 120");
    }
}

#[test]
fn a_target_whose_answer_grows_is_read_whole_within_six_rounds_although_all_budget_is_used() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let names = names(3 * FIT);
    let others = fleet(&names, MAX);
    whole_in(&reading, &others, 10);
    // It grows when nothing is free.
    let mut fleet = vec![("grows", MIB)];
    fleet.extend_from_slice(&others);
    let mut sizes = [2, 8, 8, 8, 8, 8].into_iter().map(|mib| mib * MIB);
    let mut whole = Vec::new();
    for bytes in sizes.by_ref() {
        reading.begin_round(|_| Some(false));
        // The others are asked first, so that only its reservation is left for it.
        read(&reading, &others);
        whole.push(read_one(&reading, "grows", false, bytes).is_ok());
    }
    let first = whole.iter().position(|is_whole| *is_whole);
    assert!(first.is_some_and(|round| round <= 5), "{whole:?}");
}

#[test]
fn targets_on_probation_hold_up_each_other_only_and_take_turns() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let failing = names(3 * FIT_ON_PROBATION);
    let mut turns = vec![0; failing.len()];
    for round in 0..40 {
        reading.begin_round(|name| Some(name.starts_with("node")));
        for (turns, name) in turns.iter_mut().zip(&failing) {
            let result = read_one(&reading, name, true, MAX + MIB);
            assert!(result.is_err());
            *turns += usize::from(round >= 10 && result == Err(FailureReason::TooLarge));
        }
        for name in ["x", "y"] {
            assert_eq!(read_one(&reading, name, false, MAX), Ok(()));
        }
    }
    // Two of six in each round.
    assert!(turns.iter().all(|turns| (9..=11).contains(turns)), "{turns:?}");
}

#[test]
fn a_target_on_probation_whose_answer_is_within_its_limit_again_is_read_whole_within_twelve_rounds() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let failing = names(20);
    let mut whole = Vec::new();
    for round in 0..60 {
        reading.begin_round(|_| Some(true));
        for name in &failing {
            read_one(&reading, name, true, MAX + MIB).unwrap_err();
        }
        let bytes = if round < 5 { MAX + MIB } else { 2 * MIB };
        if read_one(&reading, "recovers", true, bytes).is_ok() {
            whole.push(round);
        }
    }
    assert!(whole.first().is_some_and(|first| *first <= 5 + 11), "{whole:?}");
}

#[test]
fn a_target_whose_answers_are_small_again_is_forgotten() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    assert_eq!(whole_in(&reading, &[("a", 9 * MIB)], 1), [[0_usize; 0]]);
    assert_eq!(reading.state().large.len(), 1);
    assert_eq!(whole_in(&reading, &[("a", MIB)], 12)[0].len(), 12);
    assert!(reading.state().large.is_empty());
}

#[test]
fn the_expected_length_of_an_answer_follows_earlier_ones_and_falls_slowly() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    let expected = || reading.expected("a").unwrap();
    let mut ends = Vec::new();
    for bytes in [4 * MIB, MIB / 4, MIB / 4, 7 * MIB] {
        read_one(&reading, "a", false, bytes).unwrap();
        ends.push(expected());
    }
    assert_eq!(ends, [5 * MIB, 5 * MIB / 2, 5 * MIB / 4, MAX]);
    // It breaks off.
    reading.begin("a", false).note(2 * MIB).unwrap();
    assert_eq!(expected(), MAX);
    reading.begin("b", false).note(4 * MIB).unwrap();
    assert_eq!(reading.expected("b"), Some(5 * MIB));
    let mut read = reading.begin("c", false);
    read.note(ALWAYS_READ).unwrap();
    read.cut(ALWAYS_READ);
    drop(read);
    assert_eq!(reading.expected("c"), Some(EXPECTED_GROWTH * ALWAYS_READ));
}

#[test]
fn a_target_waits_from_its_first_large_answer_on_or_from_the_last_one_that_was_read_whole() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    whole_in(&reading, &[("a", 0)], 3);
    let mut cut = reading.begin("a", false);
    cut.cut(MIB);
    drop(cut);
    let last_served = || reading.state().large["a"].last_served;
    assert_eq!(last_served(), 3);
    reading.begin_round(|_| None);
    read_one(&reading, "a", false, MIB / 2).unwrap();
    assert_eq!(last_served(), 4);
    reading.begin_round(|_| None);
    reading.begin("a", false).note(2 * MIB).unwrap();
    assert_eq!(last_served(), 4, "it broke off, and nothing was reserved for it");
}

#[test]
fn a_reservation_is_used_before_free_bytes_and_counts_for_one_round() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    whole_in(&reading, &[("a", MAX)], 3);
    reading.begin_round(|_| Some(false));
    let free = || reading.state().healthy.free;
    let before = free();
    let mut read = reading.begin("a", false);
    read.note(MAX).unwrap();
    assert_eq!((before, free()), (ALL - (MAX - MIB), before));
    drop(read);
    reading.begin_round(|_| Some(false));
    reading.begin_round(|_| None);
    assert!(reading.begin("a", false).reservation.is_none());
}

#[test]
fn a_round_has_the_budget_that_can_be_decoded_in_half_of_the_time() {
    const SECOND: Duration = Duration::from_secs(1);
    let budgets = |decoded: &[(bool, usize, Duration)]| {
        let reading = Arc::new(Reading::new(MAX, TIME));
        for (is_on_probation, bytes, time) in decoded {
            reading.begin("a", *is_on_probation).note_decoded(*bytes, *time);
            reading.begin_round(|_| None);
        }
        let state = reading.state();
        [state.healthy.free, state.probation.free]
    };
    let at_first = [FIRST_BUDGET * MAX / 8 * 7, FIRST_BUDGET * MAX / 8];
    assert_eq!(budgets(&[]), at_first);
    assert_eq!(budgets(&[(false, 1, MIN_DECODING / 2), (true, 1, MIN_DECODING / 2)]), at_first);
    assert_eq!(budgets(&[(false, 32 * MIB, SECOND)]), [140 * MIB, at_first[1]]);
    assert_eq!(budgets(&[(true, 32 * MIB, SECOND)]), [at_first[0], 20 * MIB]);
    // The round before counts by half.
    assert_eq!(budgets(&[(false, 16 * MIB, SECOND), (false, 40 * MIB, SECOND)]), [140 * MIB, at_first[1]]);
    // Each part is enough for one answer, however slow decoding is.
    assert_eq!(budgets(&[(false, 1, 100 * SECOND), (true, 1, 100 * SECOND)]), [MAX, MAX]);
    let most = MAX_BUDGET * MAX / 8;
    assert_eq!(budgets(&[(false, 1 << 40, SECOND), (true, 1 << 40, SECOND)]), [most * 7, most]);
}

#[test]
fn an_answer_for_which_there_was_no_time_is_deferred_and_its_reservation_counts() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    whole_in(&reading, &[("a", MAX)], 3);
    let last_served = || reading.state().large["a"].last_served;
    assert_eq!(last_served(), 3);
    reading.begin_round(|_| Some(false));
    let mut read = reading.begin("a", false);
    read.note(MAX).unwrap();
    let stalled = Failure { reason: FailureReason::Stalled, detail: String::new() };
    let failure = read.defer_if_stalled(stalled);
    assert_eq!((failure.reason, failure.detail.contains("8.0 MiB")), (FailureReason::Deferred, true));
    drop(read);
    assert_eq!((last_served(), reading.expected("a")), (4, Some(MAX)));
    let refused = Failure { reason: FailureReason::TooLarge, detail: String::new() };
    assert_eq!(reading.begin("a", false).defer_if_stalled(refused.clone()), refused);
}

#[test]
fn the_rest_of_a_reservation_is_freed_only_in_its_own_round() {
    let reading = Arc::new(Reading::new(MAX, TIME));
    whole_in(&reading, &[("a", MAX)], 3);
    reading.begin_round(|_| Some(false));
    let read = reading.begin("a", false);
    assert_eq!(reading.state().healthy.free, ALL - (MAX - MIB));
    drop(read);
    assert_eq!(reading.state().healthy.free, ALL);
    reading.begin_round(|_| Some(false));
    let read = reading.begin("a", false);
    reading.begin_round(|_| None);
    drop(read);
    assert_eq!(reading.state().healthy.free, ALL);
}
