use std::net::IpAddr;

use super::*;
use crate::core::testing::{Case, client, config, flow};

const HOP: ReturnHop = ReturnHop { arm: 0, mac: [2, 0, 0, 0, 0, 1] };
const OTHER: ReturnHop = ReturnHop { arm: 1, mac: [2, 0, 0, 0, 0, 9] };

/// Three clients' flows, the third of them closed.
fn case() -> (Case, Ticks) {
    let case = Case::new(config(&[("V", 150, &[("a", 1)])]));
    case.apply().unwrap();
    let (a, now) = (case.id("V", "a"), case.maps.now().unwrap());
    for (number, state) in [(1, TcpState::Established), (2, TcpState::Established), (3, TcpState::TimeWait)] {
        flow(&case.maps, 0, client(number), 5000, a, 443, state, now);
    }
    (case, now)
}

fn address(number: u32) -> IpAddr {
    client(number).into()
}

#[test]
fn the_mac_addresses_of_open_connections_are_used_and_their_clients_known() {
    let (case, now) = case();
    assert_eq!(used(&case.maps, now), BTreeSet::from([HOP]));
    let both = BTreeSet::from([address(1), address(2)]);
    let only = |limit| clients(&case.maps, now, &BTreeSet::from([HOP]), limit);
    assert_eq!(only(9), BTreeMap::from([(HOP, both)]));
    assert_eq!(only(1)[&HOP].len(), 1);
    assert!(clients(&case.maps, now, &BTreeSet::from([OTHER]), 9).is_empty());
}

#[test]
fn only_the_flows_of_the_named_clients_and_mac_addresses_are_turned() {
    let (case, now) = case();
    let turns = BTreeMap::from([((HOP, address(1)), OTHER), ((OTHER, address(2)), HOP)]);
    assert_eq!(turn(&case.maps, now, &turns), 1);
    let over = |hop| clients(&case.maps, now, &BTreeSet::from([hop]), 9);
    assert_eq!(over(OTHER), BTreeMap::from([(OTHER, BTreeSet::from([address(1)]))]));
    assert_eq!(over(HOP), BTreeMap::from([(HOP, BTreeSet::from([address(2)]))]));
    assert_eq!(turn(&case.maps, now, &turns), 0, "they have been");
}

#[test]
fn open_connections_in_use_are_asked_from_where_the_last_round_ended() {
    let (case, now) = case();
    let asked = BTreeSet::from([(HOP, address(1)), (HOP, address(2)), (HOP, address(3))]);
    assert!(connections(&case.maps, now, &asked, 0, 9).0.is_empty(), "nobody has sent on them lately");
    let idle = Service::load(&case.maps.services[0]).unwrap().idle;
    for slot in case.maps.flows.iter().filter(|slot| slot.life().state() == SlotState::Live) {
        assert!(slot.exchange(slot.life(), slot.life().with_deadline(now.plus(idle))));
    }
    let (first, place) = connections(&case.maps, now, &asked, 0, 1);
    let (second, _) = connections(&case.maps, now, &asked, place, 1);
    let clients: BTreeSet<IpAddr> =
        first.iter().chain(&second).map(|(_, connection)| connection.client.ip()).collect();
    assert_eq!(clients, BTreeSet::from([address(1), address(2)]), "a closed one is left alone");
    assert!(connections(&case.maps, now, &BTreeSet::from([(OTHER, address(1))]), 0, 9).0.is_empty());
}
