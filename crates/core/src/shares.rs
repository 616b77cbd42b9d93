//! Shares a limited amount among many that want different amounts of it.

/// Shares `total` by max-min fairness: small wants are met in full, and the others get equal shares of the rest.
///
/// Returns the most that each gets (`usize::MAX` if everything fits), and the remainder that can't be divided
/// further. If wants are cut, the remainder is less than their number. Sorts `wants`.
#[must_use]
pub(crate) fn fair_share(wants: &mut [usize], total: usize) -> (usize, usize) {
    wants.sort_unstable();
    let mut left = total;
    for (place, want) in wants.iter().enumerate() {
        let sharing = wants.len() - place;
        let share = left / sharing;
        if *want > share {
            return (share, left - share * sharing);
        }
        left -= want;
    }
    (usize::MAX, left)
}

/// How much of `total` each of `wants` gets by [`fair_share`], in their order. The remainder goes to the first of
/// those that want more than their share.
#[must_use]
pub(crate) fn fair_shares(wants: &[usize], total: usize) -> Vec<usize> {
    let (share, mut left) = fair_share(&mut wants.to_vec(), total);
    let get = |want: &usize| {
        let is_one_more = *want > share && left > 0;
        left -= usize::from(is_one_more);
        (*want).min(share.saturating_add(usize::from(is_one_more)))
    };
    wants.iter().map(get).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_wants_are_met_in_full_and_the_others_get_equal_shares() {
        assert_eq!(fair_share(&mut [], 5), (usize::MAX, 5));
        assert_eq!(fair_share(&mut [3, 2], 5), (usize::MAX, 0));
        assert_eq!(fair_share(&mut [1000, 1], 5), (4, 0));
        assert_eq!(fair_share(&mut [9, 1, 9, 9], 12), (3, 2));
        assert_eq!(fair_share(&mut [1, 1, 1], 2), (0, 2));
    }

    proptest! {
        #[test]
        fn the_shares_and_the_rest_add_up_to_the_total(mut wants in vec(0..50_usize, 0..20), total in 0..300_usize) {
            let (share, left) = fair_share(&mut wants, total);
            let given: usize = wants.iter().map(|want| (*want).min(share)).sum();
            let cut = wants.iter().filter(|want| **want > share).count();
            prop_assert!(given <= total);
            prop_assert_eq!(given + left, total);
            prop_assert_eq!(share == usize::MAX, cut == 0);
            prop_assert!(cut == 0 || left < cut);
        }

        #[test]
        fn shares_differ_by_one_at_most_where_they_are_less_than_wanted(
            wants in vec(0..50_usize, 0..20),
            total in 0..300_usize,
        ) {
            let shares = fair_shares(&wants, total);
            prop_assert_eq!(shares.iter().sum::<usize>(), total.min(wants.iter().sum()));
            let cut: Vec<usize> =
                shares.iter().zip(&wants).filter(|(share, want)| share < want).map(|(share, _)| *share).collect();
            let most = shares.iter().max().copied().unwrap_or(0);
            for (place, share) in cut.iter().enumerate() {
                prop_assert!(most - share <= 1 && cut.iter().skip(place).all(|later| later <= share));
            }
            prop_assert!(shares.iter().zip(&wants).all(|(share, want)| share <= want));
        }
    }
}
