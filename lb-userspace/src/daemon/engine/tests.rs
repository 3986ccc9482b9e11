use std::fs;
use std::net::IpAddr;

use lb_common::clock::Ticks;
use lb_common::tcp::TcpState;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::core::rows::{live_flows, live_stickies};
use crate::core::testing::{client, config, flow, stick, yaml};
use crate::core::{Before, Plan};
use crate::dataplane::fake::{FakeKernel, maps};

const FILE: &str = "/etc/steadfast.yaml";

/// By the first interface.
fn hop(host: u8) -> Hop {
    Hop { neighbour: [192, 0, 2, host].into(), arm: 0 }
}

/// A server's first good check.
fn answered() -> HealthEvent {
    HealthEvent {
        target_id: 0,
        health: Verdict::Up,
        reason: "the first probe succeeded".to_owned(),
        at: Timestamp::from_second(1_700_000_100).unwrap(),
        certificate_expires: None,
        lost: false,
    }
}

/// A daemon's core over fake maps, and its state directory.
struct World {
    directory: TempDir,
    maps: Arc<Maps>,
    engine: Engine,
}

fn two() -> String {
    yaml(&[("V", 150, &[("a", 1), ("b", 2)])])
}

fn file(text: &str) -> ConfigFile {
    ConfigFile { source: FILE.to_owned(), text: text.to_owned(), config: config::parse(FILE, text).unwrap() }
}

fn store(directory: &TempDir) -> Store {
    Store::new(directory.path().join("state.json"), directory.path().join("run/state.json"))
}

fn engine(directory: &TempDir, maps: &Arc<Maps>, text: &str, adopted: bool) -> Engine {
    let memory = Memory::recall(store(directory), &file(text));
    let clock: Clock = Arc::new(|| Timestamp::from_second(1_700_000_000).unwrap());
    let about = About { file: FILE.to_owned(), ..About::default() };
    let mut engine = Engine::new(Arc::clone(maps), memory, about, clock, adopted);
    engine.begin().unwrap();
    engine
}

impl World {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let maps = Arc::new(maps(FakeKernel::default()));
        let mut engine = engine(&directory, &maps, text, false);
        engine.set_hops((1..=9).map(|host| ([192, 0, 2, host].into(), hop(host))).collect());
        for host in 1..=9 {
            engine.neighbours([([192, 0, 2, host].into(), Some([2, 0, 0, 0, 0, host]))]);
        }
        Self { directory, maps, engine }
    }

    /// The daemon is killed, and another one starts.
    fn restart(&mut self, text: &str) {
        self.engine = engine(&self.directory, &self.maps, text, true);
    }

    fn post(&mut self, path: &str, body: Value) -> Result<Value, Refusal> {
        let request = match path {
            "add" => Request::Add(serde_json::from_value(body).unwrap()),
            "remove" => Request::Remove(serde_json::from_value(body).unwrap()),
            "set" => Request::Set(serde_json::from_value(body).unwrap()),
            "state" => Request::State(serde_json::from_value(body).unwrap()),
            "forget" => Request::Forget(serde_json::from_value(body).unwrap()),
            "move" => Request::Move(serde_json::from_value(body).unwrap()),
            "plan" => Request::PlanConfig(serde_json::from_value(body).unwrap()),
            "apply" => Request::ApplyConfig(serde_json::from_value(body).unwrap()),
            other => unreachable!("{other}"),
        };
        self.engine.request(request)
    }

    fn id(&self, server: &str) -> u16 {
        self.engine.state.ids.server(&ServerName::new("V", server)).unwrap()
    }

    fn bits(&self, server: &str) -> u16 {
        self.maps.servers.present(self.id(server)).unwrap().state.0
    }

    fn state(&mut self, server: &str, state: &str) -> Result<Value, Refusal> {
        self.post("state", serde_json::json!({ "service": "V", "label": server, "state": state }))
    }

    fn down(&mut self, server: &str) {
        self.health(server, Verdict::Down, "connection refused");
    }

    fn health(&mut self, server: &str, health: Verdict, reason: &str) {
        let event = self.news_of(server, health, reason);
        self.engine.health_news([event]);
    }

    fn news_of(&self, server: &str, health: Verdict, reason: &str) -> HealthNews {
        let (target_id, reason) = (u32::from(self.id(server)), reason.to_owned());
        HealthNews::Changed(HealthEvent { target_id, health, reason, ..answered() })
    }

    fn client_of(&self, server: &str, number: u32) {
        let (id, now) = (self.id(server), self.maps.now().unwrap());
        stick(&self.maps, 0, client(number), id, now);
        flow(&self.maps, 0, client(number), 5000, id, 443, TcpState::Established, now);
    }

    fn end_flows(&self) {
        let now = self.maps.now().unwrap();
        crate::core::rows::free_flows(&self.maps, now, |_| true);
    }
}

const ALL: u16 =
    ServerState::PRESENT | ServerState::REACHABLE | ServerState::TAKES_NEW | ServerState::TAKES_KNOWN;
const DRAINING: u16 = ALL & !ServerState::TAKES_NEW;
const RESETTING: u16 = ServerState::PRESENT | ServerState::REACHABLE | ServerState::RESETS;

#[test]
fn news_of_several_servers_at_once_is_all_taken() {
    let mut world = World::new(&two());
    let both = ["a", "b"].map(|server| world.news_of(server, Verdict::Down, "connection refused"));
    world.engine.health_news(both);
    assert_eq!((world.bits("a"), world.bits("b")), (RESETTING, RESETTING));
    let back = ["a", "b"].map(|server| world.news_of(server, Verdict::Up, "connected"));
    world.engine.health_news(back);
    assert_eq!((world.bits("a"), world.bits("b")), (ALL, ALL));
    world.engine.health_news([]);
    assert_eq!((world.bits("a"), world.bits("b")), (ALL, ALL));
}

#[test]
fn a_drained_server_stays_drained_over_a_reload_an_apply_and_a_restart() {
    let mut world = World::new(&two());
    let answer = world.state("a", "drain").unwrap();
    assert!(answer["done"].as_str().unwrap().starts_with("V/a drains"));
    assert_eq!(world.bits("a"), DRAINING);
    world.engine.reload(&file(&two().replace("label: V\n", "label: V\n    on_down: keep\n"))).unwrap();
    assert_eq!(world.bits("a"), DRAINING);
    world.restart(&two());
    assert_eq!(world.bits("a"), DRAINING);
    let other = yaml(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3)])]);
    let answer = world.post("apply", serde_json::json!({ "yaml": other, "source": "new.yaml" })).unwrap();
    assert_eq!(answer["applied"], true);
    assert!(answer["plan"]["warnings"].to_string().contains("V/a stays in state drain"), "{answer}");
    assert_eq!(world.bits("a"), DRAINING);
    world.state("a", "online").unwrap();
    assert_eq!(world.bits("a"), ALL);
}

#[test]
fn what_was_applied_is_in_force_after_a_restart_until_the_file_changes() {
    let mut world = World::new(&two());
    let three = yaml(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3)])]);
    world.post("apply", serde_json::json!({ "yaml": three, "source": "new.yaml" })).unwrap();
    world.restart(&two());
    assert!(world.engine.running().service("V").unwrap().server("c").is_some());
    assert_eq!(world.engine.request(Request::Status).unwrap()["config_source"], "new.yaml");
    let one = yaml(&[("V", 150, &[("a", 1)])]);
    world.restart(&one);
    assert_eq!(world.engine.running().service("V").unwrap().real_servers.len(), 1);
    assert_eq!(world.engine.request(Request::Status).unwrap()["config_source"], FILE);
    // And that other text does not come back.
    world.restart(&one);
    assert_eq!(world.engine.running().service("V").unwrap().real_servers.len(), 1);
}

#[test]
fn a_restart_that_adopts_changes_no_word_of_the_maps() {
    let mut world = World::new(&two());
    world.state("b", "drain").unwrap();
    world.down("a");
    world.client_of("b", 1);
    let image = |maps: &Maps| {
        let servers: Vec<_> = (0..8).map(|id| maps.servers.present(id)).collect();
        let infos: Vec<_> = (0..8).map(|id| maps.server_info.read(id)).collect();
        (servers, infos, maps.control().generation.load(), maps.kernel.schedule(0).unwrap())
    };
    let before = image(&world.maps);
    world.engine = {
        let memory = Memory::recall(store(&world.directory), &file(&two()));
        let clock: Clock = Arc::new(|| Timestamp::from_second(1_800_000_000).unwrap());
        Engine::new(Arc::clone(&world.maps), memory, About::default(), clock, true)
    };
    let applied = world.engine.begin().unwrap();
    assert!(!applied.changed(), "{applied:?}");
    assert_eq!(image(&world.maps), before);
    assert_eq!(world.engine.known_health()[&u32::from(world.id("a"))], Verdict::Down);
    // The one that was being reset is looked after again.
    assert_eq!(world.engine.take_resetting(), [world.id("a")]);
}

#[test]
fn numbers_survive_the_loss_of_the_state_file() {
    let mut world = World::new(&two());
    world.client_of("b", 1);
    let (a, b) = (world.id("a"), world.id("b"));
    fs::remove_file(world.directory.path().join("state.json")).unwrap();
    world.restart(&yaml(&[("U", 149, &[("x", 8)]), ("V", 150, &[("b", 2), ("a", 1)])]));
    assert_eq!((world.id("a"), world.id("b")), (a, b));
    assert_eq!(live_stickies(&world.maps, Ticks(0)).next().unwrap().2.to.server, b);
}

#[test]
fn a_broken_state_file_does_not_keep_the_daemon_from_starting() {
    let mut world = World::new(&two());
    world.client_of("b", 1);
    fs::write(world.directory.path().join("state.json"), "{ \"version\": ").unwrap();
    world.restart(&two());
    assert_eq!(world.bits("b"), ALL);
    assert!(world.directory.path().join("state.json.broken").exists());
}

#[test]
fn what_is_said_of_a_change_that_was_made_is_what_was_said_before() {
    let mut world = World::new(&two());
    for number in 0..40 {
        world.client_of(if number % 3 == 0 { "a" } else { "b" }, number);
    }
    let of = |more: Value| {
        let mut body = serde_json::json!({ "service": "V", "label": "a" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (path, more) in [
        ("state", serde_json::json!({ "state": "drain" })),
        ("set", serde_json::json!({ "weight": 7 })),
        ("state", serde_json::json!({ "state": "online" })),
        ("set", serde_json::json!({ "weight": 250 })),
        ("state", serde_json::json!({ "state": "halt" })),
        ("state", serde_json::json!({ "state": "online" })),
    ] {
        let mut asked = of(more.clone());
        asked["dry_run"] = true.into();
        let before = world.post(path, asked).unwrap();
        world.engine.take_moved();
        let done = world.post(path, of(more.clone())).unwrap();
        assert_eq!(before["plan"], done["plan"], "{more}");
        assert!(more["state"] == "halt" || !world.engine.take_moved(), "the network is left alone: {more}");
        assert!(!done["plan"]["changes"].as_array().unwrap().is_empty(), "{done}");
    }
}

#[test]
fn a_removed_server_finishes_its_connections() {
    let mut world = World::new(&two());
    world.client_of("b", 1);
    let b = world.id("b");
    let answer = world.post("remove", serde_json::json!({ "service": "V", "label": "b" })).unwrap();
    assert_eq!(answer["done"], "V/b is removed as soon as its open connection has ended; it gets no other");
    assert_eq!(answer["plan"]["resets"], serde_json::json!([]));
    assert_eq!(answer["plan"]["moves"][0]["to"], "a");
    let finishing = ServerState::PRESENT | ServerState::REACHABLE;
    assert_eq!(world.maps.servers.present(b).unwrap().state.0, finishing);
    assert_eq!(world.engine.take_resetting(), Vec::<u16>::new());
    world.restart(&two());
    assert_eq!(world.maps.servers.present(b).unwrap().state.0, finishing);
    world.end_flows();
    world.engine.tick().unwrap();
    assert!(world.maps.servers.present(b).is_none());
}

#[test]
fn a_server_removed_now_resets_its_connections() {
    let mut world = World::new(&two());
    world.client_of("b", 1);
    let b = world.id("b");
    let remove = |now| serde_json::json!({ "service": "V", "label": "b", "now": now });
    let dry = serde_json::json!({ "service": "V", "label": "b", "now": true, "dry_run": true });
    let plan = world.post("remove", dry).unwrap();
    assert_eq!(plan["plan"]["resets"][0]["connections"], 1);
    assert_eq!(world.bits("b"), ALL);
    let answer = world.post("remove", remove(true)).unwrap();
    assert_eq!(answer["done"], "V/b is removed, and 1 open connection reset");
    assert_eq!(answer["plan"]["moves"][0]["to"], "a");
    assert_eq!(world.maps.servers.present(b).unwrap().state.0, RESETTING);
    assert_eq!(world.engine.take_resetting(), [b]);
    assert_eq!(world.engine.request(Request::Status).unwrap()["finishing"][0], "V/b");
    // A restart in between forgets nothing of it.
    world.restart(&two());
    assert_eq!(world.maps.servers.present(b).unwrap().state.0, RESETTING);
    world.end_flows();
    world.engine.tick().unwrap();
    assert!(world.maps.servers.present(b).is_none());
    // Its number is not another's while the client's record says it; its own it is.
    world.post("add", serde_json::json!({ "service": "V", "label": "c", "address": "192.0.2.3" })).unwrap();
    assert_ne!(world.id("c"), b);
    world.post("add", serde_json::json!({ "service": "V", "label": "b", "address": "192.0.2.2" })).unwrap();
    assert_eq!(world.id("b"), b);
}

#[test]
fn a_configuration_without_a_server_lets_its_connections_finish() {
    let mut world = World::new(&two());
    world.client_of("b", 1);
    let b = world.id("b");
    let one = yaml(&[("V", 150, &[("a", 1)])]);
    let answer = world.post("apply", serde_json::json!({ "yaml": one, "source": "one" })).unwrap();
    assert!(answer["plan"]["resets"].as_array().unwrap().is_empty(), "{answer}");
    assert_eq!(answer["plan"]["moves"][0]["clients"], 1);
    assert_eq!(world.maps.servers.present(b).unwrap().state.0, ServerState::PRESENT | ServerState::REACHABLE);
    assert_eq!(live_flows(&world.maps.flows, Ticks(0)).count(), 1);
    world.end_flows();
    world.engine.tick().unwrap();
    assert!(world.maps.servers.present(b).is_none());
}

#[test]
fn health_decides_who_is_served_and_is_shown_with_its_reason() {
    let mut world = World::new(&two());
    world.down("a");
    assert_eq!(world.bits("a"), RESETTING);
    assert_eq!(world.engine.take_resetting(), [world.id("a")]);
    let info = world.maps.server_info.read(usize::from(world.id("a"))).unwrap();
    assert_eq!((info.health, unpadded(&info.health_reason)), (2, "connection refused".to_owned()));
    assert_eq!(info.health_since, 1_700_000_100);
    world.health("a", Verdict::Up, "2 probes in a row succeeded");
    assert_eq!(world.bits("a"), ALL);
    let status = world.engine.request(Request::Status).unwrap();
    assert_eq!(status["health_checks"][0]["health"], "up");
    assert_eq!(status["health_checks"][0]["since"], "2023-11-14T22:15:00Z");
}

#[test]
fn servers_that_are_not_checked_are_shown_as_that_and_take_clients() {
    let unchecked = two().replace("    ports:", "    health_check: { kind: none }\n    ports:");
    let mut world = World::new(&unchecked);
    let shown = |world: &World, server: &str| {
        let info = world.maps.server_info.read(usize::from(world.id(server))).unwrap();
        (info.health, unpadded(&info.health_reason))
    };
    assert_eq!(shown(&world, "a"), (3, "no health check is configured".to_owned()));
    assert_eq!(world.bits("a"), ALL);
    let status = world.engine.request(Request::Status).unwrap();
    assert_eq!(status["health_checks"][0]["health"], "not checked");

    let mut world = World::new(&two());
    world.health("b", Verdict::Up, "the first probe succeeded");
    let why = "its check cannot be made: for a test".to_owned();
    world.engine.set_uncheckable([(world.id("a"), why.clone())].into());
    world.engine.resync().unwrap();
    assert_eq!((shown(&world, "a"), shown(&world, "b").0), ((3, why.clone()), 1));
    let status = world.engine.request(Request::Status).unwrap();
    let check = &status["health_checks"][0];
    assert_eq!((&check["health"], &check["reason"]), (&json!("not checked"), &json!(why)));
    world.restart(&two());
    assert_eq!(world.bits("a"), ALL, "another daemon takes clients there, too");
    world.engine.set_uncheckable(BTreeMap::new());
    world.engine.resync().unwrap();
    assert_eq!(shown(&world, "b").0, 1);
}

#[test]
fn a_redirect_that_cannot_listen_is_shown_within_a_second_and_so_is_its_end() {
    let text = two()
        + "  - { label: R, address: 192.0.2.150, ports: [80, 81], protocol: http, force_https: true }\n";
    let mut world = World::new(&text);
    let listening = Listening::default();
    world.engine.set_listening(listening.clone());
    let id = usize::from(world.engine.state.ids.service("R").unwrap().id);
    let mut shown = |listening: &Listening, first, second| {
        listening.note("192.0.2.150:80".parse().unwrap(), first);
        listening.note("192.0.2.150:81".parse().unwrap(), second);
        world.engine.tick().unwrap();
        let status = world.engine.request(Request::Status).unwrap();
        (world.maps.service_info.read(id).unwrap().listening, status["redirects"].clone())
    };
    let (number, _) = shown(&listening, Listener::Open, Listener::Open);
    assert_eq!(number, 1);
    let (number, redirects) = shown(&listening, Listener::Open, Listener::Refused(98));
    assert_eq!(number, 2 | 98 << 16, "one of its ports is enough");
    let in_use = "Address already in use (os error 98)";
    let json = json!([
        { "address": "192.0.2.150:80", "listening": true, "error": null },
        { "address": "192.0.2.150:81", "listening": false, "error": in_use },
    ]);
    assert_eq!(redirects, json);
    let (number, _) = shown(&listening, Listener::Open, Listener::Open);
    assert_eq!(number, 1);
}

#[test]
fn an_added_server_gets_nobody_before_its_mac_address_is_known_whatever_its_check() {
    let mut world = World::new(&with_check("{ kind: none }"));
    add(&mut world, "c", 33);
    assert_eq!(world.bits("c"), DRAINING & !ServerState::REACHABLE);
    world.engine.set_hops([1, 2, 33].map(|host| ([192, 0, 2, host].into(), hop(host))).into());
    world.engine.neighbours([([192, 0, 2, 33].into(), Some([2, 0, 0, 0, 0, 33]))]);
    assert_eq!(world.bits("c"), ALL);
}

fn with_check(check: &str) -> String {
    let text = two().replace("real_servers:", &format!("health_check: {check}\n    real_servers:"));
    assert!(text.contains(check), "{text}");
    text
}

fn add(world: &mut World, label: &str, host: u8) {
    let body = serde_json::json!({ "service": "V", "label": label, "address": format!("192.0.2.{host}") });
    world.post("add", body).unwrap();
}

#[test]
fn a_server_that_is_added_gets_unknown_clients_once_it_has_answered() {
    let mut world = World::new(&two());
    assert_eq!((world.bits("a"), world.bits("b")), (ALL, ALL), "a cold start serves at once");
    let body = serde_json::json!({ "service": "V", "label": "c", "address": "192.0.2.3" });
    let plan = world.post("add", body).unwrap()["plan"].clone();
    assert!(
        plan["unknown_changed"][0]["percent"].as_f64().unwrap() > 20.0,
        "what comes of it is planned: {plan}"
    );
    assert!(plan["warnings"].to_string().contains("once they have answered"), "{plan}");
    assert_eq!(world.bits("c"), DRAINING);
    world.health("c", Verdict::Up, "the first probe succeeded");
    assert_eq!(world.bits("c"), ALL);
    assert_eq!((world.bits("a"), world.bits("b")), (ALL, ALL));
}

#[test]
fn a_server_that_is_added_gets_unknown_clients_at_once_where_nobody_else_does_or_it_is_said_so() {
    let mut world = World::new(&two());
    add(&mut world, "c", 3);
    world.state("a", "drain").unwrap();
    world.down("b");
    assert_eq!(world.bits("c"), ALL, "somebody has to");
    for check in ["{ answer_first: false }", "{ kind: none }"] {
        let mut world = World::new(&with_check(check));
        add(&mut world, "c", 3);
        assert_eq!(world.bits("c"), ALL, "{check}");
    }
}

#[test]
fn a_service_that_is_new_has_all_its_servers_at_once() {
    let mut world = World::new(&two());
    let more = yaml(&[("V", 150, &[("a", 1), ("b", 2)]), ("W", 151, &[("d", 4), ("e", 5)])]);
    world.post("apply", serde_json::json!({ "yaml": more, "source": "more" })).unwrap();
    let bits = |world: &World, server| {
        let id = world.engine.state.ids.server(&ServerName::new("W", server)).unwrap();
        world.maps.servers.present(id).unwrap().state.0
    };
    assert_eq!((bits(&world, "d"), bits(&world, "e")), (ALL, ALL));
    let d = world.engine.state.ids.server(&ServerName::new("W", "d")).unwrap();
    let event = HealthEvent { target_id: u32::from(d), ..answered() };
    world.engine.health_news([HealthNews::Changed(event)]);
    assert_eq!(
        (bits(&world, "d"), bits(&world, "e")),
        (ALL, ALL),
        "the first that answers is not to get everybody"
    );
}

#[test]
fn a_server_that_the_network_does_not_reach_keeps_its_clients_and_gets_no_others() {
    let mut world = World::new(&two());
    world.client_of("a", 1);
    world.engine.cut_off = BTreeSet::from([world.id("a")]);
    world.engine.resync().unwrap();
    assert_eq!((world.bits("a"), world.bits("b")), (DRAINING, ALL));
    assert!(world.engine.take_resetting().is_empty());
    let both = [world.id("a"), world.id("b")];
    world.engine.cut_off = BTreeSet::from(both);
    world.engine.resync().unwrap();
    assert_eq!((world.bits("a"), world.bits("b")), (ALL, ALL), "a service does not lose its last server so");
}

#[test]
fn a_service_that_refuses_clients_is_the_first_line_of_a_plan_and_of_the_log() {
    let mut world = World::new(&two());
    world.client_of("a", 1);
    world.client_of("b", 2);
    world.down("a");
    assert_eq!(world.engine.refusing.len(), 0);
    let answer = world.state("b", "halt").unwrap();
    let plan: Plan = serde_json::from_value(answer["plan"].clone()).unwrap();
    let first = plan.to_string();
    assert!(
        first.starts_with("V has no usable real server: every connection to it is refused.\n"),
        "{first}"
    );
    assert_eq!((plan.clients_refused(), plan.clients_moved), (2, 2));
    assert!(
        plan.summary().starts_with("2 clients refused from now on, 0 clients moved"),
        "{}",
        plan.summary()
    );
    assert_eq!(world.engine.refusing.len(), 1);
    // So it is after a start with what is remembered.
    world.restart(&two());
    assert_eq!(world.engine.refusing.len(), 1);
    world.state("b", "online").unwrap();
    assert_eq!(world.engine.refusing.len(), 0);
}

#[test]
fn a_server_without_a_neighbour_is_told_apart_from_one_that_is_down() {
    let mut world = World::new(&two());
    world.engine.neighbours([([192, 0, 2, 1].into(), None)]);
    assert_eq!(world.bits("a"), ALL & !ServerState::REACHABLE);
    world.engine.neighbours([([192, 0, 2, 1].into(), Some([2, 0, 0, 0, 0, 77]))]);
    assert_eq!(world.maps.servers.present(world.id("a")).unwrap().mac[5], 77);
    // Another way whose end has not been heard of yet: the old one is used until it has.
    world.engine.set_hops([([192, 0, 2, 1].into(), hop(99))].into());
    assert_eq!(world.maps.servers.present(world.id("a")).unwrap().mac[5], 77);
    world.engine.neighbours([([192, 0, 2, 99].into(), Some([2, 0, 0, 0, 0, 99]))]);
    assert_eq!(world.maps.servers.present(world.id("a")).unwrap().mac[5], 99);
}

#[test]
fn neighbours_that_go_together_are_taken_in_together() {
    let mut world = World::new(&two());
    let before = world.maps.control().epoch.load();
    let gone = [1, 2].map(|host| ([192, 0, 2, host].into(), None));
    world.engine.neighbours(gone);
    for server in ["a", "b"] {
        assert_eq!(world.bits(server), ALL & !ServerState::REACHABLE, "{server}");
    }
    assert_eq!(world.maps.control().epoch.load(), before + 2, "each server once");
    let strangers = [77, 78].map(|host| ([192, 0, 2, host].into(), None));
    world.engine.neighbours(strangers);
    assert_eq!(world.maps.control().epoch.load(), before + 2);
}

#[test]
fn weights_are_kept_apart_from_the_text() {
    let mut world = World::new(&two());
    let set = |weight: u16| serde_json::json!({ "service": "V", "label": "a", "weight": weight });
    world.post("set", set(0)).unwrap();
    assert_eq!(world.bits("a"), DRAINING);
    world.restart(&two());
    assert_eq!(world.bits("a"), DRAINING);
    assert!(matches!(world.post("set", set(1001)), Err(Refusal::Bad(_))));
    world.post("set", set(100)).unwrap();
    assert!(world.engine.state.overlay.weights.is_empty());
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let mut world = World::new(&two());
    let cases = [
        ("state", serde_json::json!({ "service": "W", "label": "a", "state": "drain" }), "there are: V"),
        ("state", serde_json::json!({ "service": "V", "label": "x", "state": "drain" }), "it has: a, b"),
        ("add", serde_json::json!({ "service": "W", "label": "a", "address": "192.0.2.3" }), "there are: V"),
        ("move", serde_json::json!({ "client": "10.0.0.1", "service": "V", "server": "x" }), "it has: a, b"),
        ("forget", serde_json::json!({ "client": "10.0.0.1", "service": "W" }), "there are: V"),
    ];
    for (path, body, words) in cases {
        let Err(Refusal::Unknown(why)) = world.post(path, body) else { unreachable!("{path}") };
        assert!(why.contains(words), "{why}");
    }
    let again = serde_json::json!({ "service": "V", "label": "a", "address": "192.0.2.3" });
    assert!(matches!(world.post("add", again), Err(Refusal::Conflict(_))));
    let taken = serde_json::json!({ "service": "V", "label": "c", "address": "192.0.2.1" });
    assert!(matches!(world.post("add", taken), Err(Refusal::Bad(_))));
}

#[test]
fn a_single_client_is_moved_and_forgotten() {
    let mut world = World::new(&two());
    world.client_of("a", 1);
    let to = |server: &str| serde_json::json!({ "client": "10.0.0.1", "service": "V", "server": server });
    let answer = world.post("move", to("b")).unwrap();
    assert_eq!(answer["done"], "the next connection of 10.0.0.1 goes to V/b, not to a");
    assert_eq!(answer["plan"]["moved"][0]["from"], "a");
    assert_eq!(live_stickies(&world.maps, Ticks(0)).next().unwrap().2.to.server, world.id("b"));
    // Its open flow stays.
    assert_eq!(live_flows(&world.maps.flows, Ticks(0)).next().unwrap().2.to.server, world.id("a"));
    world.down("a");
    assert!(matches!(world.post("move", to("a")), Err(Refusal::Conflict(_))));
    let forget = serde_json::json!({ "client": "::ffff:10.0.0.1" });
    assert_eq!(world.post("forget", forget.clone()).unwrap()["forgotten"], 1);
    assert_eq!(world.post("forget", forget).unwrap()["forgotten"], 0);
    // Without a record it comes from where the scheduler would send it, and is refused only where that is so.
    world.health("a", Verdict::Up, "");
    let picked = |world: &World| Before::whole(&world.maps).unwrap().next(&world.maps, 0, client(1), None);
    for (server, label) in [("a", "b"), ("b", "a")] {
        if picked(&world) == Some(world.id(server)) {
            let mut asked = to(label);
            asked["dry_run"] = true.into();
            let plan = &world.post("move", asked).unwrap()["plan"];
            assert_eq!(plan["moved"][0]["from"], server, "{plan}");
            assert_eq!(plan["changes"][0], format!("+ sticky record of 10.0.0.1 with V: {label}"));
        }
    }
    assert!(picked(&world).is_some());
    let v6 = serde_json::json!({ "client": "2001:db8::1", "service": "V", "server": "b" });
    assert!(matches!(world.post("move", v6), Err(Refusal::Bad(_))));
}

#[test]
fn a_change_of_the_node_section_is_refused_under_way() {
    let mut world = World::new(&two());
    let other = two().replace("eth0", "eth1");
    let body = serde_json::json!({ "yaml": other, "source": "x" });
    let Err(Refusal::Conflict(why)) = world.post("apply", body) else { unreachable!() };
    assert!(why.contains("node.interfaces") && why.contains("detach"), "{why}");
}

#[test]
fn what_the_network_does_not_give_is_refused_and_what_is_there_already_can_be_drained() {
    let mut world = World::new(&two());
    world.engine.refuse_by(|config| {
        let servers = config.services.iter().flat_map(|service| &service.real_servers);
        let far = servers.filter(|server| server.address == IpAddr::from([192, 0, 2, 3]));
        far.map(|server| format!("{} is reached by way of 192.0.2.9", server.label)).collect()
    });
    let add = json!({ "service": "V", "label": "c", "address": "192.0.2.3" });
    let Err(Refusal::Conflict(why)) = world.post("add", add.clone()) else { unreachable!() };
    assert_eq!(why, "c is reached by way of 192.0.2.9");
    let other = yaml(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3)])]);
    let Err(Refusal::Conflict(why)) = world.post("plan", json!({ "yaml": other })) else { unreachable!() };
    assert_eq!(why, "c is reached by way of 192.0.2.9");
    world.engine.refuse_by(|_| Vec::new());
    world.post("add", add).unwrap();
    world.engine.refuse_by(|_| vec!["c is reached by way of 192.0.2.9".to_owned()]);
    world.state("c", "drain").unwrap();
}

#[test]
fn a_wrong_configuration_is_refused_with_every_mistake_and_its_line() {
    let mut world = World::new(&two());
    let wrong = two().replace("192.0.2.1 ", "192.0.2.150 ").replace("label: b", "label: \"b b\"");
    let Err(Refusal::Bad(why)) = world.post("plan", serde_json::json!({ "yaml": wrong })) else {
        unreachable!()
    };
    assert!(why.lines().filter(|line| line.starts_with("candidate:")).count() >= 2, "{why}");
}

#[test]
fn a_tick_gives_a_sign_of_life() {
    let mut world = World::new(&two());
    world.engine.tick().unwrap();
    let control = world.maps.control();
    assert_eq!(control.daemon.load(), u64::from(std::process::id()));
    assert_eq!(control.heartbeat.load(), world.maps.kernel.jiffies().unwrap());
}

#[test]
fn what_another_program_changed_in_the_maps_is_put_right() {
    let mut world = World::new(&two());
    world.maps.servers[usize::from(world.id("a"))][3].store(0);
    for _ in 0..RESYNC {
        world.engine.tick().unwrap();
    }
    // Its neighbour is known, so nothing of the entry is lost.
    assert_eq!(world.bits("a"), ALL);
}

#[test]
fn the_texts_of_the_test_are_configurations() {
    assert_eq!(config(&[("V", 150, &[("a", 1), ("b", 2)])]), config::parse(FILE, &two()).unwrap());
}

#[test]
fn a_server_that_returns_grows_with_the_daemons_ticks_and_one_that_was_there_does_not() {
    use lb_common::schedule::Load;
    let slow = two().replace("label: V\n", "label: V\n    slow_start: 24s\n    scheduler: least-conn\n");
    let mut world = World::new(&slow);
    let weight = |world: &World, server: &str| {
        Load::read(&world.maps.server_loads[usize::from(world.id(server))]).weight
    };
    let places = |world: &World, server: &str| {
        let table =
            lb_common::maglev::Table::from_values(&world.maps.kernel.schedule(0).unwrap().unwrap()).unwrap();
        table.places().iter().filter(|id| **id == world.id(server)).count()
    };
    assert_eq!((weight(&world, "a"), weight(&world, "b")), (100_000, 100_000), "a start changes no share");
    world.down("a");
    assert_eq!(weight(&world, "a"), 0);
    world.health("a", Verdict::Up, "connected");
    assert_eq!(weight(&world, "a"), 10_000);
    let first = places(&world, "a");
    let mut seen = vec![10_000];
    for _ in 0..23 {
        world.engine.tick().unwrap();
        seen.push(weight(&world, "a"));
    }
    assert!(seen.is_sorted() && seen[12] == 55_000 && seen[23] == 92_500, "{seen:?}");
    assert!(places(&world, "a") > 5 * first, "{first} places at first, {} now", places(&world, "a"));
    world.engine.tick().unwrap();
    assert_eq!((weight(&world, "a"), world.engine.growth.is_growing()), (100_000, false));
    world.state("b", "drain").unwrap();
    world.state("b", "online").unwrap();
    assert_eq!(weight(&world, "b"), 10_000);
    world.restart(&slow);
    assert_eq!(weight(&world, "b"), 100_000, "another daemon knows nothing of it");
}

/// Runs with a file system on `place` that nobody else sees, in a thread of its own.
fn with_mount<T: Send>(place: &std::path::Path, options: &str, work: impl FnOnce() -> T + Send) -> T {
    let mounted = || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).expect("it takes root");
        let no: Option<&str> = None;
        mount(no, "/", no, MsFlags::MS_REC | MsFlags::MS_PRIVATE, no).unwrap();
        mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(mounted).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn remount(place: &std::path::Path, flags: MsFlags) {
    let no: Option<&str> = None;
    mount(no, place, no, MsFlags::MS_REMOUNT | flags, no).unwrap();
}

fn status_problems(world: &mut World) -> Vec<String> {
    let status = world.engine.request(Request::Status).unwrap();
    let problems = status["problems"].as_array().unwrap().iter();
    problems.map(|problem| problem["text"].as_str().unwrap().to_owned()).collect()
}

/// What breaks the place of the state file, and what mends it.
type Damage = (&'static str, fn(&std::path::Path), fn(&std::path::Path));

const DAMAGES: [Damage; 3] = [
    (
        "full",
        |place| {
            let filled = fs::write(place.join("filler"), vec![0; 1 << 20]);
            assert_eq!(filled.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        },
        |place| fs::remove_file(place.join("filler")).unwrap(),
    ),
    ("read-only", |place| remount(place, MsFlags::MS_RDONLY), |place| remount(place, MsFlags::empty())),
    (
        "a directory in the file's place, and one where it would be put aside",
        |place| {
            // The file has to be gone, or nothing else could be in its place.
            let _ = fs::remove_file(place.join("state.json"));
            for name in ["state.json/inside", "state.json.broken/inside"] {
                fs::create_dir_all(place.join(name)).unwrap();
            }
        },
        |place| fs::remove_dir_all(place.join("state.json.broken")).unwrap(),
    ),
];

#[test]
fn a_state_directory_that_takes_nothing_stops_no_start_and_no_drain_and_is_written_when_it_can_be() {
    for (what, damage, mend) in DAMAGES {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("disk");
        fs::create_dir(&place).unwrap();
        let at = place.clone();
        with_mount(&place, "size=256k", move || {
            damage(&at);
            let store = || Store::new(at.join("state.json"), directory.path().join("run/state.json"));
            let maps = Arc::new(maps(FakeKernel::default()));
            let start = |adopted| {
                let memory = Memory::recall(store(), &file(&two()));
                let clock: Clock = Arc::new(|| Timestamp::from_second(1_700_000_000).unwrap());
                let mut engine = Engine::new(Arc::clone(&maps), memory, About::default(), clock, adopted);
                engine.begin().unwrap();
                engine
            };
            let engine = start(false);
            let other = tempfile::tempdir().unwrap();
            let mut world = World { directory: other, maps: Arc::clone(&maps), engine };
            let told = status_problems(&mut world);
            assert!(told.iter().any(|text| text.contains("not durable")), "{what}: {told:?}");

            let answer = world.state("a", "drain").unwrap();
            assert_eq!(answer["durable"], json!(false), "{what}");
            let done = answer["done"].as_str().unwrap();
            assert!(done.contains("V/a drains") && done.contains("not durable"), "{what}: {done}");
            assert_eq!(world.maps.server_info.read(usize::from(world.id("a"))).unwrap().state, 2, "{what}");

            // Another daemon knows it all the same, as long as the machine runs.
            world.engine = start(true);
            assert_eq!(
                world.engine.state.overlay.state(&ServerName::new("V", "a")),
                AdminState::Drain,
                "{what}"
            );

            mend(&at);
            for _ in 0..=2 * 30 {
                world.engine.tick().unwrap();
            }
            let told = status_problems(&mut world);
            assert!(!told.iter().any(|text| text.contains("not durable")), "{what}: {told:?}");
            assert!(!directory.path().join("run/state.json").exists(), "{what}");
            let Loaded::State(state) = store().load() else { panic!("{what}: it is not written") };
            assert_eq!(state.overlay.state(&ServerName::new("V", "a")), AdminState::Drain, "{what}");
            assert_eq!(world.state("a", "online").unwrap()["durable"], json!(true), "{what}");
        });
    }
}

#[test]
fn who_is_drained_or_halted_is_still_so_when_the_state_file_is_lost_under_a_running_data_path() {
    for content in [None, Some("damaged")] {
        let mut world = World::new(&two());
        world.state("a", "drain").unwrap();
        world.state("b", "halt").unwrap();
        let path = world.directory.path().join("state.json");
        match content {
            None => fs::remove_file(&path).unwrap(),
            Some(content) => fs::write(&path, content).unwrap(),
        }
        world.restart(&two());
        let state = |server| world.engine.state.overlay.state(&ServerName::new("V", server));
        assert_eq!((state("a"), state("b")), (AdminState::Drain, AdminState::Halt), "{content:?}");
        let told = status_problems(&mut world);
        assert_eq!(
            told.iter().any(|text| text.contains("damaged") || text.contains("could not be used")),
            content.is_some()
        );
    }
}
