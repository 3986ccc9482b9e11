//! The whole daemon in a network namespace, over maps on the heap.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lb_common::server::{ServerState, Servers as _};
use lb_common::service::{EntryKind, find_entry};
use tempfile::TempDir;

use super::detach::detach;
use super::run::{Attach, Attached, Options, run};
use crate::dataplane::fake::{FakeKernel, maps};
use crate::dataplane::{IndexMap, Kernel, Maps};
use crate::net::frames::unsolicited_advertisement;
use crate::net::testing::{
    Ear, Lab, Namespace, add_address, add_cable, ip, remove_link, set_link_up, within,
};
use crate::net::{ANNOUNCE_SCHEDULE, Net};
use crate::paths::Paths;

/// A fake kernel whose jiffies run as the machine's clock does, at 250 Hz.
struct Running(FakeKernel, std::time::Instant);

impl Kernel for Running {
    fn jiffies(&self) -> anyhow::Result<u64> {
        Ok(u64::try_from(self.1.elapsed().as_micros() / 4000)? + 1_000_000)
    }
    fn set_arm(&self, arm: u8, interface: u32) -> anyhow::Result<()> {
        self.0.set_arm(arm, interface)
    }

    fn set_schedule(&self, service: u16, values: &[u64]) -> anyhow::Result<()> {
        self.0.set_schedule(service, values)
    }
    fn schedule(&self, service: u16) -> anyhow::Result<Option<Vec<u64>>> {
        self.0.schedule(service)
    }
    fn reasons(&self) -> anyhow::Result<Vec<u64>> {
        self.0.reasons()
    }
    fn service_traffic(&self, service: u16) -> anyhow::Result<lb_common::maps::Traffic> {
        self.0.service_traffic(service)
    }
    fn server_traffic(&self, server: u16) -> anyhow::Result<lb_common::maps::Traffic> {
        self.0.server_traffic(server)
    }
    fn clear_traffic(&self, of: crate::dataplane::CountersOf) -> anyhow::Result<()> {
        self.0.clear_traffic(of)
    }
}

fn fresh_maps() -> Arc<Maps> {
    let mut maps = maps(FakeKernel::default());
    maps.kernel = Box::new(Running(FakeKernel::default(), std::time::Instant::now()));
    maps.control().layout.store(0);
    maps.control().snat.store(0);
    Arc::new(maps)
}

fn attach(maps: &Arc<Maps>) -> Attach {
    let maps = Arc::clone(maps);
    Box::new(move |interface, _, geometry| {
        assert_eq!((interface, geometry.sources), (&["lb0".to_owned()][..], 1));
        let adopted = maps.control().layout.load() != 0;
        Ok(Attached {
            maps,
            adopted,
            mode: "native".to_owned(),
            notes: Vec::new(),
            watch: Box::new(|| Ok(None)),
        })
    })
}

const CONFIG: &str = "version: 1
node: { interfaces: [lb0], tables: { endpoints: 16 }, snat_ports: 1024-2047 }
virtual_services:
  - label: V
    address: 192.0.2.150
    ports: [443]
    health_check: { interval: 100ms, timeout: 100ms, fall: 2, rise: 1 }
    real_servers: [{ label: a, address: 192.0.2.20 }]
  - { label: R, address: 192.0.2.150, ports: [80], protocol: http, force_https: true }
";

struct Place {
    directory: TempDir,
    options: Options,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { directory.path().join(name) };
    fs::write(at("config.yaml"), CONFIG).unwrap();
    let options = Options {
        config: at("config.yaml"),
        interface: None,
        paths: Paths { pin_dir: at("pins"), runtime_dir: at("run"), state_dir: at("state") },
        confirm_within: None,
    };
    Place { directory, options }
}

async fn addresses() -> Vec<IpAddr> {
    let net = Net::open().unwrap();
    let link = net.link("lb0").await.unwrap();
    net.addresses(link.index).await.unwrap().into_iter().map(|address| address.address).collect()
}

#[test]
fn a_daemon_serves_follows_its_servers_is_killed_adopts_and_is_detached() {
    let lab = Lab::new();
    let place = place();
    let maps = fresh_maps();
    // The server listens, and stops when it is told.
    let (options, paths) = (place.options.clone(), place.options.paths.clone());
    let listener = lab.server.run(async || std::net::TcpListener::bind("192.0.2.20:443").unwrap());
    let (live, again) = (Arc::clone(&maps), Arc::clone(&maps));
    lab.balancer.run(async move || {
        let daemon = tokio::spawn(run(options.clone(), attach(&live)));
        within("the socket", async || paths.socket().exists().then_some(())).await;
        let state = || live.servers.present(0).map(|server| server.state).unwrap_or_default();
        let all = ServerState::REACHABLE | ServerState::TAKES_NEW | ServerState::TAKES_KNOWN;
        assert!(state().has(all), "{:?}", state());
        assert_eq!(live.servers.present(0).unwrap().mac, Lab::SERVER_MAC);
        assert_ne!(live.control().layout.load(), 0);
        assert_eq!(live.control().hz.load(), 250);
        assert!(addresses().await.contains(&ip("192.0.2.150")));
        let find = |port: u16| {
            find_entry(
                &IndexMap(&live.service_index),
                live.control().index(),
                &live.key(),
                ip("192.0.2.150").into(),
                port.to_be(),
                6,
            )
        };
        assert!(find(443).unwrap().is(EntryKind::Service) && find(80).unwrap().is(EntryKind::Local));
        within("the redirect", async || tokio::net::TcpStream::connect("192.0.2.150:80").await.ok()).await;
        within("the health", async || live.server_info.read(0).filter(|info| info.health == 1).map(|_| ()))
            .await;

        // A second daemon is refused, and so is detaching.
        let second = run(options.clone(), attach(&live)).await.unwrap_err().to_string();
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        let refused = detach(&paths, |_| Ok(Vec::new())).await.unwrap_err().to_string();
        assert!(refused.contains("running"), "{refused}");

        drop(listener);
        within("the server's end", async || state().has(ServerState::RESETS).then_some(())).await;

        // Killed: everything stays as it is.
        daemon.abort();
        let _killed = daemon.await;
        assert!(addresses().await.contains(&ip("192.0.2.150")));
        assert!(state().has(ServerState::RESETS));

        // Another one adopts, and nothing flaps.
        let socket = paths.socket();
        fs::remove_file(&socket).unwrap();
        let generation = again.control().generation.load();
        let key = again.key();
        let daemon = tokio::spawn(run(options.clone(), attach(&again)));
        within("the socket", async || socket.exists().then_some(())).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(state().has(ServerState::RESETS | ServerState::REACHABLE));
        assert_eq!((again.control().generation.load(), again.key()), (generation, key));
        daemon.abort();
        let _killed = daemon.await;

        let said = detach(&paths, |_| Ok(vec!["took the program off lb0".to_owned()])).await.unwrap();
        assert!(said.contains(&"removed 192.0.2.150 from lb0".to_owned()), "{said:?}");
        assert!(!addresses().await.contains(&ip("192.0.2.150")));
        let said = detach(&paths, |_| Ok(Vec::new())).await.unwrap();
        assert!(said[0].contains("nothing to do"), "{said:?}");
    });
    drop(place.directory);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_touched() {
    let lab = Lab::new();
    let place = place();
    let never: fn() -> Attach = || Box::new(|_, _, _| unreachable!("nothing is to be attached"));
    let options = place.options.clone();
    let file = options.config.clone();
    lab.balancer.run(async move || {
        let start = async |text: &str| {
            fs::write(&file, text).unwrap();
            run(options.clone(), never()).await.unwrap_err().to_string()
        };
        let wrong =
            start(&CONFIG.replace("address: 192.0.2.20", "address: 192.0.2.300").replace("443", "70000"))
                .await;
        assert!(wrong.lines().count() >= 2, "{wrong}");
        let overlapping = start(&CONFIG.replace("1024-2047", "40000-50000")).await;
        assert!(overlapping.contains("sysctl"), "{overlapping}");
        assert!(overlapping.contains("lb0"), "{overlapping}");
        // It has served nobody, and leaves nothing.
        assert!(!options.paths.runtime_dir.exists() && !options.paths.state_dir.exists());
        assert!(!addresses().await.contains(&ip("192.0.2.150")));
    });
}

/// Asks the redirect of that host, which is an address, for a page; gives the answer in small letters.
fn ask_redirect(host: &str) -> Option<String> {
    let mut stream = std::net::TcpStream::connect(format!("{host}:80")).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    write!(stream, "GET /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.to_lowercase())
}

/// Whether the redirect's address is announced as often as one announcement is sent, each time within a minute.
async fn hears_announcements(ear: Ear) -> bool {
    let announced = unsolicited_advertisement(Lab::BALANCER_MAC, "2001:db8::150".parse().unwrap());
    let hear = move || {
        ANNOUNCE_SCHEDULE
            .iter()
            .all(|_| ear.hears(Duration::from_secs(60), |frame| frame == announced).is_some())
    };
    tokio::task::spawn_blocking(hear).await.unwrap()
}

#[test]
fn an_ipv6_redirect_is_announced_served_and_put_back_after_the_interface_was_down() {
    let lab = Arc::new(Lab::new());
    let place = place();
    let text = format!(
        "{CONFIG}  - {{ label: R6, address: 2001:db8::150, ports: [80], protocol: http, force_https: true }}\n"
    );
    fs::write(&place.options.config, text).unwrap();
    let (options, paths, maps) = (place.options.clone(), place.options.paths.clone(), fresh_maps());
    let there = Arc::clone(&lab);
    lab.balancer.run(async move || {
        let six = ip("2001:db8::150");
        let ear = there.server_ear();
        let daemon = tokio::spawn(run(options, attach(&maps)));
        within("the socket", async || paths.socket().exists().then_some(())).await;
        assert!(addresses().await.contains(&six));
        assert!(hears_announcements(ear).await);
        let asked = async || {
            let there = Arc::clone(&there);
            let ask = move || there.server.run(async || ask_redirect("[2001:db8::150]"));
            tokio::task::spawn_blocking(ask).await.unwrap()
        };
        let answer = within("an answer", asked).await;
        assert!(answer.starts_with("http/1.1 301"), "{answer}");
        assert!(answer.contains("\r\nlocation: https://[2001:db8::150]/a\r\n"), "{answer}");

        // The kernel takes IPv6 addresses away with the link, unlike IPv4 ones.
        let net = Net::open().unwrap();
        set_link_up(&net, "lb0", false).await;
        let ear = there.server_ear();
        set_link_up(&net, "lb0", true).await;
        // Its own address, and the route with it, is not the daemon's to put back.
        let index = net.link("lb0").await.unwrap().index;
        add_address(&net, index, ip(Lab::BALANCER_V6), 64).await;
        within("the address again", async || addresses().await.contains(&six).then_some(())).await;
        assert!(hears_announcements(ear).await);
        let answer = within("an answer again", asked).await;
        assert!(answer.starts_with("http/1.1 301"), "{answer}");
        daemon.abort();
        let _killed = daemon.await;

        let said = detach(&paths, |_| Ok(Vec::new())).await.unwrap();
        assert!(said.contains(&"removed 2001:db8::150 from lb0".to_owned()), "{said:?}");
        assert!(!addresses().await.contains(&six));
    });
}

/// Attaches to whatever is named.
fn attach_to_any(maps: &Arc<Maps>) -> Attach {
    let maps = Arc::clone(maps);
    Box::new(move |_, _, _| {
        let watch: crate::daemon::run::Watch = Box::new(|| Ok(None));
        Ok(Attached { maps, adopted: false, mode: "native".to_owned(), notes: Vec::new(), watch })
    })
}

/// What the daemon says of itself; nothing while it cannot be asked.
async fn status(paths: &Paths) -> Option<serde_json::Value> {
    let daemon = crate::cli::client::Daemon::at(paths.socket());
    tokio::task::spawn_blocking(move || daemon.get("/v1/status").ok()).await.unwrap()
}

#[test]
fn an_interface_and_an_address_that_come_late_are_waited_for_and_whoever_asks_is_told() {
    let place = place();
    fs::write(&place.options.config, CONFIG.replace("[lb0]", "[late0]")).unwrap();
    let (options, paths, maps) = (place.options.clone(), place.options.paths.clone(), fresh_maps());
    Namespace::new().run(async move || {
        let net = Net::open().unwrap();
        let daemon = tokio::spawn(run(options, attach_to_any(&maps)));
        let waits_for = async |what: &str| {
            let waiting = status(&paths).await?["waiting_for"].as_str()?.to_owned();
            waiting.contains(what).then_some(waiting)
        };
        let waiting = within("it waits for the interface", async || waits_for("late0").await).await;
        assert!(waiting.contains("there are lo"), "{waiting}");
        let client = crate::cli::client::Daemon::at(paths.socket());
        let body = serde_json::json!({ "service": "V", "label": "a", "state": "drain" });
        let refused = tokio::task::spawn_blocking(move || client.post("/v1/servers/state", &body));
        let refused = refused.await.unwrap().unwrap_err().to_string();
        assert!(refused.contains("waits for the interface late0"), "{refused}");
        assert_eq!(maps.control().layout.load(), 0);

        add_cable(&net, "late0", "peer0").await;
        within("it waits for the address", async || waits_for("no IPv4 address").await).await;
        add_address(&net, net.link("late0").await.unwrap().index, ip("192.0.2.10"), 24).await;
        within("it serves", async || status(&paths).await?["health_checks"].is_array().then_some(())).await;
        assert_ne!(maps.control().layout.load(), 0);
        assert!(!daemon.is_finished());
        daemon.abort();
    });
}

#[test]
fn an_interface_that_goes_away_ends_nothing_and_is_used_again_when_one_of_its_name_comes() {
    let lab = Lab::new();
    let place = place();
    fs::write(&place.options.config, CONFIG.replace("[lb0]", "[lb0, side0]")).unwrap();
    let (options, paths, maps) = (place.options.clone(), place.options.paths.clone(), fresh_maps());
    lab.balancer.run(async move || {
        let net = Net::open().unwrap();
        add_cable(&net, "side0", "side1").await;
        let daemon = tokio::spawn(run(options, attach_to_any(&maps)));
        within("it serves", async || status(&paths).await.map(drop)).await;
        let index = |number: usize| {
            u32::try_from(maps.control().arms[number].interface.load() & 0xffff_ffff).unwrap()
        };
        let first = net.link("lb0").await.unwrap().index;
        let before = net.link("side0").await.unwrap().index;
        assert_eq!((index(0), index(1)), (first, before));

        let problem = async || status(&paths).await?["problems"].as_array()?.first().cloned();
        remove_link(&net, "side0").await;
        let told = within("it says so", problem).await;
        assert_eq!((told["kind"].as_str(), told["subject"].as_str()), (Some("interface"), Some("side0")));
        assert!(addresses().await.contains(&ip("192.0.2.150")));

        // Another one of the name, with another number.
        add_cable(&net, "other0", "other1").await;
        add_cable(&net, "side0", "side1").await;
        let anew = net.link("side0").await.unwrap().index;
        assert_ne!(anew, before);
        within("it is used again", async || (index(1) == anew).then_some(())).await;
        within("nothing is wrong", async || problem().await.is_none().then_some(())).await;
        assert_eq!(index(0), first);
        assert!(!daemon.is_finished());
        daemon.abort();
    });
}

#[test]
fn another_machine_that_answers_for_a_service_is_named_with_its_mac_until_it_stops() {
    served_beside_another("take", true);
}

#[test]
fn an_address_that_is_to_wait_is_taken_when_the_other_machine_has_gone() {
    served_beside_another("wait", false);
}

fn served_beside_another(option: &str, is_taken: bool) {
    let lab = Arc::new(Lab::new());
    let place = place();
    let text =
        CONFIG.replace("interfaces: [lb0],", &format!("interfaces: [lb0], address_conflict: {option},"));
    fs::write(&place.options.config, text).unwrap();
    let (options, paths, maps) = (place.options.clone(), place.options.paths.clone(), fresh_maps());
    let there = Arc::clone(&lab);
    lab.server.run(async || {
        let net = Net::open().unwrap();
        add_address(&net, net.link("srv0").await.unwrap().index, ip("192.0.2.150"), 32).await;
    });
    lab.balancer.run(async move || {
        let daemon = tokio::spawn(run(options, attach_to_any(&maps)));
        let problem = async || status(&paths).await?["problems"].as_array()?.first().cloned();
        let told = within("it says so", problem).await;
        assert_eq!(
            (told["kind"].as_str(), told["subject"].as_str()),
            (Some("conflict"), Some("192.0.2.150"))
        );
        let text = told["text"].as_str().unwrap();
        assert!(text.contains("is also at 02:00:00:00:00:0b") && text.contains("lb0"), "{text}");
        assert_eq!(addresses().await.contains(&ip("192.0.2.150")), is_taken);
        assert_ne!(maps.control().layout.load(), 0);

        let switch_off = move || {
            there.server.run(async || {
                let net = Net::open().unwrap();
                let index = net.link("srv0").await.unwrap().index;
                net.remove_address(index, ip("192.0.2.150")).await.unwrap();
            });
        };
        tokio::task::spawn_blocking(switch_off).await.unwrap();
        let is_clean = async || status(&paths).await?["problems"].as_array()?.is_empty().then_some(());
        within("it has gone", is_clean).await;
        let is_there = async || addresses().await.contains(&ip("192.0.2.150")).then_some(());
        within("the address", is_there).await;
        daemon.abort();
    });
}
