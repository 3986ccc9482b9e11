//! The tracker against a real kernel: two namespaces, joined by a veth pair.

use std::fs;

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::neighbour::NeighbourState;

use super::*;
use crate::net::testing::{Lab, add_route, ip, set_neighbour};

const CHANGED_MAC: Mac = [0x02, 0, 0, 0, 0, 0x77];

/// Quick enough for a test.
const QUICK: Timing = Timing {
    refresh: Duration::from_millis(200),
    retry: Duration::from_millis(50),
    retry_max: Duration::from_millis(200),
    hold: Duration::from_millis(300),
    resync: Duration::from_secs(600),
};

/// Nothing happens by time alone.
const LAZY: Timing = Timing {
    refresh: Duration::from_secs(600),
    retry: Duration::from_secs(600),
    retry_max: Duration::from_secs(600),
    hold: Duration::from_secs(600),
    resync: Duration::from_secs(600),
};

type Wanted = Box<dyn Fn(&NetEvent) -> bool>;

/// The receiver's side of a tracker in a test, and the tracker, which lives as long.
struct Followed {
    net: Net,
    index: u32,
    neighbours: Neighbours,
    events: mpsc::Receiver<NetEvent>,
}

impl Followed {
    /// Follows `lb0` in the namespace of the calling thread, with a kernel that probes quickly.
    async fn start(timing: Timing, watched: &[&str]) -> Self {
        for family in ["ipv4", "ipv6"] {
            let probes = format!("/proc/sys/net/{family}/neigh/lb0/retrans_time_ms");
            fs::write(probes, "30").unwrap();
        }
        let net = Net::open().unwrap();
        let link = net.link("lb0").await.unwrap();
        let index = link.index;
        let (neighbours, events) = Neighbours::start(&net, link, timing, addresses(watched)).unwrap();
        Self { net, index, neighbours, events }
    }

    /// The first event of that kind within a minute; the others are passed over.
    async fn until(&mut self, what: &str, wanted: impl Fn(&NetEvent) -> bool) -> NetEvent {
        let mut seen = Vec::new();
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the tracker lives");
                if wanted(&event) {
                    return event;
                }
                seen.push(event);
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), search).await {
            Ok(event) => event,
            Err(_) => panic!("{what}: not within a minute; instead {seen:?}"),
        }
    }

    /// An event of each kind within a minute, in whatever order.
    async fn until_all(&mut self, what: &str, mut wanted: Vec<Wanted>) {
        while !wanted.is_empty() {
            let event = self.until(what, |event| wanted.iter().any(|is_wanted| is_wanted(event))).await;
            wanted.retain(|is_wanted| !is_wanted(&event));
        }
    }

    async fn until_mac(&mut self, address: &str, mac: Option<Mac>) {
        let wanted = NetEvent::Neighbour(NeighbourEvent { address: ip(address), mac });
        self.until(&format!("{address} at {mac:?}"), |event| *event == wanted).await;
    }

    /// What comes within a time in which it would have come.
    async fn within_a_moment(&mut self) -> Vec<NetEvent> {
        let mut seen = Vec::new();
        let collect = async {
            while let Some(event) = self.events.recv().await {
                seen.push(event);
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), collect).await;
        seen
    }
}

fn is_at(address: &str, mac: Option<Mac>) -> Wanted {
    let wanted = NetEvent::Neighbour(NeighbourEvent { address: ip(address), mac });
    Box::new(move |event| *event == wanted)
}

fn is_link(up: bool) -> Wanted {
    Box::new(move |event| matches!(event, NetEvent::Link(LinkEvent::Changed(link)) if link.up == up))
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

#[test]
fn a_watched_neighbour_is_resolved_without_any_traffic() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(QUICK, &[Lab::SERVER]).await;
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
        followed.neighbours.watch(addresses(&[Lab::SERVER, Lab::SERVER_V6]));
        followed.until_mac(Lab::SERVER_V6, Some(Lab::SERVER_MAC)).await;
    });
}

#[test]
fn what_the_kernel_knew_before_the_start_is_reported() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let net = Net::open().unwrap();
        let index = net.link("lb0").await.unwrap().index;
        let phantom = ip("192.0.2.66");
        set_neighbour(&net, index, phantom, CHANGED_MAC, NeighbourState::Permanent).await;
        let mut followed = Followed::start(LAZY, &["192.0.2.66"]).await;
        followed.until_mac("192.0.2.66", Some(CHANGED_MAC)).await;
    });
}

#[test]
fn a_mac_address_changed_in_silence_is_found_by_the_refresh() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(QUICK, &[Lab::SERVER, Lab::SERVER_V6]).await;
        for mac in [Lab::SERVER_MAC, CHANGED_MAC] {
            lab.set_server_mac(mac);
            let both = vec![is_at(Lab::SERVER, Some(mac)), is_at(Lab::SERVER_V6, Some(mac))];
            followed.until_all("both families at the MAC address", both).await;
        }
    });
}

#[test]
fn a_server_that_lost_its_address_has_no_mac_address_until_it_is_back() {
    let lab = Lab::new();
    let there = lab.server_index();
    lab.balancer.run(async || {
        let mut followed = Followed::start(QUICK, &[Lab::SERVER]).await;
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
        lab.server.run(async || {
            let net = Net::open().unwrap();
            let present: Vec<_> = net
                .handle
                .address()
                .get()
                .set_link_index_filter(there)
                .execute()
                .try_collect()
                .await
                .unwrap();
            let own = present.into_iter().find(|one| one.header.family == AddressFamily::Inet).unwrap();
            net.handle.address().del(own).execute().await.unwrap();
        });
        followed.until_mac(Lab::SERVER, None).await;
        lab.server.run(async || {
            let net = Net::open().unwrap();
            net.handle.address().add(there, ip(Lab::SERVER), 24).execute().await.unwrap();
        });
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
    });
}

#[test]
fn a_cable_pulled_and_put_back_is_told_and_the_neighbour_lost_and_found() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(QUICK, &[Lab::SERVER]).await;
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
        let set_server_link = |message: LinkMessage| {
            lab.server.run(async || {
                Net::open().unwrap().handle.link().set(message).execute().await.unwrap();
            });
        };
        set_server_link(LinkUnspec::new_with_name("srv0").down().build());
        let down = vec![is_link(false), is_at(Lab::SERVER, None)];
        followed.until_all("the link down and the neighbour lost", down).await;
        set_server_link(LinkUnspec::new_with_name("srv0").up().build());
        let up = vec![is_link(true), is_at(Lab::SERVER, Some(Lab::SERVER_MAC))];
        followed.until_all("the link up and the neighbour found", up).await;
    });
}

#[test]
fn an_entry_that_the_kernel_dropped_is_resolved_again_without_a_report() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(QUICK, &[Lab::SERVER]).await;
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
        // Its own MAC address set anew makes the kernel flush the interface's neighbours.
        let own = LinkUnspec::new_with_index(followed.index).address(CHANGED_MAC.to_vec()).build();
        followed.net.handle.link().set(own).execute().await.unwrap();
        let seen = followed.within_a_moment().await;
        assert!(!seen.iter().any(|event| matches!(event, NetEvent::Neighbour(_))), "{seen:?}");
        assert!(
            seen.iter().any(
                |event| matches!(event, NetEvent::Link(LinkEvent::Changed(link)) if link.mac == CHANGED_MAC)
            ),
            "{seen:?}"
        );
        let table = followed.net.neighbours(followed.index).await.unwrap();
        let entry = table.get(&ip(Lab::SERVER)).expect("it is there again");
        assert_eq!(entry.usable_mac(), Some(Lab::SERVER_MAC));
    });
}

#[test]
fn routes_addresses_and_the_end_of_the_link_are_told() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(LAZY, &[]).await;
        let (net, index) = (followed.net.clone(), followed.index);
        add_route(&net, ip("198.51.100.0"), 24, ip(Lab::SERVER)).await;
        followed.until("the new route", |event| *event == NetEvent::RouteChanged).await;
        net.add_address(index, ip("192.0.2.150")).await.unwrap();
        followed.until("the new address", |event| *event == NetEvent::AddressChanged).await;
        net.handle.link().del(index).execute().await.unwrap();
        followed.until("the end", |event| *event == NetEvent::Link(LinkEvent::Removed)).await;
    });
}

#[test]
fn a_neighbour_no_longer_watched_is_not_reported() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(QUICK, &[Lab::SERVER]).await;
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
        followed.neighbours.watch(BTreeSet::new());
        assert_eq!(followed.within_a_moment().await, []);
        let (net, index) = (followed.net.clone(), followed.index);
        set_neighbour(&net, index, ip(Lab::SERVER), CHANGED_MAC, NeighbourState::Permanent).await;
        assert_eq!(followed.within_a_moment().await, []);
    });
}

#[test]
fn events_lost_in_an_overrun_are_made_good_by_reading_everything() {
    let lab = Lab::new();
    lab.balancer.run(async || {
        let mut followed = Followed::start(LAZY, &[Lab::SERVER]).await;
        followed.until_mac(Lab::SERVER, Some(Lab::SERVER_MAC)).await;
        // The tracker's thread is this one: while it waits here, the events fill the socket's buffer, and the last
        // of them, which is the one that counts, is lost.
        let index = followed.index;
        lab.balancer.run(async || {
            let net = Net::open().unwrap();
            for number in 0..8000u16 {
                let [high, low] = number.to_be_bytes();
                let other = IpAddr::from([10, 0, high, low]);
                set_neighbour(&net, index, other, [2, 0, 0, 0, 0, 1], NeighbourState::Permanent).await;
            }
            set_neighbour(&net, index, ip(Lab::SERVER), CHANGED_MAC, NeighbourState::Permanent).await;
        });
        followed.until("the sign of lost events", |event| *event == NetEvent::RouteChanged).await;
        followed.until_mac(Lab::SERVER, Some(CHANGED_MAC)).await;
    });
}
