//! A tunnel's beginning: it puts packets for a service into others (RFC 2003, 4213 and 2473), and tells senders whose
//! packets would not fit.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, PacketBuilder, PacketBuilderStep, icmpv4::DestUnreachableHeader,
};

use super::arm;
use crate::lab::{Lab, Ns, RawSocket};

const ETHERNET: usize = 14;
const MTU: usize = 1500;
/// From one look at whether it is over to the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Where a tunnel leads.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The server's MAC address on the balancer's network.
    pub mac: [u8; 6],
    /// The address of the outer header's destination.
    pub address: IpAddr,
    /// That of its source, of the same family.
    pub source: IpAddr,
}

/// A thread that encapsulates until this is dropped.
#[derive(Debug)]
pub struct Tunnel {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// The ends at the servers of these addresses, the lab's first ones in order, from the balancer's address of the lab's family.
pub(super) fn ends(lab: &Lab, servers: &[IpAddr]) -> Result<Vec<End>> {
    let source = lab.topology().balancer_to_servers();
    let end = |(index, address): (usize, &IpAddr)| {
        let server = lab.host(Ns::Server(index)).context("no such server")?;
        Ok(End { mac: server.mac(), address: *address, source })
    };
    servers.iter().enumerate().map(end).collect()
}

impl Tunnel {
    /// Encapsulates what arrives at the balancer's `eth0` for the service's address, whatever protocol it is.
    ///
    /// # Errors
    /// A socket could not be opened.
    pub fn start(lab: &Lab, vip: IpAddr, ends: Vec<End>) -> Result<Self> {
        let own = lab.host(Ns::Lb).context("the lab has no balancer")?.mac();
        let answers_from = match vip {
            IpAddr::V4(_) => IpAddr::V4(lab.host(Ns::Lb).context("the lab has no balancer")?.address),
            IpAddr::V6(_) => lab.address(Ns::Lb)?,
        };
        let receiver = lab.raw_socket(Ns::Lb)?;
        let out = arm(lab.topology());
        let relay = Relay {
            vip,
            own,
            answers_from,
            ends,
            to_servers: lab.in_ns(Ns::Lb, || RawSocket::open(out))??,
            to_clients: lab.raw_socket(Ns::Lb)?,
        };
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = thread::spawn(move || relay.run(receiver, &seen));
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the tunnel of the stand-in broke: {error:#}");
        }
    }
}

struct Relay {
    vip: IpAddr,
    own: [u8; 6],
    answers_from: IpAddr,
    ends: Vec<End>,
    to_servers: RawSocket,
    to_clients: RawSocket,
}

impl Relay {
    fn run(&self, mut receiver: RawSocket, over: &AtomicBool) -> Result<()> {
        let ours =
            |frame: &[u8]| frame[..6] == self.own && addresses(frame).is_some_and(|(_, to)| to == self.vip);
        while !over.load(Ordering::Relaxed) {
            if let Some(frame) = receiver.receive(PAUSE, ours)? {
                self.pass_on(&frame)?;
            }
        }
        Ok(())
    }

    fn pass_on(&self, frame: &[u8]) -> Result<()> {
        let (client, _) = addresses(frame).context("it was looked at before")?;
        let last = match client {
            IpAddr::V4(client) => client.octets()[3],
            IpAddr::V6(client) => client.octets()[15],
        };
        let end = self.ends[usize::from(last) % self.ends.len()];
        let outer = if end.address.is_ipv4() { 20 } else { 40 };
        let inner = &frame[ETHERNET..];
        if inner.len() + outer > MTU {
            return self.to_clients.send(&self.too_big(frame, client, MTU - outer)?);
        }
        let protocol = if self.vip.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
        let mut out = Vec::new();
        ip(self.own, end.mac, end.source, end.address)?.write(&mut out, protocol, inner)?;
        self.to_servers.send(&out)
    }

    /// Fragmentation needed (RFC 1191), or packet too big (RFC 4443 section 3.2).
    fn too_big(&self, frame: &[u8], client: IpAddr, mtu: usize) -> Result<Vec<u8>> {
        let back: [u8; 6] = frame[6..12].try_into()?;
        let builder = ip(self.own, back, self.answers_from, client)?;
        let mut out = Vec::new();
        if client.is_ipv4() {
            let next_hop_mtu = u16::try_from(mtu)?;
            let needed = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
            let repeated = &frame[ETHERNET..ETHERNET + 28];
            builder.icmpv4(Icmpv4Type::DestinationUnreachable(needed)).write(&mut out, repeated)?;
        } else {
            let repeated = &frame[ETHERNET..ETHERNET + 1000];
            builder
                .icmpv6(Icmpv6Type::PacketTooBig { mtu: u32::try_from(mtu)? })
                .write(&mut out, repeated)?;
        }
        Ok(out)
    }
}

type Builder = PacketBuilderStep<etherparse::IpHeaders>;

fn ip(from: [u8; 6], to: [u8; 6], source: IpAddr, destination: IpAddr) -> Result<Builder> {
    let link = PacketBuilder::ethernet2(from, to);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(to)) => Ok(link.ipv4(source.octets(), to.octets(), 64)),
        (IpAddr::V6(source), IpAddr::V6(to)) => Ok(link.ipv6(source.octets(), to.octets(), 64)),
        _ => bail!("{source} and {destination} are of two families"),
    }
}

/// Source and destination of an IP packet in a frame without VLAN tags.
fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at| Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?));
    let v6 = |at| Some(IpAddr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?));
    match frame.get(12..14)? {
        [0x08, 0x00] => Some((v4(26)?, v4(30)?)),
        [0x86, 0xdd] => Some((v6(22)?, v6(38)?)),
        _ => None,
    }
}
