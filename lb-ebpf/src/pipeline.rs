//! The way of a packet.
//!
//! ```text
//! parse -> ours? -> from a client:      flow -> half-open flow -> sticky record -> scheduler -> rewrite or encapsulate -> transmit
//!                -> from a real server: SNAT port, or client -> flow -> rewrite -> transmit
//!                -> an ICMP error:      the repeated packet's flow -> rewrite -> transmit
//! ```

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_jiffies64};
use lb_common::{
    address::Address,
    clock::Ticks,
    control::{Control, MAX_ARMS, Snat},
    flow::ARM_SHIFT,
    hash::HashKey,
    reason::Reason,
    service::{EntryKind, IndexHit, find_entry},
};

use crate::{
    from_client, from_server, icmp,
    maps::{self, ServiceIndex},
    packet::{Hop, Packet, Parsed, Tuple, interface},
};

/// What every stage may need beside the packet. What else it knows it reads from the control map when asked: that costs
/// less than keeping it, on 512 bytes of stack and ten registers.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) control: &'static Control,
    pub(crate) now: Ticks,
}

/// What became of a packet, and the interface by which it leaves.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) reason: Reason,
    /// Its number, or [`SAME_ARM`].
    pub(crate) arm: u8,
}

/// The interface that the packet came by.
pub(crate) const SAME_ARM: u8 = u8::MAX;

impl Outcome {
    #[inline(always)]
    pub(crate) const fn here(reason: Reason) -> Self {
        Self { reason, arm: SAME_ARM }
    }
}

/// Decides what becomes of a packet, and makes it ready for that.
#[inline(always)]
pub(crate) fn run(context: *mut xdp_md) -> Outcome {
    match decide(context) {
        Ok(outcome) => outcome,
        Err(reason) => Outcome::here(reason),
    }
}

#[inline(always)]
fn decide(context: *mut xdp_md) -> Result<Outcome, Reason> {
    let (mut packet, parsed) = Packet::parse(context)?;
    if !maps::is_configured() {
        return Err(Reason::NotConfigured);
    }
    let world = World::now();
    packet.arm = world.arm(interface(context))?;
    let own = world.own_mac(packet.arm);
    if own != 0 && packet.receiver() != own {
        return Err(Reason::NotOurs);
    }
    match parsed {
        Parsed::Segment(segment) => match world.owner(&segment.tuple, segment.protocol())? {
            Owner::Client(service) => from_client::segment(&world, &packet, &segment, service),
            Owner::Server(endpoint, source) => {
                from_server::segment(&world, &packet, &segment, endpoint, source)
            }
            Owner::NatServer(service, port) => {
                from_server::nat_segment(&world, &packet, &segment, service, port)
            }
        },
        Parsed::Odd(protocol, tuple, reason) => {
            world.owner(&tuple, protocol)?;
            Err(reason)
        }
        Parsed::Portless(protocol, destination, reason) => match world.entry(destination, 0, protocol) {
            Some(hit) if hit.is(EntryKind::Address) => Err(reason),
            _ => Err(Reason::NotOurs),
        },
        Parsed::IcmpError => icmp::finish(&packet, icmp::error(context)),
    }
}

/// The data path's time.
#[inline(always)]
pub(crate) fn now() -> Ticks {
    // SAFETY: the helper has no arguments and no effects.
    Ticks::from_jiffies(unsafe { bpf_jiffies64() })
}

/// Whose packet it is.
pub(crate) enum Owner {
    /// A client's, to the service of this id.
    Client(u16),
    /// A real server's, from the endpoint of this id to the source address of this number.
    Server(u16, u8),
    /// A real server's that answers clients by their own addresses, for the service of this id and port.
    NatServer(u16, u16),
}

impl World {
    #[inline(always)]
    pub(crate) fn now() -> Self {
        Self { control: maps::control(), now: now() }
    }

    /// The secret of the tables.
    #[inline(always)]
    pub(crate) fn key(&self) -> HashKey {
        self.control.key()
    }

    /// SNAT ports and source addresses.
    #[inline(always)]
    pub(crate) fn snat(&self) -> Snat {
        Snat::from_word(self.control.snat.load())
    }

    /// What listens on, or answers from, this address and port.
    #[inline(always)]
    pub(crate) fn entry(&self, address: Address, port: u16, protocol: u8) -> Option<IndexHit> {
        find_entry(&ServiceIndex, self.control.index(), &self.key(), address, port, protocol)
    }

    /// Whose packet this is.
    ///
    /// # Errors
    /// Why it is not for us.
    #[inline(always)]
    fn owner(&self, tuple: &Tuple, protocol: u8) -> Result<Owner, Reason> {
        if let Some(hit) = self.entry(tuple.destination, tuple.destination_port, protocol) {
            if hit.is(EntryKind::Service) {
                return Ok(Owner::Client(hit.id));
            }
            if hit.is(EntryKind::Local) {
                return Err(Reason::LocalService);
            }
        }
        let from = self.entry(tuple.source, tuple.source_port, protocol).ok_or(Reason::NotOurs)?;
        if from.is(EntryKind::NatEndpoint) {
            return Ok(Owner::NatServer(from.id, from.service_port));
        }
        match self.endpoint(&from, tuple.destination, tuple.destination_port) {
            Some((endpoint, source)) => Ok(Owner::Server(endpoint, source)),
            None => Err(Reason::NotOurs),
        }
    }

    /// The endpoint and source address of a conversation between a server, as the index has it, and a SNAT port.
    #[inline(always)]
    pub(crate) fn endpoint(&self, server: &IndexHit, ours: Address, port: u16) -> Option<(u16, u8)> {
        let snat = self.snat();
        snat.offset(port)?;
        if !server.is(EntryKind::Endpoint) {
            return None;
        }
        let source = self.source_number(snat.sources_like(ours), ours)?;
        Some((server.id, source))
    }

    #[inline(always)]
    pub(crate) fn source_number(&self, sources: u8, address: Address) -> Option<u8> {
        let mut number = 0;
        while number < lb_common::control::MAX_SOURCES as u8 {
            if number >= sources {
                return None;
            }
            if self.control.source(number, address) == address {
                return Some(number);
            }
            number += 1;
        }
        None
    }

    /// The number of an interface.
    #[inline(always)]
    pub(crate) fn arm(&self, interface: u32) -> Result<u8, Reason> {
        let first = self.control.arms[0].interface.load() as u32;
        // None is there in the moment after an upgrade from layout 1.
        if first == interface || first == 0 {
            return Ok(0);
        }
        let mut number = 1;
        while number < MAX_ARMS as u8 {
            if self.control.arms[usize::from(number)].interface.load() as u32 == interface {
                return Ok(number);
            }
            number += 1;
        }
        Err(Reason::NotOurs)
    }

    /// The MAC address of an interface.
    #[inline(always)]
    fn own_mac(&self, arm: u8) -> u64 {
        self.control.arms[usize::from(arm) & (MAX_ARMS - 1)].mac.load()
    }

    /// Bytes of an IP packet that an interface takes.
    #[inline(always)]
    pub(crate) fn mtu(&self, arm: u8) -> u32 {
        (self.control.arms[usize::from(arm) & (MAX_ARMS - 1)].interface.load() >> 32) as u32 & 0xffff
    }

    /// The way of a packet to a next hop: a MAC address with an arm above it.
    #[inline(always)]
    pub(crate) fn hop(&self, packet: &Packet, word: u64) -> Hop {
        self.way(packet.arm, packet.receiver(), word)
    }

    /// As [`World::hop`], of a packet that came by the interface of this index, to this MAC address.
    #[inline(always)]
    pub(crate) fn leave(&self, interface: u32, receiver: u64, word: u64) -> Result<Hop, Reason> {
        Ok(self.way(self.arm(interface)?, receiver, word))
    }

    #[inline(always)]
    fn way(&self, came_by: u8, receiver: u64, word: u64) -> Hop {
        let arm = (word >> ARM_SHIFT) as u8;
        if arm == came_by {
            Hop { to: word, from: receiver, arm: SAME_ARM }
        } else {
            Hop { to: word, from: self.own_mac(arm), arm }
        }
    }
}
