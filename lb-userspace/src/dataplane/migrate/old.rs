//! The tables before: another size, or an older layout, read row by row in today's form.
//!
//! Each older layout that can be read has an arm in [`Old::open`]. Where its rows differ from today's, that arm reads them
//! as they were ([`Converted`]) and nothing else of the migration knows of it. What no arm reads is refused.

use anyhow::{Context as _, bail};
use lb_common::{
    clock::Ticks,
    control::{LAYOUT_VERSION, Snat},
    flow::{FLOW_WORDS, FlowSlot},
    life::{Life, SlotState},
    maps::{self, MapSpec},
    sticky::{STICKY_WORDS, StickyServer, StickySlot},
    table::Slot,
    word::Word,
};

use crate::dataplane::{
    Region,
    pinned::{self, Access, Pins},
};

/// The first layout that was ever released.
const FIRST: u64 = 1;

/// Words of the control map.
pub(super) const CONTROL_WORDS: usize = 64;
/// The control map, word by word: whatever a layout keeps there keeps its place.
pub(super) type ControlWords = [Word; CONTROL_WORDS];

/// The rows of a table, in today's form.
pub(super) trait Rows<const M: usize>: Send {
    /// Slots in the table.
    fn slots(&self) -> u32;
    /// The life of a slot.
    fn life(&self, index: u32) -> Life;
    /// The words of a slot.
    fn words(&self, index: u32) -> [u64; M];

    /// A live row that did not change while it was read.
    fn live(&self, index: u32) -> Option<(Life, [u64; M])> {
        let life = self.life(index);
        if life.state() != SlotState::Live {
            return None;
        }
        let words = self.words(index);
        self.life(index).same_life(life).then_some((life, words))
    }
}

/// A table whose slots had `N` words.
pub(super) struct Converted<const N: usize, const M: usize> {
    pub(super) slots: Region<Slot<N>>,
    pub(super) today: fn(&[u64; N]) -> [u64; M],
}

impl<const N: usize, const M: usize> Rows<M> for Converted<N, M> {
    fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }
    fn life(&self, index: u32) -> Life {
        self.slots.get(index as usize).map_or(Life::from_word(0), Slot::life)
    }
    fn words(&self, index: u32) -> [u64; M] {
        self.slots.get(index as usize).map_or([0; M], |slot| (self.today)(&slot.read()))
    }
}

/// The tables before.
pub(super) struct Old {
    /// Their layout.
    pub(super) layout: u64,
    pub(super) control: Region<ControlWords>,
    pub(super) snat: Snat,
    pub(super) flows: Box<dyn Rows<FLOW_WORDS>>,
    pub(super) half_open: Box<dyn Rows<FLOW_WORDS>>,
    pub(super) sticky: Box<dyn Rows<STICKY_WORDS>>,
    pub(super) cells: Region<Word>,
    pub(super) cursors: Region<Word>,
}

/// Whether tables of this layout can be carried over.
pub(in crate::dataplane) const fn is_readable(layout: u64) -> bool {
    layout >= FIRST && layout <= LAYOUT_VERSION
}

impl Old {
    /// Opens what is pinned.
    ///
    /// # Errors
    /// It is of a layout that this build does not read.
    pub(super) fn open(pins: &Pins) -> anyhow::Result<Self> {
        let control: Region<ControlWords> = pinned::region(pins, &maps::CONTROL, Access::ReadWrite)?;
        let words = control.first().context("the control map is empty")?;
        let (layout, snat) = (words[LAYOUT_WORD].load(), Snat::from_word(words[SNAT_WORD].load()));
        if !is_readable(layout) {
            bail!("there is no reader for layout {layout}");
        }
        // Layout 1 had no trial and no carrying: words of the control map that were zero. Its rows, and those of layout 2,
        // are today's but for the third word of a sticky record. Up to layout 3 flows had no tags.
        let table = |spec: &MapSpec| if layout < 3 { row_by_row(spec) } else { *spec };
        let flows: Region<FlowSlot> = pinned::region(pins, &table(&maps::FLOWS), Access::ReadWrite)?;
        let half_open: Region<FlowSlot> = pinned::region(pins, &table(&maps::HALF_OPEN), Access::ReadWrite)?;
        let sticky: Region<StickySlot> = pinned::region(pins, &table(&maps::STICKY), Access::ReadWrite)?;
        Ok(Self {
            layout,
            snat,
            flows: Box::new(Converted { slots: flows, today: |words| *words }),
            half_open: Box::new(Converted { slots: half_open, today: |words| *words }),
            sticky: Box::new(Converted {
                slots: sticky,
                today: if layout < 3 { without_port } else { |words| *words },
            }),
            cells: pinned::region(pins, &maps::PORT_CELLS, Access::ReadWrite)?,
            cursors: pinned::region(pins, &maps::PORT_CURSORS, Access::ReadWrite)?,
            control,
        })
    }
}

/// A table of layouts 1 and 2: each row was a value by itself.
const fn row_by_row(spec: &MapSpec) -> MapSpec {
    MapSpec {
        value_size: spec.value_size / spec.rows,
        max_entries: spec.max_entries * spec.rows,
        rows: 1,
        ..*spec
    }
}

/// A sticky record of layouts 1 and 2: service:16, server:16, made at:28 (units of 16 ticks), verified:1.
pub(super) fn without_port(words: &[u64; STICKY_WORDS]) -> [u64; STICKY_WORDS] {
    let bits = |shift: u32, count: u32| (words[2] >> shift) & ((1 << count) - 1);
    let id = |shift| u16::try_from(bits(shift, 16)).unwrap_or_default();
    let made_at = Ticks(u32::try_from(bits(32, 28) << 4).unwrap_or_default());
    let to = StickyServer { service: id(0), port: 0, server: id(16), made_at, verified: bits(60, 1) == 1 };
    [words[0], words[1], to.word()]
}

/// Where in the control map the layout is, in every layout.
const LAYOUT_WORD: usize = 0;
/// Where the SNAT ports are.
const SNAT_WORD: usize = 3;
