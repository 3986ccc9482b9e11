//! Telling the segment that an address is here, so that switches and neighbours send its frames to us at once.

use std::net::IpAddr;
use std::time::Duration;

use super::frames::announcement;
use super::{Link, NetError, PacketSocket};

/// When to announce an address that was just taken over, counted from that moment. A single announcement may
/// be lost while a switch port is still learning; three in three seconds are not.
pub const ANNOUNCE_SCHEDULE: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// Announces once that `address` is at the link's MAC: gratuitous ARP (RFC 5227) as request and as reply for
/// IPv4, an unsolicited Neighbour Advertisement (RFC 4861 section 7.2.6) for IPv6.
///
/// # Errors
/// [`NetError::Packet`] when a frame cannot be sent.
pub fn announce(link: &Link, address: IpAddr) -> Result<(), NetError> {
    let socket = PacketSocket::open(link.index)?;
    announcement(link.mac, address).iter().try_for_each(|frame| socket.send(frame))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::neighbour::NeighbourState;

    use super::*;
    use crate::net::testing::{Lab, ip, set_neighbour, within};
    use crate::net::{Mac, Net};

    fn announce_from_balancer(lab: &Lab, address: IpAddr) {
        lab.balancer.run(async move || {
            let link = Net::open().unwrap().link("lb0").await.unwrap();
            announce(&link, address).unwrap();
        });
    }

    #[test]
    fn the_schedule_starts_at_once_and_only_goes_forward() {
        assert_eq!(ANNOUNCE_SCHEDULE[0], Duration::ZERO);
        assert!(ANNOUNCE_SCHEDULE.is_sorted());
    }

    #[test]
    fn an_announcement_reaches_the_peer_in_every_form() {
        let lab = Lab::new();
        let ear = lab.server_ear();
        for address in [ip("192.0.2.150"), ip("2001:db8::150")] {
            announce_from_balancer(&lab, address);
            for frame in announcement(Lab::BALANCER_MAC, address) {
                assert!(ear.hears(Duration::from_secs(2), |heard| heard == frame).is_some(), "{address}");
            }
        }
    }

    #[test]
    fn the_peers_kernel_sends_to_us_what_it_sent_to_the_node_before_us() {
        const BEFORE_US: Mac = [0x02, 0, 0, 0, 0, 0x99];
        let lab = Lab::new();
        let there = lab.server_index();
        for address in [ip("192.0.2.150"), ip("2001:db8::150")] {
            lab.server.run(async move || {
                let net = Net::open().unwrap();
                set_neighbour(&net, there, address, BEFORE_US, NeighbourState::Reachable).await;
            });
            announce_from_balancer(&lab, address);
            lab.server.run(async move || {
                let net = Net::open().unwrap();
                within("the new MAC address", async || {
                    let entry = net.neighbours(there).await.unwrap().get(&address).copied()?;
                    (entry.usable_mac() == Some(Lab::BALANCER_MAC)).then_some(())
                })
                .await;
            });
        }
    }
}
