//! What is the program's to choose, and whether it may.

use std::net::IpAddr;

use lb_common::{
    address::Address,
    flow::FlowKey,
    hash::hash3,
    ports::PROBES,
    sticky::StickyKey,
    table::{BUCKET, WAYS, candidate},
};

use super::{
    Cell, Flow, Key, Model, Owner, Record, Site, State,
    parse::{IPV4, network},
};
use crate::golden::{
    bench::Bench,
    hospital::{
        FIRST_PORT,
        span::{LEAST_REST, QUARANTINE, SPARED},
    },
};

/// The slots that the program wrote to, and what is live in them now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) half_open: Vec<(usize, Option<Flow>)>,
    pub(crate) flows: Vec<(usize, Option<Flow>)>,
    pub(crate) sticky: Vec<(usize, Option<Record>)>,
    pub(crate) ports: Vec<(usize, Option<Cell>)>,
    /// The frame that it made.
    pub(crate) frame: Vec<u8>,
}

impl Chosen {
    /// The half-open row that was written for this key.
    pub(super) fn half_open(&self, key: Key) -> Option<(usize, &Flow)> {
        row_of(&self.half_open, |flow| flow.key == key)
    }

    /// The flow that was written for this key.
    pub(super) fn flow(&self, key: Key) -> Option<(usize, &Flow)> {
        row_of(&self.flows, |flow| flow.key == key)
    }

    /// The record that was written for this client and port.
    pub(super) fn record(&self, client: IpAddr, service: u16, port: u16) -> Option<(usize, &Record)> {
        row_of(&self.sticky, |record| (record.client, record.service, record.port) == (client, service, port))
    }

    /// The source address and flow label of the frame that it made.
    pub(super) fn outer(&self) -> Option<(IpAddr, u32)> {
        let (start, kind) = network(&self.frame)?;
        let packet = self.frame.get(start..)?;
        if kind == IPV4 {
            Some((IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?), 0))
        } else {
            let label = u32::from_be_bytes(*packet.first_chunk()?) & 0xf_ffff;
            Some((IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?), label))
        }
    }
}

fn row_of<T>(rows: &[(usize, Option<T>)], fits: impl Fn(&T) -> bool) -> Option<(usize, &T)> {
    let rows = rows.iter().filter_map(|(slot, row)| Some((*slot, row.as_ref()?)));
    rows.into_iter().find(|(_, row)| fits(row))
}

/// The eight slots in which a flow may lie, in a table of so many.
pub(crate) fn flow_slots(key: Key, slots: usize) -> [usize; WAYS as usize] {
    let words = FlowKey {
        client: Address::from(key.client),
        client_port: key.port.to_be(),
        service_port: key.service_port.to_be(),
        service: key.service,
    };
    ways(words.words(), slots)
}

/// The eight slots in which a client's record may lie, in a table of so many.
pub(crate) fn record_slots(site: &Site, key: Key, slots: usize) -> [usize; WAYS as usize] {
    let client = Address::from(site.client(key.client, key.service));
    ways(StickyKey { client, service: key.service, port: site.record_port(key).to_be() }.words(), slots)
}

/// Whether a bit is set; of those beyond the last one none is.
pub(crate) fn is_set(bits: u16, bit: usize) -> bool {
    u32::try_from(bit).ok().and_then(|bit| bits.checked_shr(bit)).is_some_and(|bits| bits & 1 == 1)
}

fn ways(words: [u64; 3], slots: usize) -> [usize; WAYS as usize] {
    let hash = hash3(&Bench::key(), words);
    let mask = u32::try_from(slots).unwrap_or(u32::MAX) / BUCKET - 1;
    let mut out = [0; WAYS as usize];
    for (way, slot) in (0..).zip(&mut out) {
        *slot = candidate(hash, mask, way) as usize;
    }
    out
}

impl Model {
    /// Which of the half-open rows may be overwritten for this key, lowest first: none, then what has expired, then by deadline.
    fn rank(&self, slot: usize) -> i64 {
        match &self.half_open[slot] {
            None => i64::MIN,
            Some(flow) if self.is_past(flow.until) => i64::MIN + 1,
            Some(flow) => flow.until,
        }
    }

    /// Whether another is writing this half-open slot.
    fn is_busy(&self, slot: usize) -> bool {
        is_set(self.busy, slot)
    }

    /// Whether others are writing every half-open slot of this key.
    pub(super) fn all_are_busy(&self, key: Key) -> bool {
        flow_slots(key, self.half_open.len()).into_iter().all(|slot| self.is_busy(slot))
    }

    /// Whether a half-open flow may be written here: a free slot first, else the row that expires first gives way.
    pub(super) fn check_half_open_slot(&self, key: Key, slot: usize) -> Result<(), String> {
        let slots = flow_slots(key, self.half_open.len());
        let best = slots.iter().filter(|slot| !self.is_busy(**slot)).map(|slot| self.rank(*slot)).min();
        if slots.contains(&slot) && !self.is_busy(slot) && Some(self.rank(slot)) == best {
            return Ok(());
        }
        Err(format!("the half-open row of {key:?} must not lie in slot {slot}"))
    }

    /// Whether a flow may be written here: only what is expired may give way.
    pub(super) fn check_flow_slot(&self, key: Key, slot: usize) -> Result<(), String> {
        let vacant = self.flows[slot].as_ref().is_none_or(|flow| self.is_past(flow.until));
        if vacant && flow_slots(key, self.flows.len()).contains(&slot) {
            return Ok(());
        }
        Err(format!("the flow of {key:?} must not lie in slot {slot}"))
    }

    /// Whether there is no room for a flow.
    pub(super) fn check_no_flow_slot(&self, key: Key) -> Result<(), String> {
        let slots = flow_slots(key, self.flows.len());
        match slots
            .iter()
            .find(|slot| self.flows[**slot].as_ref().is_none_or(|flow| self.is_past(flow.until)))
        {
            None => Ok(()),
            Some(slot) => Err(format!("there is room for the flow of {key:?} in slot {slot}")),
        }
    }

    /// Whether a record may be written here, or if nowhere, whether there is no room.
    pub(super) fn check_record_slot(&self, key: Key, slot: Option<usize>) -> Result<(), String> {
        let slots = record_slots(&self.settings.site, key, self.sticky.len());
        let vacant = |slot: usize| self.sticky[slot].as_ref().is_none_or(|record| self.is_forgotten(record));
        let right = match slot {
            Some(slot) => slots.contains(&slot) && vacant(slot),
            None => !slots.iter().any(|slot| vacant(*slot)),
        };
        if right { Ok(()) } else { Err(format!("the record of {} must not lie in {slot:?}", key.client)) }
    }

    /// Of the records that nobody vouched for and that lie where this one may, if there are so many, the one that would expire
    /// first makes way.
    pub(super) fn unverified_makes_way(&mut self, key: Key, least: usize) {
        let slots = record_slots(&self.settings.site, key, self.sticky.len());
        let weak =
            |slot: usize| self.sticky[slot].as_ref().filter(|record| !record.verified).map(|it| it.until);
        if let Some(first) = self.first_to_expire(&slots, weak, least) {
            self.forget_record(first);
        }
    }

    /// The same of flows: one whose answers are not seen finds four of its kind there, or another finds no room. To the other one
    /// that both sides have closed makes way as well.
    pub(super) fn unverified_flow_makes_way(&mut self, key: Key) {
        let site = self.settings.site;
        let slots = flow_slots(key, self.flows.len());
        let verified = site.kind(key.service).sees_answers();
        if verified && (self.flow_of(key).is_some() || self.check_no_flow_slot(key).is_err()) {
            return;
        }
        let weak = |slot: usize| {
            let flow = self.flows[slot].as_ref()?;
            let over = verified && flow.state == State::TimeWait;
            (over || !site.kind(flow.key.service).sees_answers()).then_some(flow.until)
        };
        let least = if verified { 1 } else { self.settings.limits.unverified };
        if let Some(first) = self.first_to_expire(&slots, weak, least) {
            self.retire(first);
        }
    }

    /// Where there is no room at all for a flow, the open one makes way that has been silent for longest, if for very long.
    pub(super) fn silent_flow_makes_way(&mut self, key: Key) -> bool {
        if !self.settings.site.kind(key.service).sees_answers()
            || self.flow_of(key).is_some()
            || self.check_no_flow_slot(key).is_err()
        {
            return false;
        }
        let silent = flow_slots(key, self.flows.len()).into_iter().filter_map(|slot| {
            let silent = self.silent_for(self.flows[slot].as_ref()?);
            (silent > SPARED).then_some((silent, slot))
        });
        let Some((_, longest)) = silent.min_by_key(|(silent, _)| -silent) else { return false };
        self.retire(longest);
        true
    }

    /// For how long an open flow has been silent.
    fn silent_for(&self, flow: &Flow) -> i64 {
        if flow.state.is_closed() {
            return 0;
        }
        self.now - (flow.until - self.patience(flow.state, flow.key.service))
    }

    /// The slot of a weak row that would expire first, if there are so many.
    fn first_to_expire(
        &self,
        slots: &[usize],
        weak: impl Fn(usize) -> Option<i64>,
        least: usize,
    ) -> Option<usize> {
        let rank = |until| if self.is_past(until) { i64::MIN } else { until };
        let weak: Vec<(i64, usize)> =
            slots.iter().filter_map(|slot| Some((rank(weak(*slot)?), *slot))).collect();
        let (_, first) = weak.iter().min_by_key(|(until, _)| *until)?;
        (weak.len() >= least).then_some(*first)
    }

    /// Flows that the program took out to make room, or to have their ports back: they must have expired.
    pub(super) fn take_retired(&mut self, chosen: &Chosen) {
        for (slot, now) in &chosen.flows {
            let expired = self.flows[*slot].as_ref().is_some_and(|flow| self.is_past(flow.until));
            let gone = now.as_ref().is_none_or(|flow| !self.is_past(flow.until));
            if expired && gone {
                self.retire(*slot);
            }
        }
    }

    /// Flows that were closed as long ago as a port must rest, or open but silent for very long, and that the program took out
    /// because no other port was left.
    pub(super) fn take_closed(&mut self, chosen: &Chosen, endpoint: u16) -> Result<(), String> {
        for (slot, now) in &chosen.flows {
            let Some(flow) = self.flows[*slot].as_ref().filter(|_| now.is_none()) else { continue };
            let over = self.is_over(flow, LEAST_REST) || self.silent_for(flow) > SPARED;
            if flow.endpoint == endpoint && over {
                self.check_no_rested_port(endpoint)?;
                self.retire(*slot);
            }
        }
        Ok(())
    }

    /// Whether a flow has been over for so long that its port may be had: it has expired, or, where no other port is left, was
    /// closed by both sides.
    fn is_over(&self, flow: &Flow, rest: i64) -> bool {
        let closed = rest == LEAST_REST && flow.state == State::TimeWait;
        (closed || self.is_past(flow.until)) && self.now - self.over_since(flow) >= rest
    }

    /// Whether a flow may have this SNAT port: in the range, not an open flow's, and rested, if one is.
    pub(super) fn check_port(&self, endpoint: u16, source: u8, port: u16) -> Result<usize, String> {
        let last = FIRST_PORT + (self.settings.ports - 1);
        if !(FIRST_PORT..=last).contains(&port) || u16::from(source) >= self.settings.sources {
            return Err(format!("SNAT port {port} from source address {source} is none of ours"));
        }
        let place = self.port_place(endpoint, source, port);
        match self.ports[place] {
            Some(Cell { owner: Owner::HalfOpen(_), .. }) => self.check_no_free_port(place)?,
            cell if self.is_free(cell, QUARANTINE) => {}
            cell if self.is_free(cell, LEAST_REST) => self.check_no_rested_port(endpoint)?,
            cell => return Err(format!("SNAT port {port} is not free: {cell:?} at {}", self.now)),
        }
        Ok(place)
    }

    fn is_free(&self, cell: Option<Cell>, rest: i64) -> bool {
        let rested = |cell: Cell| cell.owner == Owner::Nobody && self.now - cell.since >= rest;
        cell.is_none_or(rested)
    }

    /// A half-open flow loses its port only if nothing else is left among those that are looked at in a row.
    fn check_no_free_port(&self, place: usize) -> Result<(), String> {
        let count = usize::from(self.settings.ports);
        let (first, offset) = (place - place % count, place % count);
        let probes = count.min(PROBES as usize);
        let free = |offset: usize| self.is_free(self.ports[first + offset % count], QUARANTINE);
        let alone = |start: usize| !(start..start + probes).any(free);
        let mut starts = (0..probes).map(|back| offset + count - back);
        if starts.any(alone) {
            return Ok(());
        }
        Err("a half-open flow lost its port although another was free".to_owned())
    }

    /// Whether no port towards an endpoint that has rested for the quarantine can be had.
    pub(super) fn check_no_rested_port(&self, endpoint: u16) -> Result<(), String> {
        self.check_no_port(endpoint, QUARANTINE)
    }

    /// Whether no port towards an endpoint can be had that has rested for so long. Eight places of sixteen are all ports of a small
    /// range.
    pub(super) fn check_no_port(&self, endpoint: u16, rest: i64) -> Result<(), String> {
        let count = usize::from(self.settings.ports * self.settings.sources);
        let first = self.port_place(endpoint, 0, FIRST_PORT);
        let to_be_had = |cell: Option<Cell>| match cell {
            Some(Cell { owner: Owner::HalfOpen(_), .. }) => true,
            Some(Cell { owner: Owner::Flow(slot), .. }) => {
                self.flows[slot].as_ref().is_some_and(|flow| self.is_over(flow, rest))
            }
            cell => self.is_free(cell, rest),
        };
        match self.ports[first..first + count].iter().position(|cell| to_be_had(*cell)) {
            None => Ok(()),
            Some(place) => Err(format!("the port in place {place} of {count} could be had")),
        }
    }
}
