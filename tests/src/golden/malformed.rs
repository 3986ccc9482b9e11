//! What is for a service or from a server and cannot be forwarded is dropped, counted, and changes nothing.

use std::net::Ipv4Addr;

use lb_common::reason::Reason;

use super::{
    Case, case,
    connection::Connection,
    frame::{BARE, ETHERNET, Frame, Mac, flag},
    hospital::{SRV_1, SRV_2},
    passing::patched,
};

/// Offsets in a frame without tags and options.
const TOTAL_LENGTH: usize = ETHERNET + 2;
const DATA_OFFSET: usize = ETHERNET + 32;
const FLAGS: usize = ETHERNET + 33;

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [fragments_and_options(), headers(), senders(), hops()].into_iter().flatten().collect()
}

fn fragments_and_options() -> Vec<Case> {
    let open = Connection::to(SRV_1);
    let new = Connection::to(SRV_2);
    let later = open.request().fragment(185, false);
    let middle = open.request().fragment(1, true);
    vec![
        case("a first fragment to a service is dropped")
            .given(open.established())
            .drops(open.request().fragment(0, true).build(), Reason::Fragment)
            .drops(new.syn().fragment(0, true).build(), Reason::Fragment),
        case("a later fragment to a service's address is dropped")
            .given(open.established())
            .drops(later.build(), Reason::Fragment)
            .drops(middle.build(), Reason::Fragment)
            .drops(later.ip_options([1; 8]).build(), Reason::Fragment),
        case("a first fragment from a server is dropped")
            .given(open.established())
            .drops(open.response().fragment(0, true).build(), Reason::Fragment),
        case("a client's segment with IP options is dropped")
            .given(open.established())
            .drops(open.request().ip_options([1; 8]).build(), Reason::IpOptions)
            .drops(new.syn().ip_options([0x44, 8, 5, 0, 0, 0, 0, 0]).build(), Reason::IpOptions),
        case("a server's segment with IP options is dropped")
            .given(open.established())
            .drops(open.response().ip_options([1; 8]).build(), Reason::IpOptions),
        case("a segment to a service whose IP options hide the ports passes: nobody can know whom it is for")
            .passes(new.syn().ip_options([1; 8]).build()[..BARE - 9].to_vec(), Reason::Truncated),
    ]
}

fn headers() -> Vec<Case> {
    let open = Connection::to(SRV_1);
    let syn = Connection::to(SRV_2).syn().build();
    let request = open.request().build();
    let flagged = |flags: u8| patched(syn.clone(), FLAGS, flags);
    let both = [flag::SYN | flag::FIN, flag::SYN | flag::RST, flag::SYN | flag::FIN | flag::ACK];
    let neither = [0, flag::FIN, flag::PSH, 0x20, 0xc0];
    let all = |name, flags: &[u8]| {
        flags.iter().fold(case(name).given(open.established()), |case, flags| {
            case.drops(flagged(*flags), Reason::BadHeader)
        })
    };
    let mut runts =
        case("a SYN to a service that was cut passes as long as it hides its port, and is then dropped");
    for length in ETHERNET..syn.len() {
        let cut = syn[..length].to_vec();
        runts = if length < 38 {
            runts.passes(cut, Reason::Truncated)
        } else {
            runts.drops(cut, Reason::BadHeader)
        };
    }
    vec![
        runts,
        case("a TCP header of less than 20 bytes is dropped")
            .given(open.established())
            .drops(patched(request.clone(), DATA_OFFSET, 0x40), Reason::BadHeader)
            .drops(patched(request.clone(), DATA_OFFSET, 0x00), Reason::BadHeader),
        case("a TCP header that is longer than the packet is dropped")
            .given(open.established())
            .drops(patched(syn.clone(), DATA_OFFSET, 0xf0), Reason::BadHeader)
            .drops(patched(open.ack().build(), DATA_OFFSET, 0x90), Reason::BadHeader),
        case("a total length beyond the frame is dropped")
            .given(open.established())
            .drops(patched(request.clone(), TOTAL_LENGTH, 1), Reason::BadHeader)
            .drops(patched(syn.clone(), TOTAL_LENGTH + 1, 61), Reason::BadHeader),
        case("a total length below the headers is dropped")
            .given(open.established())
            .drops(patched(request.clone(), TOTAL_LENGTH + 1, 39), Reason::BadHeader)
            .drops(patched(request, TOTAL_LENGTH + 1, 0), Reason::BadHeader),
        all("SYN with FIN or RST is dropped", &both),
        all("a segment without SYN, RST and ACK is dropped", &neither),
        case("a server's malformed segment is dropped")
            .given(open.established())
            .drops(patched(open.response().build(), FLAGS, 0), Reason::BadHeader)
            .drops(patched(open.response().build(), DATA_OFFSET, 0x40), Reason::BadHeader),
        case("a server's malformed segment to a SNAT port that no flow has is dropped too")
            .drops(patched(open.response().build(), FLAGS, 0), Reason::BadHeader),
    ]
}

/// A frame comes from one host (IEEE 802.3 section 3.2.3): what answers one from a group would reach everybody.
fn senders() -> Vec<Case> {
    let open = Connection::to(SRV_1);
    let new = Connection::to(SRV_2);
    let strangers = open.on_port(50_123);
    let from = |frame: Frame, mac: Mac| {
        let to = frame.link.to;
        frame.link(mac, to).build()
    };
    let groups: [Mac; 3] = [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]];
    let all = |name, frames: &[Frame]| {
        groups.iter().fold(case(name).given(open.established()), |case, group| {
            frames.iter().fold(case, |case, frame| case.drops(from(frame.clone(), *group), Reason::BadHeader))
        })
    };
    vec![
        all(
            "what comes from a broadcast or multicast MAC address is dropped, and writes nothing",
            &[
                new.syn(),
                open.request(),
                strangers.request(),
                open.client_segment(flag::FIN | flag::ACK, 1, 1),
            ],
        ),
        all("so is what a server sends from one", &[open.response(), open.server_segment(flag::RST, 1, 0)]),
        case("what is not ours passes from whatever MAC address it comes").passes(
            from(Frame::new(open.request().link, (SOMEBODY, 1), (SOMEBODY, 2)).flags(flag::ACK), groups[0]),
            Reason::NotOurs,
        ),
    ]
}

const SOMEBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

fn hops() -> Vec<Case> {
    let open = Connection::to(SRV_1);
    let new = Connection::to(SRV_2);
    let exhausted = |frame: Frame, ttl| frame.ttl(ttl).build();
    vec![
        case("a client's segment with its last hop is dropped, and writes nothing")
            .given(open.established())
            .drops(exhausted(open.request(), 1), Reason::TtlExceeded)
            .drops(exhausted(open.request(), 0), Reason::TtlExceeded)
            .drops(exhausted(open.client_segment(flag::RST, 1, 0), 1), Reason::TtlExceeded)
            .drops(exhausted(new.syn(), 1), Reason::TtlExceeded)
            .drops(exhausted(new.request(), 1), Reason::TtlExceeded),
        case("a server's segment with its last hop is dropped, and writes nothing")
            .given(open.established())
            .given(new.after_syn())
            .drops(exhausted(open.response(), 1), Reason::TtlExceeded)
            .drops(exhausted(open.server_segment(flag::FIN | flag::ACK, 1, 1), 0), Reason::TtlExceeded)
            .drops(exhausted(new.syn_ack(), 1), Reason::TtlExceeded),
        case("a segment with two hops left goes on with one")
            .given(open.established())
            .sends(&open.request().ttl(2), Reason::Forwarded, open.forwarded(&open.request().ttl(2)))
            .sends(&open.response().ttl(2), Reason::Returned, open.returned(&open.response().ttl(2))),
    ]
}
