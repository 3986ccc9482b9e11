//! Segments from servers.

use lb_common::{reason::Reason, server::ServerState};

use super::{
    Flow, Model, Owner, State, Verdict,
    parse::{Ends, Segment},
    server_number, service_number,
    state::From,
};
use crate::golden::hospital::{FIRST_PORT, SERVICES};

impl Model {
    /// Whose SNAT port this is, if a flow's that is remembered, and whether the flow is half-open.
    pub(super) fn by_port(&self, endpoint: u16, source: u8, port: u16) -> Option<(usize, bool, Flow)> {
        debug_assert!(port >= FIRST_PORT);
        let (slot, half_open, flow) = match self.ports[self.port_place(endpoint, source, port)]?.owner {
            Owner::Nobody => return None,
            Owner::HalfOpen(slot) => (slot, true, self.half_open[slot].clone()?),
            Owner::Flow(slot) => (slot, false, self.flows[slot].clone()?),
        };
        let its = (flow.endpoint, flow.source, flow.port) == (endpoint, source, port);
        (its && !self.is_past(flow.until)).then_some((slot, half_open, flow))
    }

    pub(super) fn server_segment(
        &mut self,
        frame: &[u8],
        segment: &Segment,
        endpoint: u16,
        source: u8,
    ) -> Verdict {
        let Some((slot, half_open, mut flow)) = self.by_port(endpoint, source, segment.ends.destination_port)
        else {
            return Verdict::Left(Reason::NoReturnFlow);
        };
        let state = server_number(flow.server).and_then(|number| self.present(number));
        let gone = state.is_none_or(|state| state.has(ServerState::RESETS));
        if gone || segment.ends.source_port != 443 {
            return Verdict::Left(Reason::NoReturnFlow);
        }
        if segment.ttl <= 1 {
            return Verdict::Left(Reason::TtlExceeded);
        }
        if half_open {
            self.of_half_open_server(slot, segment, &flow);
        } else {
            self.follow(slot, &mut flow, segment, From::Server);
        }
        let bytes = frame.len() as u64;
        self.count(flow.key.service, flow.server, |traffic| {
            traffic.packets_out += 1;
            traffic.bytes_out += bytes;
        });
        let ends = Ends {
            source: SERVICES[service_number(flow.key.service)].address,
            source_port: flow.key.service_port,
            destination: flow.key.client,
            destination_port: flow.key.port,
        };
        Verdict::Sent(Reason::Returned, flow.hop, ends)
    }

    /// A SYN-ACK that fits the SYN is noted.
    fn of_half_open_server(&mut self, slot: usize, segment: &Segment, flow: &Flow) {
        let fits = segment.is_syn_ack() && segment.acknowledgment == flow.numbers[0].wrapping_add(1);
        if !fits || flow.state == State::Established {
            return self.keep_overflow(slot, flow);
        }
        let mut flow = flow.clone();
        flow.numbers[1] = segment.sequence;
        flow.state = State::SynReceived;
        flow.until = self.now + self.patience(State::SynReceived, flow.key.service);
        self.set_half_open(slot, Some(flow));
    }
}
