//! What stands around the IP packet stays: VLAN tags, padding.

use lb_common::reason::Reason;

use super::{
    Case, Then, case,
    connection::Connection,
    frame::{Frame, flag},
    hospital::SRV_1,
    rows::Row,
};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [vlans(), padding()].into_iter().flatten().collect()
}

/// A conversation with these tags on every frame.
fn conversation(name: &'static str, tags: &[(u16, u16)]) -> Case {
    let c = Connection::to(SRV_1);
    let [syn, syn_ack, ack, request, response] =
        [c.syn(), c.syn_ack(), c.ack(), c.request(), c.response()].map(|frame| frame.tagged(tags));
    case(name)
        .sends(&syn, Reason::NewByScheduler, c.forwarded(&syn))
        .sends(&syn_ack, Reason::Returned, c.returned(&syn_ack))
        .sends(&ack, Reason::Established, c.forwarded(&ack))
        .sends(&request, Reason::Forwarded, c.forwarded(&request))
        .sends(&response, Reason::Returned, c.returned(&response))
        .leaves([
            Then::Appears(Row::Flow(c.flow())),
            Then::Appears(Row::Sticky(c.sticky(1))),
            Then::Appears(c.port_of_flow()),
        ])
}

fn vlans() -> Vec<Case> {
    vec![
        conversation("a VLAN tag is kept in both directions, with its priority", &[(0x8100, 0xe055)]),
        conversation("a priority tag (VLAN 0) is kept", &[(0x8100, 0x6000)]),
        conversation("a service provider's tag is kept", &[(0x88a8, 0x0064)]),
        conversation("two VLAN tags are kept in both directions", &[(0x8100, 100), (0x8100, 0x3055)]),
        conversation(
            "a service provider's tag around a customer's is kept",
            &[(0x88a8, 0x9064), (0x8100, 85)],
        ),
    ]
}

fn padding() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let bare = c.client_segment(flag::ACK, 1, 1);
    let open = |name| case(name).given(c.established());
    let padded = |frame: Frame, with: &[u8]| frame.trailer(with);
    let client = padded(bare.clone(), &[0; 6]);
    let server = padded(c.server_segment(flag::ACK, 1, 1), &[0xee; 6]);
    let odd = padded(bare.payload(b"odd"), &[1, 2, 3, 4, 5, 6, 7]);
    let tagged = padded(c.client_segment(flag::ACK, 1, 1), &[0; 2]).tagged(&[(0x8100, 85)]);
    vec![
        open("a short frame's padding is kept in both directions")
            .sends(&client, Reason::Forwarded, c.forwarded(&client))
            .sends(&server, Reason::Returned, c.returned(&server))
            .sends(&tagged, Reason::Forwarded, c.forwarded(&tagged)),
        open("bytes behind the IP packet's end are no part of it, whatever they are").sends(
            &odd,
            Reason::Forwarded,
            c.forwarded(&odd),
        ),
    ]
}
