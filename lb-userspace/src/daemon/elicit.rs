//! Telling clients at once that their server is gone.
//!
//! The data path answers the next packet of a client whose server is down or halted with an RST, but a clinician who is
//! reading sends none. So one is elicited: a SYN into the open connection, from the service's address, makes the
//! client answer with a challenge ACK (RFC 5961 section 4.2), and the data path turns that into an RST with the right
//! sequence number, which a client believes (section 3.2).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::flow::{HOP_WORD, mac_bytes};
use lb_common::life::SlotState;
use lb_common::server::{ServerState, Servers as _};
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
pub async fn elicit(maps: Arc<Maps>, link: Link, server: u16, name: String, seed: u32) {
    let socket = match PacketSocket::open(link.index) {
        Ok(socket) => socket,
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
            if let Some(frame) = frame(&maps, &link, flow, seed) {
                // A full queue loses this one; the next round sends it again.
                let _lost = socket.send(&frame);
            }
        }
        sleep(BETWEEN_ROUNDS).await;
    }
}

fn resets(maps: &Maps, server: u16) -> bool {
    maps.servers.present(server).is_some_and(|server| server.state.has(ServerState::RESETS))
}

/// The segment for a flow, if it is still open.
fn frame(maps: &Maps, link: &Link, flow: &OpenFlow, seed: u32) -> Option<Vec<u8>> {
    let slot = maps.flows.get(flow.index as usize)?;
    let life = slot.life();
    let open = life.state() == SlotState::Live
        && life.same_version(flow.life)
        && !TcpState::from_note(life.note()).is_closed();
    if !open {
        return None;
    }
    let hop = mac_bytes(slot.words[HOP_WORD].load());
    let (from, to): (SocketAddr, SocketAddr) = (flow.service, flow.client);
    // Any number does: it is outside the client's window or not, the answer is the same.
    tcp_syn_probe(link.mac, hop, from, to, seed ^ flow.index).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Case, client, config, flow};
    use crate::core::{AdminState, ServerName};
    use crate::net::Net;
    use crate::net::testing::Lab;

    #[test]
    fn each_client_of_a_halted_server_is_sent_a_syn_until_its_flow_is_closed() {
        let lab = Lab::new();
        let ear = lab.server_ear();
        let mut case = Case::new(config(&[("V", 150, &[("a", 1), ("b", 2)])]));
        case.overlay.set_state(ServerName::new("V", "a"), AdminState::Halt);
        case.apply().unwrap();
        let (a, b) = (case.id("V", "a"), case.id("V", "b"));
        let now = case.maps.now().unwrap();
        let at = |number: u16, server, state| {
            flow(&case.maps, 0, client(u32::from(number)), 5000 + number, server, 443, state, now)
        };
        at(1, a, TcpState::Established);
        at(2, a, TcpState::ServerReset);
        at(3, b, TcpState::Established);
        let maps = Arc::new(case.maps);
        lab.balancer.run(async move || {
            let link = Net::open().unwrap().link("lb0").await.unwrap();
            // One round: the first client "answers" by being closed meanwhile.
            let _ended =
                tokio::time::timeout(Duration::from_millis(300), elicit(maps, link, a, "V/a".to_owned(), 7))
                    .await;
        });
        // Destination MAC, then the IPv4 TCP segment from the service to the client.
        let syn_to = |frame: &[u8], number: u16| {
            frame.len() >= 54
                && frame[12..14] == [8, 0]
                && frame[26..30] == [192, 0, 2, 150]
                && frame[34..36] == 443u16.to_be_bytes()
                && frame[36..38] == (5000 + number).to_be_bytes()
                && frame[47] == 2
        };
        assert!(ear.hears(Duration::from_secs(2), |frame| syn_to(frame, 1)).is_some());
        let others = |frame: &[u8]| syn_to(frame, 2) || syn_to(frame, 3);
        assert!(ear.hears(Duration::from_millis(300), others).is_none());
    }
}
