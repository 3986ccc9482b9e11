//! What the daemon's sweep must leave, and how many connections are open.

use std::ops::AddAssign;

use super::{Flow, Model, Owner, State};

/// How much was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    pub(crate) flows: usize,
    pub(crate) half_open: usize,
    pub(crate) sticky: usize,
}

impl AddAssign for Freed {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.half_open += other.half_open;
        self.sticky += other.sticky;
    }
}

impl Model {
    /// Frees what has expired, sticky records last.
    pub(crate) fn sweep(&mut self) -> Freed {
        let mut freed = Freed::default();
        for slot in 0..self.flows.len() {
            let Some(flow) = self.flows[slot].take_if(|flow| flow.until < self.now) else { continue };
            freed.flows += 1;
            if !flow.state.is_closed() {
                self.let_go(flow.hold, flow.key);
            }
            if self.owner_of(&flow) == Owner::Flow(slot) {
                let place = self.port_place(flow.endpoint, flow.source, flow.port);
                self.set_port(place, Owner::Nobody, self.over_since(&flow));
            }
        }
        for slot in 0..self.half_open.len() {
            let Some(flow) = self.half_open[slot].take_if(|flow| flow.until < self.now) else { continue };
            freed.half_open += 1;
            self.free_port_of_half_open(slot, &flow);
        }
        for slot in 0..self.sticky.len() {
            if self.sticky[slot].as_ref().is_some_and(|record| self.is_forgotten(record)) {
                freed.sticky += 1;
                self.sticky[slot] = None;
            }
        }
        freed
    }

    /// Only a port that had a connection rests.
    fn free_port_of_half_open(&mut self, slot: usize, flow: &Flow) {
        if self.owner_of(flow) != Owner::HalfOpen(slot) {
            return;
        }
        let place = self.port_place(flow.endpoint, flow.source, flow.port);
        if flow.state == State::Established {
            self.set_port(place, Owner::Nobody, self.now);
        } else {
            self.ports[place] = None;
        }
    }

    /// The connections that are open to a server.
    pub(crate) fn open_to(&self, server: u16) -> usize {
        let half_open = self.half_open.iter().flatten().filter(|flow| flow.state == State::Established);
        let flows = self.flows.iter().flatten().filter(|flow| !flow.state.is_closed());
        flows.chain(half_open).filter(|flow| flow.server == server && !self.is_past(flow.until)).count()
    }
}
