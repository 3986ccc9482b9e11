//! A second opinion: the data path once more, in plain Rust, written from ARCHITECTURE.md ("What happens on each segment"),
//! the decisions and `docs/packet-path.md`, to be compared with the program packet by packet (`fuzz.rs`).
//!
//! It shares with the program only what has tests of its own and decides nothing about a packet: the list of reasons, how
//! rows are packed into words, the hash that says in which slots a key may lie, and the scheduler's table. TCP states, the
//! handshake, windows, time limits, headers, rewriting and checksums are written out again, checksums in full.
//!
//! Where something is the program's to choose (which slot, which SNAT port, whose expired row gives way), the model asks
//! what it chose ([`Chosen`]), refuses a choice that the documents forbid, and goes on with it.

mod checksum;
mod choice;
mod client;
mod icmp;
mod parse;
mod rewrite;
mod server;
mod state;
mod sweep;

use std::net::Ipv4Addr;

use lb_common::{
    maglev::{self, Table},
    maps::Traffic,
    reason::Reason,
    server::ServerState,
};

use crate::golden::{
    bench::USABLE,
    frame::Mac,
    hospital::{
        BALANCER, FIRST_PORT, HYPERSPACE, MYCHART, OTHER_PORT, SEED, SERVERS, SERVICES, SOURCES, address,
        span,
    },
};

pub(crate) use self::{
    choice::{Chosen, flow_slots, is_set, record_slots},
    parse::{Ends, flag},
    state::{Cell, Flow, Hold, Key, Limits, Owner, Place, Record, State},
    sweep::Freed,
};
use self::{
    parse::{Parsed, parse},
    rewrite::{reset, rewritten},
};

/// What the daemon has set.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
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
    /// Sent on to this MAC address, from and to these ends.
    Sent(Reason, Mac, Ends),
    /// Answered with RST.
    Answered(Reason),
}

/// Whose a packet is.
enum Side {
    Client(u16),
    /// Of the real server's endpoint, to the source address of this number.
    Server(u16, u8),
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
        Ok(match verdict {
            Verdict::Left(reason) => Outcome { reason, frame: (!dropped(reason)).then(|| frame.to_vec()) },
            Verdict::Sent(reason, hop, ends) => Outcome { reason, frame: Some(rewritten(frame, hop, &ends)) },
            Verdict::Answered(reason) => Outcome { reason, frame: Some(reset(frame)) },
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
            Parsed::LaterFragment(to) if SERVICES.iter().any(|service| service.address == to) => {
                Verdict::Left(Reason::Fragment)
            }
            Parsed::LaterFragment(_) => Verdict::Left(Reason::NotOurs),
            Parsed::Odd(ends, reason) => Verdict::Left(self.side(&ends).err().unwrap_or(reason)),
            Parsed::IcmpError { about, to, ttl } => self.icmp_error(&about, to, ttl),
            Parsed::Segment(segment) => match self.side(&segment.ends) {
                Err(reason) => Verdict::Left(reason),
                Ok(Side::Client(service)) => self.client_segment(frame, &segment, service, chosen)?,
                Ok(Side::Server(endpoint, source)) => self.server_segment(frame, &segment, endpoint, source),
            },
        })
    }

    /// Whose a packet between these ends is.
    fn side(&self, ends: &Ends) -> Result<Side, Reason> {
        if let Some(service) = service_at(ends.destination, ends.destination_port) {
            return Ok(Side::Client(service));
        }
        if (ends.destination, ends.destination_port) == (HYPERSPACE.address, 80) {
            return Err(Reason::LocalService);
        }
        let server = (ends.source, ends.source_port);
        let ours = (ends.destination, ends.destination_port);
        let (endpoint, source) = self.conversation(server, ours).ok_or(Reason::NotOurs)?;
        Ok(Side::Server(endpoint, source))
    }

    /// The endpoint and the number of the source address, if one talks to a SNAT port of the other.
    fn conversation(&self, server: (Ipv4Addr, u16), ours: (Ipv4Addr, u16)) -> Option<(u16, u8)> {
        let last = FIRST_PORT + (self.settings.ports - 1);
        if !(FIRST_PORT..=last).contains(&ours.1) {
            return None;
        }
        let sources = &SOURCES[..usize::from(self.settings.sources)];
        let source = sources.iter().position(|source| *source == ours.0)?;
        let known = SERVERS.iter().find(|host| host.address == server.0)?;
        let first = known.id == SERVERS[0].id;
        let answers = server.1 == 443 || server.1 == OTHER_PORT && first;
        answers.then_some((known.endpoint, u8::try_from(source).ok()?))
    }

    /// The server that the client's new connection goes to, and whether its sticky record says so.
    fn choose(&self, client: Ipv4Addr, service: u16) -> Option<(usize, bool)> {
        let usable = |id: u16, bit| {
            let number = server_number(id)?;
            let fits = SERVERS[number].service == service && self.present(number).is_some_and(|s| s.has(bit));
            fits.then_some(number)
        };
        let record = self.record_of(client, service).and_then(|slot| self.sticky[slot].as_ref());
        if let Some(record) = record.filter(|_| self.persistence(service) != 0)
            && let Some(number) = usable(record.server, ServerState::TAKES_KNOWN)
        {
            return Some((number, true));
        }
        let table = &self.settings.schedules[service_number(service)];
        for attempt in 0..lb_common::choose::ATTEMPTS {
            let place = maglev::place(SEED, address(client), table.size(), attempt);
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

    /// Changes the counters of a service and of a server.
    fn count(&mut self, service: u16, server: u16, change: impl Fn(&mut Traffic)) {
        change(&mut self.traffic[service_number(service)]);
        if let Some(number) = server_number(server) {
            change(&mut self.traffic[SERVICES.len() + number]);
        }
    }
}

/// The service that is balanced at an address and port.
pub(crate) fn service_at(at: Ipv4Addr, port: u16) -> Option<u16> {
    SERVICES.iter().find(|service| service.address == at && port == 443).map(|service| service.id)
}

/// A service's place in `SERVICES`.
pub(crate) fn service_number(id: u16) -> usize {
    usize::from(id == MYCHART.id)
}

/// A server's place in `SERVERS`.
pub(crate) fn server_number(id: u16) -> Option<usize> {
    SERVERS.iter().position(|server| server.id == id)
}

/// A MAC address in a frame.
fn mac_at(frame: &[u8], at: usize) -> Mac {
    let mut mac = Mac::default();
    mac.copy_from_slice(&frame[at..at + 6]);
    mac
}
