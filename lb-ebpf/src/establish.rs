//! The acknowledgement that completes a handshake: the sticky record and the established flow appear.

use lb_common::{
    address::Address,
    clock::Ticks,
    flow::{
        FLOW_WORDS, FlowKey, FlowServer, FlowSticky, Flows as FlowKind, SEQUENCE_WORD, SERVER_WORD,
        STICKY_WORD, Sequences,
    },
    hash::hash3,
    life::{Life, SlotState},
    ports::promote,
    reason::Reason,
    server::{ServerState, Servers as _},
    service::Service,
    sticky::{STICKY_WORDS, Stickies, StickyKey, StickyServer, hold, reference},
    table::{Found, Insert, Slots as _, find, insert_if_absent, release},
    tcp::TcpState,
};

use crate::{
    count, flow,
    from_client::Client,
    maps::{self, Flows, HalfOpen, ServerTable, StickyTable},
    pipeline::World,
};

/// Establishes the half-open flow in a slot, whose life the caller saw, by a segment with this sequence number.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself. Gives a [`Reason`]'s number.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn establish(index: u32, life: u64, sequence: u32) -> u32 {
    let Some(world) = World::now() else {
        return Reason::NotConfigured as u32;
    };
    let Some(slot) = HalfOpen.slot(index) else {
        return Reason::NotConfigured as u32;
    };
    let half_open = Found {
        index,
        slot,
        life: Life::from_word(life),
    };
    flow(&world, &half_open, sequence) as u32
}

#[inline(always)]
fn flow(world: &World, half_open: &Found<'_, FLOW_WORDS>, sequence: u32) -> Reason {
    let mut words = half_open.slot.read();
    let client = Client::with_key(world, FlowKey::from_words(&words));
    let to = FlowServer::from_word(words[SERVER_WORD]);
    let Some(service) = maps::service(client.key.service) else {
        return Reason::HandshakeForwarded;
    };
    // Only one core goes on from here; the slot stays live, so that the others' packets find their way.
    let promoting = half_open.life.with_note(TcpState::Promoting as u32);
    if !half_open.slot.exchange(half_open.life, promoting) {
        return Reason::HandshakeForwarded;
    }
    replace_closed(world, &client);
    let wanted = service.persistence.0 != 0;
    let held = if wanted {
        stick(words[0], words[1], StickyTo::word(&client, &to))
    } else {
        0
    };
    let numbers = Sequences::from_word(words[SEQUENCE_WORD]);
    let made_at = FlowSticky::from_word(words[STICKY_WORD]).made_at;
    words[SEQUENCE_WORD] = Sequences {
        client: sequence,
        server: numbers.server,
    }
    .word();
    words[STICKY_WORD] = u64::from(made_at.0) | held;
    if !enter(world, &client, half_open.index, &to, &words, &service) {
        flow::release_record(world, &words);
        let deadline = world.now.plus(service.idle);
        let overflow = promoting
            .with_note(TcpState::Established as u32)
            .with_deadline(deadline);
        let _overwritten = !half_open.slot.exchange(promoting, overflow);
        return Reason::FlowTableFull;
    }
    let _overwritten = !half_open
        .slot
        .exchange(promoting, promoting.with_state(SlotState::Free));
    count::flow(client.key.service, to.server);
    if wanted && held == 0 {
        Reason::EstablishedUnrecorded
    } else {
        Reason::Established
    }
}

/// Puts the flow into the table and hands it its port.
#[inline(always)]
fn enter(
    world: &World,
    client: &Client,
    half_open: u32,
    to: &FlowServer,
    words: &[u64; FLOW_WORDS],
    service: &Service,
) -> bool {
    let deadline = world.now.plus(service.idle);
    let inserted = insert_if_absent::<FLOW_WORDS, FlowKind, _>(
        &Flows,
        client.hash,
        words,
        TcpState::Established as u32,
        deadline,
        world.now,
        |index, _, life| {
            flow::retire(index, life.word());
        },
    );
    let Insert::Inserted(index) = inserted else {
        return false;
    };
    if let Some(cell) = flow::cell_of(world, to)
        && promote(cell, half_open, index, world.now)
    {
        return true;
    }
    // Another half-open flow took the port in this moment: without it there is no way back.
    if let Some(slot) = (&Flows).slot(index) {
        let life = slot.life();
        let _changed = !slot.exchange(life, life.with_state(SlotState::Free));
    }
    false
}

/// Takes a closed flow of the same ports out of the table: the client uses its port again.
#[inline(always)]
fn replace_closed(world: &World, client: &Client) {
    let Some(closed) = client.find_flow(world) else {
        return;
    };
    let is_closed = TcpState::from_note(closed.life.note()).is_closed();
    let claimed = closed.life.claimed();
    if is_closed && closed.slot.exchange(closed.life, claimed) {
        flow::retire(closed.index, closed.life.word());
        release(closed.slot, claimed);
    }
}

/// What [`stick`] is told beside the client's address: service:16, server:16.
struct StickyTo;

impl StickyTo {
    #[inline(always)]
    fn word(client: &Client, to: &FlowServer) -> u32 {
        u32::from(client.key.service) | u32::from(to.server) << 16
    }
}

/// Finds or makes a client's sticky record, and counts one more flow in it.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself. Gives the record's reference as
/// it stands in a flow's [`FlowSticky`]; zero if the table has no room.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stick(first: u64, second: u64, to: u32) -> u64 {
    let Some(world) = World::now() else { return 0 };
    let (service, server) = (to as u16, (to >> 16) as u16);
    let key = StickyKey {
        client: Address([first, second]),
        service,
    };
    let Some(service) = maps::service(service) else {
        return 0;
    };
    let hash = hash3(&world.key, key.words());
    let deadline = world.now.plus(service.persistence);
    let fresh = StickyServer {
        service: key.service,
        server,
        made_at: world.now,
        verified: true,
    };
    let words = [first, second, fresh.word()];
    let found = match find::<STICKY_WORDS, Stickies, _>(&StickyTable, hash, key.words(), world.now) {
        Some(found) => found.index,
        None => match insert_if_absent::<STICKY_WORDS, Stickies, _>(
            &StickyTable,
            hash,
            &words,
            1,
            deadline,
            world.now,
            |_, _, _| {},
        ) {
            Insert::Inserted(index) => {
                return StickyTable
                    .slot(index)
                    .map_or(0, |slot| reference_word(index, slot.life()));
            }
            Insert::Present(index) => index,
            Insert::Full | Insert::Contended => return 0,
        },
    };
    hold_for(found, key, server, deadline, fresh)
}

/// Counts one more flow in the record of `key` at `index`, if it is still there.
#[inline(always)]
fn hold_for(index: u32, key: StickyKey, server: u16, deadline: Ticks, fresh: StickyServer) -> u64 {
    let Some(slot) = StickyTable.slot(index) else {
        return 0;
    };
    let found = Found {
        index,
        slot,
        life: slot.life(),
    };
    let words = slot.read();
    let same = words[0] == key.client.0[0] && words[1] == key.client.0[1] && words[2] as u16 == key.service;
    if !same || !matches!(found.life.state(), SlotState::Live) || !hold(&found, deadline) {
        return 0;
    }
    follow_server(&found, server, fresh);
    reference_word(index, found.life)
}

/// The reference to a record, where it stands in a flow's word.
#[inline(always)]
fn reference_word(index: u32, life: Life) -> u64 {
    FlowSticky {
        made_at: Ticks(0),
        record: Some(reference(index, life)),
    }
    .word()
}

/// A record whose server can't be used any more follows the client to where it is now.
#[inline(always)]
fn follow_server(found: &Found<'_, STICKY_WORDS>, server: u16, fresh: StickyServer) {
    let word = found.slot.words[2].load();
    let recorded = StickyServer::from_word(word);
    if recorded.server == server {
        return;
    }
    let usable = ServerTable
        .present(recorded.server)
        .is_some_and(|server| server.service == fresh.service && server.state.has(ServerState::TAKES_KNOWN));
    if !usable {
        let moved = StickyServer { server, ..recorded };
        let _moved_by_another = found.slot.words[2].compare_exchange(word, moved.word());
    }
}
