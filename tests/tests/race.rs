//! Packets of one client on two cores at the same instant.
#![cfg(test)]

use tests::golden::race::{Raced, acknowledgements, first_connections, first_connections_in_turn};

const ROUNDS: u32 = 10_000;

/// What was raced really met: otherwise nothing was tried.
fn met(what: &str, raced: &Raced) {
    let Raced { rounds, overlapped, servers } = raced;
    println!(
        "{what}: {rounds} pairs, the last packets of {overlapped} at the same time; servers {servers:?}"
    );
    assert_eq!(*rounds, ROUNDS);
    assert!(*overlapped > ROUNDS / 10, "{overlapped} of {ROUNDS} overlapped");
    assert_eq!(servers.len(), 3, "every server got clients");
}

#[test]
fn two_first_connections_at_the_same_instant_on_two_cores_go_to_one_server() {
    met("first connections", &first_connections(ROUNDS).unwrap());
}

#[test]
fn two_first_connections_at_the_same_instant_go_to_one_server_although_each_is_a_turn() {
    met("first connections in turn", &first_connections_in_turn(ROUNDS).unwrap());
}

#[test]
fn two_acknowledgements_at_the_same_instant_make_one_record_and_the_next_connection_follows_it() {
    met("acknowledgements", &acknowledgements(ROUNDS).unwrap());
}
