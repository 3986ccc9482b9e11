//! ICMP errors about balanced connections reach whoever wrote the packet that they are about; all other ICMP passes.

use std::net::Ipv4Addr;

use etherparse::{IpNumber, Ipv4Options};
use lb_common::{reason::Reason, tcp::TcpState};

use super::{
    Case, Given, Then, case,
    connection::Connection,
    frame::{
        ETHERNET, FRAGMENTATION_NEEDED, HOST_UNREACHABLE, IcmpError, Link, PARAMETER_PROBLEM, TIME_EXCEEDED,
        flag, icmp,
    },
    hospital::{BALANCER, FIRST_PORT, HYPERSPACE, MYCHART, MYCHART_1, OTHER_ROUTER, ROUTER, SRV_1, span},
    passing::patched,
    rows::{FlowRow, Row},
};

/// What an error repeats at least: the IP header and eight bytes.
const LEAST: usize = 28;
const PORT_UNREACHABLE: (u8, u8, [u8; 4]) = (3, 3, [0; 4]);

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [towards_servers(), small_paths(), towards_clients(), neither()].into_iter().flatten().collect()
}

fn to_server(case: Case, c: &Connection, error: &IcmpError) -> Case {
    case.sends_bytes(error.build(), Reason::IcmpToServer, c.error_at_server(error))
}

fn to_client(case: Case, c: &Connection, error: &IcmpError) -> Case {
    case.sends_bytes(error.build(), Reason::IcmpToClient, c.error_at_client(error))
}

fn towards_servers() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let again = c.snat(FIRST_PORT + 1);
    let m = Connection::to(MYCHART_1);
    let data = c.response().payload(&[0x33; 1460]).ttl(50);
    let bare = c.server_segment(flag::ACK, 1, 1);
    let needed = c.error_to_service(FRAGMENTATION_NEEDED, &data, LEAST);
    let mut tagged = needed.clone();
    tagged.link.tags = vec![(0x8100, 85)];
    let mut padded = needed.clone();
    padded.link.trailer = vec![0x99; 9];
    vec![
        to_server(
            case("fragmentation needed towards a client reaches the server, with its own addresses and ports inside")
                .given(c.established()),
            &c,
            &needed,
        ),
        to_server(
            case("an error's type, code and further words survive").given(m.established()),
            &m,
            &m.error_to_service(PARAMETER_PROBLEM, &m.response(), LEAST),
        ),
        to_server(
            to_server(
                case("time exceeded and host unreachable towards a client reach the server")
                    .given(c.established()),
                &c,
                &c.error_to_service(TIME_EXCEEDED, &bare, LEAST),
            ),
            &c,
            &c.error_to_service(HOST_UNREACHABLE, &bare, LEAST + 4),
        ),
        to_server(
            case("an error about a SYN-ACK reaches the server of the half-open flow").given(c.after_syn_ack()),
            &c,
            &c.error_to_service(HOST_UNREACHABLE, &bare, LEAST),
        ),
        to_server(
            case("an error about a closed flow still reaches the server")
                .given(c.in_state(TcpState::TimeWait, span::CLOSED)),
            &c,
            &needed,
        ),
        to_server(
            case("an error about a SYN-ACK to a port whose last flow is closed reaches the server by the new SNAT port")
                .given(c.in_state(TcpState::TimeWait, span::CLOSED))
                .given(again.after_syn_ack()),
            &again,
            &again.error_to_service(HOST_UNREACHABLE, &again.syn_ack(), LEAST),
        ),
        to_server(
            to_server(
                case("an error keeps its VLAN tag and what stands behind it").given(c.established()),
                &c,
                &tagged,
            ),
            &c,
            &padded,
        ),
        case("an error towards a server with its last hop is dropped")
            .given(c.established())
            .drops(IcmpError { ttl: 1, ..needed.clone() }.build(), Reason::TtlExceeded),
        case("an error from a broadcast MAC address is dropped")
            .given(c.established())
            .drops(IcmpError { link: Link::new([0xff; 6], BALANCER), ..needed.clone() }.build(), Reason::BadHeader),
        case("an error towards a server whose MAC address is not known passes")
            .given(c.established())
            .given([Given::Server(SRV_1, super::answers::UNREACHABLE)])
            .passes(needed.build(), Reason::NotOurs),
    ]
}

/// What a server in mode `snat` would believe of the path to every client.
fn small_paths() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let over = c.over(OTHER_ROUTER);
    let data = c.response().payload(&[0x33; 1460]);
    let needed = |mtu: u16| {
        let [high, low] = mtu.to_be_bytes();
        c.error_to_service((3, 4, [0, 0, high, low]), &data, LEAST).build()
    };
    let learns = |row: FlowRow| [Then::Becomes(Row::Flow(FlowRow { may_fragment: true, ..row }))];
    let row = FlowRow { may_fragment: true, ..c.flow() };
    let slow = || [Row::Sticky(c.sticky(1)), Row::Flow(row), c.port_of_flow()].map(Given::Row);
    let mut fragmentable = data.clone();
    fragmentable.ip.dont_fragment = false;
    let small = |name, mtu| {
        case(name).given(c.established()).drops(needed(mtu), Reason::SmallPathMtu).leaves(learns(c.flow()))
    };
    vec![
        small("a path of less than 1,280 bytes to one client is not told to its server", 552),
        small("nor is one of 1,279 bytes", 1279),
        small("nor one that an old router does not know the MTU of", 0),
        to_server(
            case("a path of 1,280 bytes is").given(c.established()),
            &c,
            &c.error_to_service((3, 4, [0, 0, 5, 0]), &data, LEAST),
        ),
        case("instead the flow's packets may be fragmented, whatever the server wishes")
            .given(slow())
            .sends(&data, Reason::Returned, c.returned(&fragmentable))
            .sends(&data, Reason::Returned, c.returned(&fragmentable))
            .sends(&c.request(), Reason::Forwarded, c.forwarded(&c.request())),
        case("until the client comes over another router")
            .given(slow())
            .sends(&over.request(), Reason::Forwarded, over.forwarded(&over.request()))
            .sends(&data, Reason::Returned, over.returned(&data))
            .leaves([Then::Becomes(Row::Flow(over.flow()))]),
        case("a small path that a broadcast MAC address tells of changes nothing")
            .given(c.established())
            .drops(
                IcmpError {
                    link: Link::new([0xff; 6], BALANCER),
                    ..c.error_to_service((3, 4, [0, 0, 2, 40]), &data, LEAST)
                }
                .build(),
                Reason::BadHeader,
            ),
    ]
}

fn towards_clients() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let over = c.over(OTHER_ROUTER);
    let data = c.request().payload(&[0x44; 1400]);
    let syn = c.client_segment(flag::SYN, 0, 0);
    let needed = c.error_to_source(FRAGMENTATION_NEEDED, &data, LEAST);
    vec![
        to_client(
            case("fragmentation needed towards a server reaches the client, in the service's name")
                .given(c.established()),
            &c,
            &needed,
        ),
        to_client(
            to_client(
                case("host unreachable and time exceeded about a SYN reach the client").given(c.after_syn()),
                &c,
                &c.error_to_source(HOST_UNREACHABLE, &syn, LEAST),
            ),
            &c,
            &c.error_to_source(TIME_EXCEEDED, &syn, LEAST),
        ),
        to_client(
            case("an error reaches the client over the router that it uses").given(over.established()),
            &over,
            &over.error_to_source(PORT_UNREACHABLE, &over.request(), LEAST + 4),
        ),
        case("an error towards a client with its last hop is dropped")
            .given(c.established())
            .drops(IcmpError { ttl: 1, ..needed }.build(), Reason::TtlExceeded),
    ]
}

/// ICMP that passes untouched, with a flow that it could be taken for.
fn neither() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let stranger = c.on_port(50_123);
    let other = IcmpError {
        destination: MYCHART.address,
        ..c.error_to_service(HOST_UNREACHABLE, &c.response(), LEAST)
    };
    let good = c.error_to_service(HOST_UNREACHABLE, &c.response(), LEAST + 12);
    let redirect = IcmpError { kind: (5, 1, [192, 168, 85, 1]), ..good.clone() };
    let quench = IcmpError { kind: (4, 0, [0; 4]), ..good.clone() };
    let mut about_udp = good.clone();
    about_udp.about.ip.protocol = IpNumber::UDP;
    let mut about_options = good.clone();
    about_options.about.ip.options = Ipv4Options::from([1; 4]);
    let mut about_fragment = good.clone();
    about_fragment.about = about_fragment.about.fragment(10, false);
    let whole = good.build();
    let link = Link::new(ROUTER, BALANCER);
    let empty = icmp(&link, 63, Ipv4Addr::new(10, 1, 1, 1), HYPERSPACE.address, HOST_UNREACHABLE, &[]);
    let open = |name| case(name).given(c.established());
    vec![
        open("an error about a connection that there is not passes")
            .passes(
                stranger.error_to_service(HOST_UNREACHABLE, &stranger.response(), LEAST).build(),
                Reason::NotOurs,
            )
            .passes(
                c.snat(c.snat_port + 3).error_to_source(HOST_UNREACHABLE, &c.request(), LEAST).build(),
                Reason::NotOurs,
            )
            .passes(
                c.snat(50_000).error_to_source(HOST_UNREACHABLE, &c.request(), LEAST).build(),
                Reason::NotOurs,
            ),
        open("an error for somebody else than who sent the packet passes")
            .passes(other.build(), Reason::NotOurs),
        open("ICMP redirects and source quenches pass")
            .passes(redirect.build(), Reason::NotOurs)
            .passes(quench.build(), Reason::NotOurs),
        open("an error about a UDP datagram, a later fragment or a packet with IP options passes")
            .passes(about_udp.build(), Reason::NotOurs)
            .passes(about_fragment.build(), Reason::NotOurs)
            .passes(about_options.build(), Reason::NotOurs),
        open("a fragment of an error, or one with IP options, passes")
            .passes(patched(whole.clone(), ETHERNET + 6, 0x20), Reason::NotOurs)
            .passes(patched(whole.clone(), ETHERNET + 7, 3), Reason::NotOurs)
            .passes(patched(whole.clone(), ETHERNET, 0x46), Reason::NotOurs),
        open(
            "an error whose own end comes before that of the packet it repeats, or after the frame's, passes",
        )
        .passes(patched(whole.clone(), ETHERNET + 3, 55), Reason::NotOurs)
        .passes(patched(whole.clone(), ETHERNET + 3, 28), Reason::NotOurs)
        .passes(whole[..whole.len() - 1].to_vec(), Reason::NotOurs),
        open("an error that repeats too little passes")
            .passes(empty, Reason::NotOurs)
            .passes(whole[..ETHERNET + 55].to_vec(), Reason::NotOurs),
    ]
}
