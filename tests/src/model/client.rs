//! Segments from clients.

use std::net::IpAddr;

use lb_common::{reason::Reason, server::ServerState};

use super::{
    Chosen, Flow, Hold, Key, Model, Owner, Record, State, Verdict, mac_at,
    parse::{Segment, flag},
    server_number,
    state::{From, Limits, ahead},
};
use crate::golden::{
    frame::Mac,
    hospital::{SERVERS, span::LEAST_REST},
};

/// A client's segment as it is looked at here.
struct Heard<'a> {
    key: Key,
    segment: &'a Segment,
    /// Where it came from.
    hop: Mac,
    bytes: u64,
    chosen: &'a Chosen,
}

impl Model {
    pub(super) fn client_segment(
        &mut self,
        frame: &[u8],
        segment: &Segment,
        service: u16,
        chosen: &Chosen,
    ) -> Result<Verdict, String> {
        if segment.ttl <= 1 {
            return Ok(Verdict::Left(Reason::TtlExceeded));
        }
        let key = Key {
            service,
            client: segment.ends.source,
            port: segment.ends.source_port,
            service_port: segment.ends.destination_port,
        };
        let heard = Heard { key, segment, hop: mac_at(frame, 6), bytes: frame.len() as u64, chosen };
        if let Some((slot, flow)) = self.flow_of(key).and_then(|slot| Some((slot, self.flows[slot].clone()?)))
            && !flow.state.is_closed()
            && self.serving(&flow).is_some_and(|number| self.reachable(number))
        {
            let begins = segment.is_syn() && self.settings.site.kind(service).sees_answers();
            if flow.syn_seen || begins {
                return self.syn_on_open_flow(&heard, slot, flow);
            }
            return Ok(self.of_usable_flow(&heard, slot, flow));
        }
        if segment.is_udp() {
            return self.datagram(&heard);
        }
        if segment.is_syn() { self.syn(&heard) } else { self.rest(&heard) }
    }

    /// A segment of a flow in the flow table: followed and forwarded.
    fn of_usable_flow(&mut self, heard: &Heard<'_>, slot: usize, mut flow: Flow) -> Verdict {
        if self.follow(slot, &mut flow, heard.segment, From::Client) {
            flow.comes_by(heard.hop);
            self.set_flow(slot, Some(flow.clone()));
        }
        self.forward(Reason::Forwarded, heard, &flow)
    }

    /// A segment of an open flow on whose ports its client sends a SYN, or has: the server challenges it, or has forgotten the
    /// connection and begins another. Then the flow is the new one's from the acknowledgement of the SYN-ACK on.
    fn syn_on_open_flow(
        &mut self,
        heard: &Heard<'_>,
        slot: usize,
        mut flow: Flow,
    ) -> Result<Verdict, String> {
        let segment = heard.segment;
        let half_open =
            self.half_open_of(heard.key).and_then(|slot| Some((slot, self.half_open[slot].clone()?)));
        if let Some((at, syn)) = &half_open
            && syn.state == State::SynReceived
            && same_way(syn, &flow)
            && self.completes(segment, syn)
        {
            flow.numbers = [segment.sequence, segment.acknowledgment.wrapping_sub(1)];
            flow.comes_by(heard.hop);
            flow.syn_seen = false;
            flow.state = if segment.has(flag::FIN) { State::ClientFin } else { State::Established };
            flow.until = self.now + self.patience(flow.state, flow.key.service);
            self.set_flow(slot, Some(flow.clone()));
            self.set_half_open(*at, None);
            self.count(flow.key.service, flow.server, |traffic| traffic.flows += 1);
            return Ok(self.forward(Reason::Established, heard, &flow));
        }
        if self.follow(slot, &mut flow, segment, From::Client) {
            flow.comes_by(heard.hop);
        }
        if segment.is_syn() {
            flow.syn_seen = true;
            self.note_syn(heard, half_open, &flow)?;
        } else if half_open.is_none() {
            flow.syn_seen = false;
        }
        self.set_flow(slot, Some(flow.clone()));
        Ok(self.forward(Reason::Forwarded, heard, &flow))
    }

    /// A SYN on an open flow is half-open beside it.
    fn note_syn(
        &mut self,
        heard: &Heard<'_>,
        half_open: Option<(usize, Flow)>,
        open: &Flow,
    ) -> Result<(), String> {
        let sent = Flow {
            numbers: [heard.segment.sequence, 0],
            state: State::SynSent,
            until: self.now + self.patience(State::SynSent, open.key.service),
            may_fragment: false,
            ..open.clone()
        };
        if let Some((slot, old)) = half_open {
            let same = old.numbers[0] == heard.segment.sequence && same_way(&old, open);
            if !same && matches!(old.state, State::SynSent | State::SynReceived) {
                let Flow { hop, may_fragment, first, hold, .. } = old;
                let again = Flow { hop, may_fragment, first, hold, syn_seen: false, ..sent };
                self.set_half_open(slot, Some(again));
            }
            return Ok(());
        }
        if self.all_are_busy(heard.key) {
            return Ok(());
        }
        let Some((slot, _)) = heard.chosen.half_open(heard.key) else {
            return Err(format!("the SYN of {:?} is not in the half-open table", heard.key));
        };
        self.check_half_open_slot(heard.key, slot)?;
        let fresh = Flow { hop: heard.hop, first: 0, hold: None, syn_seen: false, ..sent };
        self.set_half_open(slot, Some(fresh));
        Ok(())
    }

    /// Whether a segment acknowledges what the server has answered to a SYN, and is in sequence behind it.
    fn completes(&self, segment: &Segment, half_open: &Flow) -> bool {
        let Limits { first_window, .. } = self.settings.limits;
        let acknowledges = segment.has(flag::ACK) && !segment.has(flag::RST);
        let answered = !self.settings.site.kind(half_open.key.service).sees_answers()
            || half_open.answered().contains(segment.acknowledgment);
        let behind = ahead(half_open.numbers[0], segment.sequence) - 1;
        acknowledges && answered && (0..=first_window).contains(&behind)
    }

    /// A datagram of no open flow: the second one after an answer establishes it, any other is as a SYN.
    fn datagram(&mut self, heard: &Heard<'_>) -> Result<Verdict, String> {
        if let Some((slot, flow)) =
            self.half_open_of(heard.key).and_then(|slot| Some((slot, self.half_open[slot].clone()?)))
            && self.is_answered(&flow)
            && self.has_its_port(slot, &flow)
            && self.serving(&flow).is_some_and(|number| self.reachable(number))
        {
            return self.establish(heard, slot, flow);
        }
        self.syn(heard)
    }

    /// Whether the server has answered a half-open flow, as far as its answers are seen.
    fn is_answered(&self, flow: &Flow) -> bool {
        match flow.state {
            State::SynReceived => true,
            State::SynSent => !self.settings.site.kind(flow.key.service).sees_answers(),
            _ => false,
        }
    }

    fn syn(&mut self, heard: &Heard<'_>) -> Result<Verdict, String> {
        if let Some(slot) = self.half_open_of(heard.key) {
            if let Some(verdict) = self.syn_again(heard, slot) {
                return Ok(verdict);
            }
            self.set_half_open(slot, None);
        }
        self.end_flow_of_dead_server(heard.key);
        let Some((number, sticky)) = self.choose(heard.key) else {
            self.traffic[super::service_number(heard.key.service)].resets += 1;
            return Ok(no_server(heard));
        };
        if !self.reachable(number) {
            return Ok(Verdict::Left(Reason::NoNeighbour));
        }
        if self.all_are_busy(heard.key) {
            return Ok(Verdict::Left(Reason::HalfOpenBusy));
        }
        self.take_retired(heard.chosen);
        self.take_closed(heard.chosen, SERVERS[number].endpoint)?;
        let Some((slot, chosen)) = heard.chosen.half_open(heard.key) else {
            return self.no_port(heard, number);
        };
        self.check_half_open_slot(heard.key, slot)?;
        let host = &SERVERS[number];
        let place = if self.settings.site.kind(heard.key.service).takes_port() {
            Some(self.check_port(host.endpoint, chosen.source, chosen.port)?)
        } else if (chosen.source, chosen.port) == (0, 0) {
            None
        } else {
            return Err(format!("{:?} must have no SNAT port", heard.key));
        };
        let flow = Flow { source: chosen.source, port: chosen.port, ..self.passing(heard, number) };
        self.set_half_open(slot, Some(flow.clone()));
        if let Some(place) = place {
            self.set_port(place, Owner::HalfOpen(slot), self.now);
        }
        let reason = if sticky { Reason::NewBySticky } else { Reason::NewByScheduler };
        Ok(self.forward(reason, heard, &flow))
    }

    /// A client that begins anew has no use for a flow whose server is gone, should that come back.
    fn end_flow_of_dead_server(&mut self, key: Key) {
        if let Some(slot) = self.flow_of(key)
            && let Some(mut flow) = self.flows[slot].clone()
            && !flow.state.is_closed()
            && self.serving(&flow).is_none()
        {
            self.change_state(&mut flow, State::ServerReset);
            self.set_flow(slot, Some(flow));
        }
    }

    /// A SYN of a half-open flow goes where the first one went, if it still can.
    fn syn_again(&mut self, heard: &Heard<'_>, slot: usize) -> Option<Verdict> {
        let mut flow = self.half_open[slot].clone()?;
        let usable = ServerState::REACHABLE | ServerState::TAKES_KNOWN;
        let state = server_number(flow.server).and_then(|number| self.present(number))?;
        if !state.has(usable) || !self.has_its_port(slot, &flow) {
            return None;
        }
        if flow.numbers[0] != heard.segment.sequence {
            flow.numbers = [heard.segment.sequence, 0];
            flow.state = State::SynSent;
            flow.until = self.now + self.patience(State::SynSent, flow.key.service);
        }
        flow.comes_by(heard.hop);
        self.set_half_open(slot, Some(flow.clone()));
        Some(self.forward(Reason::SynRepeated, heard, &flow))
    }

    /// No SNAT port was free. The half-open row that would have been overwritten is lost.
    fn no_port(&mut self, heard: &Heard<'_>, number: usize) -> Result<Verdict, String> {
        self.check_no_port(SERVERS[number].endpoint, LEAST_REST)?;
        for (slot, row) in &heard.chosen.half_open {
            if row.is_none() && self.half_open[*slot].is_some() {
                self.check_half_open_slot(heard.key, *slot)?;
                self.set_half_open(*slot, None);
            }
        }
        Ok(Verdict::Left(Reason::PortsExhausted))
    }

    /// A segment that is neither of an open flow with a usable server nor a SYN.
    fn rest(&mut self, heard: &Heard<'_>) -> Result<Verdict, String> {
        if let Some((slot, flow)) =
            self.half_open_of(heard.key).and_then(|slot| Some((slot, self.half_open[slot].clone()?)))
            && self.has_its_port(slot, &flow)
        {
            return self.of_half_open(heard, slot, &flow);
        }
        if let Some((slot, flow)) =
            self.flow_of(heard.key).and_then(|slot| Some((slot, self.flows[slot].clone()?)))
        {
            return Ok(self.of_closed_flow(heard, slot, flow));
        }
        if !self.settings.site.kind(heard.key.service).sees_answers() {
            return Ok(self.unknown(heard));
        }
        Ok(match heard.segment.has(flag::RST) {
            true => Verdict::Left(Reason::StrayReset),
            false => {
                self.traffic[super::service_number(heard.key.service)].resets += 1;
                Verdict::Answered(Reason::ResetNoFlow)
            }
        })
    }

    /// A segment of no flow whose server's answers are not seen: whoever would be chosen knows whether the connection is its own.
    fn unknown(&mut self, heard: &Heard<'_>) -> Verdict {
        let Some((number, _)) = self.choose(heard.key) else {
            return no_server(heard);
        };
        if !self.reachable(number) {
            return Verdict::Left(Reason::NoNeighbour);
        }
        let flow = self.passing(heard, number);
        self.forward(Reason::ForwardedUnknown, heard, &flow)
    }

    /// A flow that is nowhere remembered.
    fn passing(&self, heard: &Heard<'_>, number: usize) -> Flow {
        let host = &SERVERS[number];
        Flow {
            key: heard.key,
            server: host.id,
            endpoint: host.endpoint,
            source: 0,
            port: 0,
            hop: heard.hop,
            may_fragment: false,
            numbers: [heard.segment.sequence, 0],
            first: 0,
            syn_seen: false,
            hold: None,
            state: State::SynSent,
            until: self.now + self.patience(State::SynSent, heard.key.service),
        }
    }

    fn of_half_open(&mut self, heard: &Heard<'_>, slot: usize, flow: &Flow) -> Result<Verdict, String> {
        let Some(number) = self.serving(flow) else {
            return Ok(server_gone(heard));
        };
        if !self.reachable(number) {
            return Ok(Verdict::Left(Reason::NoNeighbour));
        }
        if self.is_answered(flow) && self.completes(heard.segment, flow) {
            return self.establish(heard, slot, flow.clone());
        }
        self.keep_overflow(slot, flow);
        Ok(self.forward(Reason::HandshakeForwarded, heard, flow))
    }

    /// The ACK that completes the handshake: the sticky record, the flow, its port.
    fn establish(&mut self, heard: &Heard<'_>, half_open: usize, mut flow: Flow) -> Result<Verdict, String> {
        let Key { service, .. } = heard.key;
        flow.hold = self.stick(heard, flow.server)?;
        // What a UDP flow's second datagram stands for comes after what its first one stood for.
        flow.numbers[0] = if heard.segment.is_udp() { 1 } else { heard.segment.sequence };
        if !heard.segment.is_udp() && self.settings.site.kind(service).sees_answers() {
            flow.numbers[1] = heard.segment.acknowledgment.wrapping_sub(1);
        }
        flow.first = 0;
        if let Some(old) = self.flow_of(heard.key) {
            let over = |old: &Flow| old.state.is_closed() || self.serving(old).is_none();
            if self.flows[old].as_ref().is_some_and(over) {
                self.retire(old);
            }
        }
        self.unverified_flow_makes_way(heard.key);
        self.take_retired(heard.chosen);
        let displacing = self.silent_flow_makes_way(heard.key);
        flow.state = State::Established;
        flow.until = self.now + self.patience(State::Established, service);
        let entered = heard.chosen.flow(heard.key).filter(|_| self.flow_of(heard.key).is_none());
        let Some((slot, _)) = entered else {
            if self.flow_of(heard.key).is_none() {
                self.check_no_flow_slot(heard.key)?;
            }
            self.let_go(flow.hold, heard.key);
            self.set_half_open(half_open, Some(flow.clone()));
            return Ok(self.forward(Reason::FlowTableFull, heard, &flow));
        };
        self.check_flow_slot(heard.key, slot)?;
        if flow.port != 0 {
            let place = self.port_place(flow.endpoint, flow.source, flow.port);
            self.set_port(place, Owner::Flow(slot), self.now);
        }
        self.set_half_open(half_open, None);
        self.count(service, flow.server, |traffic| traffic.flows += 1);
        if heard.segment.has(flag::FIN) {
            flow.state = State::ClientFin;
            flow.until = self.now + self.patience(State::ClientFin, service);
        }
        self.set_flow(slot, Some(flow.clone()));
        let unrecorded = self.persistence(service) != 0 && flow.hold.is_none();
        let reason = match displacing {
            _ if unrecorded => Reason::EstablishedUnrecorded,
            true => Reason::EstablishedDisplacing,
            false => Reason::Established,
        };
        Ok(self.forward(reason, heard, &flow))
    }

    /// The client's sticky record counts one more open flow; made if there is none, and room.
    fn stick(&mut self, heard: &Heard<'_>, server: u16) -> Result<Option<Hold>, String> {
        let Key { client, service, .. } = heard.key;
        if self.persistence(service) == 0 {
            return Ok(None);
        }
        let until = self.now + self.persistence(service);
        if let Some((slot, mut record)) =
            self.record_of(heard.key).and_then(|slot| Some((slot, self.sticky[slot].clone()?)))
        {
            (record.flows, record.until) = (record.flows + 1, until);
            self.move_record(&mut record, server);
            let version = record.version & 0x7f;
            self.set_record(slot, record);
            return Ok(Some(Hold { slot, version }));
        }
        let client: IpAddr = self.settings.site.client(client, service);
        let verified = self.settings.site.kind(service).sees_answers();
        if !verified {
            self.unverified_makes_way(heard.key, self.settings.limits.unverified);
        }
        let port = self.settings.site.record_port(heard.key);
        let made = heard.chosen.record(client, service, port).map(|(slot, made)| (slot, made.version));
        if verified && self.check_record_slot(heard.key, None).is_ok() {
            self.unverified_makes_way(heard.key, 1);
        }
        self.check_record_slot(heard.key, made.map(|(slot, _)| slot))?;
        let Some((slot, version)) = made else { return Ok(None) };
        self.set_record(slot, Record { service, port, client, server, verified, flows: 1, until, version });
        Ok(Some(Hold { slot, version: version & 0x7f }))
    }

    /// A segment of a closed flow, or of one whose server is gone or has no MAC address.
    fn of_closed_flow(&mut self, heard: &Heard<'_>, slot: usize, mut flow: Flow) -> Verdict {
        let Some(number) = self.serving(&flow) else {
            if !flow.state.is_closed() {
                self.change_state(&mut flow, State::ServerReset);
                self.count(flow.key.service, flow.server, |traffic| traffic.resets += 1);
                self.set_flow(slot, Some(flow));
            }
            return server_gone(heard);
        };
        if !self.reachable(number) {
            return Verdict::Left(Reason::NoNeighbour);
        }
        self.of_usable_flow(heard, slot, flow)
    }

    fn forward(&mut self, reason: Reason, heard: &Heard<'_>, flow: &Flow) -> Verdict {
        self.towards_server(reason, flow, heard.bytes, heard.segment.length)
    }
}

/// Whether two flows go to one server by one port.
fn same_way(one: &Flow, other: &Flow) -> bool {
    let way = |flow: &Flow| (flow.server, flow.endpoint, flow.source, flow.port);
    way(one) == way(other)
}

/// A datagram is dropped, an RST never answered.
fn no_server(heard: &Heard<'_>) -> Verdict {
    if heard.segment.is_udp() {
        Verdict::Left(Reason::NoServer)
    } else if heard.segment.has(flag::RST) {
        Verdict::Left(Reason::StrayReset)
    } else {
        Verdict::Answered(Reason::ResetNoServer)
    }
}

fn server_gone(heard: &Heard<'_>) -> Verdict {
    if heard.segment.has(flag::RST) {
        Verdict::Left(Reason::StrayReset)
    } else {
        Verdict::Answered(Reason::ResetServerGone)
    }
}
