//! The connection's states against a table that was written by hand from the module's diagram.

use super::Direction::{FromClient, FromServer};
use super::TcpState::{
    ClientFin, ClientReset, Established, Promoting, ServerFin, ServerReset, SynReceived, SynSent, TimeWait,
};
use super::*;
use proptest::prelude::*;

/// A state, then what follows packets near the recorded sequence numbers and without SYN:
/// from the client with neither FIN nor RST, with FIN, with RST; the same from the server.
const EXPECTED: [(TcpState, [TcpState; 3], [TcpState; 3]); 9] = [
    (SynSent, [SynSent, SynSent, ClientReset], [SynSent, SynSent, ServerReset]),
    (SynReceived, [SynReceived, SynReceived, ClientReset], [SynReceived, SynReceived, ServerReset]),
    (Promoting, [Promoting, Promoting, ClientReset], [Promoting, Promoting, ServerReset]),
    (Established, [Established, ClientFin, ClientReset], [Established, ServerFin, ServerReset]),
    (ClientFin, [ClientFin, ClientFin, ClientReset], [ClientFin, TimeWait, ServerReset]),
    (ServerFin, [ServerFin, TimeWait, ClientReset], [ServerFin, ServerFin, ServerReset]),
    (TimeWait, [TimeWait, TimeWait, TimeWait], [TimeWait, TimeWait, TimeWait]),
    (ClientReset, [Established, Established, ClientReset], [ClientReset, ClientReset, ServerReset]),
    (ServerReset, [ServerReset, ServerReset, ClientReset], [Established, Established, ServerReset]),
];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn every_packet() -> impl Iterator<Item = (TcpState, Direction, u8, bool)> {
    TcpState::ALL.into_iter().flat_map(|state| {
        [FromClient, FromServer].into_iter().flat_map(move |direction| {
            (0..=u8::MAX).flat_map(move |flags| {
                [true, false].into_iter().map(move |in_window| (state, direction, flags, in_window))
            })
        })
    })
}

#[test]
fn every_state_follows_the_table() {
    for (state, direction, flags, in_window) in every_packet() {
        let (_, from_client, from_server) = EXPECTED.iter().find(|row| row.0 == state).unwrap();
        let row = if direction == FromClient { from_client } else { from_server };
        let expected = if !in_window || flags & SYN != 0 {
            state
        } else if flags & RST != 0 {
            row[2]
        } else if flags & FIN != 0 {
            row[1]
        } else {
            row[0]
        };
        assert_eq!(
            state.next(direction, TcpFlags(flags), in_window),
            expected,
            "{state:?}, {direction:?}, flags {flags:#04x}, in window: {in_window}"
        );
    }
}

#[test]
fn a_packet_out_of_window_never_changes_the_state() {
    for (state, direction, flags, _) in every_packet() {
        assert_eq!(state.next(direction, TcpFlags(flags), false), state);
    }
}

#[test]
fn a_syn_never_changes_the_state() {
    for (state, direction, flags, in_window) in every_packet() {
        assert_eq!(state.next(direction, TcpFlags(flags | SYN), in_window), state);
    }
}

#[test]
fn a_closed_flow_opens_again_only_by_a_packet_of_the_side_that_sent_the_rst() {
    let mut opened = 0;
    for (state, direction, flags, in_window) in every_packet() {
        if state.is_closed() && !state.next(direction, TcpFlags(flags), in_window).is_closed() {
            opened += 1;
            assert!(in_window && flags & (SYN | RST) == 0);
            assert!(matches!((state, direction), (ClientReset, FromClient) | (ServerReset, FromServer)));
        }
    }
    // Two states, one direction each, 64 flag bytes without SYN and RST.
    assert_eq!(opened, 2 * 64);
}

#[test]
fn only_fin_and_rst_close_a_flow() {
    for (state, direction, flags, in_window) in every_packet() {
        if !state.is_closed() && flags & (FIN | RST) == 0 {
            assert_eq!(state.next(direction, TcpFlags(flags), in_window), state);
        }
    }
}

/// The state after packets in window: direction and flags of each.
fn after(start: TcpState, packets: &[(Direction, u8)]) -> TcpState {
    packets.iter().fold(start, |state, (direction, flags)| state.next(*direction, TcpFlags(*flags), true))
}

#[test]
fn a_connection_ends_when_both_sides_have_sent_fin_in_either_order() {
    for (first, second) in [(FromClient, FromServer), (FromServer, FromClient)] {
        let one = after(Established, &[(first, FIN | ACK), (second, ACK), (first, FIN | ACK)]);
        assert!(!one.is_closed());
        let both = after(one, &[(second, FIN | ACK), (first, ACK)]);
        assert_eq!(both, TimeWait);
    }
}

#[test]
fn a_forged_rst_is_undone_by_the_endpoints_own_next_packet() {
    for (victim, peer) in [(FromClient, FromServer), (FromServer, FromClient)] {
        let reset = after(Established, &[(victim, RST), (peer, ACK), (peer, ACK)]);
        assert!(reset.is_closed(), "the peer's packets prove nothing");
        assert_eq!(after(reset, &[(victim, ACK)]), Established);
    }
}

#[test]
fn a_connection_that_both_sides_ended_stays_over() {
    // Clients that end by RST after FIN are common; a late ACK of theirs must not make hours of it.
    let late = [(FromClient, RST | ACK), (FromClient, ACK), (FromServer, RST), (FromServer, ACK)];
    let closed = after(Established, &[(FromServer, FIN | ACK), (FromClient, FIN | ACK)]);
    assert_eq!(after(closed, &late), TimeWait);
}

#[test]
fn opens_and_syn_ack_are_told_apart_over_all_flag_bytes() {
    let (mut opening, mut answering) = (0, 0);
    for byte in 0..=u8::MAX {
        let flags = TcpFlags(byte);
        let syn = byte & SYN != 0;
        let expected = syn && byte & ACK == 0 && byte & RST == 0 && byte & FIN == 0;
        assert_eq!(flags.opens(), expected, "{byte:#04x}");
        assert_eq!(flags.is_syn_ack(), syn && byte & ACK != 0 && byte & RST == 0, "{byte:#04x}");
        assert!(!(flags.opens() && flags.is_syn_ack()));
        opening += u32::from(flags.opens());
        answering += u32::from(flags.is_syn_ack());
    }
    assert_eq!((opening, answering), (16, 32));
    // With the bits of explicit congestion notification (RFC 3168 section 6.1.1).
    assert!(TcpFlags(0xc2).opens() && TcpFlags(0x52).is_syn_ack());
}

#[test]
fn has_wants_all_of_the_bits() {
    assert!(TcpFlags(SYN | ACK).has(SYN | ACK));
    assert!(!TcpFlags(SYN).has(SYN | ACK));
    assert!(TcpFlags(0).has(0));
}

#[test]
fn a_state_survives_its_note_and_a_note_of_no_state_keeps_longest() {
    for state in TcpState::ALL {
        assert_eq!(TcpState::from_note(state as u32), state);
        // The upper bits of a note are not the state's.
        assert_eq!(TcpState::from_note(state as u32 | 0xfff00), state);
    }
    for note in [0, 10, 11, 0xff, 0xfff00] {
        assert_eq!(TcpState::from_note(note), Established);
    }
}

#[test]
fn closed_are_the_states_after_both_fins_or_an_rst() {
    let closed = TcpState::ALL.into_iter().filter(|state| state.is_closed());
    assert!(closed.eq([TimeWait, ClientReset, ServerReset]));
}

#[test]
fn the_window_reaches_as_far_behind_as_ahead_and_across_the_wrap() {
    const REACH: u32 = 524_288;
    for recorded in [0, 1, REACH, u32::MAX / 2, u32::MAX - REACH, u32::MAX - 1, u32::MAX] {
        for (distance, near) in [(0, true), (1, true), (REACH, true), (REACH + 1, false)] {
            assert_eq!(in_window(recorded, recorded.wrapping_add(distance)), near);
            assert_eq!(in_window(recorded, recorded.wrapping_sub(distance)), near);
        }
        assert!(!in_window(recorded, recorded.wrapping_add(1 << 31)));
        for (ahead, worth) in [(0, false), (32_767, false), (32_768, true), (REACH, true), (REACH + 1, false)]
        {
            assert_eq!(worth_recording(recorded, recorded.wrapping_add(ahead)), worth);
        }
        for behind in [1, 32_768, REACH, 1 << 31] {
            assert!(!worth_recording(recorded, recorded.wrapping_sub(behind)));
        }
    }
}

proptest! {
    #[test]
    fn the_window_is_a_distance_on_the_circle_of_sequence_numbers(recorded in any::<u32>(), sequence in any::<u32>()) {
        let apart = (i64::from(sequence) - i64::from(recorded)).rem_euclid(1 << 32);
        let distance = apart.min((1 << 32) - apart);
        prop_assert_eq!(in_window(recorded, sequence), distance <= 524_288);
        prop_assert_eq!(worth_recording(recorded, sequence), (32_768..=524_288).contains(&apart));
    }

    #[test]
    fn what_is_worth_recording_is_in_window(recorded in any::<u32>(), ahead in 0u32..1 << 21) {
        let sequence = recorded.wrapping_add(ahead);
        prop_assert!(in_window(recorded, sequence) || !worth_recording(recorded, sequence));
    }

    #[test]
    fn a_sender_that_is_followed_stays_in_window(
        start in any::<u32>(), segments in proptest::collection::vec(1u32..65_536, 1..400),
    ) {
        let (mut recorded, mut sequence) = (start, start);
        for segment in segments {
            sequence = sequence.wrapping_add(segment);
            prop_assert!(in_window(recorded, sequence));
            if worth_recording(recorded, sequence) {
                recorded = sequence;
            }
        }
    }
}
