use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;

const FULL_CHECK: Duration = Duration::from_secs(3);
const ETH0: u32 = 2;

fn thresholds() -> Thresholds {
    let of = |count| NonZeroU32::new(count).unwrap();
    Thresholds { fall: of(3), rise: of(2) }
}

fn seconds(at: f64) -> Duration {
    Duration::from_secs_f64(at)
}

fn host(number: u8) -> IpAddr {
    [192, 0, 2, number].into()
}

/// Targets with their states, as the checker has them.
struct World {
    holding: Holding,
    states: BTreeMap<u32, State>,
    network: Network,
    /// Targets that were asked for at once.
    asked: Vec<u32>,
    /// The last words of those that say nothing.
    none: BTreeMap<u32, String>,
}

impl World {
    /// Targets at these machines, all up and all on one interface.
    fn up(machines: &[(u32, u8)]) -> Self {
        let mut world = Self {
            holding: Holding::default(),
            states: BTreeMap::new(),
            network: Network::default(),
            asked: Vec::new(),
            none: BTreeMap::new(),
        };
        world.network.ports.insert(ETH0, Port { name: "eth0".to_owned(), up: true });
        for (id, machine) in machines {
            let state = State::adopted(Verdict::Up);
            world.network.ways.insert(host(*machine), Way::Through(ETH0));
            world.holding.enter(*id, host(*machine), FULL_CHECK, state);
            world.states.insert(*id, state);
        }
        world.tell(0.0);
        world
    }

    fn tell(&mut self, at: f64) {
        let restart = self.holding.set_network(self.network.clone(), seconds(at));
        self.restart(&restart);
    }

    fn carrier(&mut self, up: bool, at: f64) {
        self.network.ports.get_mut(&ETH0).unwrap().up = up;
        self.tell(at);
    }

    fn route(&mut self, machine: u8, way: Way, at: f64) {
        self.network.ways.insert(host(machine), way);
        self.tell(at);
    }

    fn restart(&mut self, ids: &[u32]) {
        for id in ids {
            let state = self.states.get_mut(id).unwrap();
            *state = state.restarted();
        }
    }

    fn count(&mut self, id: u32, outcome: &Outcome) {
        let state = self.states[&id].after(outcome, thresholds()).0;
        self.states.insert(id, state);
        self.holding.set_state(id, state);
    }

    fn take(&mut self, id: u32, outcome: &Outcome, started: f64, ended: f64) -> Ruling {
        let state = self.states[&id];
        let (started, ended) = (seconds(started), seconds(ended));
        let result = Result { id, outcome, started, ended, state, thresholds: thresholds() };
        let rulings = self.holding.take(result);
        self.none.remove(&id);
        match &rulings.ruling {
            Ruling::Judge(Outcome::NoVerdict(why)) => {
                self.none.insert(id, why.clone());
            }
            Ruling::Judge(outcome) | Ruling::Unconfirmed(outcome) => self.count(id, outcome),
            Ruling::Wait => {}
        }
        for (id, outcome) in &rulings.released {
            self.count(*id, outcome);
        }
        self.restart(&rulings.restart);
        self.asked = rulings.ask;
        rulings.ruling
    }

    /// An answer, a tenth of a second after the question.
    fn ok(&mut self, id: u32, at: f64) {
        self.take(id, &Outcome::Ok, at, at + 0.1);
    }

    /// No answer within a second.
    fn lost(&mut self, id: u32, at: f64) -> Ruling {
        self.take(id, &lost(), at, at + 1.0)
    }

    fn is_up(&self, id: u32) -> bool {
        self.states[&id].verdict() == Some(Verdict::Up)
    }
}

fn lost() -> Outcome {
    Outcome::Lost("timed out after 1s while connecting".to_owned())
}

fn three() -> World {
    World::up(&[(1, 1), (2, 2), (3, 3)])
}

#[test]
fn one_dead_server_among_several_that_answer_is_down_at_its_fall_th_check() {
    let mut world = three();
    for at in [0.0, 2.0, 4.0] {
        assert!(world.is_up(1));
        world.ok(2, at + 0.5);
        world.ok(3, at + 0.6);
        world.lost(1, at);
    }
    assert!(!world.is_up(1));
    assert!(world.is_up(2) && world.is_up(3));
}

#[test]
fn a_deciding_check_with_no_answer_since_it_began_asks_the_others_and_counts_when_one_answers() {
    let mut world = three();
    for at in [0.0, 2.0] {
        world.lost(1, at);
    }
    world.ok(2, 3.5);
    world.ok(3, 3.5);
    assert_eq!(world.lost(1, 4.0), Ruling::Wait);
    assert_eq!(world.asked, [2, 3]);
    assert!(world.is_up(1));
    world.ok(2, 5.0);
    assert!(!world.is_up(1), "the network works: the server is gone");
}

#[test]
fn servers_that_fall_silent_together_are_held_until_one_answers_and_counted_anew() {
    let mut world = three();
    for at in [0.0, 2.0, 4.0, 6.0, 100.0] {
        for id in [1, 2, 3] {
            world.lost(id, at + f64::from(id) / 10.0);
        }
    }
    for id in [1, 2, 3] {
        assert!(world.is_up(id));
        assert!(world.none[&id].contains("fell silent together"), "{:?}", world.none);
    }
    assert!(world.holding.is_cut_off(host(1)));
    world.ok(2, 102.0);
    assert!(!world.holding.is_cut_off(host(1)));
    // What began before the network was back, and for one full check, says nothing.
    world.lost(1, 101.9);
    world.lost(1, 104.0);
    assert_eq!(world.states[&1], State::Up { failures: 0 });
    // One of them has died meanwhile: that is noticed after its own three checks.
    for at in [106.0, 108.0, 110.0] {
        assert!(world.is_up(1));
        world.ok(2, at + 0.5);
        world.lost(1, at);
    }
    assert!(!world.is_up(1));
}

#[test]
fn of_three_servers_two_that_die_at_once_are_down_as_soon_as_the_third_is_heard() {
    let mut world = three();
    for at in [0.0, 2.0, 4.0] {
        world.lost(1, at);
        world.lost(2, at);
        assert!(world.is_up(1) && world.is_up(2));
        world.ok(3, at + 1.5);
    }
    assert!(!world.is_up(1) && !world.is_up(2) && world.is_up(3));
    // Where the third does not say anything either, most are enough.
    let mut world = three();
    for at in [0.0, 2.0, 4.0, 6.0] {
        world.lost(1, at);
        world.lost(2, at);
        world.take(3, &Outcome::NoVerdict("this process has no file descriptor left".to_owned()), at, at);
    }
    assert!(world.is_up(1) && world.is_up(2) && world.holding.is_cut_off(host(1)));
}

#[test]
fn a_refusal_is_an_answer_of_the_network() {
    let mut world = three();
    for at in [0.0, 2.0, 4.0] {
        world.take(3, &Outcome::Failed("connection refused".to_owned()), at + 0.9, at + 0.95);
        world.lost(1, at);
        world.lost(2, at);
    }
    assert!(!world.is_up(1) && !world.is_up(2) && !world.is_up(3));
}

#[test]
fn several_checks_of_one_machine_are_one_voice() {
    // A machine with ten services dies beside two that live: ten of twelve checks are silent.
    let mut machines: Vec<(u32, u8)> = (10..20).map(|id| (id, 9)).collect();
    machines.extend([(1, 1), (2, 2)]);
    let mut world = World::up(&machines);
    for at in [0.0, 2.0, 4.0] {
        for id in 10..20 {
            world.lost(id, at);
        }
        world.ok(1, at + 1.1);
        world.ok(2, at + 1.2);
    }
    for id in 10..20 {
        assert!(!world.is_up(id), "{id}");
    }
    assert!(!world.holding.is_cut_off(host(9)));
}

#[test]
fn of_two_servers_one_that_dies_is_down_and_both_together_are_held() {
    let mut world = World::up(&[(1, 1), (2, 2)]);
    for at in [0.0, 2.0, 4.0] {
        world.lost(1, at);
        world.ok(2, at + 1.1);
    }
    assert!(!world.is_up(1) && world.is_up(2));
    let mut world = World::up(&[(1, 1), (2, 2)]);
    for at in [0.0, 2.0, 4.0, 6.0, 8.0] {
        world.lost(1, at);
        world.lost(2, at + 0.1);
    }
    assert!(world.is_up(1) && world.is_up(2));
}

#[test]
fn a_server_alone_on_its_interface_is_held_for_a_minute() {
    let mut world = World::up(&[(1, 1)]);
    let mut at = 0.0;
    while world.is_up(1) {
        world.lost(1, at);
        at += 2.0;
        assert!(at < 80.0, "held for longer");
    }
    assert!(at > 60.0, "held until {at}");
    // Where somebody answers, if only to refuse, it is not alone.
    let mut world = World::up(&[(1, 1), (2, 2)]);
    for at in [0.0, 2.0, 4.0] {
        world.take(2, &Outcome::Failed("connection refused".to_owned()), at, at + 0.1);
    }
    for at in [6.0, 8.0, 10.0] {
        world.lost(1, at);
    }
    assert_eq!(world.asked, [2]);
    world.take(2, &Outcome::Failed("connection refused".to_owned()), 11.0, 11.1);
    assert!(!world.is_up(1));
}

#[test]
fn without_carrier_checks_say_nothing_nor_for_one_full_check_afterwards() {
    let mut world = three();
    world.lost(1, 0.0);
    world.lost(1, 2.0);
    world.carrier(false, 4.5);
    assert_eq!(
        world.states[&1],
        State::Up { failures: 0 },
        "what was counted may have been the cable already"
    );
    for at in [4.0, 6.0, 8.0, 10.0, 60.0] {
        for id in [1, 2, 3] {
            world.lost(id, at);
            assert!(world.none[&id].contains("eth0 has no carrier"), "{:?}", world.none);
        }
    }
    world.carrier(true, 70.0);
    for at in [69.5, 71.0, 71.9] {
        world.lost(1, at);
        assert!(world.none[&1].contains("works again"), "{:?}", world.none);
    }
    assert_eq!(world.states[&1], State::Up { failures: 0 });
    world.ok(2, 73.0);
    world.lost(1, 73.0);
    assert_eq!(world.states[&1], State::Up { failures: 1 });
}

#[test]
fn without_a_route_a_servers_checks_say_nothing_and_others_go_on() {
    let mut world = three();
    world.route(1, Way::None, 0.0);
    for at in [0.0, 2.0, 4.0, 6.0] {
        world.lost(1, at);
        world.lost(2, at);
        world.ok(3, at + 1.1);
    }
    assert!(world.is_up(1) && !world.is_up(2));
    assert!(world.holding.is_cut_off(host(1)));
    world.route(1, Way::Through(ETH0), 8.0);
    world.lost(1, 9.0);
    assert_eq!(world.states[&1], State::Up { failures: 0 });
    for at in [12.0, 14.0, 16.0] {
        world.lost(1, at);
        world.ok(3, at + 1.1);
    }
    assert!(!world.is_up(1));
}

#[test]
fn a_server_that_was_never_up_is_judged_as_ever() {
    let mut world = three();
    world.states.insert(1, State::FRESH);
    for at in [0.0, 2.0, 4.0] {
        world.lost(1, at);
    }
    assert_eq!(world.states[&1].verdict(), Some(Verdict::Down));
}

#[test]
fn a_dead_servers_silence_is_not_told_on_where_nothing_else_was_heard() {
    let mut world = three();
    for at in [0.0, 2.0, 4.0] {
        world.lost(1, at);
        world.ok(2, at + 1.1);
    }
    assert!(!world.is_up(1));
    assert_eq!(world.lost(1, 6.0), Ruling::Unconfirmed(lost()));
    world.ok(2, 8.5);
    assert_eq!(world.lost(1, 8.0), Ruling::Judge(lost()));
}

#[test]
fn the_servers_of_another_interface_have_no_say() {
    let mut world = three();
    world.network.ports.insert(3, Port { name: "eth1".to_owned(), up: true });
    world.route(3, Way::Through(3), 0.0);
    for at in [0.0, 2.0, 4.0, 6.0] {
        world.lost(1, at);
        world.lost(2, at);
        world.ok(3, at + 1.1);
    }
    assert!(world.is_up(1) && world.is_up(2) && world.is_up(3));
    assert!(!world.holding.is_cut_off(host(3)));
}

proptest! {
    /// However checks are spread: a network that is silent as a whole takes nobody down, and a server that alone is silent
    /// is down by its third check and one answer of another.
    #[test]
    fn only_a_server_that_is_silent_alone_goes_down(
        machines in 2u8..8, offsets in prop::collection::vec(0.0f64..2.0, 8), cut in 0.0f64..20.0, dead in 0u8..8,
    ) {
        let dead = u32::from(dead % machines);
        for network_is_cut in [true, false] {
            let mut world = World::up(&(0..machines).map(|id| (u32::from(id), id)).collect::<Vec<_>>());
            // Probes in the order of their ends; those that are asked for are made at once.
            let mut due: Vec<(f64, u32)> = Vec::new();
            for id in 0..u32::from(machines) {
                due.extend((0..20).map(|round| (f64::from(round) * 2.0 + offsets[id as usize], id)));
            }
            due.sort_by(|a, b| a.0.total_cmp(&b.0));
            let silent = |id: u32, at: f64| at >= cut && (network_is_cut || id == dead);
            let mut ends: Vec<(f64, f64, u32)> = due
                .iter()
                .map(|(at, id)| (if silent(*id, *at) { at + 1.0 } else { at + 0.1 }, *at, *id))
                .collect();
            ends.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut down_at = None;
            for (end, started, id) in ends {
                if silent(id, started) {
                    world.lost(id, started);
                } else {
                    world.ok(id, started);
                }
                for asked in world.asked.clone() {
                    if !silent(asked, end) {
                        world.ok(asked, end);
                    }
                }
                if down_at.is_none() && !world.is_up(dead) {
                    down_at = Some(end);
                }
                for id in 0..u32::from(machines) {
                    prop_assert!(world.is_up(id) || (!network_is_cut && id == dead), "{id} at {end}");
                }
            }
            if !network_is_cut {
                prop_assert!(down_at.is_some_and(|at| at <= cut + 3.0 * 2.0 + 1.0 + 0.01), "{down_at:?}");
            }
        }
    }
}
