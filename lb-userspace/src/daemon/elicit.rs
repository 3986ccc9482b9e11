//! Telling clients at once that their server is gone.
//!
//! The data path answers the next packet of a client whose server is down or halted with an RST, but a clinician who is
//! reading sends none. So one is elicited: a SYN into the open connection, from the service's address, makes the
//! client answer with a challenge ACK (RFC 5961 section 4.2), and the data path turns that into an RST with the right
//! sequence number, which a client believes (section 3.2).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::flow::{HOP_WORD, arm_of, mac_bytes};
use lb_common::life::SlotState;
use lb_common::server::{ServerState, Servers as _};
use lb_common::service::Service;
use lb_common::tcp::TcpState;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::core::plan::count;
use crate::core::rows::{OpenFlow, open_flows};
use crate::dataplane::Maps;
use crate::net::frames::tcp_syn_probe;
use crate::net::{Link, PacketSocket};

/// Segments between two pauses, and the pause: 2,000 a second.
const BURST: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// Flows of one server at most.
const MOST: usize = 1 << 18;
/// How often those that have not answered are asked.
const ROUNDS: u32 = 3;
/// Between two rounds; Linux answers at most twice a second (`net.ipv4.tcp_invalid_ratelimit`).
const BETWEEN_ROUNDS: Duration = Duration::from_secs(2);

/// Elicits a packet from every client with an open flow to `server`, until it is not reset any more, or nobody is left.
pub async fn elicit(maps: Arc<Maps>, links: Vec<Link>, server: u16, name: String, seed: u32) {
    if is_udp(&maps, server) {
        // Its clients' next datagrams go to another server; there is nothing to tell them.
        return;
    }
    let sockets: Vec<PacketSocket> = match links.iter().map(|link| PacketSocket::open(link.index)).collect() {
        Ok(sockets) => sockets,
        Err(error) => {
            warn!("clients of {name} are not told at once that it is gone: {error}");
            return;
        }
    };
    for round in 0..ROUNDS {
        let Ok(now) = maps.now() else { return };
        let flows = open_flows(&maps, server, now, MOST);
        if flows.is_empty() {
            return;
        }
        if round == 0 {
            info!("{name}: telling {} that they have ended", count(flows.len() as u64, "open connection"));
        }
        for (sent, flow) in flows.iter().enumerate() {
            if sent % BURST == 0 {
                if sent > 0 {
                    sleep(PAUSE).await;
                }
                if !resets(&maps, server) {
                    info!("{name} is back: no more connections are told to end");
                    return;
                }
            }
            if let Some((arm, frame)) = frame(&maps, &links, flow, seed)
                && let Some(socket) = sockets.get(arm)
            {
                // A full queue loses this one; the next round sends it again.
                let _lost = socket.send(&frame);
            }
        }
        sleep(BETWEEN_ROUNDS).await;
    }
}

fn is_udp(maps: &Maps, server: u16) -> bool {
    let service =
        maps.servers.present(server).and_then(|server| maps.services.get(usize::from(server.service)));
    service.and_then(Service::load).is_some_and(|service| service.is_udp)
}

fn resets(maps: &Maps, server: u16) -> bool {
    maps.servers.present(server).is_some_and(|server| server.state.has(ServerState::RESETS))
}

/// The segment for a flow, if it is still open, and the number of the interface that it leaves by.
fn frame(maps: &Maps, links: &[Link], flow: &OpenFlow, seed: u32) -> Option<(usize, Vec<u8>)> {
    let slot = maps.flows.get(flow.index as usize)?;
    let life = slot.life();
    let open = life.state() == SlotState::Live
        && life.same_version(flow.life)
        && !TcpState::from_note(life.note()).is_closed();
    if !open {
        return None;
    }
    let hop = slot.words[HOP_WORD].load();
    let arm = usize::from(arm_of(hop));
    let (from, to): (SocketAddr, SocketAddr) = (flow.service, flow.client);
    // Any number does: it is outside the client's window or not, the answer is the same.
    let frame = tcp_syn_probe(links.get(arm)?.mac, mac_bytes(hop), from, to, seed ^ flow.index).ok()?;
    Some((arm, frame))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::address::Address;

    use super::*;
    use crate::core::testing::{Case, client, config, flow};
    use crate::core::{AdminState, ServerName};
    use crate::net::Net;
    use crate::net::testing::{Lab, ip};

    /// The IPv4 or IPv6 header of a frame, and after it the TCP segment.
    fn split(frame: &[u8]) -> Option<(&[u8], &[u8])> {
        let header = match frame.get(12..14)? {
            [8, 0] => 20,
            [0x86, 0xdd] => 40,
            _ => return None,
        };
        frame.get(14..)?.split_at_checked(header)
    }

    /// Whether it is a SYN from port 443 to the port of the client of this number.
    fn is_syn_to(frame: &[u8], service: IpAddr, number: u16) -> bool {
        let Some((header, segment)) = split(frame).filter(|(_, segment)| segment.len() >= 20) else {
            return false;
        };
        let from = match service {
            IpAddr::V4(v4) => header[12..16] == v4.octets(),
            IpAddr::V6(v6) => header[8..24] == v6.octets(),
        };
        from && segment[..2] == 443u16.to_be_bytes()
            && segment[2..4] == (5000 + number).to_be_bytes()
            && segment[13] == 2
    }

    fn each_client_is_sent_a_syn_until_its_flow_is_closed(service: IpAddr, clients: fn(u16) -> Address) {
        let lab = Lab::new();
        let ear = lab.server_ear();
        let mut config = config(&[("V", 150, &[("a", 1), ("b", 2)])]);
        config.services[0].address = service;
        let mut case = Case::new(config);
        case.overlay.set_state(ServerName::new("V", "a"), AdminState::Halt);
        case.apply().unwrap();
        let (a, b) = (case.id("V", "a"), case.id("V", "b"));
        let now = case.maps.now().unwrap();
        let at = |number: u16, server, state| {
            flow(&case.maps, 0, clients(number), 5000 + number, server, 443, state, now)
        };
        at(1, a, TcpState::Established);
        at(2, a, TcpState::ServerReset);
        at(3, b, TcpState::Established);
        let maps = Arc::new(case.maps);
        lab.balancer.run(async move || {
            let link = Net::open().unwrap().link("lb0").await.unwrap();
            // One round: the first client "answers" by being closed meanwhile.
            let _ended = tokio::time::timeout(
                Duration::from_millis(300),
                elicit(maps, vec![link], a, "V/a".to_owned(), 7),
            )
            .await;
        });
        assert!(ear.hears(Duration::from_secs(2), |frame| is_syn_to(frame, service, 1)).is_some());
        let others = |frame: &[u8]| is_syn_to(frame, service, 2) || is_syn_to(frame, service, 3);
        assert!(ear.hears(Duration::from_millis(300), others).is_none());
    }

    #[test]
    fn each_client_of_a_halted_server_is_sent_a_syn_until_its_flow_is_closed() {
        each_client_is_sent_a_syn_until_its_flow_is_closed(ip("192.0.2.150"), |number| {
            client(u32::from(number))
        });
    }

    #[test]
    fn each_ipv6_client_of_a_halted_server_is_sent_a_syn_too() {
        each_client_is_sent_a_syn_until_its_flow_is_closed(ip("2001:db8::150"), |number| {
            IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, number]).into()
        });
    }
}
