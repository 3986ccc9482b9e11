//! The exact-match cache in front of the shortest way: see [`lb_common::cache`].
//!
//! A conversation gets its entry with its second packet in a row: the first puts only its name there. So whoever comes by once,
//! or takes turns with others in one place, costs little.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    cache::{Entry, Kind, New, place, tag},
    clock::Ticks,
    control::Control,
    flow::{FLOW_WORDS, HOP_WORD, SEQUENCE_WORD, stays_until},
    reason::Reason,
    table::{Found, Slots as _},
    tcp::Direction,
};

use crate::{
    count,
    fast::Fast,
    flow::record,
    maps::{self, Flows},
    packet::{Plain, interface},
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
}

/// Looks a packet up, if the daemon has made the settings.
#[inline(always)]
pub(crate) fn look<const V6: bool>(
    context: *mut xdp_md,
    control: &Control,
    packet: &Plain<V6>,
) -> Option<Look> {
    let (addresses, ports) = (packet.addresses(), packet.ports());
    let [first, second, third, fourth] = addresses;
    let at = maps::cached(place(first ^ second ^ third ^ fourth, ports))?;
    if !maps::is_configured() {
        return None;
    }
    let tag = tag(ports, V6, control.era());
    // SAFETY: the value is this CPU's own for as long as the program runs.
    let entry = unsafe { &*at };
    let unknown = Some(Look::Unknown(Keep { entry: at, tag }));
    let [more, most, last] = if V6 { entry.more } else { [0; 3] };
    let other = first ^ entry.addresses | second ^ more | third ^ most | fourth ^ last;
    if entry.tag != tag || other != 0 || entry.is(Kind::None) {
        return unknown;
    }
    if entry.is(Kind::NotOurs) {
        count::reason(Reason::NotOurs);
        return Some(Look::Done(Fast::Pass));
    }
    let (frame, rest) = framed(context, packet);
    if frame != entry.frame[0] || rest != entry.frame[1] || entry.until.is_past(now()) {
        return unknown;
    }
    let slot = (&Flows).slot(entry.row)?;
    if slot.words[HOP_WORD].load() != entry.hop || slot.life().word() != entry.life {
        return unknown;
    }
    let sequences = &slot.words[SEQUENCE_WORD];
    if entry.is(Kind::ToClient) {
        record(sequences, packet.sequence(), Direction::FromServer);
        count::packet_out(entry.service, entry.server, packet.length);
        count::reason(Reason::Returned);
    } else {
        record(sequences, packet.sequence(), Direction::FromClient);
        count::packet_in(entry.service, entry.server, packet.length);
        count::reason(Reason::Forwarded);
    }
    if entry.is(Kind::SentOn) {
        packet.send_on(&entry.new);
    } else {
        packet.write(&entry.new);
    }
    Some(Look::Done(Fast::Transmit))
}

/// A packet's MAC addresses and the interface that it came by, as in [`Entry::frame`].
#[inline(always)]
fn framed<const V6: bool>(context: *mut xdp_md, packet: &Plain<V6>) -> (u64, u64) {
    let (frame, rest) = packet.frame();
    (frame, u64::from(rest) | u64::from(interface(context)) << 32)
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
        entry.kind = Kind::NotOurs as u32;
    }

    /// Keeps what was decided on a packet of a flow, which is still as it came, and what it becomes.
    #[inline(always)]
    pub(crate) fn flow<const V6: bool>(
        self,
        context: *mut xdp_md,
        packet: &Plain<V6>,
        decided: &Decided<'_>,
        new: &New,
    ) {
        let Some(entry) = self.begin() else { return };
        headers(entry, packet);
        entry.frame = framed(context, packet).into();
        entry.row = decided.found.index;
        entry.life = decided.found.life.word();
        entry.hop = decided.hop;
        entry.until = stays_until(decided.found.life.deadline(), decided.idle);
        entry.service = decided.service;
        entry.server = decided.server;
        entry.kind = decided.kind as u32;
        becomes::<V6>(&mut entry.new, new);
    }

    /// The entry, if the packet before in this place was of the same conversation; else only its name is put there.
    #[inline(always)]
    fn begin(self) -> Option<&'static mut Entry> {
        // SAFETY: as in `look`; a `Keep` is used once.
        let entry = unsafe { &mut *self.entry };
        let again = entry.tag == self.tag;
        entry.kind = Kind::None as u32;
        entry.tag = self.tag;
        if again { Some(entry) } else { None }
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

#[inline(always)]
fn becomes<const V6: bool>(entry: &mut New, new: &New) {
    if V6 {
        *entry = *new;
        return;
    }
    entry.frame = new.frame;
    entry.frame_end = new.frame_end;
    entry.ports = new.ports;
    entry.network_delta = new.network_delta;
    entry.transport_delta = new.transport_delta;
    entry.addresses[0] = new.addresses[0];
}
