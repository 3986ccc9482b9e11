//! The exact-match cache in front of the shortest way: see [`lb_common::cache`].
//!
//! A conversation gets its entry with its second packet in a row: the first puts only its name there. So whoever comes by once,
//! or takes turns with others in one place, costs little.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    cache::{Entry, Kind, Verdict, place, tag},
    checksum::Delta,
    clock::Ticks,
    control::Control,
    flow::{FLOW_WORDS, HOP_WORD, SEQUENCE_WORD},
    reason::Reason,
    table::{Found, Slots as _},
    tcp::Direction,
};

use crate::{
    count,
    fast::Fast,
    flow::{REFRESH, record},
    maps::{self, Flows},
    packet::{Outgoing, Plain, interface},
    pipeline::now,
};

/// What the cache says of a packet.
pub(crate) enum Look {
    /// It is decided, and done.
    Done(Fast),
    /// Nothing; what is decided may be kept here.
    Unknown(Keep),
}

/// Where a decision on a packet may be kept.
#[derive(Clone, Copy)]
pub(crate) struct Keep {
    entry: *mut Entry,
    tag: u64,
    /// Whether the packet before in this place was of the same conversation.
    again: bool,
}

/// Looks a packet up.
#[inline(always)]
pub(crate) fn look<const V6: bool>(
    context: *mut xdp_md,
    control: &Control,
    packet: &Plain<V6>,
) -> Option<Look> {
    let (addresses, ports) = (packet.addresses(), packet.ports());
    let [first, second, third, fourth] = addresses;
    let at = maps::cached(place(first ^ second ^ third ^ fourth, ports))?;
    let tag = tag(ports, V6, control.era());
    // SAFETY: the value is this CPU's own for as long as the program runs.
    let entry = unsafe { &*at };
    let again = entry.tag == tag;
    let verdict = Verdict(entry.verdict);
    let unknown = Some(Look::Unknown(Keep { entry: at, tag, again }));
    let [more, most, last] = if V6 { entry.more } else { [0; 3] };
    let other = first ^ entry.addresses | second ^ more | third ^ most | fourth ^ last;
    if !again || other != 0 || verdict.is(Kind::None) {
        return unknown;
    }
    if verdict.is(Kind::NotOurs) {
        count::reason(Reason::NotOurs);
        return Some(Look::Done(Fast::Pass));
    }
    let [frame, rest] = packet.frame();
    let rest = rest | u64::from(interface(context)) << 32;
    if frame != entry.frame[0] || rest != entry.frame[1] || verdict.is_over(now()) {
        return unknown;
    }
    let slot = (&Flows).slot(entry.row)?;
    if slot.words[HOP_WORD].load() != entry.hop || slot.life().word() != entry.life {
        return unknown;
    }
    let (service, server) = (verdict.service(), verdict.server());
    let sequences = &slot.words[SEQUENCE_WORD];
    if verdict.is(Kind::ToClient) {
        record(sequences, packet.sequence(), Direction::FromServer);
        count::packet_out(service, server, packet.length);
        count::reason(Reason::Returned);
    } else {
        record(sequences, packet.sequence(), Direction::FromClient);
        count::packet_in(service, server, packet.length);
        count::reason(Reason::Forwarded);
    }
    if verdict.is(Kind::Readdressed) {
        packet.readdress(&entry.new_frame);
    } else {
        packet.write(&outgoing::<V6>(entry), Delta::apply_folded);
    }
    Some(Look::Done(Fast::Transmit))
}

#[inline(always)]
fn outgoing<const V6: bool>(entry: &Entry) -> Outgoing {
    let [second, third, fourth] = if V6 { entry.new_more } else { [0; 3] };
    Outgoing {
        frame: entry.new_frame,
        addresses: [entry.new_addresses, second, third, fourth],
        ports: entry.ports,
        network_delta: Delta::from_folded(entry.network_delta as u16),
        transport_delta: Delta::from_folded(entry.transport_delta as u16),
    }
}

/// What was decided on a packet of a flow.
pub(crate) struct Decided<'a> {
    pub(crate) kind: Kind,
    pub(crate) service: u16,
    pub(crate) server: u16,
    pub(crate) found: &'a Found<'a, FLOW_WORDS>,
    /// How long the flow may be silent.
    pub(crate) idle: Ticks,
    /// The row's return hop.
    pub(crate) hop: u64,
}

impl Keep {
    /// Keeps what becomes of a packet that is not ours.
    #[inline(always)]
    pub(crate) fn not_ours<const V6: bool>(self, packet: &Plain<V6>) {
        let Some(entry) = self.begin() else { return };
        headers(entry, packet);
        entry.verdict = Verdict::of(Kind::NotOurs, 0, 0, Ticks(0)).0;
    }

    /// Keeps what was decided on a packet of a flow, which is still as it came; what it becomes goes to where this says.
    #[inline(always)]
    pub(crate) fn flow<const V6: bool>(
        self,
        context: *mut xdp_md,
        packet: &Plain<V6>,
        decided: &Decided<'_>,
    ) -> Option<&'static mut Entry> {
        let entry = self.begin()?;
        headers(entry, packet);
        let [frame, rest] = packet.frame();
        entry.frame = [frame, rest | u64::from(interface(context)) << 32];
        entry.row = decided.found.index;
        entry.life = decided.found.life.word();
        entry.hop = decided.hop;
        // As long as the row's deadline stays: see `is_fresh`.
        let deadline = decided.found.life.deadline().0;
        let until = Ticks(deadline.wrapping_sub(decided.idle.0).wrapping_add(REFRESH - 1));
        entry.verdict = Verdict::of(decided.kind, decided.service, decided.server, until).0;
        Some(entry)
    }

    /// The entry, if it is this conversation's turn; else only its name is put there.
    #[inline(always)]
    fn begin(self) -> Option<&'static mut Entry> {
        // SAFETY: as in `look`; a `Keep` is used once.
        let entry = unsafe { &mut *self.entry };
        entry.verdict = 0;
        entry.tag = self.tag;
        if self.again { Some(entry) } else { None }
    }
}

#[inline(always)]
fn headers<const V6: bool>(entry: &mut Entry, packet: &Plain<V6>) {
    let [first, second, third, fourth] = packet.addresses();
    entry.addresses = first;
    if V6 {
        entry.more = [second, third, fourth];
    }
}

/// Keeps what a packet becomes.
#[inline(always)]
pub(crate) fn becomes<const V6: bool>(entry: &mut Entry, new: &Outgoing) {
    entry.ports = new.ports;
    entry.new_frame = new.frame;
    entry.network_delta = u32::from(new.network_delta.folded());
    entry.transport_delta = u32::from(new.transport_delta.folded());
    entry.new_addresses = new.addresses[0];
    if V6 {
        entry.new_more = [new.addresses[1], new.addresses[2], new.addresses[3]];
    }
}
