//! Tags: what says that a key is in no slot of a bucket without a look at its rows.
//!
//! A table may have a word beside each bucket, with sixteen bits of the hash of each slot's key. Rows are a cache line each, and
//! whoever looks for a key that is not there reads eight of them. The tags of its two buckets are two words, and those of all
//! buckets lie in a thirty-second of the table's memory: in a cache, where the rows are not.
//!
//! Who has claimed a slot puts its tag there, before the row can be live. So a look that does not see the tag is one from before
//! the row was: it might as well have been made then. A tag that a row left behind when it went, or that two keys have in common,
//! costs a look at the rows.

use crate::{table::BUCKET, word::Word};

/// Bits of a tag: four side by side in a word.
const BITS: u32 = 16;
/// One in the tag of each slot.
const ONES: u64 = 0x0001_0001_0001_0001;

/// The tag of a key, in the place of every slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// Of all bits of the hash: those of one half alone are, in large tables, those that the bucket is found by.
    #[inline(always)]
    #[must_use]
    pub const fn of(hash: u64) -> Self {
        /// 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4).
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        Self((hash.wrapping_mul(GOLDEN) >> (u64::BITS - BITS)).wrapping_mul(ONES))
    }

    /// Whether a slot of the bucket with these tags may hold the key: whether a part of what they differ in is zero (Mycroft, 1987).
    #[inline(always)]
    #[must_use]
    pub const fn may_be_in(self, tags: u64) -> bool {
        let differs = tags ^ self.0;
        differs.wrapping_sub(ONES) & !differs & (ONES << (BITS - 1)) != 0
    }

    /// Makes it the tag of a bucket's slot at `place`, which the caller has claimed: nobody else writes this part of the word.
    #[inline(always)]
    pub fn put(self, tags: &Word, place: u32) {
        let shift = place * BITS;
        let new = self.0 & 0xffff;
        let old = tags.load() >> shift & 0xffff;
        // What others add to their parts meanwhile adds up with it: no part carries over into the next, once all have added.
        tags.fetch_add(new.wrapping_sub(old) << shift);
    }
}

/// The tags in a word, by slot.
#[must_use]
pub const fn tags_of(word: u64) -> [u16; BUCKET as usize] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [
        u16::from_le_bytes([a, b]),
        u16::from_le_bytes([c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([g, h]),
    ]
}

const _: () = assert!(BUCKET * BITS == u64::BITS);

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::hash::{HashKey, hash3};
    use proptest::prelude::*;

    const KEY: HashKey =
        HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0x0f1e_2d3c_4b5a_6978, 0x8796_a5b4_c3d2_e1f0]);

    proptest! {
        #[test]
        fn a_key_may_be_where_its_tag_was_put_last(hashes in proptest::collection::vec((any::<u64>(), 0..BUCKET), 1..40)) {
            let tags = Word::new(0);
            let mut last = [None; BUCKET as usize];
            for (hash, place) in hashes {
                Tag::of(hash).put(&tags, place);
                last[place as usize] = Some(hash);
            }
            for hash in last.into_iter().flatten() {
                prop_assert!(Tag::of(hash).may_be_in(tags.load()));
            }
        }

        #[test]
        fn a_key_may_be_only_where_a_tag_is_its_own(word in any::<u64>(), hash in any::<u64>(), place in 0..BUCKET) {
            let tag = tags_of(Tag::of(hash).0)[0];
            prop_assert_eq!(Tag::of(hash).may_be_in(word), tags_of(word).contains(&tag));
            let with = Word::new(word);
            Tag::of(hash).put(&with, place);
            let mut tags = tags_of(word);
            tags[place as usize] = tag;
            prop_assert_eq!(tags_of(with.load()), tags);
        }
    }

    #[test]
    fn keys_of_one_bucket_have_different_tags() {
        // As in a table of 2^22 buckets, by the low 22 bits of either half.
        for half in [0, 32] {
            let tags: std::collections::BTreeSet<_> = (0..1 << 16)
                .map(|number| hash3(&KEY, [number, 0, 0]))
                .map(|hash| Tag::of(hash & !(0x3f_ffff << half) | 0x15_5a5a << half).0)
                .collect();
            // Of 65,536 draws out of as many tags, 63 in 100 are different ones.
            assert!(tags.len() > 40_000, "{}", tags.len());
        }
    }
}
