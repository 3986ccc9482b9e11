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

use crate::clock::Ticks;

/// Entries of a CPU, a power of two.
pub const ENTRIES: u32 = 1 << ENTRY_BITS;
const ENTRY_BITS: u32 = 10;

/// An entry. All that is in a packet is as on the wire. The fields are as wide as they are used, so that each is one load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// See [`tag`].
    pub tag: u64,
    /// Source and destination address of IPv4; the first word of those of IPv6.
    pub addresses: u64,
    /// A [`Kind`].
    pub kind: u32,
    /// The last tick that the flow's deadline stays in.
    pub until: Ticks,
    /// The life of the flow's row.
    pub life: u64,
    /// Its return hop.
    pub hop: u64,
    /// The frame's first eight bytes, then its next four with the interface that it came by above them.
    pub frame: [u64; 2],
    /// The index of the flow's row.
    pub row: u32,
    /// The service's id,
    pub service: u16,
    /// and the server's.
    pub server: u16,
    /// What is sent.
    pub new: New,
    /// The other words of the addresses, of IPv6.
    pub more: [u64; 3],
}

const _: () = assert!(size_of::<Entry>() == 144);

/// What a packet becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct New {
    /// The frame's first eight bytes, and its next four: both MAC addresses.
    pub frame: u64,
    /// See `frame`.
    pub frame_end: u32,
    /// Source and destination port.
    pub ports: u32,
    /// What is added to the checksum of the network header, [folded](crate::checksum::Delta::folded),
    pub network_delta: u16,
    /// and to that of the transport header.
    pub transport_delta: u16,
    /// Source and destination address: of IPv4 in the first word.
    pub addresses: [u64; 4],
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Nothing is known.
    None = 0,
    /// It is sent to a server.
    ToServer = 1,
    /// It is sent to a client.
    ToClient = 2,
    /// It is for the host.
    NotOurs = 3,
    /// It is sent to a server in a frame for that, one hop further, and else as it is.
    SentOn = 4,
}

impl Entry {
    /// Whether this is what becomes of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u32
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
    let ports = (ports as u64) << 32;
    ((addresses ^ ports).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> (u64::BITS - ENTRY_BITS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ports_family_and_era_have_tags_of_their_own(ports in any::<[u32; 2]>(), eras in any::<[u32; 2]>(), v6 in any::<[bool; 2]>()) {
            let [one, other] = [0, 1].map(|at| (ports[at], v6[at], u64::from(eras[at] >> 1)));
            prop_assert_eq!(tag(one.0, one.1, one.2) == tag(other.0, other.1, other.2), one == other);
        }
    }

    #[test]
    fn an_entry_of_zeros_is_none() {
        assert!(Entry::default().is(Kind::None));
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
