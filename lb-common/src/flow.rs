//! Flows: the rows of the half-open table and of the flow table, 64 bytes each, one cache line.
//!
//! | word | content (least significant bits first) |
//! |---|---|
//! | 0, 1 | client address, bytes as on the wire |
//! | 2 | client port:16, service port:16 (both as on the wire), service:16, zero:16 |
//! | 3 | server:16, endpoint:16, SNAT port:16 (as on the wire; zero: none), source:8, zero:8 |
//! | 4 | MAC of the return hop:48, arm:8, zero:7, packets to the client may be fragmented:1 |
//! | 5 | sequence number last recorded from the client:32, from the server:32 |
//! | 6 | made at:32 (ticks), sticky slot:24, its version:7, sticky slot is known:1 |
//!
//! While a flow is half-open, the upper half of the last word has a [number](crate::handshake) of its server's from before.

use crate::address::Address;
use crate::clock::Ticks;
use crate::life::Life;
use crate::table::{Kind, Slot};
use crate::tcp::TcpState;

/// Words of a flow's slot beside its life.
pub const FLOW_WORDS: usize = 7;
/// A row of either table.
pub type FlowSlot = Slot<FLOW_WORDS>;

#[cfg(not(loom))]
const _: () = assert!(size_of::<FlowSlot>() == 64 && align_of::<FlowSlot>() == 8);

/// The index of the word with the server and the SNAT port.
pub const SERVER_WORD: usize = 3;
/// The index of the word with the return hop.
pub const HOP_WORD: usize = 4;
/// In the word with the return hop: packets to the client may be fragmented on their way ([`path_mtu`](crate::path_mtu)).
pub const MAY_FRAGMENT: u64 = 1 << 63;
/// The index of the word with the sequence numbers.
pub const SEQUENCE_WORD: usize = 5;
/// The index of the word with the time and the sticky slot.
pub const STICKY_WORD: usize = 6;

/// The flow table and the half-open table.
#[derive(Clone, Copy, Debug)]
pub struct Flows;

impl Kind<FLOW_WORDS> for Flows {
    const KEY_MASK: [u64; 3] = [u64::MAX; 3];

    #[inline(always)]
    fn expired(life: Life, now: Ticks) -> bool {
        life.deadline().is_past(now)
    }

    #[inline(always)]
    fn pinned(life: Life) -> bool {
        life.note() == TcpState::Promoting as u32
    }
}

/// What a flow is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// The client.
    pub client: Address,
    /// Its port, as on the wire.
    pub client_port: u16,
    /// The port it connected to, as on the wire.
    pub service_port: u16,
    /// The virtual service.
    pub service: u16,
}

impl FlowKey {
    /// The key as the table wants it.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u64; 3] {
        let ports = self.client_port as u64 | (self.service_port as u64) << 16 | (self.service as u64) << 32;
        [self.client.0[0], self.client.0[1], ports]
    }

    /// The key in a row's words.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_words(words: &[u64; FLOW_WORDS]) -> Self {
        Self {
            client: Address([words[0], words[1]]),
            client_port: words[2] as u16,
            service_port: (words[2] >> 16) as u16,
            service: (words[2] >> 32) as u16,
        }
    }
}

/// Where a flow goes: the server, and the port that the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowServer {
    /// The real server's id.
    pub server: u16,
    /// The id of its address and port.
    pub endpoint: u16,
    /// The source port towards it, as on the wire; zero in the modes that keep the client's.
    pub snat_port: u16,
    /// Which of the source addresses.
    pub source: u8,
}

impl FlowServer {
    /// Whether the flow has a SNAT port.
    #[inline(always)]
    #[must_use]
    pub const fn has_port(&self) -> bool {
        self.snat_port != 0
    }

    /// The word that is stored.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.server as u64
            | (self.endpoint as u64) << 16
            | (self.snat_port as u64) << 32
            | (self.source as u64) << 48
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        Self {
            server: word as u16,
            endpoint: (word >> 16) as u16,
            snat_port: (word >> 32) as u16,
            source: (word >> 48) as u8,
        }
    }
}

/// Since when a flow has been over that leaves its table at `now`: since it was closed, `idle_closed` before its deadline; since
/// it expired; or since now, if it is taken out while it is open.
#[inline(always)]
#[must_use]
pub const fn over_since(life: Life, idle_closed: Ticks, now: Ticks) -> Ticks {
    let deadline = life.deadline();
    let ended = if TcpState::from_note(life.note()).is_closed() {
        Ticks(deadline.0.wrapping_sub(idle_closed.0))
    } else {
        deadline
    };
    if ended.is_past(now) { ended } else { now }
}

/// A deadline is moved when it would move by at least this many ticks: one store a second at most, not one a packet.
const REFRESH: u32 = 8;

/// Whether a deadline, of a flow that may be silent for `idle`, stays where it is.
#[inline(always)]
#[must_use]
pub const fn stays(deadline: Ticks, now: Ticks, idle: Ticks) -> bool {
    let ahead = deadline.0.wrapping_sub(now.0);
    ahead <= idle.0 && ahead.wrapping_add(REFRESH) > idle.0
}

/// The last tick in which it [`stays`].
#[inline(always)]
#[must_use]
pub const fn stays_until(deadline: Ticks, idle: Ticks) -> Ticks {
    Ticks(deadline.0.wrapping_sub(idle.0).wrapping_add(REFRESH - 1))
}

/// Sequence numbers last recorded, host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// From the client; its initial sequence number while half-open.
    pub client: u32,
    /// From the server; its initial sequence number while half-open.
    pub server: u32,
}

impl Sequences {
    /// The word that is stored.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.client as u64 | (self.server as u64) << 32
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        Self { client: word as u32, server: (word >> 32) as u32 }
    }
}

/// When the flow was made, and the sticky record that it holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSticky {
    /// When the SYN came.
    pub made_at: Ticks,
    /// The record's slot and the low 7 bits of that slot's version, if the flow is counted there.
    pub record: Option<StickyRef>,
}

/// A sticky record as a flow refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StickyRef {
    /// Its slot, below 2^24.
    pub slot: u32,
    /// The low 7 bits of the slot's version.
    pub version: u8,
}

impl FlowSticky {
    /// The word that is stored.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        let low = self.made_at.0 as u64;
        match self.record {
            None => low,
            Some(record) => {
                low | (record.slot as u64 & 0xff_ffff) << 32 | (record.version as u64 & 0x7f) << 56 | 1 << 63
            }
        }
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        let record = if word >> 63 == 0 {
            None
        } else {
            Some(StickyRef { slot: (word >> 32) as u32 & 0xff_ffff, version: (word >> 56) as u8 & 0x7f })
        };
        Self { made_at: Ticks(word as u32), record }
    }
}

/// A row, unpacked: for user space and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What it is found by.
    pub key: FlowKey,
    /// Where it goes.
    pub to: FlowServer,
    /// The MAC address that packets to the client go to.
    pub return_hop: [u8; 6],
    /// The number of the interface that they leave by.
    pub arm: u8,
    /// Whether they may be fragmented on their way.
    pub may_fragment: bool,
    /// Sequence numbers.
    pub sequences: Sequences,
    /// Age and sticky record.
    pub sticky: FlowSticky,
    /// TCP state.
    pub state: TcpState,
    /// Until when it is kept without a packet.
    pub deadline: Ticks,
}

impl Flow {
    /// Unpacks a row.
    #[must_use]
    pub fn unpack(words: &[u64; FLOW_WORDS], life: Life) -> Self {
        Self {
            key: FlowKey::from_words(words),
            to: FlowServer::from_word(words[SERVER_WORD]),
            return_hop: mac_bytes(words[HOP_WORD]),
            arm: arm_of(words[HOP_WORD]),
            may_fragment: words[HOP_WORD] & MAY_FRAGMENT != 0,
            sequences: Sequences::from_word(words[SEQUENCE_WORD]),
            sticky: FlowSticky::from_word(words[STICKY_WORD]),
            state: TcpState::from_note(life.note()),
            deadline: life.deadline(),
        }
    }

    /// Packs it into a row's words.
    #[must_use]
    pub const fn pack(&self) -> [u64; FLOW_WORDS] {
        let key = self.key.words();
        [
            key[0],
            key[1],
            key[2],
            self.to.word(),
            hop_word(self.return_hop, self.arm) | if self.may_fragment { MAY_FRAGMENT } else { 0 },
            self.sequences.word(),
            self.sticky.word(),
        ]
    }
}

/// A MAC address in the low 48 bits of a word, bytes in memory order.
#[must_use]
pub const fn mac_word(mac: [u8; 6]) -> u64 {
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0])
}

/// Where the arm stands in a word with a MAC address.
pub const ARM_SHIFT: u32 = 48;

/// A MAC address and the number of the interface by which it is reached.
#[inline(always)]
#[must_use]
pub const fn hop_word(mac: [u8; 6], arm: u8) -> u64 {
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], arm, 0])
}

/// The number of the interface in such a word.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a field is taken out of a packed word")]
pub const fn arm_of(word: u64) -> u8 {
    (word >> ARM_SHIFT) as u8
}

/// The MAC address in the low 48 bits of a word.
#[must_use]
pub const fn mac_bytes(word: u64) -> [u8; 6] {
    let b = word.to_le_bytes();
    [b[0], b[1], b[2], b[3], b[4], b[5]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_deadline_stays_until_the_tick_that_is_said(now in any::<u32>(), idle in 8_u32..1 << 30, late in 0_u32..16) {
            let (now, idle) = (Ticks(now), Ticks(idle));
            let deadline = now.plus(idle);
            let later = now.plus(Ticks(late));
            prop_assert_eq!(stays(deadline, later, idle), late < REFRESH);
            prop_assert_eq!(!stays_until(deadline, idle).is_past(later), late < REFRESH);
        }

        #[test]
        fn a_flow_is_over_since_it_was_closed_or_expired_and_never_later_than_now(
            now in any::<u32>(), ahead in 0_u32..2000, age in 0_u32..2000,
        ) {
            let (now, idle) = (Ticks(now), Ticks(1000));
            let in_state = |state: TcpState, deadline| Life::from_word(0).with_note(state as u32).with_deadline(deadline);
            let past = Ticks(now.0.wrapping_sub(age));
            for closed in [TcpState::TimeWait, TcpState::ClientReset, TcpState::ServerReset] {
                prop_assert_eq!(over_since(in_state(closed, past.plus(idle)), idle, now), past);
            }
            prop_assert_eq!(over_since(in_state(TcpState::Established, past), idle, now), past);
            prop_assert_eq!(over_since(in_state(TcpState::ClientFin, now.plus(Ticks(ahead))), idle, now), now);
            prop_assert_eq!(over_since(in_state(TcpState::TimeWait, now.plus(Ticks(1000 + ahead))), idle, now), now);
        }

        #[test]
        fn packing_loses_nothing(
            client in any::<[u64; 2]>(), ports in any::<[u16; 3]>(), to in any::<[u16; 3]>(), source in any::<u8>(),
            mac in any::<[u8; 6]>(), may_fragment in any::<bool>(), sequences in any::<[u32; 2]>(), made_at in any::<u32>(),
            record in proptest::option::of((0u32..1 << 24, 0u8..128)),
        ) {
            let flow = Flow {
                key: FlowKey { client: Address(client), client_port: ports[0], service_port: ports[1], service: ports[2] },
                to: FlowServer { server: to[0], endpoint: to[1], snat_port: to[2], source },
                return_hop: mac,
                arm: 3,
                may_fragment,
                sequences: Sequences { client: sequences[0], server: sequences[1] },
                sticky: FlowSticky { made_at: Ticks(made_at), record: record.map(|(slot, version)| StickyRef { slot, version }) },
                state: TcpState::TimeWait,
                deadline: Ticks(77),
            };
            let life = Life::from_word(0).with_note(TcpState::TimeWait as u32).with_deadline(Ticks(77));
            prop_assert_eq!(Flow::unpack(&flow.pack(), life), flow);
        }
    }
}
