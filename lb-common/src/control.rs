//! What the program is told beside the tables: one value of 64 words, written by the daemon.

use crate::address::Address;
use crate::clock::Ticks;
use crate::flow::over_since;
use crate::hash::HashKey;
use crate::life::Life;
use crate::ports::PortRange;
use crate::service::{InForce, Spread};
use crate::tcp::TcpState;
use crate::word::Word;

/// The version of everything in the shared maps. A daemon adopts maps of its own version, and carries over the rows of
/// older ones.
pub const LAYOUT_VERSION: u64 = 4;
/// Source addresses of a family at most.
pub const MAX_SOURCES: usize = 8;
/// Interfaces at most.
pub const MAX_ARMS: usize = 4;

/// The value of the control map.
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
#[repr(C)]
pub struct Control {
    /// [`LAYOUT_VERSION`]; zero until the maps are set up, and the program passes everything until then.
    pub layout: Word,
    /// Which generation of the service index is in force: its lowest bit.
    pub generation: Word,
    /// The kernel's jiffies in a second (`CONFIG_HZ`).
    pub hz: Word,
    /// First SNAT port:16, ports:32, IPv4 source addresses:8, IPv6 source addresses:8; host byte order.
    pub snat: Word,
    /// The secret of the tables.
    pub hash_key: [Word; 4],
    /// The secret of the scheduler's tables.
    pub maglev_seed: Word,
    /// How long a SNAT port rests, in ticks.
    pub quarantine: Word,
    /// How long a flow may be silent, in ticks: after its SYN,
    pub idle_syn: Word,
    /// after its SYN-ACK,
    pub idle_handshake: Word,
    /// after the FIN of one end,
    pub idle_half_closed: Word,
    /// and how long it is remembered after both ends' FIN, or an RST. An established one has its service's.
    pub idle_closed: Word,
    /// The IPv4 source addresses towards the servers.
    pub sources: [[Word; 2]; MAX_SOURCES],
    /// The daemon's last sign of life, in jiffies.
    pub heartbeat: Word,
    /// The daemon's process id at that time.
    pub daemon: Word,
    /// Zero; the interface's MAC address in layout 1.
    pub unused: Word,
    /// When an attachment that was not confirmed is undone, in jiffies. Zero: it is confirmed, or nobody wanted it so;
    /// all ones: it is being undone.
    pub confirm_by: Word,
    /// Until when rows may still come over from the tables before these, in ticks above a 1 in bit 32: what no row is
    /// found for is dropped, not answered. Zero: all are here.
    pub carrying: Word,
    /// The interfaces that the program is attached to. None: in the moment after an upgrade from layout 1, which had one.
    pub arms: [Arm; MAX_ARMS],
    /// The IPv6 source addresses towards the servers.
    pub sources_v6: [[Word; 2]; MAX_SOURCES],
    /// By generation of the service index, whether it is spread by multiplication ([`Spread`]): the lowest two bits.
    pub multiplied: Word,
    /// Counts changes of what decides where packets of open flows go: services, servers, interfaces. See [`Control::era`].
    pub epoch: Word,
    /// How long an open flow must have been silent to make way for another where there is no room, in ticks. Zero: none does.
    pub spared: Word,
    /// Zero, for what comes.
    pub reserved: [Word; 2],
}

/// An interface that the program is attached to.
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
#[repr(C)]
pub struct Arm {
    /// Its index in the kernel:32, its MTU:16. Zero: there is no such arm.
    pub interface: Word,
    /// Its own MAC address in the low 48 bits, bytes in memory order: frames to others are not ours, however they came
    /// here (a mirror port, a flooding switch). Zero: not looked at.
    pub mac: Word,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Control>() == 512);

/// The SNAT ports and source addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snat {
    /// The first port, host byte order.
    pub first_port: u16,
    /// How many ports.
    pub ports: u32,
    /// How many IPv4 source addresses.
    pub sources: u8,
    /// How many IPv6 source addresses.
    pub sources_v6: u8,
}

impl Snat {
    /// The word that is stored.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.first_port as u64
            | (self.ports as u64) << 16
            | (self.sources as u64) << 48
            | (self.sources_v6 as u64) << 56
    }

    /// The fields of a stored word.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub const fn from_word(word: u64) -> Self {
        Self {
            first_port: word as u16,
            ports: (word >> 16) as u32,
            sources: (word >> 48) as u8,
            sources_v6: (word >> 56) as u8,
        }
    }
}

impl Control {
    /// Begins a new epoch: behind every change of what [`Control::epoch`] counts.
    pub fn changed(&self) {
        self.epoch.fetch_add(1);
    }

    /// What [`cache`](crate::cache) keeps is of one era: another begins with each epoch, and with each generation of the index.
    #[inline(always)]
    #[must_use]
    pub fn era(&self) -> u64 {
        self.epoch.load().wrapping_add(self.generation.load())
    }

    /// The service index that is in force.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> InForce {
        let generation = self.generation.load();
        let multiplied = self.multiplied.load() >> (generation & 1) & 1 != 0;
        InForce { generation, spread: if multiplied { Spread::Multiplied } else { Spread::Hashed } }
    }
}

impl Snat {
    /// How many source addresses of the family of `address`.
    #[inline(always)]
    #[must_use]
    pub const fn sources_like(self, address: Address) -> u8 {
        if address.is_v4() { self.sources } else { self.sources_v6 }
    }

    /// Rows of port cells that an endpoint has: one for each source address of a family.
    #[inline(always)]
    #[must_use]
    pub const fn rows(self) -> u8 {
        if self.sources > self.sources_v6 { self.sources } else { self.sources_v6 }
    }

    /// The cells of the ports from a source address to an endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn range(self, endpoint: u16, source: u8) -> PortRange {
        PortRange { pair: endpoint as u32 * self.rows() as u32 + source as u32, count: self.ports }
    }

    /// The addresses that are running, with the ports and addresses that are `wanted`: a family that is used now stays as
    /// it is. `None` if connections would not be found any more.
    #[must_use]
    pub const fn adopt(self, wanted: Self) -> Option<Self> {
        let merged = Self {
            sources: if self.sources == 0 { wanted.sources } else { self.sources },
            sources_v6: if self.sources_v6 == 0 { wanted.sources_v6 } else { self.sources_v6 },
            ..wanted
        };
        let keeps = (wanted.sources == 0 || wanted.sources == merged.sources)
            && (wanted.sources_v6 == 0 || wanted.sources_v6 == merged.sources_v6);
        // An endpoint's cells lie where the number of its rows says.
        let same_rows = self.rows() == 0 || merged.rows() == self.rows();
        if keeps && same_rows { Some(merged) } else { None }
    }

    /// How far into the SNAT ports this one (as on the wire) is.
    #[inline(always)]
    #[must_use]
    pub const fn offset(self, port: u16) -> Option<u32> {
        let offset = (u16::from_be(port) as u32).wrapping_sub(self.first_port as u32);
        if offset < self.ports { Some(offset) } else { None }
    }
}

impl Control {
    /// Whether rows may still come over from the tables before these, `now`.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of a packed word")]
    pub fn is_carrying(&self, now: Ticks) -> bool {
        let word = self.carrying.load();
        word != 0 && !Ticks(word as u32).is_past(now)
    }

    /// The secret of the tables.
    #[inline(always)]
    #[must_use]
    pub fn key(&self) -> HashKey {
        HashKey([
            self.hash_key[0].load(),
            self.hash_key[1].load(),
            self.hash_key[2].load(),
            self.hash_key[3].load(),
        ])
    }

    /// Since when a flow with this life, which leaves its table at `now`, has been [over](over_since).
    #[inline(always)]
    #[must_use]
    pub fn over_since(&self, life: Life, now: Ticks) -> Ticks {
        over_since(life, self.idle(TcpState::TimeWait, Ticks(0)), now)
    }

    /// For how long a flow with this life has been silent at `now`, if it is open and that is long enough for it to make way for
    /// another; else zero. `established` is as in [`Self::idle`].
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the word holds 32 bits of ticks")]
    pub fn dispensable(&self, life: Life, established: Ticks, now: Ticks) -> u32 {
        let (state, spared) = (TcpState::from_note(life.note()), self.spared.load() as u32);
        if spared == 0 || state.is_closed() {
            return 0;
        }
        let silent = self.idle(state, established).0.saturating_sub(life.deadline().since(now).0);
        if silent > spared { silent } else { 0 }
    }

    /// How long a flow in `state` may be silent; `established` is what its service says.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the word holds 32 bits of ticks")]
    pub fn idle(&self, state: TcpState, established: Ticks) -> Ticks {
        let word = match state {
            TcpState::Established => return established,
            TcpState::SynSent => &self.idle_syn,
            TcpState::SynReceived | TcpState::Promoting => &self.idle_handshake,
            TcpState::ClientFin | TcpState::ServerFin => &self.idle_half_closed,
            TcpState::TimeWait | TcpState::ClientReset | TcpState::ServerReset => &self.idle_closed,
        };
        Ticks(word.load() as u32)
    }

    /// The source address with this number, of the family of `like`.
    #[inline(always)]
    #[must_use]
    pub fn source(&self, number: u8, like: Address) -> Address {
        let family = if like.is_v4() { &self.sources } else { &self.sources_v6 };
        let words = &family[number as usize & (MAX_SOURCES - 1)];
        Address([words[0].load(), words[1].load()])
    }
}

/// How long an open flow has been silent, in seconds, before it may make way for another where there is no room. A client that
/// is worked with has spoken since; one that sits beside a bed over a shift is let go of only instead of turning others away.
pub const SPARED_SECONDS: u64 = 3 * 3600;

/// How long a flow may be silent, in seconds, in the states that the configuration does not set.
///
/// A server gives up a half-open connection after about a minute (Linux: `tcp_synack_retries` 5); TIME-WAIT lasts
/// 60 s on Linux; a half-closed connection that sends nothing for ten minutes has lost its other end.
#[must_use]
pub const fn idle_seconds(state: TcpState) -> u64 {
    match state {
        TcpState::SynSent => 15,
        TcpState::SynReceived | TcpState::Promoting => 60,
        TcpState::Established => 24 * 3600,
        TcpState::ClientFin | TcpState::ServerFin => 600,
        TcpState::TimeWait | TcpState::ClientReset | TcpState::ServerReset => 60,
    }
}
