//! A SYN on the ports of an open flow: its server challenges it (RFC 5961 section 4), or has forgotten the connection, because it was
//! restarted, and begins another. Then the flow's row begins anew with it: else its numbers would never be near again, and it would
//! count as open long after both ends have closed.
//!
//! Until it is known which, the half-open table has a row of the same key, with the flow's own server and port, and the flow has
//! [`SYN_SEEN`]. The flow changes only with an acknowledgement of the server's SYN-ACK to that very SYN.

use lb_common::{
    clock::Ticks,
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, FlowSticky, Flows as FlowKind, HOP_WORD, SEQUENCE_WORD, SERVER_WORD,
        STICKY_WORD, Sequences,
    },
    forwarding::Forwarding,
    life::SlotState,
    reason::Reason,
    table::{Found, Slots as _, claim_any, publish_filled},
    tcp::{Direction, SYN_SEEN, TcpFlags, TcpState},
};

use crate::{
    count, flow,
    from_client::Client,
    handshake::{Answer, Heard, completes, unknown},
    maps::{self, HalfOpen},
    pipeline::World,
};

/// Decides on a segment of an open flow on whose ports its client sends, or has sent, a SYN. As [`decide`](crate::handshake::decide).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn renew(first: u64, second: u64, ports: u64, numbers: u64, sender: u64) -> u64 {
    let world = World::now();
    let heard = Heard::from_words(numbers, sender);
    let client = Client::with_key(&world, FlowKey::from_words(&[first, second, ports, 0, 0, 0, 0]));
    let Some(found) = client.find_flow(&world) else {
        return unknown(&world, &client, &heard);
    };
    let word = found.slot.words[SERVER_WORD].load();
    let half_open = client.find_half_open(&world);
    if let Some(half_open) = &half_open
        && begins_anew(&world, &client, &heard, &found, half_open)
    {
        return Answer::word(word, Reason::Established);
    }
    let near =
        flow::follow(&world, &found, client.key.service, heard.flags, heard.sequence, Direction::FromClient);
    if near {
        flow::comes_by(found.slot, heard.sender);
    }
    if heard.flags.opens() {
        note_syn(&world, &client, &heard, word, half_open);
        mark(&found, true);
    } else if half_open.is_none() {
        mark(&found, false);
    }
    Answer::word(word, Reason::Forwarded)
}

/// Says of an open flow whether its client has sent a SYN.
#[inline(always)]
fn mark(found: &Found<'_, FLOW_WORDS>, seen: bool) {
    let life = found.slot.life();
    let note = life.note() & !SYN_SEEN | if seen { SYN_SEEN } else { 0 };
    if life.same_life(found.life) && !TcpState::from_note(note).is_closed() {
        let _changed_by_another = !found.slot.exchange(life, life.with_note(note));
    }
}

/// Notes a SYN in the half-open table, with the way of the open flow. As any SYN it leaves nothing lasting behind.
#[inline(always)]
fn note_syn(
    world: &World,
    client: &Client,
    heard: &Heard,
    way: u64,
    half_open: Option<Found<'static, FLOW_WORDS>>,
) {
    let sequences = Sequences { client: heard.sequence, server: 0 };
    let deadline = world.now.plus(world.control.idle(TcpState::SynSent, Ticks(0)));
    if let Some(half_open) = half_open {
        let slot = half_open.slot;
        let same = Sequences::from_word(slot.words[SEQUENCE_WORD].load()).client == heard.sequence
            && slot.words[SERVER_WORD].load() == way;
        let again = half_open.life.with_note(TcpState::SynSent as u32).with_deadline(deadline);
        let in_handshake =
            matches!(TcpState::from_note(half_open.life.note()), TcpState::SynSent | TcpState::SynReceived);
        if !same && in_handshake && slot.exchange(half_open.life, again) {
            slot.words[SEQUENCE_WORD].store(sequences.word());
            slot.words[SERVER_WORD].store(way);
        }
        return;
    }
    let Some((index, claimed)) = claim_any::<FLOW_WORDS, FlowKind, _>(&HalfOpen, client.hash, world.now)
    else {
        return;
    };
    let Some(slot) = (&HalfOpen).slot(index) else { return };
    let [first, second, ports] = client.key.words();
    slot.words[0].store(first);
    slot.words[1].store(second);
    slot.words[2].store(ports);
    slot.words[SERVER_WORD].store(way);
    slot.words[HOP_WORD].store(heard.sender);
    slot.words[SEQUENCE_WORD].store(sequences.word());
    slot.words[STICKY_WORD].store(FlowSticky { made_at: world.now, record: None }.word());
    publish_filled(slot, claimed, TcpState::SynSent as u32, deadline);
}

/// Whether the segment acknowledges the server's answer to the SYN: the flow is then the new connection's. It is as open as it was
/// before, and goes on with its port and its sticky record.
#[inline(always)]
fn begins_anew(
    world: &World,
    client: &Client,
    heard: &Heard,
    found: &Found<'_, FLOW_WORDS>,
    half_open: &Found<'_, FLOW_WORDS>,
) -> bool {
    let (slot, syn) = (found.slot, half_open.slot);
    let way = slot.words[SERVER_WORD].load();
    let answered = matches!(TcpState::from_note(half_open.life.note()), TcpState::SynReceived)
        && syn.words[SERVER_WORD].load() == way
        && heard.acknowledges()
        && completes(Forwarding::Snat, heard.sequence, heard.acknowledgment, syn);
    if !answered || !half_open.still() {
        return false;
    }
    let Some(service) = maps::service(client.key.service) else { return false };
    let state = if heard.flags.has(TcpFlags::FIN) { TcpState::ClientFin } else { TcpState::Established };
    let deadline = world.now.plus(world.control.idle(state, service.idle));
    if !slot.exchange(found.life, found.life.with_note(state as u32).with_deadline(deadline)) {
        return false;
    }
    let sequences = Sequences { client: heard.sequence, server: heard.acknowledgment.wrapping_sub(1) };
    slot.words[SEQUENCE_WORD].store(sequences.word());
    flow::comes_by(slot, heard.sender);
    let record = slot.words[STICKY_WORD].load() & !0xffff_ffff;
    slot.words[STICKY_WORD].store(record | u64::from(world.now.0));
    let _overwritten_by_another = !syn.exchange(half_open.life, half_open.life.with_state(SlotState::Free));
    count::flow(client.key.service, FlowServer::from_word(way).server);
    true
}
