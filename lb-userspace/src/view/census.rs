//! How many flows and sticky records each service and server has: one pass over each table.

use lb_common::{
    clock::Ticks,
    flow::{FLOW_WORDS, Flow, FlowSlot, Flows},
    sticky::{STICKY_WORDS, Stickies, Sticky, StickySlot},
    tcp::TcpState,
};

use crate::dataplane::{Maps, census::rows};

/// What a service or server has in the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Open flows: established and not over.
    pub open: u64,
    /// Flows whose handshake is not complete.
    pub half_open: u64,
    /// Flows that are over and only remembered for late packets.
    pub closed: u64,
    /// Sticky records.
    pub clients: u64,
    /// Sticky records without an open flow.
    pub idle_clients: u64,
    /// When the last of those expires.
    pub last_expiry: Option<Ticks>,
}

impl Load {
    fn expires(&mut self, deadline: Ticks) {
        let later = |last: Ticks| if deadline.is_past(last) { last } else { deadline };
        self.last_expiry = Some(self.last_expiry.map_or(deadline, later));
    }
}

/// The count.
#[derive(Clone, Debug)]
pub struct Census {
    services: Vec<Load>,
    servers: Vec<Load>,
    /// Slots in use in the flow table.
    pub flows: u64,
    /// Slots in use in the half-open table.
    pub half_open: u64,
    /// Of them, flows that are established but found no room in the flow table.
    pub overflow: u64,
    /// Slots in use in the sticky table.
    pub sticky: u64,
}

impl Census {
    /// Counts what is in force at `now`.
    #[must_use]
    pub fn take(maps: &Maps, now: Ticks) -> Self {
        let mut census = Self {
            services: vec![Load::default(); maps.service_info.len()],
            servers: vec![Load::default(); maps.server_info.len()],
            flows: 0,
            half_open: 0,
            overflow: 0,
            sticky: 0,
        };
        for flow in flows(&maps.flows, now) {
            census.flows += 1;
            census.flow(&flow);
        }
        for flow in flows(&maps.half_open, now) {
            census.half_open += 1;
            census.overflow += u64::from(flow.state == TcpState::Established);
            census.flow(&flow);
        }
        for record in stickies(&maps.sticky, now) {
            census.sticky += 1;
            census.record(&record);
        }
        census
    }

    /// What a service has.
    #[must_use]
    pub fn service(&self, id: u16) -> Load {
        self.services.get(usize::from(id)).copied().unwrap_or_default()
    }

    /// What a server has.
    #[must_use]
    pub fn server(&self, id: u16) -> Load {
        self.servers.get(usize::from(id)).copied().unwrap_or_default()
    }

    fn flow(&mut self, flow: &Flow) {
        self.both(flow.key.service, flow.to.server, |load| match flow.state {
            TcpState::SynSent | TcpState::SynReceived | TcpState::Promoting => load.half_open += 1,
            state if state.is_closed() => load.closed += 1,
            _ => load.open += 1,
        });
    }

    fn record(&mut self, record: &Sticky) {
        self.both(record.to.service, record.to.server, |load| {
            load.clients += 1;
            if record.flows == 0 {
                load.idle_clients += 1;
                load.expires(record.deadline);
            }
        });
    }

    fn both(&mut self, service: u16, server: u16, change: impl Fn(&mut Load)) {
        if let Some(load) = self.services.get_mut(usize::from(service)) {
            change(load);
        }
        if let Some(load) = self.servers.get_mut(usize::from(server)) {
            change(load);
        }
    }
}

/// The sticky records in force at `now`.
pub fn stickies(slots: &[StickySlot], now: Ticks) -> impl Iterator<Item = Sticky> {
    rows::<STICKY_WORDS, Stickies>(slots, now).map(|(life, words)| Sticky::unpack(&words, life))
}

/// The flows in force at `now`.
pub fn flows(slots: &[FlowSlot], now: Ticks) -> impl Iterator<Item = Flow> {
    rows::<FLOW_WORDS, Flows>(slots, now).map(|(life, words)| Flow::unpack(&words, life))
}
