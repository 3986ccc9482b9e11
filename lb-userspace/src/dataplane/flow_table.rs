//! A table of flows in memory: its rows, and the tags of their keys.

use std::ops::Deref;

use lb_common::{
    flow::{FLOW_WORDS, FlowSlot},
    hash::{HashKey, hash3},
    life::SlotState,
    table::{BUCKET, Bucket, Slots},
    tags::Tag,
    word::Word,
};

use super::{Region, bucket_mask_of, bucket_of};

/// A table of flows. Rows are read as those of a [`Region`]; whoever puts one in by what [`lb_common::table`] has for it leaves its
/// tag, too, without which the program would not find it.
pub struct FlowTable {
    rows: Region<FlowSlot>,
    tags: Region<Word>,
}

impl FlowTable {
    /// Of these rows, and a bucket's tags each.
    #[must_use]
    pub const fn new(rows: Region<FlowSlot>, tags: Region<Word>) -> Self {
        Self { rows, tags }
    }

    /// So many slots on the heap, all of them free.
    #[must_use]
    pub fn heap(slots: usize) -> Self {
        Self::new(Region::heap(slots), Region::heap(slots / BUCKET as usize))
    }

    /// Live rows that the program would not find, because another tag is where theirs should be. There must be none.
    pub fn untagged(&self, key: &HashKey) -> impl Iterator<Item = u32> {
        (0..).zip(self.iter()).filter_map(|(index, slot)| {
            let life = slot.life();
            let [first, second, third, ..] = slot.read();
            let tag = Tag::of(hash3(key, [first, second, third]));
            let live = life.state() == SlotState::Live && slot.life().same_version(life);
            (live && !self.may_hold(index / BUCKET, tag)).then_some(index)
        })
    }

    /// The tags by bucket.
    #[must_use]
    pub const fn all_tags(&self) -> &Region<Word> {
        &self.tags
    }
}

impl Deref for FlowTable {
    type Target = Region<FlowSlot>;

    fn deref(&self) -> &Region<FlowSlot> {
        &self.rows
    }
}

impl Slots<FLOW_WORDS> for FlowTable {
    fn bucket(&self, number: u32) -> Option<&Bucket<FLOW_WORDS>> {
        bucket_of(self, number)
    }

    fn slot(&self, index: u32) -> Option<&FlowSlot> {
        self.get(index as usize)
    }

    fn bucket_mask(&self) -> u32 {
        bucket_mask_of(self)
    }

    fn tags(&self, number: u32) -> Option<&Word> {
        self.tags.get(number as usize)
    }
}
