//! Sticky records: which real server a client belongs to. 32 bytes a record.
//!
//! | word | content (least significant bits first) |
//! |---|---|
//! | 0, 1 | client address, bytes as on the wire |
//! | 2 | service:12, port of the service:16 (as on the wire; zero: all of them), server:13, verified:1, made at:22 (units of 64 ticks) |
//!
//! The note in the life word counts the client's open flows: while it is not zero the record never expires;
//! when the last flow closes, the deadline is one persistence timeout ahead.

use crate::address::Address;
use crate::clock::Ticks;
use crate::flow::StickyRef;
use crate::life::{Life, SlotState};
use crate::service::{MAX_SERVERS, MAX_SERVICES};
use crate::table::{Found, Kind, Slot, Slots};

/// Words of a record's slot beside its life.
pub const STICKY_WORDS: usize = 3;
/// A row of the sticky table.
pub type StickySlot = Slot<STICKY_WORDS>;

#[cfg(not(loom))]
const _: () = assert!(size_of::<StickySlot>() == 32 && align_of::<StickySlot>() == 8);

const SERVICE_BITS: u32 = MAX_SERVICES.trailing_zeros();
const SERVER_BITS: u32 = MAX_SERVERS.trailing_zeros();
const PORT_SHIFT: u32 = SERVICE_BITS;
const SERVER_SHIFT: u32 = PORT_SHIFT + u16::BITS;
const VERIFIED_SHIFT: u32 = SERVER_SHIFT + SERVER_BITS;
const MADE_AT_SHIFT: u32 = VERIFIED_SHIFT + 1;
/// Ticks in a unit of a record's `made_at`, as log2.
const MADE_AT_UNIT: u32 = 6;
/// Ticks in a unit of a record's `made_at`.
pub const MADE_AT_TICKS: u32 = 1 << MADE_AT_UNIT;

const _: () = assert!(MAX_SERVICES.is_power_of_two() && MAX_SERVERS.is_power_of_two());

/// The bits of the third word that are the service.
const SERVICE_MASK: u64 = (1 << SERVICE_BITS) - 1;
/// The bits of the third word that are a record's key.
const NAME_MASK: u64 = (1 << SERVER_SHIFT) - 1;

/// The sticky table.
#[derive(Clone, Copy, Debug)]
pub struct Stickies;

impl Kind<STICKY_WORDS> for Stickies {
    const KEY_MASK: [u64; 3] = [u64::MAX, u64::MAX, NAME_MASK];

    #[inline(always)]
    fn expired(life: Life, now: Ticks) -> bool {
        life.note() == 0 && life.deadline().is_past(now)
    }
}

/// What a record is found by. [`Service::sticky_key`](crate::service::Service::sticky_key) makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyKey {
    /// The client, or what stands for all of its prefix.
    pub client: Address,
    /// The virtual service.
    pub service: u16,
    /// The service's port that the record is for, as on the wire; zero: all of them.
    pub port: u16,
}

impl StickyKey {
    /// The key as the table wants it.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u64; 3] {
        [self.client.0[0], self.client.0[1], self.name()]
    }

    const fn name(self) -> u64 {
        self.service as u64 | (self.port as u64) << PORT_SHIFT
    }

    /// Whether a flow of the client and service of this key may hold a record with the other key: the port may differ, as in
    /// [`let_go`].
    #[must_use]
    pub const fn may_hold(self, other: Self) -> bool {
        let same_client = self.client.0[0] == other.client.0[0] && self.client.0[1] == other.client.0[1];
        same_client && self.service == other.service
    }

    /// The key in a record's words.
    #[must_use]
    pub const fn of(words: &[u64; STICKY_WORDS]) -> Self {
        let StickyServer { service, port, .. } = StickyServer::from_word(words[2]);
        Self { client: Address([words[0], words[1]]), service, port }
    }
}

/// A record's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyServer {
    /// The virtual service.
    pub service: u16,
    /// As in [`StickyKey`].
    pub port: u16,
    /// The real server's id.
    pub server: u16,
    /// When the client was first seen, to 64 ticks; the low 28 bits of it: see [`Self::made_before`].
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
            | (self.port as u64) << PORT_SHIFT
            | (self.server as u64) << SERVER_SHIFT
            | (self.verified as u64) << VERIFIED_SHIFT
            | ((self.made_at.0 >> MADE_AT_UNIT) as u64) << MADE_AT_SHIFT
    }

    /// When the client was first seen, for a record that is not older than 2^28 ticks (198 days at `CONFIG_HZ` 1000).
    #[must_use]
    pub const fn made_before(&self, now: Ticks) -> Ticks {
        const BITS: u32 = u64::BITS - MADE_AT_SHIFT + MADE_AT_UNIT;
        Ticks(now.0.wrapping_sub(now.0.wrapping_sub(self.made_at.0) & ((1 << BITS) - 1)))
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        Self {
            service: word as u16 & (MAX_SERVICES - 1) as u16,
            port: (word >> PORT_SHIFT) as u16,
            server: (word >> SERVER_SHIFT) as u16 & (MAX_SERVERS - 1) as u16,
            made_at: Ticks(((word >> MADE_AT_SHIFT) as u32) << MADE_AT_UNIT),
            verified: word >> VERIFIED_SHIFT & 1 != 0,
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
    /// What it is found by.
    #[must_use]
    pub const fn key(&self) -> StickyKey {
        StickyKey { client: self.client, service: self.to.service, port: self.to.port }
    }

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
/// whatever lies in its slot now, is left alone. Which port a record is for does not matter: it may have been made when
/// one was for all of them.
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
            && slot.words[2].load() & SERVICE_MASK == words[2] & SERVICE_MASK;
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
    fn packing_keeps_every_field() {
        let to = StickyServer {
            service: 4095,
            port: 0xfbfc,
            server: 8191,
            made_at: Ticks(0x0fff_ffc0),
            verified: true,
        };
        assert_eq!(StickyServer::from_word(to.word()), to);
        let other = StickyServer { service: 513, port: 0, server: 77, made_at: Ticks(64), verified: false };
        assert_eq!(StickyServer::from_word(other.word()), other);
    }

    #[test]
    fn when_a_record_was_made_is_known_after_the_field_came_round() {
        let at = |ticks| {
            let to = StickyServer { service: 1, port: 0, server: 1, made_at: Ticks(ticks), verified: true };
            StickyServer::from_word(to.word())
        };
        assert_eq!(at(640).made_before(Ticks(700)), Ticks(640));
        assert_eq!(at(0x3000_0040).made_before(Ticks(0x3000_1000)), Ticks(0x3000_0040));
        assert_eq!(at(0x2fff_ffc0).made_before(Ticks(0x3000_1000)), Ticks(0x2fff_ffc0));
    }

    #[test]
    fn the_key_is_in_the_word_that_is_stored() {
        let key = StickyKey { client: Address([1, 2]), service: 4001, port: 443u16.to_be() };
        let StickyKey { service, port, .. } = key;
        let to = StickyServer { service, port, server: 8191, made_at: Ticks(u32::MAX), verified: true };
        assert_eq!(to.word() & NAME_MASK, key.words()[2]);
    }

    #[test]
    fn a_record_with_an_open_flow_never_expires() {
        let life = Life::from_word(0).with_state(SlotState::Live).with_deadline(Ticks(5));
        assert!(!Stickies::expired(life.with_note(1), Ticks(1_000_000)));
        assert!(Stickies::expired(life, Ticks(6)));
        assert!(!Stickies::expired(life, Ticks(5)));
    }
}
