//! The checker under paused time with servers made of values, and once with real ones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, sleep, timeout};

use super::plan::DuplicateTarget;
use super::probe::ProbeResult;
use super::spec::{ProbeKind, ProbeSpec, Rhythm, TargetSpec};
use super::state::{Outcome, State, Verdict};
use super::{Checker, Environment, HealthEvent, HealthNews};

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Fine,
    Refusing,
    Silent,
    /// Answers well, but only after this time.
    Slow(Duration),
    /// Fails, but that is noticed only after this time.
    Late(Duration),
    Panicking,
}

/// Servers as a table, and what was asked of them.
#[derive(Debug, Default)]
struct World {
    behaviour: BTreeMap<u16, Behaviour>,
    probes: Vec<(u16, Instant)>,
    under_way: BTreeMap<u16, u32>,
    most_at_once: u32,
}

#[derive(Debug, Clone, Default)]
struct Servers(Arc<Mutex<World>>);

impl Servers {
    fn become_(&self, port: u16, behaviour: Behaviour) {
        self.0.lock().unwrap().behaviour.insert(port, behaviour);
    }

    fn probes_of(&self, port: u16) -> Vec<Instant> {
        self.0.lock().unwrap().probes.iter().filter(|(p, _)| *p == port).map(|(_, at)| *at).collect()
    }

    fn begin(&self, port: u16) -> Behaviour {
        let mut world = self.0.lock().unwrap();
        world.probes.push((port, Instant::now()));
        let count = world.under_way.entry(port).or_default();
        *count += 1;
        world.most_at_once = world.most_at_once.max(world.under_way[&port]);
        world.behaviour.get(&port).copied().unwrap_or(Behaviour::Fine)
    }

    async fn answer(self, spec: ProbeSpec, target: SocketAddr) -> ProbeResult {
        let behaviour = self.begin(target.port());
        let outcome = match behaviour {
            Behaviour::Fine => Outcome::Ok,
            Behaviour::Refusing => Outcome::Failed("connection refused".to_owned()),
            Behaviour::Silent => {
                sleep(spec.timeout).await;
                Outcome::Failed("timed out".to_owned())
            }
            Behaviour::Slow(time) => {
                sleep(time).await;
                Outcome::Ok
            }
            Behaviour::Late(time) => {
                sleep(time).await;
                Outcome::Failed("timed out".to_owned())
            }
            Behaviour::Panicking => panic!("a probe that breaks on purpose"),
        };
        *self.0.lock().unwrap().under_way.entry(target.port()).or_default() -= 1;
        ProbeResult { outcome, took: Duration::ZERO, certificate_expires: None, note: None }
    }

    fn environment(&self, seed: u64) -> Environment {
        let servers = self.clone();
        let begun = Instant::now();
        Environment {
            seed,
            clock: Arc::new(move || Timestamp::UNIX_EPOCH + begun.elapsed()),
            prober: Arc::new(move |spec, target| Box::pin(servers.clone().answer(spec, target))),
        }
    }
}

fn target(id: u32, port: u16) -> TargetSpec {
    TargetSpec {
        id,
        address: ([127, 0, 0, 1], port).into(),
        probe: ProbeSpec::new(ProbeKind::Tcp, TIMEOUT, None).unwrap(),
        rhythm: Rhythm::new(INTERVAL, 3, 2).unwrap(),
    }
}

fn checker(servers: &Servers, seed: u64) -> (Checker, UnboundedReceiver<HealthNews>) {
    knowing(servers, seed, &[])
}

fn knowing(
    servers: &Servers,
    seed: u64,
    known: &[(u32, Verdict)],
) -> (Checker, UnboundedReceiver<HealthNews>) {
    let (sender, receiver) = unbounded_channel();
    (Checker::new(servers.environment(seed), known.iter().copied().collect(), sender), receiver)
}

async fn changed(events: &mut UnboundedReceiver<HealthNews>) -> HealthEvent {
    loop {
        let news = timeout(Duration::from_secs(60), events.recv()).await.expect("no event").unwrap();
        if let HealthNews::Changed(event) = news {
            return event;
        }
    }
}

async fn next(events: &mut UnboundedReceiver<HealthNews>) -> (u32, Verdict) {
    let event = changed(events).await;
    (event.target_id, event.health)
}

fn drained(events: &mut UnboundedReceiver<HealthNews>) -> Vec<(u32, Verdict)> {
    std::iter::from_fn(|| events.try_recv().ok())
        .filter_map(|news| match news {
            HealthNews::Changed(event) => Some((event.target_id, event.health)),
            HealthNews::Missed { .. } => None,
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_dead_server_is_down_within_fall_intervals_and_one_timeout() {
    for seed in 0..150 {
        for death in [Behaviour::Refusing, Behaviour::Silent] {
            let servers = Servers::default();
            let (mut checker, mut events) = checker(&servers, seed);
            checker.set_targets(vec![target(1, 1)]).unwrap();
            assert_eq!(next(&mut events).await, (1, Verdict::Up));
            sleep(Duration::from_millis(5_000 + seed * 13)).await;
            // The worst moment for half of them: just after a good probe.
            if seed % 2 == 0 {
                let seen = servers.probes_of(1).len();
                while servers.probes_of(1).len() == seen {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            servers.become_(1, death);
            let died = Instant::now();
            assert_eq!(next(&mut events).await, (1, Verdict::Down));
            let took = died.elapsed();
            assert!(took <= 3 * INTERVAL + TIMEOUT, "seed {seed}, {death:?}: {took:?}");
            assert!(took >= 2 * INTERVAL * 9 / 10, "seed {seed}, {death:?}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_dead_from_the_start_is_down_as_soon_and_one_alive_up_within_an_interval() {
    let servers = Servers::default();
    servers.become_(2, Behaviour::Silent);
    let (mut checker, mut events) = checker(&servers, 5);
    checker.set_targets(vec![target(1, 1), target(2, 2)]).unwrap();
    let begun = Instant::now();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    assert!(begun.elapsed() <= INTERVAL);
    assert_eq!(next(&mut events).await, (2, Verdict::Down));
    assert!(begun.elapsed() <= 3 * INTERVAL + TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_is_up_after_rise_successes() {
    let servers = Servers::default();
    servers.become_(1, Behaviour::Refusing);
    let (mut checker, mut events) = checker(&servers, 1);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Down));
    servers.become_(1, Behaviour::Fine);
    let (back, seen) = (Instant::now(), servers.probes_of(1).len());
    let event = changed(&mut events).await;
    assert_eq!((event.health, event.reason.as_str()), (Verdict::Up, "2 probes in a row succeeded"));
    assert_eq!(servers.probes_of(1).len() - seen, 2);
    assert!(back.elapsed() <= 2 * INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn probes_of_one_server_never_overlap_and_keep_their_interval() {
    let servers = Servers::default();
    servers.become_(1, Behaviour::Slow(Duration::from_millis(1500)));
    servers.become_(2, Behaviour::Slow(Duration::from_secs(5)));
    let (mut checker, _events) = checker(&servers, 3);
    checker.set_targets(vec![target(1, 1), target(2, 2)]).unwrap();
    sleep(Duration::from_secs(200)).await;
    assert_eq!(servers.0.lock().unwrap().most_at_once, 1);
    let gaps = |port| servers.probes_of(port).windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>();
    assert!(gaps(1).iter().all(|gap| (INTERVAL * 9 / 10..=INTERVAL).contains(gap)), "{:?}", gaps(1));
    assert!(gaps(2).iter().all(|gap| *gap < Duration::from_millis(5010)), "{:?}", gaps(2));
    assert!(gaps(1).len() > 95 && gaps(2).len() > 35);
}

#[tokio::test(start_paused = true)]
async fn the_first_probes_of_many_servers_are_soon_and_spread() {
    let servers = Servers::default();
    let (mut checker, _events) = checker(&servers, 9);
    checker.set_targets((0..200).map(|id| target(u32::from(id), id + 1)).collect()).unwrap();
    let begun = Instant::now();
    sleep(Duration::from_secs(1)).await;
    let mut quarters = [0; 4];
    for port in 1..=200 {
        let first = servers.probes_of(port)[0] - begun;
        quarters[usize::try_from(first.as_millis() / 251).unwrap()] += 1;
    }
    assert!(quarters.iter().all(|count| (25..=75).contains(count)), "{quarters:?}");
}

#[tokio::test(start_paused = true)]
async fn known_health_is_adopted_without_an_event_once() {
    let servers = Servers::default();
    let (mut checker, mut events) = knowing(&servers, 1, &[(1, Verdict::Up), (2, Verdict::Down)]);
    checker.set_targets(vec![target(1, 1), target(2, 2), target(3, 3)]).unwrap();
    let verdicts = |checker: &Checker| -> Vec<_> {
        checker.table().all().iter().map(|view| view.state.verdict()).collect()
    };
    assert_eq!(verdicts(&checker), [Some(Verdict::Up), Some(Verdict::Down), None]);
    sleep(Duration::from_secs(10)).await;
    let mut told = drained(&mut events);
    told.sort_by_key(|event| event.0);
    assert_eq!(told, [(2, Verdict::Up), (3, Verdict::Up)]);

    checker.set_targets(vec![target(1, 1)]).unwrap();
    checker.set_targets(vec![target(1, 1), target(2, 2)]).unwrap();
    assert_eq!(verdicts(&checker), [Some(Verdict::Up), None]);
}

#[tokio::test(start_paused = true)]
async fn unchanged_targets_are_not_disturbed() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 4);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    sleep(INTERVAL).await;
    let before = servers.probes_of(1).len();
    for other in 2..100 {
        let changes = checker.set_targets(vec![target(1, 1), target(2, other)]).unwrap();
        assert_eq!(changes.unchanged, [1]);
        sleep(Duration::from_millis(200)).await;
    }
    let probes = servers.probes_of(1);
    assert!(probes.len() - before >= 9);
    assert!(probes.windows(2).all(|w| (INTERVAL * 9 / 10..=INTERVAL).contains(&(w[1] - w[0]))));
    assert_eq!(drained(&mut events).iter().filter(|event| event.0 == 1).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_way_to_check_keeps_health_and_place_in_time() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 6);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    servers.become_(1, Behaviour::Refusing);
    // Reconfigured more often than it is probed: a fresh start each time would hardly ever notice.
    for fall in (2..=3).cycle().take(230) {
        let rhythm = Rhythm::new(INTERVAL, fall, 2).unwrap();
        let changes = checker.set_targets(vec![TargetSpec { rhythm, ..target(1, 1) }]).unwrap();
        assert_eq!((changes.replaced.len(), changes.unchanged.len()), (1, 0));
        sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(drained(&mut events), [(1, Verdict::Down)]);
    let probes = servers.probes_of(1);
    assert!(probes.windows(2).all(|w| w[1] - w[0] <= INTERVAL), "{probes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_cut_off_by_a_change_is_sent_again_at_once() {
    let servers = Servers::default();
    servers.become_(1, Behaviour::Silent);
    let (mut checker, _events) = checker(&servers, 6);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    while servers.probes_of(1).is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(TIMEOUT / 2).await;
    let rhythm = Rhythm::new(INTERVAL, 5, 2).unwrap();
    checker.set_targets(vec![TargetSpec { rhythm, ..target(1, 1) }]).unwrap();
    sleep(Duration::from_millis(5)).await;
    assert_eq!(servers.probes_of(1).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn another_address_is_another_server() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 1);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    checker.set_targets(vec![target(1, 2)]).unwrap();
    assert_eq!(checker.table().get(1).unwrap().state, State::FRESH);
    let probes = servers.probes_of(1).len();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    sleep(4 * INTERVAL).await;
    assert_eq!(servers.probes_of(1).len(), probes);
}

#[tokio::test(start_paused = true)]
async fn a_removed_target_is_forgotten_and_silent() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 1);
    checker.set_targets(vec![target(1, 1), target(2, 2)]).unwrap();
    sleep(2 * INTERVAL).await;
    drained(&mut events);
    servers.become_(1, Behaviour::Refusing);
    checker.set_targets(vec![target(2, 2)]).unwrap();
    let probes = servers.probes_of(1).len();
    sleep(10 * INTERVAL).await;
    assert_eq!(servers.probes_of(1).len(), probes);
    assert_eq!(drained(&mut events), []);
    assert_eq!(checker.table().get(1), None);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_checker_ends_probes_and_events() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 1);
    let table = checker.table();
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    drop(checker);
    assert_eq!(timeout(INTERVAL, events.recv()).await, Ok(None));
    let probes = servers.probes_of(1).len();
    sleep(10 * INTERVAL).await;
    assert_eq!(servers.probes_of(1).len(), probes);
    assert_eq!(table.all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unchecked_target_is_up_at_once_and_never_probed() {
    let unchecked =
        || TargetSpec { probe: ProbeSpec::new(ProbeKind::None, TIMEOUT, None).unwrap(), ..target(1, 1) };
    let servers = Servers::default();
    let (mut fresh, mut events) = checker(&servers, 1);
    fresh.set_targets(vec![unchecked()]).unwrap();
    assert_eq!(drained(&mut events), [(1, Verdict::Up)]);
    sleep(10 * INTERVAL).await;
    assert!(servers.probes_of(1).is_empty());

    // One that was found dead, and is not to be checked any more.
    servers.become_(1, Behaviour::Refusing);
    let (mut changed, mut events) = checker(&servers, 1);
    changed.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Down));
    changed.set_targets(vec![unchecked()]).unwrap();
    sleep(10 * INTERVAL).await;
    assert_eq!(drained(&mut events), [(1, Verdict::Up)]);

    let (mut known, mut events) = knowing(&servers, 1, &[(1, Verdict::Up)]);
    known.set_targets(vec![unchecked()]).unwrap();
    assert_eq!(drained(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn a_number_used_twice_changes_nothing() {
    let servers = Servers::default();
    let (mut checker, _events) = checker(&servers, 1);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(checker.set_targets(vec![target(2, 2), target(2, 3)]), Err(DuplicateTarget(2)));
    assert_eq!(checker.table().all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_says_nothing_and_watching_goes_on() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 1);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    servers.become_(1, Behaviour::Panicking);
    sleep(20 * INTERVAL).await;
    assert_eq!(drained(&mut events), []);
    servers.become_(1, Behaviour::Refusing);
    assert_eq!(next(&mut events).await, (1, Verdict::Down));
}

#[tokio::test(start_paused = true)]
async fn what_comes_long_after_its_timeout_says_nothing() {
    // The process was stopped for thirty seconds: the timer went off, or the server had closed meanwhile.
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 1);
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    servers.become_(1, Behaviour::Late(Duration::from_secs(30)));
    sleep(Duration::from_secs(300)).await;
    assert_eq!(drained(&mut events), []);
    let last = checker.table().get(1).unwrap().last.unwrap().outcome;
    assert!(matches!(&last, Outcome::NoVerdict(why) if why.contains("stopped or starved")), "{last:?}");
    // What a busy machine adds is in the bargain.
    servers.become_(1, Behaviour::Late(TIMEOUT + TIMEOUT / 2));
    assert_eq!(next(&mut events).await, (1, Verdict::Down));
}

#[tokio::test(start_paused = true)]
async fn the_table_tells_the_last_probe_and_the_count() {
    let servers = Servers::default();
    let (mut checker, mut events) = checker(&servers, 1);
    let table = checker.table();
    checker.set_targets(vec![target(1, 1)]).unwrap();
    assert_eq!(table.get(1).unwrap().last, None);
    let up = changed(&mut events).await;
    servers.become_(1, Behaviour::Refusing);
    sleep(INTERVAL).await;
    let view = table.get(1).unwrap();
    assert_eq!((view.state, view.since), (State::Up { failures: 1 }, Some(up.at)));
    let last = view.last.unwrap();
    assert_eq!(last.outcome, Outcome::Failed("connection refused".to_owned()));
    assert!(last.at > up.at);
}

#[tokio::test]
async fn a_real_listener_that_closes_is_down_and_up_again_when_it_returns() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let interval = Duration::from_millis(200);
    let spec = TargetSpec {
        address,
        probe: ProbeSpec::new(ProbeKind::Tcp, Duration::from_secs(30), None).unwrap(),
        rhythm: Rhythm::new(interval, 3, 2).unwrap(),
        ..target(1, 1)
    };
    let (sender, mut events) = unbounded_channel();
    let mut checker = Checker::new(Environment::real(1), BTreeMap::new(), sender);
    checker.set_targets(vec![spec]).unwrap();
    let accepted = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&accepted);
    let server = tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
    while accepted.load(Ordering::Relaxed) < 2 {
        sleep(interval).await;
    }

    server.abort();
    let _ = server.await;
    let event = changed(&mut events).await;
    assert_eq!((event.health, event.reason.as_str()), (Verdict::Down, "connection refused"));

    let _listener = TcpListener::bind(address).await.unwrap();
    assert_eq!(next(&mut events).await, (1, Verdict::Up));
}
