//! From the server's SYN-ACK to data in both directions.

use etherparse::{IpDscp, IpEcn};
use lb_common::{reason::Reason, tcp::TcpState};

use super::{
    Case, Given, Then, case,
    connection::{CLIENT_ISN, Connection, SERVER_ISN, reset_answer, reset_by_acknowledgment},
    frame::{Frame, flag},
    hospital::{MYCHART_1, OTHER_ROUTER, SRV_1, SRV_2, span},
    rows::{FlowRow, Held, Key, PortOwner, Row},
};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [answers(), completions(), early_data(), other_numbers(), incomplete(), failures(), data()]
        .into_iter()
        .flatten()
        .collect()
}

/// What the last acknowledgement of a handshake changes.
pub(super) fn establishes(connection: &Connection) -> [Then; 4] {
    [
        Then::Goes(Key::HalfOpen(connection.who())),
        Then::Appears(Row::Flow(connection.flow())),
        Then::Appears(Row::Sticky(connection.sticky(1))),
        Then::Becomes(connection.port_of_flow()),
    ]
}

fn answers() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let over = c.over(OTHER_ROUTER);
    let wrong = c.server_segment(flag::SYN | flag::ACK, 0, 0x2_0000).syn_options();
    let refused = c.server_segment(flag::RST | flag::ACK, 0, 1);
    vec![
        case("the SYN-ACK goes back to where the SYN came from, in the service's name")
            .given(c.after_syn())
            .sends(&c.syn_ack(), Reason::Returned, c.returned(&c.syn_ack()))
            .leaves([Then::Becomes(Row::HalfOpen(c.syn_received()))]),
        case("the return hop is that of the client's own SYN")
            .given(over.after_syn())
            .sends(&over.syn_ack(), Reason::Returned, over.returned(&over.syn_ack()))
            .leaves([Then::Becomes(Row::HalfOpen(over.syn_received()))]),
        case("a SYN-ACK sent again goes the same way").given(c.after_syn_ack()).sends(
            &c.syn_ack(),
            Reason::Returned,
            c.returned(&c.syn_ack()),
        ),
        case("a SYN-ACK for another SYN is returned, and is not the one to acknowledge")
            .given(c.after_syn())
            .sends(&wrong, Reason::Returned, c.returned(&wrong)),
        case("a server that refuses the connection tells the client so").given(c.after_syn()).sends(
            &refused,
            Reason::Returned,
            c.returned(&refused),
        ),
        case("the answer to an expired SYN is answered with RST")
            .given([Given::Row(Row::HalfOpen(FlowRow { expires: -1, ..c.syn_sent() }))])
            .given([Given::Row(c.port_of_half_open())])
            .sends(&c.syn_ack(), Reason::ResetNoReturnFlow, reset_by_acknowledgment(&c.syn_ack())),
    ]
}

fn completions() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let m = Connection::to(MYCHART_1);
    let second = c.on_port(40_001).snat(c.snat_port + 1);
    let far = FlowRow { client_sequence: CLIENT_ISN.wrapping_add(1 + 0xffff), ..c.flow() };
    let fin = c.client_segment(flag::FIN | flag::ACK, 1, 1).payload(b"all of it");
    let jumped = c.client_segment(flag::ACK, 1 + 0xffff, 1).payload(b"x");
    vec![
        case("the ACK of the SYN-ACK establishes the flow: record, flow row and port, and the half-open row goes")
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves(establishes(&c)),
        case("MyChart's connections are established as Hyperspace's are")
            .given(m.after_syn_ack())
            .sends(&m.ack(), Reason::Established, m.forwarded(&m.ack()))
            .leaves(establishes(&m)),
        case("data establishes the flow if the ACK before it was lost")
            .given(c.after_syn_ack())
            .sends(&c.request(), Reason::Established, c.forwarded(&c.request()))
            .leaves(establishes(&c)),
        case("an acknowledgement 64 KiB behind the SYN still establishes")
            .given(c.after_syn_ack())
            .sends(&jumped, Reason::Established, c.forwarded(&jumped))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Appears(Row::Flow(far)),
                Then::Appears(Row::Sticky(c.sticky(1))),
                Then::Becomes(c.port_of_flow()),
            ]),
        case("a FIN that completes the handshake, because all before it was lost, half-closes the flow")
            .given(c.after_syn_ack())
            .sends(&fin, Reason::Established, c.forwarded(&fin))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Appears(Row::Flow(FlowRow {
                    state: TcpState::ClientFin,
                    expires: span::HALF_CLOSED,
                    ..c.flow()
                })),
                Then::Appears(Row::Sticky(c.sticky(1))),
                Then::Becomes(c.port_of_flow()),
            ]),
        case("a client's second connection is counted in its record")
            .given(c.established())
            .given(second.after_syn_ack())
            .sends(&second.ack(), Reason::Established, second.forwarded(&second.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(second.who())),
                Then::Appears(Row::Flow(second.flow())),
                Then::Becomes(Row::Sticky(second.sticky(2))),
                Then::Becomes(second.port_of_flow()),
            ]),
        case("two first connections of a client at once share one record")
            .given(c.after_syn_ack())
            .given(second.after_syn_ack())
            .sends(&second.ack(), Reason::Established, second.forwarded(&second.ack()))
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Goes(Key::HalfOpen(second.who())),
                Then::Appears(Row::Flow(c.flow())),
                Then::Appears(Row::Flow(second.flow())),
                Then::Appears(Row::Sticky(c.sticky(2))),
                Then::Becomes(c.port_of_flow()),
                Then::Becomes(second.port_of_flow()),
            ]),
        case("a service without persistence keeps no record")
            .given([Given::Times(c.service, 0, span::IDLE)])
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Appears(Row::Flow(FlowRow { held: Held::None, ..c.flow() })),
                Then::Becomes(c.port_of_flow()),
            ]),
    ]
}

/// Data before the handshake is complete (TCP Fast Open).
fn early_data() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let syn = c.syn().payload(b"hello, early");
    let syn_ack = c.server_segment(flag::SYN | flag::ACK, 0, 13).syn_options();
    let behind = c.server_segment(flag::ACK | flag::PSH, 1, 13).payload(&[0x5a; 1200]);
    let ack = |acknowledgment| c.client_segment(flag::ACK, 13, acknowledgment);
    let row = |all: u32| FlowRow { server_sequence: SERVER_ISN.wrapping_add(all), ..c.syn_received() };
    let flow = |acknowledged: u32| FlowRow {
        client_sequence: CLIENT_ISN.wrapping_add(13),
        server_sequence: SERVER_ISN.wrapping_add(acknowledged),
        ..c.flow()
    };
    let beginning = |name| {
        case(name)
            .sends(&syn, Reason::NewByScheduler, c.forwarded(&syn))
            .sends(&syn_ack, Reason::Returned, c.returned(&syn_ack))
            .sends(&behind, Reason::Returned, c.returned(&behind))
    };
    let established = |acknowledged| {
        [
            Then::Appears(Row::Flow(flow(acknowledged))),
            Then::Appears(Row::Sticky(c.sticky(1))),
            Then::Appears(c.port_of_flow()),
        ]
    };
    vec![
        case("a SYN-ACK that acknowledges the data in the SYN answers that SYN")
            .sends(&syn, Reason::NewByScheduler, c.forwarded(&syn))
            .sends(&syn_ack, Reason::Returned, c.returned(&syn_ack))
            .sends(&ack(1), Reason::Established, c.forwarded(&ack(1)))
            .leaves(established(0)),
        beginning("an acknowledgement of all data that came behind the SYN-ACK establishes the flow")
            .sends(&ack(1201), Reason::Established, c.forwarded(&ack(1201)))
            .leaves(established(1200)),
        beginning("an acknowledgement of some of the data that came behind the SYN-ACK establishes the flow")
            .sends(&ack(601), Reason::Established, c.forwarded(&ack(601)))
            .leaves(established(600)),
        beginning("an acknowledgement of more than the server has sent establishes nothing")
            .sends(&ack(1202), Reason::HandshakeForwarded, c.forwarded(&ack(1202)))
            .leaves([Then::Appears(Row::HalfOpen(row(1200))), Then::Appears(c.port_of_half_open())]),
    ]
}

/// A server that forgets a SYN, and answers it with another number when it comes again: SYN cookies.
fn other_numbers() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let other = c.server_segment(flag::SYN | flag::ACK, 0x4000_0000, 1).syn_options();
    let twice = |name| {
        case(name).given(c.after_syn_ack()).sends(&c.syn(), Reason::SynRepeated, c.forwarded(&c.syn())).sends(
            &other,
            Reason::Returned,
            c.returned(&other),
        )
    };
    let ack = c.client_segment(flag::ACK, 1, 0x4000_0001);
    let wrong = c.client_segment(flag::ACK, 1, 0x2000_0001);
    let last = FlowRow { server_sequence: SERVER_ISN.wrapping_add(0x4000_0000), ..c.flow() };
    vec![
        twice("of two SYN-ACKs with different numbers the first may be acknowledged")
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves(establishes(&c)),
        twice("of two SYN-ACKs with different numbers the second may be acknowledged")
            .sends(&wrong, Reason::HandshakeForwarded, c.forwarded(&wrong))
            .sends(&ack, Reason::Established, c.forwarded(&ack))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Appears(Row::Flow(last)),
                Then::Appears(Row::Sticky(c.sticky(1))),
                Then::Becomes(c.port_of_flow()),
            ]),
    ]
}

/// Segments of a half-open flow that must not establish it.
fn incomplete() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let forwarded = |name, frames: &[Frame]| {
        frames.iter().fold(case(name).given(c.after_syn_ack()), |case, frame| {
            case.sends(frame, Reason::HandshakeForwarded, c.forwarded(frame))
        })
    };
    vec![
        forwarded(
            "a wrong acknowledgement number is forwarded and writes nothing",
            &[
                c.client_segment(flag::ACK, 1, 0),
                c.client_segment(flag::ACK, 1, 2),
                c.client_segment(flag::ACK, 1, 0x4000_0000),
            ],
        ),
        forwarded(
            "a sequence number before the SYN's next, or far behind it, establishes nothing",
            &[c.client_segment(flag::ACK, 0, 1), c.client_segment(flag::ACK, 2 + 0xffff, 1)],
        ),
        forwarded(
            "a client's RST in the handshake is forwarded and establishes nothing",
            &[c.client_segment(flag::RST, 1, 0), c.client_segment(flag::RST | flag::ACK, 1, 1)],
        ),
        case("an acknowledgement before the SYN-ACK was seen establishes nothing")
            .given(c.after_syn())
            .sends(&c.ack(), Reason::HandshakeForwarded, c.forwarded(&c.ack())),
        case("an acknowledgement while another packet establishes the flow goes the same way")
            .given([
                Given::Row(Row::HalfOpen(FlowRow { state: TcpState::Promoting, ..c.syn_received() })),
                Given::Row(c.port_of_half_open()),
            ])
            .sends(&c.ack(), Reason::HandshakeForwarded, c.forwarded(&c.ack())),
    ]
}

fn failures() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let expired = FlowRow { expires: -1, ..c.syn_received() };
    let ack = c.ack();
    let reset = reset_answer(&ack, SERVER_ISN.wrapping_add(1), 0, flag::RST);
    vec![
        case("the ACK of an expired handshake is answered with RST")
            .given([Given::Row(Row::HalfOpen(expired)), Given::Row(c.port_of_half_open())])
            .sends(&ack, Reason::ResetNoFlow, reset.clone()),
        case(
            "the ACK of a handshake whose port another took is answered with RST, and so is all that follows",
        )
        .given([Given::Row(Row::HalfOpen(c.syn_received()))])
        .given([Given::Row(Row::Port(c.cell(PortOwner::HalfOpen(None))))])
        .sends(&ack, Reason::ResetNoFlow, reset.clone())
        .sends(&ack, Reason::ResetNoFlow, reset.clone())
        .drops(c.client_segment(flag::RST, 1, 0).build(), Reason::StrayReset),
        case("the ACK of a handshake whose server has gone down is answered with RST")
            .given(c.after_syn_ack())
            .given([Given::Server(SRV_1, super::answers::DOWN)])
            .sends(&ack, Reason::ResetServerGone, reset)
            .drops(c.client_segment(flag::RST, 1, 0).build(), Reason::StrayReset),
        case("the ACK of a handshake whose server cannot be reached waits for it")
            .given(c.after_syn_ack())
            .given([Given::Server(SRV_1, super::answers::UNREACHABLE)])
            .drops(ack.build(), Reason::NoNeighbour),
    ]
}

fn data() -> Vec<Case> {
    let c = Connection::to(SRV_2);
    let mut marked = c.request();
    marked.ip.dscp = IpDscp::try_new(46).expect("6 bits");
    marked.ip.ecn = IpEcn::try_new(2).expect("2 bits");
    marked.ip.identification = 0xffff;
    (marked.tcp.ece, marked.tcp.cwr, marked.tcp.ns, marked.tcp.urg) = (true, true, true, true);
    (marked.tcp.urgent_pointer, marked.tcp.window_size) = (7, 0);
    let mut unnumbered = c.response();
    unnumbered.ip.dont_fragment = false;
    unnumbered.ip.identification = 0;
    let large = c.request().payload(&[0xa5; 1448]);
    let aged = |flow: FlowRow| Given::Row(Row::Flow(FlowRow { expires: span::IDLE - 2_000, ..flow }));
    let kept = Then::Becomes(Row::Flow(c.flow()));
    let ahead = c.client_segment(flag::ACK, 40_000, 1).payload(b"x");
    let server_ahead = c.server_segment(flag::ACK, 40_000, 1).payload(b"x");
    let far = c.client_segment(flag::ACK, 1 << 20, 1).payload(b"x");
    let whole = [c.syn(), c.syn_ack(), c.ack(), c.request(), c.response()];
    vec![
        case("a whole conversation arrives on both sides, and is counted exactly")
            .sends(&whole[0], Reason::NewByScheduler, c.forwarded(&whole[0]))
            .sends(&whole[1], Reason::Returned, c.returned(&whole[1]))
            .sends(&whole[2], Reason::Established, c.forwarded(&whole[2]))
            .sends(&whole[3], Reason::Forwarded, c.forwarded(&whole[3]))
            .sends(&whole[4], Reason::Returned, c.returned(&whole[4]))
            .leaves([
                Then::Appears(Row::Flow(c.flow())),
                Then::Appears(Row::Sticky(c.sticky(1))),
                Then::Appears(c.port_of_flow()),
            ]),
        case("data in both directions writes nothing to a fresh flow")
            .given(c.established())
            .sends(&c.request(), Reason::Forwarded, c.forwarded(&c.request()))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response()))
            .sends(&c.ack(), Reason::Forwarded, c.forwarded(&c.ack()))
            .sends(&large, Reason::Forwarded, c.forwarded(&large)),
        case("a segment's other fields survive: marks, congestion bits, identification, urgent pointer, window")
            .given(c.established())
            .sends(&marked, Reason::Forwarded, c.forwarded(&marked))
            .sends(&unnumbered, Reason::Returned, c.returned(&unnumbered)),
        case("a client's segment keeps its flow alive")
            .given(c.established())
            .given([aged(c.flow())])
            .sends(&c.ack(), Reason::Forwarded, c.forwarded(&c.ack()))
            .leaves([kept]),
        case("a server's segment keeps its flow alive")
            .given(c.established())
            .given([aged(c.flow())])
            .sends(&c.response(), Reason::Returned, c.returned(&c.response()))
            .leaves([Then::Becomes(Row::Flow(c.flow()))]),
        case("sequence numbers are followed in both directions, over the end of their range")
            .given(c.established())
            .sends(&ahead, Reason::Forwarded, c.forwarded(&ahead))
            .sends(&server_ahead, Reason::Returned, c.returned(&server_ahead))
            .leaves([Then::Becomes(Row::Flow(FlowRow {
                client_sequence: CLIENT_ISN.wrapping_add(40_000),
                server_sequence: SERVER_ISN.wrapping_add(40_000),
                ..c.flow()
            }))]),
        case("a sequence number far from the last is forwarded and not followed")
            .given(c.established())
            .sends(&far, Reason::Forwarded, c.forwarded(&far)),
    ]
}
