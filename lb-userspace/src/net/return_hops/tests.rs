use super::*;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];
const VIRTUAL: Mac = [0, 0, 0x5e, 0, 1, 1];
const STRANGER: Mac = [2, 0, 0, 0, 0, 0x66];

const GATEWAY: [u8; 4] = [192, 0, 2, 1];
const ROUTER_A: [u8; 4] = [192, 0, 2, 2];
const ROUTER_B: [u8; 4] = [192, 0, 2, 3];

fn hop(mac: Mac) -> ReturnHop {
    ReturnHop { arm: 0, mac }
}

/// The neighbour table of interface 0, one look after the other.
struct Case {
    hops: ReturnHops,
    now: Instant,
}

impl Case {
    fn new() -> Self {
        Self { hops: ReturnHops::new(Timing::default()), now: Instant::now() }
    }

    /// A second later the table is this.
    fn sees(&mut self, table: &[([u8; 4], Nud, Option<Mac>)]) -> &mut Self {
        self.now += Duration::from_secs(1);
        let entry = |nud, mac| Entry { nud, mac };
        let table =
            table.iter().map(|(address, nud, mac)| (IpAddr::from(*address), entry(*nud, *mac))).collect();
        self.hops.observe(0, &table, self.now);
        self
    }

    /// What becomes of a flow whose answers go to this MAC address, and whose client is behind these next hops.
    fn of(&self, mac: Mac, next: &[[u8; 4]]) -> Decision {
        let doubts = self.hops.doubts(&BTreeSet::from([hop(mac)]));
        let next: Vec<Neighbour> = next.iter().map(|address| (0, IpAddr::from(*address))).collect();
        doubts.get(&hop(mac)).map_or(Decision::Stay, |doubt| self.hops.decide(hop(mac), doubt, &next))
    }

    fn asks(&mut self, used: Mac, next: &[[u8; 4]]) -> Vec<Ask> {
        let next = next.iter().map(|address| (0, IpAddr::from(*address))).collect();
        self.hops.ask(&BTreeSet::from([hop(used)]), &next, self.now)
    }
}

#[test]
fn answers_to_a_living_neighbour_stay_whatever_the_routes_say() {
    let mut case = Case::new();
    case.sees(&[(GATEWAY, Nud::Reachable, Some(A)), (ROUTER_B, Nud::Stale, Some(B))]);
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Stay);
    assert_eq!(case.of(B, &[GATEWAY]), Decision::Stay, "asymmetric routing is left alone");
}

#[test]
fn answers_follow_their_clients_next_hop_to_its_new_mac_address() {
    let mut case = Case::new();
    case.sees(&[(GATEWAY, Nud::Reachable, Some(A))]).sees(&[(GATEWAY, Nud::Reachable, Some(B))]);
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Move(hop(B)));
    assert_eq!(case.of(B, &[GATEWAY]), Decision::Stay);
}

#[test]
fn a_next_hop_that_moves_takes_its_clients_along_though_the_old_router_lives_on() {
    let mut case = Case::new();
    let both = |of_gateway| {
        [
            (GATEWAY, Nud::Reachable, Some(of_gateway)),
            (ROUTER_A, Nud::Reachable, Some(A)),
            (ROUTER_B, Nud::Reachable, Some(B)),
        ]
    };
    case.sees(&both(A)).sees(&both(B));
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Move(hop(B)));
    assert_eq!(case.of(A, &[ROUTER_A]), Decision::Stay, "whose next hop did not move");
    for _ in 0..10 {
        case.sees(&both(B));
    }
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Stay, "who comes over the old router afterwards");
}

#[test]
fn answers_to_a_router_that_has_died_go_to_the_next_hop_whose_virtual_mac_address_stays() {
    let mut case = Case::new();
    let table = |of_a| [(GATEWAY, Nud::Reachable, Some(VIRTUAL)), of_a];
    case.sees(&table((ROUTER_A, Nud::Reachable, Some(A)))).sees(&table((ROUTER_A, Nud::Probe, Some(A))));
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Stay, "while it is asked");
    case.sees(&table((ROUTER_A, Nud::Failed, None)));
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Move(hop(VIRTUAL)));
    case.sees(&table((ROUTER_A, Nud::Incomplete, None)));
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Move(hop(VIRTUAL)), "while it is asked for again");
    case.sees(&[(GATEWAY, Nud::Reachable, Some(VIRTUAL))]);
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Move(hop(VIRTUAL)), "when its entry is cleared away");
    case.sees(&table((ROUTER_A, Nud::Reachable, Some(A))));
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Stay, "when it is back");
}

#[test]
fn answers_to_a_gateway_that_does_not_answer_go_to_the_routes_other_next_hop() {
    let mut case = Case::new();
    case.sees(&[(ROUTER_A, Nud::Reachable, Some(A)), (ROUTER_B, Nud::Reachable, Some(B))]);
    case.sees(&[(ROUTER_A, Nud::Failed, None), (ROUTER_B, Nud::Reachable, Some(B))]);
    assert_eq!(case.of(A, &[ROUTER_A, ROUTER_B]), Decision::Move(hop(B)));
    assert_eq!(case.of(A, &[ROUTER_A]), Decision::Stay, "there is no other");
}

#[test]
fn a_mac_address_that_another_neighbour_still_has_is_not_lost() {
    let mut case = Case::new();
    case.sees(&[
        (GATEWAY, Nud::Reachable, Some(B)),
        (ROUTER_A, Nud::Reachable, Some(A)),
        ([192, 0, 2, 4], Nud::Stale, Some(A)),
    ]);
    case.sees(&[
        (GATEWAY, Nud::Reachable, Some(B)),
        (ROUTER_A, Nud::Failed, None),
        ([192, 0, 2, 4], Nud::Stale, Some(A)),
    ]);
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Stay);
}

#[test]
fn an_entry_that_was_cleared_away_says_nothing_and_is_asked_for() {
    let mut case = Case::new();
    case.sees(&[(GATEWAY, Nud::Reachable, Some(B)), (ROUTER_A, Nud::Reachable, Some(A))]);
    case.sees(&[(GATEWAY, Nud::Reachable, Some(B))]);
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Stay);
    assert_eq!(case.asks(A, &[]), [Ask::Resolve((0, IpAddr::from(ROUTER_A)))]);
    assert_eq!(case.asks(A, &[]), [], "not twice at once");
}

#[test]
fn the_client_is_asked_where_no_neighbour_has_had_the_mac_address() {
    let mut case = Case::new();
    case.sees(&[(GATEWAY, Nud::Reachable, Some(VIRTUAL))]);
    assert_eq!(case.of(STRANGER, &[GATEWAY]), Decision::AskClient(hop(VIRTUAL)));
    assert_eq!(case.of(STRANGER, &[ROUTER_A]), Decision::Stay, "nobody is there to ask it by");
}

#[test]
fn a_forged_answer_in_a_routers_name_turns_its_flows_to_the_next_hop_and_not_to_the_forger() {
    let mut case = Case::new();
    case.sees(&[(GATEWAY, Nud::Reachable, Some(VIRTUAL)), (ROUTER_A, Nud::Reachable, Some(A))]);
    case.sees(&[(GATEWAY, Nud::Reachable, Some(VIRTUAL)), (ROUTER_A, Nud::Reachable, Some(STRANGER))]);
    assert_eq!(case.of(A, &[GATEWAY]), Decision::Move(hop(VIRTUAL)));
}

#[test]
fn neighbours_that_answers_go_to_are_kept_fresh_and_next_hops_are_resolved() {
    let mut case = Case::new();
    case.sees(&[(ROUTER_A, Nud::Stale, Some(A)), (ROUTER_B, Nud::Stale, Some(B))]);
    let (a, gateway) = ((0, IpAddr::from(ROUTER_A)), (0, IpAddr::from(GATEWAY)));
    assert_eq!(case.asks(A, &[GATEWAY]), [Ask::Resolve(gateway), Ask::Confirm(a)]);
    for _ in 0..4 {
        case.sees(&[(ROUTER_A, Nud::Reachable, Some(A))]);
        assert!(!case.asks(A, &[GATEWAY]).contains(&Ask::Confirm(a)));
    }
    case.sees(&[(ROUTER_A, Nud::Stale, Some(A))]);
    assert!(case.asks(A, &[GATEWAY]).contains(&Ask::Confirm(a)));
}

#[test]
fn other_interfaces_are_apart() {
    let mut case = Case::new();
    case.sees(&[(ROUTER_A, Nud::Reachable, Some(A))]);
    let other = BTreeMap::from([(IpAddr::from(ROUTER_A), Entry { nud: Nud::Reachable, mac: Some(B) })]);
    case.hops.observe(1, &other, case.now);
    assert_eq!(case.of(A, &[ROUTER_A]), Decision::Stay);
    let elsewhere = ReturnHop { arm: 1, mac: A };
    let doubts = case.hops.doubts(&BTreeSet::from([elsewhere]));
    assert_eq!(doubts.get(&elsewhere), Some(&Doubt::Unknown));
}
