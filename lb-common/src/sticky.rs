//! Sticky records: which real server a client belongs to. 32 bytes a record.
//!
//! | word | content (least significant bits first) |
//! |---|---|
//! | 0, 1 | client address, bytes as on the wire |
//! | 2 | service:16, server:16, made at:28 (units of 16 ticks), verified:1, zero:3 |
//!
//! The note in the life word counts the client's open flows: while it is not zero the record never expires;
//! when the last flow closes, the deadline is one persistence timeout ahead.

use crate::address::Address;
use crate::clock::Ticks;
use crate::flow::StickyRef;
use crate::life::{Life, SlotState};
use crate::table::{Found, Kind, Slot, Slots};

/// Words of a record's slot beside its life.
pub const STICKY_WORDS: usize = 3;
/// A row of the sticky table.
pub type StickySlot = Slot<STICKY_WORDS>;

#[cfg(not(loom))]
const _: () = assert!(size_of::<StickySlot>() == 32 && align_of::<StickySlot>() == 8);

/// Ticks in a unit of a record's `made_at`, as log2.
const MADE_AT_SHIFT: u32 = 4;
const MADE_AT_MASK: u64 = (1 << 28) - 1;
const VERIFIED: u64 = 1 << 60;

/// The sticky table.
#[derive(Clone, Copy, Debug)]
pub struct Stickies;

impl Kind<STICKY_WORDS> for Stickies {
    const KEY_MASK: [u64; 3] = [u64::MAX, u64::MAX, 0xffff];

    #[inline(always)]
    fn expired(life: Life, now: Ticks) -> bool {
        life.note() == 0 && life.deadline().is_past(now)
    }
}

/// What a record is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyKey {
    /// The client.
    pub client: Address,
    /// The virtual service.
    pub service: u16,
}

impl StickyKey {
    /// The key as the table wants it.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u64; 3] {
        [self.client.0[0], self.client.0[1], self.service as u64]
    }
}

/// A record's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyServer {
    /// The virtual service.
    pub service: u16,
    /// The real server's id.
    pub server: u16,
    /// When the client was first seen, to 16 ticks.
    pub made_at: Ticks,
    /// Whether the server's own SYN-ACK was acknowledged by the client (always so in mode `snat`).
    pub verified: bool,
}

impl StickyServer {
    /// The word that is stored.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.service as u64
            | (self.server as u64) << 16
            | ((self.made_at.0 >> MADE_AT_SHIFT) as u64 & MADE_AT_MASK) << 32
            | if self.verified { VERIFIED } else { 0 }
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        Self {
            service: word as u16,
            server: (word >> 16) as u16,
            made_at: Ticks((((word >> 32) & MADE_AT_MASK) as u32) << MADE_AT_SHIFT),
            verified: word & VERIFIED != 0,
        }
    }
}

/// A record, unpacked: for user space and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// The client.
    pub client: Address,
    /// Service, server and age.
    pub to: StickyServer,
    /// The client's open flows.
    pub flows: u32,
    /// Until when the record is kept once `flows` is zero.
    pub deadline: Ticks,
}

impl Sticky {
    /// Unpacks a row.
    #[must_use]
    pub const fn unpack(words: &[u64; STICKY_WORDS], life: Life) -> Self {
        Self {
            client: Address([words[0], words[1]]),
            to: StickyServer::from_word(words[2]),
            flows: life.note(),
            deadline: life.deadline(),
        }
    }
}

/// How often an exchange that lost against another core is tried again.
const ATTEMPTS: u32 = 8;

/// Counts one more open flow of a record that was found, and moves its deadline.
///
/// False if the record is gone by now (or was changed by others eight times over).
#[inline(always)]
#[must_use]
pub fn hold(found: &Found<'_, STICKY_WORDS>, deadline: Ticks) -> bool {
    let mut life = found.life;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        if !life.same_life(found.life) {
            return false;
        }
        let flows = if life.note() == Life::MAX_NOTE { life.note() } else { life.note() + 1 };
        let held = life.with_note(flows).with_deadline(deadline);
        match found.slot.life.compare_exchange(life.word(), held.word()) {
            Ok(_) => return true,
            Err(seen) => life = Life::from_word(seen),
        }
    }
    false
}

/// Counts one open flow less, and starts the record's timeout. A record that was forgotten meanwhile, and
/// whatever lies in its slot now, is left alone.
#[inline(always)]
pub fn let_go<S: Slots<STICKY_WORDS>>(slots: &S, record: StickyRef, key: StickyKey, deadline: Ticks) {
    let Some(slot) = slots.slot(record.slot) else {
        return;
    };
    let words = key.words();
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        let life = slot.life();
        let ours = matches!(life.state(), SlotState::Live)
            && life.version() & 0x7f == u16::from(record.version)
            && slot.words[0].load() == words[0]
            && slot.words[1].load() == words[1]
            && slot.words[2].load() & 0xffff == words[2];
        if !ours || life.note() == 0 {
            return;
        }
        if slot.exchange(life, life.with_note(life.note() - 1).with_deadline(deadline)) {
            return;
        }
    }
}

/// The reference by which a flow remembers a record in a slot with this life.
#[inline(always)]
#[must_use]
pub const fn reference(slot: u32, life: Life) -> StickyRef {
    StickyRef { slot, version: (life.version() & 0x7f) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_service_server_and_age() {
        let to = StickyServer { service: 513, server: 65_535, made_at: Ticks(0x0fff_fff0), verified: true };
        assert_eq!(StickyServer::from_word(to.word()), to);
    }

    #[test]
    fn a_record_with_an_open_flow_never_expires() {
        let life = Life::from_word(0).with_state(SlotState::Live).with_deadline(Ticks(5));
        assert!(!Stickies::expired(life.with_note(1), Ticks(1_000_000)));
        assert!(Stickies::expired(life, Ticks(6)));
        assert!(!Stickies::expired(life, Ticks(5)));
    }
}
