//! The exact-match cache: what was decided of a conversation a moment ago, found by its headers alone.
//!
//! An entry says what becomes of a packet whose addresses, ports, MAC addresses and interface are the same, and how it is rewritten.
//! It replaces nothing: it is made from the tables, and holds only while
//!
//! - [`Control::era`](crate::control::Control::era), which counts what the daemon changes of services, servers, interfaces and
//!   the index, is what it was,
//! - the flow's row has the life and the return hop that it had,
//! - and the row's deadline need not be moved: a second or so.
//!
//! Each CPU has its own, so nobody else writes an entry while the program reads it.

use crate::{clock::Ticks, service::MAX_SERVICES};

/// Entries of a CPU, a power of two.
pub const ENTRIES: u32 = 1 << ENTRY_BITS;
const ENTRY_BITS: u32 = 10;

/// An entry. All that is in a packet is as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// See [`tag`].
    pub tag: u64,
    /// Source and destination address of IPv4; the first word of those of IPv6.
    pub addresses: u64,
    /// See [`Verdict`].
    pub verdict: u64,
    /// The life of the flow's row.
    pub life: u64,
    /// Its return hop.
    pub hop: u64,
    /// The frame's first eight bytes, then its next four with the interface that it came by above them.
    pub frame: [u64; 2],
    /// The index of the flow's row.
    pub row: u32,
    /// The new ports.
    pub ports: u32,
    /// The new frame's first eight bytes, then its next four.
    pub new_frame: [u64; 2],
    /// The new addresses' first word.
    pub new_addresses: u64,
    /// What is added to the checksum of the network header, [folded](crate::checksum::Delta::folded),
    pub network_delta: u32,
    /// and to that of the transport header.
    pub transport_delta: u32,
    /// The other words of the addresses, of IPv6.
    pub more: [u64; 3],
    /// The same of the new ones.
    pub new_more: [u64; 3],
}

const _: () = assert!(size_of::<Entry>() == 144);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing is known.
    None = 0,
    /// It is sent to a server.
    ToServer = 1,
    /// It is sent to a client.
    ToClient = 2,
    /// It is for the host.
    NotOurs = 3,
    /// It is sent to a server in a frame for that, and else as it is.
    Readdressed = 4,
}

/// `kind:4 | service:12 | server:16 | until:32`, most significant first; `until` in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(pub u64);

const SERVER_SHIFT: u32 = 32;
const SERVICE_SHIFT: u32 = 48;
const KIND_SHIFT: u32 = 60;

const _: () = assert!(MAX_SERVICES as u64 <= 1 << (KIND_SHIFT - SERVICE_SHIFT));

impl Verdict {
    /// Of a flow.
    #[inline(always)]
    #[must_use]
    pub const fn of(kind: Kind, service: u16, server: u16, until: Ticks) -> Self {
        Self(
            until.0 as u64
                | (server as u64) << SERVER_SHIFT
                | (service as u64) << SERVICE_SHIFT
                | (kind as u64) << KIND_SHIFT,
        )
    }

    /// What becomes of the packet.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, kind: Kind) -> bool {
        self.0 >> KIND_SHIFT == kind as u64
    }

    /// The service's id.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a field is taken out of a packed word")]
    pub const fn service(self) -> u16 {
        (self.0 >> SERVICE_SHIFT) as u16 & (MAX_SERVICES - 1) as u16
    }

    /// The server's id.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a field is taken out of a packed word")]
    pub const fn server(self) -> u16 {
        (self.0 >> SERVER_SHIFT) as u16
    }

    /// Whether the flow's deadline must be looked at again.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a field is taken out of a packed word")]
    pub const fn is_over(self, now: Ticks) -> bool {
        Ticks(self.0 as u32).is_past(now)
    }
}

/// What an entry is of, in one word: ports:32, IPv6:1, era:31.
#[inline(always)]
#[must_use]
pub const fn tag(ports: u32, is_v6: bool, era: u64) -> u64 {
    ports as u64 | (is_v6 as u64) << 32 | era << 33
}

/// Where an entry lies. Addresses and ports that someone chooses for it push each other out; what is forwarded does not depend on that.
#[inline(always)]
#[must_use]
pub const fn place(addresses: u64, ports: u32) -> u32 {
    let ports = (ports as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((addresses ^ ports).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> (u64::BITS - ENTRY_BITS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::MAX_SERVERS;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_verdict_keeps_what_it_is_made_of(
            service in 0..u16::try_from(MAX_SERVICES).unwrap(), server in 0..u16::try_from(MAX_SERVERS).unwrap(), until in any::<u32>(),
        ) {
            let kinds = [Kind::None, Kind::ToServer, Kind::ToClient, Kind::NotOurs, Kind::Readdressed];
            for kind in kinds {
                let verdict = Verdict::of(kind, service, server, Ticks(until));
                prop_assert_eq!((verdict.service(), verdict.server()), (service, server));
                prop_assert!(kinds.into_iter().all(|other| verdict.is(other) == (kind == other)));
                prop_assert!(!verdict.is_over(Ticks(until)) && verdict.is_over(Ticks(until.wrapping_add(1))));
            }
        }

        #[test]
        fn ports_family_and_era_have_tags_of_their_own(ports in any::<[u32; 2]>(), eras in any::<[u32; 2]>(), v6 in any::<[bool; 2]>()) {
            let [one, other] = [0, 1].map(|at| (ports[at], v6[at], u64::from(eras[at] >> 1)));
            prop_assert_eq!(tag(one.0, one.1, one.2) == tag(other.0, other.1, other.2), one == other);
        }
    }

    #[test]
    fn an_entry_of_zeros_is_none() {
        assert!(Verdict(Entry::default().verdict).is(Kind::None));
    }

    #[test]
    fn conversations_spread_over_all_entries() {
        let mut counts = [0_u32; ENTRIES as usize];
        for client in 0..256_u64 {
            for port in 0..256_u32 {
                let addresses = (client << 24 | 0x0a00_0055) | 0x9655_a8c0 << 32;
                counts[place(addresses, port << 8 | 0xbb01_0000) as usize] += 1;
            }
        }
        // 64 on average.
        assert!(counts.iter().all(|count| (16..=160).contains(count)), "{counts:?}");
    }
}
