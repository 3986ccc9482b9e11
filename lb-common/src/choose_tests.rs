//! Every state of the recorded server and of the scheduler's picks.

use super::*;
use crate::address::Address;
use crate::forwarding::Forwarding;
use crate::maglev::NOBODY;
use crate::server::{ServerSlot, state_word};
use crate::word::Word;
use core::cell::RefCell;
use std::vec::Vec;

const SERVICE: u16 = 3;
const PRESENT: u16 = ServerState::PRESENT;
const REACHABLE: u16 = ServerState::REACHABLE;
const NEW: u16 = ServerState::TAKES_NEW;
const KNOWN: u16 = ServerState::TAKES_KNOWN;
const RESETS: u16 = ServerState::RESETS;

/// What an administrator or a health check makes of a server: name, state, takes known clients, takes unknown ones.
const CONDITIONS: [(&str, u16, bool, bool); 9] = [
    ("online and up", PRESENT | REACHABLE | NEW | KNOWN, true, true),
    ("online, up, next hop not known yet", PRESENT | NEW | KNOWN, true, true),
    ("draining", PRESENT | REACHABLE | KNOWN, true, false),
    ("weight 0", PRESENT | REACHABLE | KNOWN, true, false),
    ("halted", PRESENT | REACHABLE | RESETS, false, false),
    ("down, flows reset", PRESENT | REACHABLE | RESETS, false, false),
    ("down, flows kept", PRESENT | REACHABLE, false, false),
    ("removed", 0, false, false),
    // Left by a daemon that cleared the presence bit alone.
    ("removed, other bits left", REACHABLE | NEW | KNOWN, false, false),
];

struct Memory(Vec<ServerSlot>);

impl Servers for Memory {
    fn server(&self, id: u16) -> Option<&ServerSlot> {
        self.0.get(usize::from(id))
    }
}

fn server(id: u16, service: u16, state: u16) -> Server {
    Server {
        address: Address::from_v4_word(u32::from(id) + 1),
        port: 443u16.to_be(),
        endpoint: id + 100,
        service,
        forwarding: Forwarding::Snat,
        arm: 0,
        mac: [2, 0, 0, 0, 0, 1],
        state: ServerState(state),
    }
}

fn memory(servers: &[Server]) -> Memory {
    Memory(servers.iter().map(|server| server.words().map(Word::new)).collect())
}

/// What was chosen, and which attempts the scheduler was asked for.
fn chosen(servers: &[Server], record: Option<u16>, pick: impl Fn(u32) -> Option<u16>) -> (Choice, Vec<u32>) {
    let asked = RefCell::new(Vec::new());
    let choice = choose(&memory(servers), SERVICE, record, |attempt| {
        asked.borrow_mut().push(attempt);
        pick(attempt)
    });
    (choice, asked.into_inner())
}

#[test]
fn a_known_client_stays_exactly_while_its_server_takes_known_clients() {
    for (recorded, state, takes_known, _) in CONDITIONS {
        for (picked, pick_state, _, takes_new) in CONDITIONS {
            let servers = [server(0, SERVICE, state), server(1, SERVICE, pick_state)];
            let (choice, asked) = chosen(&servers, Some(0), |_| Some(1));
            let expected = if takes_known {
                Choice::Sticky(0, servers[0])
            } else if takes_new {
                Choice::Scheduled(1, servers[1])
            } else {
                Choice::Nobody
            };
            assert_eq!(choice, expected, "recorded: {recorded}; picked: {picked}");
            assert_eq!(asked.is_empty(), takes_known, "the scheduler has no say while the record holds");
        }
    }
}

#[test]
fn an_unknown_client_goes_where_the_scheduler_says_exactly_if_new_clients_are_taken() {
    for (picked, state, _, takes_new) in CONDITIONS {
        let servers = [server(0, SERVICE, state)];
        let (choice, asked) = chosen(&servers, None, |_| Some(0));
        if takes_new {
            assert_eq!(choice, Choice::Scheduled(0, servers[0]), "{picked}");
            assert_eq!(asked, [0]);
        } else {
            assert_eq!(choice, Choice::Nobody, "{picked}");
            assert_eq!(asked, (0..ATTEMPTS).collect::<Vec<_>>());
        }
    }
}

#[test]
fn every_combination_of_bits_is_read_bit_by_bit() {
    for state in 0..32 {
        let servers = [server(0, SERVICE, state)];
        let (known, _) = chosen(&servers, Some(0), |_| None);
        let stays = state & PRESENT != 0 && state & KNOWN != 0;
        assert_eq!(known == Choice::Sticky(0, servers[0]), stays, "{state:#b}");
        let (new, _) = chosen(&servers, None, |_| Some(0));
        let lands = state & PRESENT != 0 && state & NEW != 0;
        assert_eq!(new == Choice::Scheduled(0, servers[0]), lands, "{state:#b}");
    }
}

#[test]
fn a_record_of_an_id_that_serves_another_service_now_is_not_followed() {
    let up = PRESENT | REACHABLE | NEW | KNOWN;
    let servers = [server(0, SERVICE + 1, up), server(1, SERVICE, up)];
    let (choice, _) = chosen(&servers, Some(0), |_| Some(1));
    assert_eq!(choice, Choice::Scheduled(1, servers[1]));
    let (choice, _) = chosen(&servers, Some(0), |_| Some(0));
    assert_eq!(choice, Choice::Nobody, "nor is a stale place of the scheduler's table");
}

#[test]
fn an_id_outside_the_table_is_nobodys() {
    let servers = [server(0, SERVICE, PRESENT | NEW | KNOWN)];
    for id in [1, 500, NOBODY] {
        assert_eq!(chosen(&servers, Some(id), |_| Some(id)).0, Choice::Nobody);
        assert_eq!(chosen(&servers, Some(id), |_| Some(0)).0, Choice::Scheduled(0, servers[0]));
    }
}

#[test]
fn a_further_place_is_tried_while_the_table_lags_behind_the_servers_states() {
    let servers = [
        server(0, SERVICE, PRESENT | RESETS),
        server(1, SERVICE, PRESENT | KNOWN),
        server(2, SERVICE, PRESENT | NEW | KNOWN),
    ];
    for turn in 0..ATTEMPTS {
        let (choice, asked) = chosen(&servers, None, |attempt| {
            Some(if attempt == turn { 2 } else { u16::try_from(attempt % 2).unwrap() })
        });
        assert_eq!(choice, Choice::Scheduled(2, servers[2]));
        assert_eq!(asked, (0..=turn).collect::<Vec<_>>());
    }
    let (choice, asked) = chosen(&servers, None, |attempt| Some(if attempt < ATTEMPTS { 0 } else { 2 }));
    assert_eq!((choice, asked.len()), (Choice::Nobody, ATTEMPTS as usize));
}

#[test]
fn an_empty_scheduler_table_ends_it_at_once() {
    let servers = [server(0, SERVICE, PRESENT | NEW | KNOWN)];
    let (choice, asked) = chosen(&servers, None, |_| None);
    assert_eq!((choice, asked.as_slice()), (Choice::Nobody, [0].as_slice()));
}

#[test]
fn a_server_that_comes_back_does_not_pull_clients_away() {
    let up = PRESENT | REACHABLE | NEW | KNOWN;
    let down = PRESENT | REACHABLE | RESETS;
    // The scheduler would always say 0. The client was moved to 1 while 0 was down.
    let moved = chosen(&[server(0, SERVICE, down), server(1, SERVICE, up)], Some(0), |attempt| {
        Some(u16::from(attempt > 0))
    });
    assert!(matches!(moved.0, Choice::Scheduled(1, _)));
    let later = chosen(&[server(0, SERVICE, up), server(1, SERVICE, up)], Some(1), |_| Some(0));
    assert!(matches!(later.0, Choice::Sticky(1, _)));
}

#[test]
fn a_server_survives_its_words() {
    let one = Server {
        address: Address([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]),
        port: 0xabcd,
        endpoint: 0x1234,
        service: 0x5678,
        forwarding: Forwarding::Snat,
        arm: 0,
        mac: [1, 2, 3, 4, 5, 6],
        state: ServerState(0x9abc),
    };
    assert_eq!(Server::from_words(one.words()), one);
    let moved = [one.words()[0], one.words()[1], one.words()[2], state_word([9; 6], ServerState(1))];
    let expected = Server { mac: [9; 6], state: ServerState(1), ..one };
    assert_eq!(Server::from_words(moved), expected, "only the last word changes in use");
}
