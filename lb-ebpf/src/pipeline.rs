//! The way of a packet.
//!
//! ```text
//! parse -> ours? -> from a client:      flow -> half-open flow -> sticky record -> scheduler -> rewrite -> transmit
//!                -> from a real server: SNAT port -> flow -> rewrite -> transmit
//!                -> an ICMP error:      the repeated packet's flow -> rewrite -> transmit
//! ```

use aya_ebpf::{helpers::generated::bpf_jiffies64, programs::XdpContext};
use lb_common::{
    TCP,
    address::Address,
    clock::Ticks,
    control::{Control, Snat},
    hash::HashKey,
    reason::Reason,
    service::{EntryKind, IndexHit, find_entry},
};

use crate::{
    from_client, from_server, icmp,
    maps::{self, ServiceIndex},
    packet::{Packet, Parsed, Tuple},
};

/// What every stage may need beside the packet.
pub(crate) struct World {
    pub control: &'static Control,
    pub key: HashKey,
    pub generation: u64,
    pub snat: Snat,
    pub now: Ticks,
}

/// Decides what becomes of a packet, and makes it ready for that.
#[inline(always)]
pub(crate) fn run(context: &XdpContext) -> Reason {
    match decide(context) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn decide(context: &XdpContext) -> Result<Reason, Reason> {
    let (packet, parsed) = Packet::parse(context)?;
    let world = World::now().ok_or(Reason::NotConfigured)?;
    match parsed {
        Parsed::Segment(segment) => match world.owner(&segment.tuple)? {
            Owner::Client(service) => from_client::segment(&world, &packet, &segment, service),
            Owner::Server(endpoint, source) => {
                from_server::segment(&world, &packet, &segment, endpoint, source)
            }
        },
        Parsed::Odd(tuple, reason) => {
            world.owner(&tuple)?;
            Err(reason)
        }
        Parsed::LaterFragment(destination) => match world.entry(destination, 0) {
            Some(hit) if hit.is(EntryKind::Address) => Err(Reason::Fragment),
            _ => Err(Reason::NotOurs),
        },
        Parsed::IcmpError(tuple, destination, ttl) => icmp::error(&world, &packet, &tuple, destination, ttl),
    }
}

/// Whose packet it is.
pub(crate) enum Owner {
    /// A client's, to the service of this id.
    Client(u16),
    /// A real server's, from the endpoint of this id to the source address of this number.
    Server(u16, u8),
}

impl World {
    #[inline(always)]
    pub(crate) fn now() -> Option<Self> {
        let control = maps::control()?;
        Some(Self {
            control,
            key: control.key(),
            generation: control.generation.load(),
            snat: Snat::from_word(control.snat.load()),
            // SAFETY: the helper has no arguments and no effects.
            now: Ticks::from_jiffies(unsafe { bpf_jiffies64() }),
        })
    }

    /// What listens on, or answers from, this address and port.
    #[inline(always)]
    pub(crate) fn entry(&self, address: Address, port: u16) -> Option<IndexHit> {
        find_entry(&ServiceIndex, self.generation, &self.key, address, port, TCP)
    }

    /// Whose packet this is.
    ///
    /// # Errors
    /// Why it is not for us.
    #[inline(always)]
    fn owner(&self, tuple: &Tuple) -> Result<Owner, Reason> {
        if let Some(hit) = self.entry(tuple.destination, tuple.destination_port) {
            if hit.is(EntryKind::Service) {
                return Ok(Owner::Client(hit.id));
            }
            if hit.is(EntryKind::Local) {
                return Err(Reason::LocalService);
            }
        }
        match self.endpoint(
            tuple.source,
            tuple.source_port,
            tuple.destination,
            tuple.destination_port,
        ) {
            Some((endpoint, source)) => Ok(Owner::Server(endpoint, source)),
            None => Err(Reason::NotOurs),
        }
    }

    /// The endpoint and source address of a conversation between a server and a SNAT port.
    #[inline(always)]
    pub(crate) fn endpoint(
        &self,
        server: Address,
        server_port: u16,
        ours: Address,
        port: u16,
    ) -> Option<(u16, u8)> {
        self.port_offset(port)?;
        let source = self.source_number(ours)?;
        let hit = self.entry(server, server_port)?;
        if hit.is(EntryKind::Endpoint) {
            Some((hit.id, source))
        } else {
            None
        }
    }

    /// How far into the SNAT ports this one (as on the wire) is.
    #[inline(always)]
    pub(crate) fn port_offset(&self, port: u16) -> Option<u32> {
        let offset = u32::from(u16::from_be(port)).wrapping_sub(u32::from(self.snat.first_port));
        if offset < self.snat.ports {
            Some(offset)
        } else {
            None
        }
    }

    #[inline(always)]
    fn source_number(&self, address: Address) -> Option<u8> {
        let mut number = 0;
        while number < lb_common::control::MAX_SOURCES as u8 {
            if u16::from(number) >= self.snat.sources {
                return None;
            }
            if self.control.source(number) == address {
                return Some(number);
            }
            number += 1;
        }
        None
    }
}
