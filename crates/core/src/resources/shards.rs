//! How many shards are needed.

use crate::hash::shard_of;

/// The least number of shards, from `existing` up to `max`, of which none has more than `room` bytes; `needs` are the hashes of what
/// goes into them, and their bytes.
///
/// At most twice as many as the bytes need, and a few more, because each shard costs the gateway memory. A tenant that chooses
/// the names of its Apps can put them all into one shard, whatever the number is. Then some shards have more than `room`.
pub(super) fn count(needs: &[(u64, usize)], room: usize, existing: usize, max: usize) -> usize {
    let fits = |count: usize| {
        let mut load = vec![0_usize; count];
        needs.iter().all(|(hash, need)| {
            load.get_mut(shard_of(*hash, count)).is_none_or(|load| {
                *load += need;
                *load <= room
            })
        })
    };
    let total: usize = needs.iter().map(|(_, need)| need).sum();
    let least = total.div_ceil(room.max(1)).clamp(1, needs.len().max(1));
    let most = (least * 2 + SPARE_SHARE).min(max);
    let first = least.max(existing).min(max);
    (first..most).find(|count| fits(*count)).unwrap_or(first.max(most.min(needs.len())))
}

/// How many more than twice as many as the bytes ask for.
const SPARE_SHARE: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hash::stable_hash;

    fn load(needs: &[(u64, usize)], count: usize) -> Vec<usize> {
        let mut load = vec![0; count];
        for (hash, need) in needs {
            load[shard_of(*hash, count)] += need;
        }
        load
    }

    #[test]
    fn one_is_enough_for_nothing_and_more_than_is_needed_stay() {
        assert_eq!(count(&[], 100, 1, 1024), 1);
        assert_eq!(count(&[], 100, 7, 1024), 7);
        assert_eq!(count(&[(1, 500), (2, 500)], 100, 1, 1024), 2, "what fits nowhere is as alone as can be");
    }

    #[test]
    fn names_that_were_chosen_for_the_same_shard_lead_to_few_shards_too() {
        let meeting =
            (0_u64..).map(|n| stable_hash(&[&n.to_string()])).filter(|hash| shard_of(*hash, 512) == 0);
        let needs: Vec<(u64, usize)> = meeting.take(40).map(|hash| (hash, 60)).collect();
        assert_eq!(count(&needs, 1000, 1, 1024), 3 * 2 + SPARE_SHARE);
    }

    proptest! {
        #[test]
        fn small_parts_fit_into_few_shards(
            names in prop::collection::vec((any::<u32>(), 1..=62_usize), 0..2000), existing in 1..20_usize
        ) {
            let needs: Vec<(u64, usize)> =
                names.iter().map(|(name, need)| (stable_hash(&[&name.to_string()]), *need)).collect();
            let least = needs.iter().map(|(_, need)| need).sum::<usize>().div_ceil(1000);
            let count = count(&needs, 1000, existing, 1024);
            prop_assert!(count >= existing && count <= existing.max(least * 2 + SPARE_SHARE));
            if count < least * 2 + SPARE_SHARE {
                prop_assert!(load(&needs, count).iter().all(|load| *load <= 1000));
            }
        }
    }
}
