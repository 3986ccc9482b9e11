//! What the balancer remembers, and what both directions do with it.

use std::net::IpAddr;

use lb_common::server::ServerState;

use super::{
    Model, is_set,
    parse::{Segment, flag},
    server_number,
};
use crate::golden::{frame::Mac, hospital::FIRST_PORT};

/// What a flow is found by; ports in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) service: u16,
    pub(crate) client: IpAddr,
    pub(crate) port: u16,
    pub(crate) service_port: u16,
}

/// Where a TCP connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    SynReceived,
    Established,
    ClientFin,
    ServerFin,
    TimeWait,
    ClientReset,
    ServerReset,
}

impl State {
    /// Both sent FIN, or one RST and nothing since.
    pub(crate) const fn is_closed(self) -> bool {
        matches!(self, Self::TimeWait | Self::ClientReset | Self::ServerReset)
    }
}

/// A sticky record as its flows refer to it: its slot, and the low seven bits of the slot's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) slot: usize,
    pub(crate) version: u16,
}

/// A flow, in either table. Times are ticks from the beginning of the sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) key: Key,
    pub(crate) server: u16,
    pub(crate) endpoint: u16,
    /// The number of the source address.
    pub(crate) source: u8,
    /// The SNAT port; zero: none.
    pub(crate) port: u16,
    pub(crate) hop: Mac,
    /// Whether packets to the client may be fragmented on their way.
    pub(crate) may_fragment: bool,
    /// The numbers recorded of the client and of the server.
    pub(crate) numbers: [u32; 2],
    /// While it is half-open: a number of the server's from before, its lower 31 bits (decision 5).
    pub(crate) first: u32,
    /// While it is open: whether its client has sent a SYN on its ports.
    pub(crate) syn_seen: bool,
    pub(crate) hold: Option<Hold>,
    pub(crate) state: State,
    pub(crate) until: i64,
}

/// What a server has answered to a SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answered {
    /// A SYN-ACK with this number, and so many bytes of data with and behind it.
    One(u32, i64),
    /// Two SYN-ACKs: of the first the lower 31 bits are known, and the last one's number.
    Two(u32, u32),
}

/// What is kept of the first number.
const KEPT: u32 = u32::MAX >> 1;

impl Answered {
    /// Whether an acknowledgement is of it.
    pub(super) fn contains(self, acknowledgment: u32) -> bool {
        match self {
            Self::One(number, data) => (1..=data + 1).contains(&ahead(number, acknowledgment)),
            Self::Two(first, last) => {
                let number = acknowledgment.wrapping_sub(1);
                number == last || number & KEPT == first
            }
        }
    }

    /// After another SYN-ACK.
    pub(super) fn and(self, number: u32, data: i64, window: i64) -> Self {
        match self {
            Self::One(own, _) if own == number => self.and_data(number.wrapping_add(1), data, window),
            Self::One(own, _) if own & KEPT == number & KEPT => self,
            Self::One(own, _) => Self::Two(own & KEPT, number),
            Self::Two(first, last) if number == last || number & KEPT == first => self,
            Self::Two(_, last) => Self::Two(last & KEPT, number),
        }
    }

    /// After data that begins at this number.
    pub(super) fn and_data(self, number: u32, data: i64, window: i64) -> Self {
        let Self::One(own, known) = self else { return self };
        let before = ahead(own, number) - 1;
        let all = before + data;
        let fits = (0..=window).contains(&before) && all <= window;
        if fits { Self::One(own, known.max(all)) } else { self }
    }
}

impl Flow {
    /// What its server has answered, while it is half-open.
    pub(super) fn answered(&self) -> Answered {
        let data = self.numbers[1].wrapping_sub(self.first) & KEPT;
        if data <= 0xffff {
            Answered::One(self.numbers[1].wrapping_sub(data), data.into())
        } else {
            Answered::Two(self.first, self.numbers[1])
        }
    }

    /// Notes what its server has answered.
    pub(super) fn answer(&mut self, answered: Answered) {
        (self.first, self.numbers[1]) = match answered {
            Answered::One(number, data) => {
                (number & KEPT, number.wrapping_add(u32::try_from(data).unwrap_or_default()))
            }
            Answered::Two(first, last) => (first, last),
        };
    }

    /// Its client's packets come over this hop. What was learnt of another hop's path is not known of this one's.
    pub(super) fn comes_by(&mut self, hop: Mac) {
        self.may_fragment &= self.hop == hop;
        self.hop = hop;
    }
}

/// A sticky record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) service: u16,
    /// The port of the service that it is for; zero: all of them.
    pub(crate) port: u16,
    pub(crate) client: IpAddr,
    pub(crate) server: u16,
    /// Whether the client acknowledged its server's own answer.
    pub(crate) verified: bool,
    /// Open flows.
    pub(crate) flows: u32,
    pub(crate) until: i64,
    /// The slot's version, which the program chose.
    pub(crate) version: u16,
}

/// Who has a SNAT port: nobody, or the row in a slot of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Nobody,
    HalfOpen(usize),
    Flow(usize),
}

/// A SNAT port that was ever used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) owner: Owner,
    /// Since when.
    pub(crate) since: i64,
}

/// A place in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    HalfOpen(usize),
    Flow(usize),
    Sticky(usize),
    Port(usize),
}

/// Who sent a segment; the number's place in [`Flow::numbers`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Client = 0,
    Server = 1,
}

/// Limits that are built in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How near a number must be to the recorded one to count (decision 6).
    pub(crate) near: i64,
    /// How far ahead it must be to be recorded.
    pub(crate) stride: i64,
    /// A deadline is moved if it moves by at least so many ticks.
    pub(crate) refresh: i64,
    /// How far behind the SYN the segment that completes the handshake may begin.
    pub(crate) first_window: i64,
    /// Records that nobody vouched for, of a client's slots, before one of them makes way for another.
    pub(crate) unverified: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { near: 512 << 10, stride: 32 << 10, refresh: 8, first_window: 0xffff, unverified: 4 }
    }
}

/// How far `sequence` is ahead of `recorded`; negative: behind.
pub(super) fn ahead(recorded: u32, sequence: u32) -> i64 {
    i64::from(sequence.wrapping_sub(recorded).cast_signed())
}

impl Model {
    pub(super) const fn is_past(&self, until: i64) -> bool {
        until < self.now
    }

    /// The established flow of this key, if it is remembered.
    pub(super) fn flow_of(&self, key: Key) -> Option<usize> {
        self.find(&self.flows, key)
    }

    /// The half-open flow of this key, if it is remembered.
    pub(super) fn half_open_of(&self, key: Key) -> Option<usize> {
        self.find(&self.half_open, key)
    }

    fn find(&self, table: &[Option<Flow>], key: Key) -> Option<usize> {
        let found = |flow: &Flow| flow.key == key && !self.is_past(flow.until);
        table.iter().position(|row| row.as_ref().is_some_and(found))
    }

    /// Others overwrite the half-open rows in the slots of these bits, and have thrown away what they wrote before.
    pub(crate) fn occupy(&mut self, slots: u16) {
        self.busy = slots;
        for (slot, row) in self.half_open.iter_mut().enumerate() {
            if is_set(slots, slot) {
                *row = None;
            }
        }
    }

    /// A record is forgotten when it has no open flow and its time is over.
    pub(super) fn is_forgotten(&self, record: &Record) -> bool {
        record.flows == 0 && self.is_past(record.until)
    }

    /// The sticky record of a client that connects so, if it is remembered.
    pub(super) fn record_of(&self, key: Key) -> Option<usize> {
        self.record_for(key, self.settings.site.record_port(key))
    }

    /// The client's record for this port, or (zero) for all of them.
    pub(super) fn record_for(&self, key: Key, port: u16) -> Option<usize> {
        let client = self.settings.site.client(key.client, key.service);
        let found = |record: &Record| {
            (record.client, record.service, record.port) == (client, key.service, port)
                && !self.is_forgotten(record)
        };
        self.sticky.iter().position(|row| row.as_ref().is_some_and(found))
    }

    /// The place of a flow's SNAT port.
    pub(crate) fn port_place(&self, endpoint: u16, source: u8, port: u16) -> usize {
        let pair = usize::from(endpoint * self.settings.sources) + usize::from(source);
        pair * usize::from(self.settings.ports) + usize::from(port - FIRST_PORT)
    }

    /// Who has a flow's SNAT port.
    pub(super) fn owner_of(&self, flow: &Flow) -> Owner {
        if flow.port == 0 {
            return Owner::Nobody;
        }
        let place = self.port_place(flow.endpoint, flow.source, flow.port);
        self.ports[place].map_or(Owner::Nobody, |cell| cell.owner)
    }

    /// Whether a half-open flow still has its SNAT port, or needs none.
    pub(super) fn has_its_port(&self, slot: usize, flow: &Flow) -> bool {
        flow.port == 0 || self.owner_of(flow) == Owner::HalfOpen(slot)
    }

    pub(super) fn set_half_open(&mut self, slot: usize, row: Option<Flow>) {
        self.half_open[slot] = row;
        self.written.push(Place::HalfOpen(slot));
    }

    pub(super) fn set_flow(&mut self, slot: usize, row: Option<Flow>) {
        self.flows[slot] = row;
        self.written.push(Place::Flow(slot));
    }

    pub(super) fn set_record(&mut self, slot: usize, row: Record) {
        self.sticky[slot] = Some(row);
        self.written.push(Place::Sticky(slot));
    }

    pub(super) fn forget_record(&mut self, slot: usize) {
        self.sticky[slot] = None;
        self.written.push(Place::Sticky(slot));
    }

    pub(super) fn set_port(&mut self, place: usize, owner: Owner, since: i64) {
        self.ports[place] = Some(Cell { owner, since });
        self.written.push(Place::Port(place));
    }

    /// Follows a segment of an established flow: numbers, state, time. Says whether its number was near the recorded one.
    pub(super) fn follow(&mut self, slot: usize, flow: &mut Flow, segment: &Segment, from: From) -> bool {
        let Limits { near, stride, refresh, .. } = self.settings.limits;
        let number = &mut flow.numbers[from as usize];
        let distance = ahead(*number, segment.sequence);
        if !segment.is_udp() && (stride..=near).contains(&distance) {
            *number = segment.sequence;
        }
        // A datagram has no number, and is of the flow.
        let near = segment.is_udp() || distance.abs() <= near;
        let next = if near && !segment.is_udp() { next(flow.state, segment, from) } else { flow.state };
        if next != flow.state {
            self.change_state(flow, next);
        } else if !flow.state.is_closed() {
            let until = self.now + self.patience(flow.state, flow.key.service);
            if until - flow.until >= refresh || flow.until > until {
                flow.until = until;
            }
        }
        self.set_flow(slot, Some(flow.clone()));
        near
    }

    /// The one who closes a flow lets go of its sticky record, the one who opens it again holds it again.
    pub(super) fn change_state(&mut self, flow: &mut Flow, to: State) {
        let was_closed = flow.state.is_closed();
        flow.state = to;
        flow.syn_seen = false;
        flow.until = self.now + self.patience(to, flow.key.service);
        match (was_closed, to.is_closed()) {
            (false, true) => self.let_go(flow.hold, flow.key),
            (true, false) => self.hold_again(flow.hold, flow.key),
            _ => {}
        }
    }

    /// One open flow less; the record's time begins anew.
    pub(super) fn let_go(&mut self, hold: Option<Hold>, key: Key) {
        let until = self.now + self.persistence(key.service);
        let Some(mut record) = self.held(hold, key) else { return };
        if record.flows > 0 {
            (record.flows, record.until) = (record.flows - 1, until);
            self.set_record(hold.map_or(0, |hold| hold.slot), record);
        }
    }

    fn hold_again(&mut self, hold: Option<Hold>, key: Key) {
        let until = self.now + self.persistence(key.service);
        let Some(mut record) = self.held(hold, key) else { return };
        (record.flows, record.until) = (record.flows + 1, until);
        self.set_record(hold.map_or(0, |hold| hold.slot), record);
    }

    /// The record that a flow refers to, unless its slot was given to another since.
    fn held(&self, hold: Option<Hold>, key: Key) -> Option<Record> {
        let hold = hold?;
        let record = self.sticky[hold.slot].clone()?;
        let client = self.settings.site.client(key.client, key.service);
        let same = (record.client, record.service) == (client, key.service);
        (same && record.version & 0x7f == hold.version).then_some(record)
    }

    /// Takes a flow out of the table: what it held is let go of, and its port rests since it ended.
    pub(super) fn retire(&mut self, slot: usize) {
        let Some(flow) = self.flows[slot].clone() else { return };
        if !flow.state.is_closed() {
            self.let_go(flow.hold, flow.key);
        }
        if self.owner_of(&flow) == Owner::Flow(slot) {
            let place = self.port_place(flow.endpoint, flow.source, flow.port);
            self.set_port(place, Owner::Nobody, self.over_since(&flow));
        }
        self.set_flow(slot, None);
    }

    /// Since when a flow that leaves its table has been over.
    pub(super) fn over_since(&self, flow: &Flow) -> i64 {
        let lasted = if flow.state.is_closed() { self.patience(flow.state, flow.key.service) } else { 0 };
        (flow.until - lasted).min(self.now)
    }

    /// A record whose server can't be used any more follows the client to where it is now.
    pub(super) fn move_record(&self, record: &mut Record, server: u16) {
        let usable = server_number(record.server)
            .and_then(|number| self.present(number))
            .is_some_and(|state| state.has(ServerState::TAKES_KNOWN));
        if !usable {
            record.server = server;
        }
    }

    /// A flow that found no room in the flow table lives on among the half-open ones as long as it has packets.
    pub(super) fn keep_overflow(&mut self, slot: usize, flow: &Flow) {
        if flow.state == State::Established {
            let until = self.now + self.patience(State::Established, flow.key.service);
            self.set_half_open(slot, Some(Flow { until, ..flow.clone() }));
        }
    }
}

/// The state after a segment near the recorded number (decision 6).
fn next(state: State, segment: &Segment, from: From) -> State {
    let (fin, rst) = (segment.has(flag::FIN), segment.has(flag::RST));
    if segment.has(flag::SYN) || state == State::TimeWait {
        return state;
    }
    match (from, state) {
        (From::Client, _) if rst => State::ClientReset,
        (From::Server, _) if rst => State::ServerReset,
        (From::Client, State::Established) if fin => State::ClientFin,
        (From::Server, State::Established) if fin => State::ServerFin,
        (From::Client, State::ServerFin) | (From::Server, State::ClientFin) if fin => State::TimeWait,
        // Its sender goes on: the RST was not its own.
        (From::Client, State::ClientReset) | (From::Server, State::ServerReset) => State::Established,
        _ => state,
    }
}
