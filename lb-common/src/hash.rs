//! The keyed hash of the tables: NH (RFC 4418 section 5.2.2), then a finaliser.
//!
//! NH multiplies sums of 32-bit halves with secret keys; for two different inputs of one length, the
//! chance over the key that they collide is 2^-32, so a client who does not know the key cannot
//! choose addresses that fall into one bucket. Its products do not depend on each other, which is
//! what makes it cheap in the program.

/// The secret: two 32-bit keys for each of three words, and one more word for the finaliser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKey(pub [u64; 4]);

/// Hashes a key of three words.
#[inline(always)]
#[must_use]
pub const fn hash3(key: &HashKey, words: [u64; 3]) -> u64 {
    let sum =
        nh(words[0], key.0[0]).wrapping_add(nh(words[1], key.0[1])).wrapping_add(nh(words[2], key.0[2]));
    mix(sum ^ key.0[3])
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
const fn nh(word: u64, key: u64) -> u64 {
    let low = (word as u32).wrapping_add(key as u32);
    let high = ((word >> 32) as u32).wrapping_add((key >> 32) as u32);
    (low as u64).wrapping_mul(high as u64)
}

/// Spreads every bit of `x` over the whole word (the finaliser of SplitMix64, Steele et al. 2014).
#[inline(always)]
#[must_use]
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey =
        HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0]);

    #[test]
    fn consecutive_clients_spread_over_buckets() {
        const BUCKETS: usize = 1024;
        let mut counts = [0u32; BUCKETS];
        for client in 0..65_536u64 {
            let hash = hash3(&KEY, [0, 0xffff_0000 | (client << 48), 443]);
            counts[usize::try_from(hash % BUCKETS as u64).unwrap()] += 1;
        }
        // 64 a bucket on average; a uniform hash stays within 6 sigma (8 each).
        assert!(counts.iter().all(|count| (16..=112).contains(count)));
    }

    #[test]
    fn the_key_decides() {
        let other = HashKey([1, 2, 3, 4]);
        assert_ne!(hash3(&KEY, [1, 2, 3]), hash3(&other, [1, 2, 3]));
    }

    /// For 1,024 buckets of 64 keys on average: a uniform hash stays within 6 sigma (8 each).
    fn spread_evenly(bucket: impl Fn(u64) -> u64) {
        let mut counts = [0u32; 1024];
        for number in 0..65_536 {
            counts[usize::try_from(bucket(number) % 1024).unwrap()] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least >= 16 && *most <= 112, "{least} to {most}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "many keys")]
    fn both_halves_spread_whatever_part_of_the_key_counts_up() {
        for word in 0..3 {
            for shift in [0, 3, 16, 31, 32, 40, 47] {
                let hash = |number: u64| {
                    let mut words = [0, 0xffff_0000, 443];
                    words[word] += number << shift;
                    hash3(&KEY, words)
                };
                spread_evenly(hash);
                spread_evenly(|number| hash(number) >> 32);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "many keys")]
    fn the_two_buckets_of_a_key_have_nothing_to_do_with_each_other() {
        let hash = |number: u64| hash3(&KEY, [0, 0xffff_0000 | number << 32, 443]);
        spread_evenly(|number| (hash(number) & 31) << 5 | hash(number) >> 32 & 31);
    }

    #[test]
    #[cfg_attr(miri, ignore = "many keys")]
    fn keys_that_are_all_zeros_or_ones_still_spread() {
        for key in [HashKey([0; 4]), HashKey([u64::MAX; 4])] {
            spread_evenly(|number| hash3(&key, [0, 0xffff_0000 | number << 32, 443]));
        }
    }

    #[test]
    fn each_word_and_each_part_of_the_key_counts() {
        let base = hash3(&KEY, [1, 2, 3]);
        for bit in 0..64 {
            for word in 0..3 {
                let mut words = [1, 2, 3];
                words[word] ^= 1 << bit;
                assert_ne!(hash3(&KEY, words), base, "word {word}, bit {bit}");
            }
            for word in 0..4 {
                let mut key = KEY;
                key.0[word] ^= 1 << bit;
                assert_ne!(hash3(&key, [1, 2, 3]), base, "key {word}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_flips_about_half_of_the_finalisers_bits() {
        for bit in 0..64 {
            let flipped: u32 =
                (0..200u64).map(|number| (mix(mix(number)) ^ mix(mix(number) ^ 1 << bit)).count_ones()).sum();
            // 200 times 32 on average; 15 sigma (56) either way.
            assert!((5_550..7_250).contains(&flipped), "bit {bit}: {flipped}");
        }
    }
}
