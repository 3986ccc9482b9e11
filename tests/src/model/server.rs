//! Segments from servers.

use std::net::IpAddr;

use lb_common::{reason::Reason, server::ServerState};

use super::{
    Flow, Key, Model, Owner, State, Verdict, between,
    parse::{Ends, Segment, flag},
    server_number,
    state::{Answered, From, ahead},
};
use crate::golden::hospital::FIRST_PORT;

/// A flow, and where it lies.
pub(super) struct Found {
    pub(super) slot: usize,
    pub(super) half_open: bool,
    pub(super) flow: Flow,
}

impl Model {
    /// The flow whose SNAT port this is, if it is remembered.
    pub(super) fn by_port(&self, endpoint: u16, source: u8, port: u16) -> Option<Found> {
        debug_assert!(port >= FIRST_PORT);
        let (slot, half_open, flow) = match self.ports[self.port_place(endpoint, source, port)]?.owner {
            Owner::Nobody => return None,
            Owner::HalfOpen(slot) => (slot, true, self.half_open[slot].clone()?),
            Owner::Flow(slot) => (slot, false, self.flows[slot].clone()?),
        };
        let its = (flow.endpoint, flow.source, flow.port) == (endpoint, source, port);
        (its && !self.is_past(flow.until)).then_some(Found { slot, half_open, flow })
    }

    pub(super) fn server_segment(
        &mut self,
        frame: &[u8],
        segment: &Segment,
        endpoint: u16,
        source: u8,
    ) -> Verdict {
        match self.by_port(endpoint, source, segment.ends.destination_port) {
            Some(found) => self.answer_client(frame, segment, found),
            None if segment.is_udp() => Verdict::Left(Reason::NoReturnFlow),
            None if segment.has(flag::RST) => Verdict::Left(Reason::StrayReset),
            None => Verdict::Answered(Reason::ResetNoReturnFlow),
        }
    }

    /// From a server that answers clients of this service and port themselves.
    pub(super) fn nat_segment(
        &mut self,
        frame: &[u8],
        segment: &Segment,
        service: u16,
        asked: u16,
    ) -> Verdict {
        let Ends { destination, destination_port, .. } = segment.ends;
        match self.by_client(destination, destination_port, service, asked) {
            Some(found) => self.answer_client(frame, segment, found),
            None => Verdict::Left(Reason::NotOurs),
        }
    }

    /// The flow of a client and its port to a service and port; of a closed one and one that has begun since, the latter.
    pub(super) fn by_client(&self, client: IpAddr, port: u16, service: u16, asked: u16) -> Option<Found> {
        let key = Key { service, client, port, service_port: asked };
        let flow = self.flow_of(key).and_then(|slot| Some((slot, self.flows[slot].clone()?)));
        let half_open = self.half_open_of(key).and_then(|slot| Some((slot, self.half_open[slot].clone()?)));
        match (flow, half_open) {
            (Some((slot, flow)), None) => Some(Found { slot, half_open: false, flow }),
            (Some((slot, flow)), _) if !flow.state.is_closed() => {
                Some(Found { slot, half_open: false, flow })
            }
            (_, half_open) => half_open.map(|(slot, flow)| Found { slot, half_open: true, flow }),
        }
    }

    /// A server's segment goes on to the flow's client, in the service's name.
    fn answer_client(&mut self, frame: &[u8], segment: &Segment, found: Found) -> Verdict {
        let Found { slot, half_open, mut flow } = found;
        let site = self.settings.site;
        let Key { service, client, port, service_port } = flow.key;
        let number = server_number(flow.server);
        let state = number.and_then(|number| self.present(number));
        let gone = state.is_none_or(|state| state.has(ServerState::RESETS));
        let its = number.is_some_and(|number| {
            (site.server(number), site.server_port(flow.server, service_port), site.kind(service).protocol())
                == (segment.ends.source, segment.ends.source_port, segment.protocol)
        });
        if gone || !its {
            return Verdict::Left(Reason::NoReturnFlow);
        }
        if segment.ttl <= 1 {
            return Verdict::Left(Reason::TtlExceeded);
        }
        if half_open {
            self.of_half_open_server(slot, segment, &flow);
        } else {
            let has_forgotten = flow.syn_seen && segment.is_syn_ack();
            self.follow(slot, &mut flow, segment, From::Server);
            if has_forgotten
                && let Some((slot, syn)) =
                    self.half_open_of(flow.key).and_then(|slot| Some((slot, self.half_open[slot].clone()?)))
            {
                self.of_half_open_server(slot, segment, &syn);
            }
        }
        let bytes = frame.len() as u64;
        self.count(service, flow.server, |traffic| {
            traffic.packets_out += 1;
            traffic.bytes_out += bytes;
        });
        let ends = between((site.vip(service), service_port), (client, port));
        if flow.may_fragment {
            return Verdict::Fragmentable(Reason::Returned, flow.hop, ends);
        }
        Verdict::Sent(Reason::Returned, flow.hop, ends, None)
    }

    /// A SYN-ACK that fits the SYN is noted, or any datagram; and data that comes behind a SYN-ACK.
    fn of_half_open_server(&mut self, slot: usize, segment: &Segment, flow: &Flow) {
        let window = self.settings.limits.first_window;
        let acknowledged = ahead(flow.numbers[0], segment.acknowledgment) - 1;
        let fits = segment.is_udp() || segment.is_syn_ack() && (0..=window).contains(&acknowledged);
        let data = i64::try_from(segment.data).unwrap_or(i64::MAX);
        if flow.state == State::Established {
            return self.keep_overflow(slot, flow);
        }
        let mut flow = flow.clone();
        let before = flow.clone();
        let answered = flow.answered();
        if fits && flow.state == State::SynSent {
            flow.answer(Answered::One(segment.sequence, data));
        } else if fits {
            flow.answer(answered.and(segment.sequence, data, window));
        } else if flow.state == State::SynReceived && !segment.has(flag::SYN) && !segment.has(flag::RST) {
            let ends = data + i64::from(segment.has(flag::FIN));
            flow.answer(answered.and_data(segment.sequence, ends, window));
        }
        if fits {
            flow.state = State::SynReceived;
            flow.until = self.now + self.patience(State::SynReceived, flow.key.service);
        }
        if flow != before {
            self.set_half_open(slot, Some(flow));
        }
    }
}
