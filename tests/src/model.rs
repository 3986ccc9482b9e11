//! A second opinion: the data path once more, in plain Rust, written from ARCHITECTURE.md ("What happens on each segment"),
//! the decisions and `docs/packet-path.md`, to be compared with the program packet by packet (`fuzz.rs`).
//!
//! It shares with the program only what has tests of its own and decides nothing about a packet: the list of reasons, how
//! rows are packed into words, the hash that says in which slots a key may lie, and the scheduler's table. TCP states, the
//! handshake, windows, time limits, forwarding modes, headers, rewriting and checksums are written out again, checksums in full.
//! It knows both families and protocols, and every mode ([`Site`]); one interface, and the scheduler `source-hash`.
//!
//! Where something is the program's to choose (which slot, which SNAT port, whose expired row gives way, a tunnel's source
//! address), the model asks what it chose ([`Chosen`]), refuses a choice that the documents forbid, and goes on with it.

mod checksum;
mod choice;
mod client;
mod icmp;
mod parse;
mod rewrite;
mod server;
mod site;
mod state;
mod sweep;

use std::net::IpAddr;

use lb_common::{
    address::Address,
    forwarding::Forwarding,
    maglev::{self, Table},
    maps::Traffic,
    reason::Reason,
    server::ServerState,
};

use crate::golden::{
    bench::USABLE,
    frame::Mac,
    hospital::{BALANCER, FIRST_PORT, MYCHART, SEED, SERVERS, SERVICES, SOURCES, span},
};

pub(crate) use self::{
    choice::{Chosen, flow_slots, is_set, record_slots},
    parse::{Ends, flag},
    site::{Answers, Kind, Site, twin},
    state::{Cell, Flow, Hold, Key, Limits, Owner, Place, Record, State},
    sweep::Freed,
};
use self::{
    parse::{Parsed, parse},
    rewrite::{fragmentable, reset, rewritten, sent_on, too_big, tunnelled},
};

/// What the daemon has set.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What is balanced, and how.
    pub(crate) site: Site,
    /// Source addresses.
    pub(crate) sources: u16,
    /// SNAT ports of each.
    pub(crate) ports: u16,
    /// How long a service's sticky records outlive their last flow; 0: no persistence. In the order of `SERVICES`.
    pub(crate) persistence: [i64; 2],
    /// How long a service's established flows may be silent.
    pub(crate) idle: [i64; 2],
    /// The schedulers' tables.
    pub(crate) schedules: [Table; 2],
    /// What the data path has built in.
    pub(crate) limits: Limits,
}

/// What becomes of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Why.
    pub(crate) reason: Reason,
    /// The frame afterwards, unless it is dropped.
    pub(crate) frame: Option<Vec<u8>>,
}

/// The balancer.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) settings: Settings,
    /// The time, in ticks from the beginning of the sequence.
    pub(crate) now: i64,
    /// Whether the daemon has set up the maps.
    pub(crate) configured: bool,
    /// States in the order of `SERVERS`.
    pub(crate) servers: [ServerState; SERVERS.len()],
    /// Services, then servers.
    pub(crate) traffic: [Traffic; SERVICES.len() + SERVERS.len()],
    pub(crate) half_open: Vec<Option<Flow>>,
    /// The half-open slots that others are writing, as bits.
    pub(crate) busy: u16,
    pub(crate) flows: Vec<Option<Flow>>,
    pub(crate) sticky: Vec<Option<Record>>,
    /// By pair of endpoint and source address, then by port; none: never used.
    pub(crate) ports: Vec<Option<Cell>>,
    /// What was written since the last comparison.
    pub(crate) written: Vec<Place>,
}

/// What is decided about a frame.
enum Verdict {
    /// Passed as it came, or dropped.
    Left(Reason),
    /// Sent on to this MAC address, from and to these ends; an ICMP error as if from this address.
    Sent(Reason, Mac, Ends, Option<IpAddr>),
    /// As [`Verdict::Sent`], and may be fragmented.
    Fragmentable(Reason, Mac, Ends),
    /// Sent on to this MAC address as it is, one hop further.
    SentOn(Reason, Mac),
    /// Sent on inside another packet to the server of this number.
    Tunnelled(Reason, usize),
    /// Too large for a tunnel of this MTU, which its sender is told.
    TooBig(u16),
    /// Answered with RST.
    Answered(Reason),
}

/// Whose a packet is.
enum Side {
    Client(u16),
    /// Of the real server's endpoint, to the source address of this number.
    Server(u16, u8),
    /// Of a real server that answers clients of this service and port themselves.
    NatServer(u16, u16),
}

impl Model {
    /// Nothing in the tables, which have so many slots.
    pub(crate) fn new(settings: Settings, half_open: u32, flows: u32, sticky: u32) -> Self {
        let pairs = usize::from(settings.sources) * SERVERS.len();
        Self {
            now: 0,
            configured: true,
            servers: [ServerState(USABLE); SERVERS.len()],
            traffic: [Traffic::default(); SERVICES.len() + SERVERS.len()],
            half_open: vec![None; half_open as usize],
            busy: 0,
            flows: vec![None; flows as usize],
            sticky: vec![None; sticky as usize],
            ports: vec![None; pairs * usize::from(settings.ports)],
            settings,
            written: Vec::new(),
        }
    }

    /// What must become of a frame, given what the program chose; the tables change.
    ///
    /// # Errors
    /// A choice that is not the program's to make.
    pub(crate) fn judge(&mut self, frame: &[u8], chosen: &Chosen) -> Result<Outcome, String> {
        let verdict = self.decide(frame, chosen)?;
        let dropped = |reason: Reason| reason.action() == lb_common::reason::Action::Drop;
        let sent = |reason, frame| Outcome { reason, frame: Some(frame) };
        Ok(match verdict {
            Verdict::Left(reason) => Outcome { reason, frame: (!dropped(reason)).then(|| frame.to_vec()) },
            Verdict::Sent(reason, hop, ends, reporter) => {
                sent(reason, rewritten(frame, hop, &ends, reporter))
            }
            Verdict::Fragmentable(reason, hop, ends) => {
                sent(reason, fragmentable(&rewritten(frame, hop, &ends, None)))
            }
            Verdict::SentOn(reason, hop) => sent(reason, sent_on(frame, hop)),
            Verdict::Tunnelled(reason, number) => {
                let (source, label) = self.outer(number, chosen)?;
                let server = self.settings.site.server(number);
                sent(reason, tunnelled(frame, SERVERS[number].mac, source, server, label))
            }
            Verdict::TooBig(mtu) => sent(Reason::TooBig, too_big(frame, mtu)),
            Verdict::Answered(reason) => sent(reason, reset(frame)),
        })
    }

    fn decide(&mut self, frame: &[u8], chosen: &Chosen) -> Result<Verdict, String> {
        let parsed = parse(frame);
        if let Parsed::Neither(reason) = parsed {
            return Ok(Verdict::Left(reason));
        }
        if !self.configured {
            return Ok(Verdict::Left(Reason::NotConfigured));
        }
        if frame[..6] != BALANCER {
            return Ok(Verdict::Left(Reason::NotOurs));
        }
        Ok(match parsed {
            Parsed::Neither(reason) => Verdict::Left(reason),
            Parsed::Portless(protocol, to, reason) => {
                let ours = self.settings.site.service_of_address(to, protocol).is_some();
                Verdict::Left(if ours { reason } else { Reason::NotOurs })
            }
            Parsed::Odd(protocol, ends, reason) => {
                Verdict::Left(self.side(&ends, protocol).err().unwrap_or(reason))
            }
            Parsed::IcmpError(error) => self.icmp_error(&error, is_group(mac_at(frame, 6))),
            Parsed::Segment(segment) => match self.side(&segment.ends, segment.protocol) {
                Err(reason) => Verdict::Left(reason),
                Ok(_) if is_group(mac_at(frame, 6)) => Verdict::Left(Reason::BadHeader),
                Ok(Side::Client(service)) => self.client_segment(frame, &segment, service, chosen)?,
                Ok(Side::Server(endpoint, source)) => self.server_segment(frame, &segment, endpoint, source),
                Ok(Side::NatServer(service, asked)) => self.nat_segment(frame, &segment, service, asked),
            },
        })
    }

    /// Whose a packet between these ends is.
    fn side(&self, ends: &Ends, protocol: u8) -> Result<Side, Reason> {
        let site = &self.settings.site;
        if let Some(service) = site.service_at(ends.destination, ends.destination_port, protocol) {
            return Ok(Side::Client(service));
        }
        if site.is_local(ends.destination, ends.destination_port, protocol) {
            return Err(Reason::LocalService);
        }
        match site.answers_from(ends.source, ends.source_port, protocol).ok_or(Reason::NotOurs)? {
            Answers::Ours(endpoint) => {
                let source = self.own(ends.destination, ends.destination_port).ok_or(Reason::NotOurs)?;
                Ok(Side::Server(endpoint, source))
            }
            Answers::Clients(service, asked) => Ok(Side::NatServer(service, asked)),
        }
    }

    /// The number of one of our own addresses, if the port is a SNAT port.
    fn own(&self, address: IpAddr, port: u16) -> Option<u8> {
        let last = FIRST_PORT + (self.settings.ports - 1);
        if !(FIRST_PORT..=last).contains(&port) {
            return None;
        }
        let mut sources = SOURCES[..usize::from(self.settings.sources)].iter();
        let source = sources.position(|source| [false, true].iter().any(|v6| twin(*source, *v6) == address));
        u8::try_from(source?).ok()
    }

    /// The source address and flow label of a tunnel's outer header, which the program chose.
    fn outer(&self, number: usize, chosen: &Chosen) -> Result<(IpAddr, u32), String> {
        let (source, label) = chosen.outer().ok_or("there is no outer packet")?;
        let service = SERVERS[number].service;
        let known = (0..self.settings.sources)
            .any(|n| u8::try_from(n).is_ok_and(|n| self.settings.site.source(service, n) == source));
        if known { Ok((source, label)) } else { Err(format!("a tunnel must not begin at {source}")) }
    }

    /// The server that the client's new connection goes to, and whether its sticky record says so.
    fn choose(&self, key: Key) -> Option<(usize, bool)> {
        let Key { client, service, .. } = key;
        let usable = |id: u16, bit| {
            let number = server_number(id)?;
            let fits = SERVERS[number].service == service && self.present(number).is_some_and(|s| s.has(bit));
            fits.then_some(number)
        };
        // One for all ports is from before there was one for each.
        let record = self
            .record_of(key)
            .or_else(|| self.record_for(key, 0))
            .and_then(|slot| self.sticky[slot].as_ref());
        if let Some(record) = record.filter(|_| self.persistence(service) != 0)
            && let Some(number) = usable(record.server, ServerState::TAKES_KNOWN)
        {
            return Some((number, true));
        }
        let table = &self.settings.schedules[service_number(service)];
        let client = self.settings.site.client(client, service);
        for attempt in 0..lb_common::choose::ATTEMPTS {
            let place = maglev::place(SEED, Address::from(client), table.size(), attempt);
            match table.places()[place as usize] {
                maglev::NOBODY => return None,
                id => {
                    if let Some(number) = usable(id, ServerState::TAKES_NEW) {
                        return Some((number, false));
                    }
                }
            }
        }
        None
    }

    /// The state of a server whose id is in use.
    fn present(&self, number: usize) -> Option<ServerState> {
        Some(self.servers[number]).filter(|state| state.has(ServerState::PRESENT))
    }

    /// The number of a flow's server, unless it is gone, or down or halted in a way that resets.
    fn serving(&self, flow: &Flow) -> Option<usize> {
        let number = server_number(flow.server)?;
        self.present(number).filter(|state| !state.has(ServerState::RESETS)).map(|_| number)
    }

    fn reachable(&self, number: usize) -> bool {
        self.servers[number].has(ServerState::REACHABLE)
    }

    fn persistence(&self, service: u16) -> i64 {
        self.settings.persistence[service_number(service)]
    }

    /// How long a flow may be silent in a state.
    fn patience(&self, state: State, service: u16) -> i64 {
        match state {
            State::SynSent => span::SYN,
            State::SynReceived => span::HANDSHAKE,
            State::Established => self.settings.idle[service_number(service)],
            State::ClientFin | State::ServerFin => span::HALF_CLOSED,
            State::TimeWait | State::ClientReset | State::ServerReset => span::CLOSED,
        }
    }

    /// The way of a packet of a flow towards its server, from a frame of this many bytes with an IP packet of that many.
    fn towards_server(&mut self, reason: Reason, flow: &Flow, bytes: u64, length: usize) -> Verdict {
        let number = server_number(flow.server).unwrap_or_default();
        let service = flow.key.service;
        let (kind, host) = (*self.settings.site.kind(service), &SERVERS[number]);
        if kind.forwarding == Forwarding::Tunnel
            && let Some(mtu) = self.too_small_a_tunnel(&kind, length)
        {
            return Verdict::TooBig(mtu);
        }
        self.count(service, flow.server, |traffic| {
            traffic.packets_in += 1;
            traffic.bytes_in += bytes;
        });
        let server = (self.settings.site.server(number), kind.port_for(flow.key.service_port));
        let source = match kind.forwarding {
            Forwarding::Snat => (self.settings.site.source(service, flow.source), flow.port),
            Forwarding::Nat => (flow.key.client, flow.key.port),
            Forwarding::Dr => return Verdict::SentOn(reason, host.mac),
            Forwarding::Tunnel => return Verdict::Tunnelled(reason, number),
        };
        Verdict::Sent(reason, host.mac, between(source, server), None)
    }

    /// What a tunnel takes, if it does not take a packet of this length.
    fn too_small_a_tunnel(&self, kind: &Kind, length: usize) -> Option<u16> {
        let left = self.settings.site.mtu - if kind.servers_v6 { 40 } else { 20 };
        (length > usize::from(left)).then_some(left)
    }

    /// Changes the counters of a service and of a server.
    fn count(&mut self, service: u16, server: u16, change: impl Fn(&mut Traffic)) {
        change(&mut self.traffic[service_number(service)]);
        if let Some(number) = server_number(server) {
            change(&mut self.traffic[SERVICES.len() + number]);
        }
    }
}

/// A service's place in `SERVICES`.
pub(crate) fn service_number(id: u16) -> usize {
    usize::from(id == MYCHART.id)
}

/// A server's place in `SERVERS`.
pub(crate) fn server_number(id: u16) -> Option<usize> {
    SERVERS.iter().position(|server| server.id == id)
}

/// From one address and port to another.
fn between(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Ends {
    Ends {
        source: source.0,
        source_port: source.1,
        destination: destination.0,
        destination_port: destination.1,
    }
}

/// Whether a MAC address is that of more than one host: nobody's to send from.
const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// A MAC address in a frame.
fn mac_at(frame: &[u8], at: usize) -> Mac {
    let mut mac = Mac::default();
    mac.copy_from_slice(&frame[at..at + 6]);
    mac
}
