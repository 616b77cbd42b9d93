//! Hashes that give the same value in every version of this program, because names of objects and shards depend on
//! them.

/// FNV-1a, 64 bits, over the parts with a separator that no part can imitate.
pub(crate) fn stable_hash(parts: &[&str]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    parts.iter().fold(OFFSET, |hash, part| {
        // 0xff is in no UTF-8 text, so ("ab", "c") and ("a", "bc") differ.
        step(part.bytes().fold(hash, step), 0xff)
    })
}

/// The shard, of `shards`, that a hash belongs to. With one more shard, only the share of the new shard moves.
///
/// Jump consistent hashing (Lamping and Veach, 2014).
pub(crate) fn shard_of(mut hash: u64, shards: usize) -> usize {
    let (mut shard, mut next) = (0_u64, 0_u64);
    while next < shards as u64 {
        shard = next;
        hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // (shard + 1) * 2^31 / ((hash >> 33) + 1), in integers: the same on every machine.
        next =
            (u128::from(shard + 1) * (1 << 31) / u128::from((hash >> 33) + 1)).try_into().unwrap_or(u64::MAX);
    }
    usize::try_from(shard).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_every_version() {
        assert_eq!(stable_hash(&[]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(stable_hash(&["ab", "c"]), stable_hash(&["a", "bc"]));
        assert_eq!(stable_hash(&["app", "my-app"]), stable_hash(&["app", "my-app"]));
    }

    #[test]
    fn one_shard_more_moves_only_its_share_and_only_into_it() {
        let hashes: Vec<u64> = (0..10_000).map(|n: u32| stable_hash(&[&n.to_string()])).collect();
        for shards in 1..8 {
            let moved: Vec<_> =
                hashes.iter().filter(|h| shard_of(**h, shards) != shard_of(**h, shards + 1)).collect();
            assert!(moved.iter().all(|h| shard_of(**h, shards + 1) == shards));
            let share = 10_000 / (shards + 1);
            assert!(moved.len() > share / 2 && moved.len() < share * 2, "{shards}: {}", moved.len());
        }
    }
}
