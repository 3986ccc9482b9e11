//! The acknowledgement that completes a handshake: the sticky record and the established flow appear.

use lb_common::{
    clock::Ticks,
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, FlowSticky, Flows as FlowKind, SEQUENCE_WORD, SERVER_WORD,
        STICKY_WORD, Sequences,
    },
    forwarding::Forwarding,
    hash::{hash3, mix},
    life::{Life, SlotState},
    ports::promote,
    reason::Reason,
    server::{ServerState, Servers as _},
    sticky::{STICKY_WORDS, Stickies, StickyServer, hold, reference},
    table::{Found, Insert, Slot, Slots as _, WAYS, find, try_insert, weakest, weakness},
    tcp::TcpState,
};

use crate::{
    count, flow,
    from_client::{Client, IN_TABLE, KeyWords, serving},
    handshake::{Answer, completes, is_answered, reason_of},
    maps::{self, Flows, HalfOpen, ServerTable, StickyTable},
    pipeline::World,
    select::{asked_for, key_of, service_of},
};

/// Establishes the half-open flow of this key in a slot, by a segment with these sequence and acknowledgement numbers
/// (low and high half) that may be the client's last. Gives an [`Answer`].
///
/// The steps are global functions, called one after the other from here, because the stacks of functions that call each
/// other add up.
#[inline(always)]
pub(crate) fn establish(words: KeyWords, server: u16, index: u32, numbers: u64, is_last: bool) -> u64 {
    let [first, second, ports] = words;
    let record = stick(first, second, recorded_as(asked_for(ports), server));
    let word = begin(index, numbers, record, fingerprint(first, second), ports);
    if word == NOT_OURS {
        let_go(first, second, ports, record);
        return Answer::word(0, Reason::ResetNoFlow);
    }
    if word >> 56 != 0 {
        return word;
    }
    let verified =
        maps::service(service_of(asked_for(ports))).is_some_and(|service| service.forwarding.sees_answers());
    if !verified {
        flow_gives_way(first, second, ports, UNVERIFIED);
    }
    let (mut flow, mut displaced) = (CONTENDED, 0);
    let mut attempt = 0;
    while attempt < ATTEMPTS && flow == CONTENDED {
        attempt += 1;
        flow = enter(index);
        if flow == FULL && verified {
            let over = flow_gives_way(first, second, ports, 1);
            displaced = if over == 0 { silent_flow_gives_way(first, second, ports) } else { 0 };
            flow = if over + displaced > 0 { CONTENDED } else { FULL };
        }
    }
    let reason = match reason_of(finish(index, flow, record)) {
        Reason::Established if displaced > 0 => Reason::EstablishedDisplacing,
        reason => reason,
    };
    // What came before the FIN was lost.
    if is_last
        && matches!(
            reason,
            Reason::Established | Reason::EstablishedUnrecorded | Reason::EstablishedDisplacing
        )
        && let Some(slot) = Flows.slot(flow)
    {
        flow::change_state(flow, slot.life().word(), TcpState::ClientFin as u32);
    }
    Answer::word(word, reason)
}

/// An address in one word, to tell whether a slot still holds the client that it was found by.
#[inline(always)]
fn fingerprint(first: u64, second: u64) -> u64 {
    mix(first) ^ second
}

/// Counts one flow less in the record of the client of a flow with this key.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn let_go(first: u64, second: u64, ports: u64, record: u64) -> u32 {
    let world = World::now();
    flow::release_of(&world, record, first, second, ports);
    1
}

/// No answer that [`begin`] gives: the slot is not what it was.
const NOT_OURS: u64 = u64::MAX;

/// Reserves the half-open flow in a slot for the caller, who goes on to [`enter`] and [`finish`]: gives the word that says
/// where it goes. Or an [`Answer`], if another core has it, or [`NOT_OURS`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn begin(index: u32, numbers: u64, record: u64, client: u64, ports: u64) -> u64 {
    let world = World::now();
    let Some(slot) = HalfOpen.slot(index) else { return NOT_OURS };
    let life = slot.life();
    let to = slot.words[SERVER_WORD].load();
    let same = fingerprint(slot.words[0].load(), slot.words[1].load()) == client;
    if !same || slot.words[2].load() != ports & !IN_TABLE {
        return NOT_OURS;
    }
    let recorded = Sequences::from_word(slot.words[SEQUENCE_WORD].load());
    let (sequence, acknowledgment) = (numbers as u32, (numbers >> 32) as u32);
    let forwarding =
        maps::service((ports >> 32) as u16).map_or(Forwarding::Snat, |service| service.forwarding);
    let answered = matches!(life.state(), SlotState::Live)
        && is_answered(forwarding, life)
        && completes(forwarding, sequence, acknowledgment, slot);
    // Only one core goes on from here; the slot stays live, so that the others' packets find their way.
    let promoting = life.with_note(TcpState::Promoting as u32);
    if !answered || !slot.exchange(life, promoting) {
        flow::release(&world, record, slot);
        return Answer::word(to, Reason::HandshakeForwarded);
    }
    let server = if forwarding.sees_answers() { acknowledgment.wrapping_sub(1) } else { recorded.server };
    let sequences = Sequences { client: sequence, server };
    slot.words[SEQUENCE_WORD].store(sequences.word());
    slot.words[STICKY_WORD].store(slot.words[STICKY_WORD].load() & 0xffff_ffff | record);
    if ports & IN_TABLE != 0 {
        replace_closed(&world, slot);
    }
    to
}

/// Ends what [`begin`] began: the flow has its port and the half-open slot is free; or there was no room, and the half-open
/// slot goes on in its place. Gives a [`Reason`]'s number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn finish(index: u32, flow: u32, record: u64) -> u32 {
    let world = World::now();
    let Some(slot) = HalfOpen.slot(index) else { return Reason::NotConfigured as u32 };
    let promoting = slot.life();
    let to = FlowServer::from_word(slot.words[SERVER_WORD].load());
    let service_id = (slot.words[2].load() >> 32) as u16;
    let Some(service) = maps::service(service_id) else {
        let _changed = !slot.exchange(promoting, promoting.with_state(SlotState::Free));
        return Reason::HandshakeForwarded as u32;
    };
    let entered = flow < PRESENT;
    if entered && keeps_port(&world, &to, index, flow) {
        let _changed = !slot.exchange(promoting, promoting.with_state(SlotState::Free));
        count::flow(service_id, to.server);
        count::open(to.server, 1);
        let unrecorded = service.persistence.0 != 0 && record == 0;
        return if unrecorded { Reason::EstablishedUnrecorded } else { Reason::Established } as u32;
    }
    if entered && let Some(slot) = Flows.slot(flow) {
        // Another half-open flow took the port in this moment: without it there is no way back.
        let life = slot.life();
        let _changed = !slot.exchange(life, life.with_state(SlotState::Free));
    }
    flow::release(&world, record, slot);
    let overflow = promoting.with_note(TcpState::Established as u32);
    let _changed = !slot.exchange(promoting, overflow.with_deadline(world.now.plus(service.idle)));
    Reason::FlowTableFull as u32
}

/// Whether a flow that enters the flow table takes its SNAT port along, if it needs one.
#[inline(always)]
fn keeps_port(world: &World, to: &FlowServer, half_open: u32, flow: u32) -> bool {
    !to.has_port() || flow::cell_of(world, to).is_some_and(|cell| promote(cell, half_open, flow, world.now))
}

/// No index that [`enter`] gives: it is there already.
const PRESENT: u32 = u32::MAX - 2;
/// No index that [`enter`] gives: no room.
const FULL: u32 = u32::MAX - 1;
/// No index that [`enter`] gives: another core got in the way.
const CONTENDED: u32 = u32::MAX;
/// How often an insertion that lost a race tries again.
const ATTEMPTS: u32 = 3;

/// How often a client's record is looked for and made in turn, while another core makes it. That takes the other as long as a
/// few looks; a flow that gave up would not be counted in the record, which could then expire under it.
const RECORD_ATTEMPTS: u32 = 32;

/// Copies the half-open flow in a slot, which the caller is promoting, into the flow table: the new slot's index, [`PRESENT`],
/// [`FULL`] or [`CONTENDED`].
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn enter(half_open: u32) -> u32 {
    let world = World::now();
    let Some(from) = HalfOpen.slot(half_open) else { return FULL };
    let key = [from.words[0].load(), from.words[1].load(), from.words[2].load()];
    let Some(service) = maps::service((key[2] >> 32) as u16) else { return FULL };
    match try_insert::<FLOW_WORDS, FlowKind, _>(
        &Flows,
        hash3(&world.key(), key),
        key,
        |slot| slot.copy(from),
        TcpState::Established as u32,
        world.now.plus(service.idle),
        world.now,
        |index, _, life| {
            flow::retire(index, life.word());
        },
        false,
    ) {
        Insert::Inserted(index) => index,
        Insert::Contended => CONTENDED,
        Insert::Present(_) => PRESENT,
        Insert::Full => FULL,
    }
}

/// Has the flow whose answers are not seen that would expire first make way, if there are so many where the flow of this key
/// may lie. Where one is enough there is no room: then one that both sides have closed makes way as well. One that an RST
/// closed does not: its sender may take it back.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn flow_gives_way(first: u64, second: u64, ports: u64, least: u32) -> u32 {
    let world = World::now();
    let hash = hash3(&world.key(), [first, second, ports & !IN_TABLE]);
    let weak = |slot: &Slot<FLOW_WORDS>, life: Life| {
        let over = least == 1 && matches!(TcpState::from_note(life.note()), TcpState::TimeWait);
        let unverified = maps::service((slot.words[2].load() >> 32) as u16)
            .is_some_and(|service| !service.forwarding.sees_answers());
        if over || unverified { weakness(life, world.now) } else { 0 }
    };
    let Some(found) = weakest(&Flows, hash, weak, least) else { return 0 };
    u32::from(flow::take_out(&found))
}

/// Has the open flow make way that has been silent for longest where the flow of this key may lie, if that is very long: nobody
/// else gives way, and a client that is here now is not turned away for one that may be gone.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn silent_flow_gives_way(first: u64, second: u64, ports: u64) -> u32 {
    let world = World::now();
    let hash = hash3(&world.key(), [first, second, ports & !IN_TABLE]);
    let weak = |slot: &Slot<FLOW_WORDS>, life: Life| {
        maps::service((slot.words[2].load() >> 32) as u16)
            .map_or(0, |service| world.control.dispensable(life, service.idle, world.now))
    };
    let Some(found) = weakest(&Flows, hash, weak, 1) else { return 0 };
    u32::from(flow::take_out(&found))
}

/// Takes a flow of the same ports out of the table that is closed, or whose server is gone: the client uses its port again.
#[inline(always)]
fn replace_closed(world: &World, slot: &Slot<FLOW_WORDS>) {
    let key =
        FlowKey::from_words(&[slot.words[0].load(), slot.words[1].load(), slot.words[2].load(), 0, 0, 0, 0]);
    let client = Client::with_key(world, key);
    let Some(closed) = client.find_flow(world) else {
        return;
    };
    let to = FlowServer::from_word(closed.slot.words[SERVER_WORD].load());
    let is_closed = TcpState::from_note(closed.life.note()).is_closed() || serving(&to).is_none();
    if is_closed {
        flow::take_out(&closed);
    }
}

/// What a record says: the service and port that were [`asked_for`], and above them the server's id.
#[inline(always)]
const fn recorded_as(at: u32, server: u16) -> u64 {
    at as u64 | (server as u64) << 32
}

/// Finds or makes the sticky record of a client (its address' two words) as `to` says ([`recorded_as`]), and counts one
/// more flow in it. Gives the record's reference as it stands in a flow's [`FlowSticky`]; zero if the
/// service has no persistence, or the table no room.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stick(first: u64, second: u64, to: u64) -> u64 {
    let Some(service) = maps::service(service_of(to as u32)) else { return 0 };
    if service.persistence.0 == 0 {
        return 0;
    }
    let mut attempt = 0;
    while attempt < RECORD_ATTEMPTS {
        attempt += 1;
        let held = hold_record(first, second, to);
        if held != 0 {
            return held;
        }
        if !service.forwarding.sees_answers() {
            unverified_gives_way(first, second, to as u32, UNVERIFIED);
        }
        let made = make_record(first, second, to);
        let full = made == 0 && service.forwarding.sees_answers();
        if made != LOOK_AGAIN && !(full && unverified_gives_way(first, second, to as u32, 1) == 1) {
            return made;
        }
    }
    0
}

/// Counts one more flow in the record of a client, if there is one. As [`stick`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hold_record(first: u64, second: u64, to: u64) -> u64 {
    let world = World::now();
    let Some(service) = maps::service(service_of(to as u32)) else { return 0 };
    let key = key_of(&service, first, second, to as u32);
    let hash = hash3(&world.key(), key.words());
    let Some(found) = find::<STICKY_WORDS, Stickies, _>(&StickyTable, hash, key.words(), world.now) else {
        return 0;
    };
    if !hold(&found, world.now.plus(service.persistence)) {
        return 0;
    }
    follow_server(&found, key.service, (to >> 32) as u16);
    reference_word(found.index, found.life)
}

/// How many of the slots in which a row may lie may hold unverified ones before one of them makes way for another: whoever can
/// forge acknowledgements fills no more.
const UNVERIFIED: u32 = WAYS / 2;

/// Has the unverified record that would expire first make way, if there are so many where a client's record may lie.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn unverified_gives_way(first: u64, second: u64, at: u32, least: u32) -> u32 {
    let world = World::now();
    let Some(service) = maps::service(service_of(at)) else { return 0 };
    let key = key_of(&service, first, second, at);
    let weak = |slot: &Slot<STICKY_WORDS>, life: Life| {
        let verified = StickyServer::from_word(slot.words[2].load()).verified;
        if verified { 0 } else { weakness(life, world.now) }
    };
    let found = weakest(&StickyTable, hash3(&world.key(), key.words()), weak, least);
    let Some(found) = found else { return 0 };
    u32::from(found.slot.exchange(found.life, found.life.with_state(SlotState::Free)))
}

/// No reference that [`make_record`] gives: the record has been made by another core, or another got in the way.
const LOOK_AGAIN: u64 = u64::MAX;

/// Makes a record for a client that has none, with one flow; or [`LOOK_AGAIN`]. As [`stick`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_record(first: u64, second: u64, to: u64) -> u64 {
    let world = World::now();
    let Some(service) = maps::service(service_of(to as u32)) else { return 0 };
    let key = key_of(&service, first, second, to as u32);
    let fresh = StickyServer {
        service: key.service,
        port: key.port,
        server: (to >> 32) as u16,
        made_at: world.now,
        verified: service.forwarding.sees_answers(),
    };
    match try_insert::<STICKY_WORDS, Stickies, _>(
        &StickyTable,
        hash3(&world.key(), key.words()),
        key.words(),
        |slot| {
            slot.words[0].store(key.client.0[0]);
            slot.words[1].store(key.client.0[1]);
            slot.words[2].store(fresh.word());
        },
        1,
        world.now.plus(service.persistence),
        world.now,
        |_, _, _| {},
        true,
    ) {
        Insert::Inserted(index) => {
            StickyTable.slot(index).map_or(0, |slot| reference_word(index, slot.life()))
        }
        Insert::Present(_) | Insert::Contended => LOOK_AGAIN,
        Insert::Full => 0,
    }
}

/// The reference to a record, where it stands in a flow's word.
#[inline(always)]
fn reference_word(index: u32, life: Life) -> u64 {
    FlowSticky { made_at: Ticks(0), record: Some(reference(index, life)) }.word()
}

/// A record whose server can't be used any more follows the client to where it is now.
#[inline(always)]
fn follow_server(found: &Found<'_, STICKY_WORDS>, service: u16, server: u16) {
    let word = found.slot.words[2].load();
    let recorded = StickyServer::from_word(word);
    if recorded.server == server {
        return;
    }
    let usable = ServerTable
        .present(recorded.server)
        .is_some_and(|server| server.service == service && server.state.has(ServerState::TAKES_KNOWN));
    if !usable {
        let moved = StickyServer { server, ..recorded };
        let _moved_by_another = found.slot.words[2].compare_exchange(word, moved.word());
    }
}
