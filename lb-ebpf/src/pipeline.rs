//! The way of a packet.
//!
//! ```text
//! parse -> ours? -> from a client:      flow -> half-open flow -> sticky record -> scheduler -> rewrite -> transmit
//!                -> from a real server: SNAT port -> flow -> rewrite -> transmit
//!                -> an ICMP error:      the repeated packet's flow -> rewrite -> transmit
//! ```

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_jiffies64};
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
    from_client, from_server,
    handshake::reason_of,
    icmp,
    maps::{self, ServiceIndex},
    packet::{Packet, Parsed, Tuple},
};

/// What every stage may need beside the packet. What else it knows it reads from the control map when asked: that costs
/// less than keeping it, on 512 bytes of stack and ten registers.
#[derive(Clone, Copy)]
pub(crate) struct World {
    pub(crate) control: &'static Control,
    pub(crate) now: Ticks,
}

/// Decides what becomes of a packet, and makes it ready for that.
#[inline(always)]
pub(crate) fn run(context: *mut xdp_md) -> Reason {
    match decide(context) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn decide(context: *mut xdp_md) -> Result<Reason, Reason> {
    let (packet, parsed) = Packet::parse(context)?;
    let world = World::now().ok_or(Reason::NotConfigured)?;
    let own = world.control.mac.load();
    if own != 0 && packet.receiver() != own {
        return Err(Reason::NotOurs);
    }
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
        Parsed::IcmpError(..) => Ok(reason_of(icmp::error(context))),
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
        // SAFETY: the helper has no arguments and no effects.
        let now = Ticks::from_jiffies(unsafe { bpf_jiffies64() });
        Some(Self { control, now })
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
    pub(crate) fn entry(&self, address: Address, port: u16) -> Option<IndexHit> {
        find_entry(&ServiceIndex, self.control.generation.load(), &self.key(), address, port, TCP)
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
        match self.endpoint(tuple.source, tuple.source_port, tuple.destination, tuple.destination_port) {
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
        let snat = self.snat();
        snat.offset(port)?;
        let source = self.source_number(snat.sources, ours)?;
        let hit = self.entry(server, server_port)?;
        if hit.is(EntryKind::Endpoint) { Some((hit.id, source)) } else { None }
    }

    #[inline(always)]
    fn source_number(&self, sources: u16, address: Address) -> Option<u8> {
        let mut number = 0;
        while number < lb_common::control::MAX_SOURCES as u8 {
            if u16::from(number) >= sources {
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
