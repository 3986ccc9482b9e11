//! The whole daemon in a network namespace, over maps on the heap.

use std::fs;
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
use crate::net::Net;
use crate::net::testing::{Lab, ip, within};
use crate::paths::Paths;

/// A fake kernel whose jiffies run as the machine's clock does, at 250 Hz.
struct Running(FakeKernel, std::time::Instant);

impl Kernel for Running {
    fn jiffies(&self) -> anyhow::Result<u64> {
        Ok(u64::try_from(self.1.elapsed().as_micros() / 4000)? + 1_000_000)
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
        assert_eq!((interface, geometry.sources), ("lb0", 1));
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
            let generation = live.control().generation.load();
            find_entry(
                &IndexMap(&live.service_index),
                generation,
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
        let refused = detach(&paths, || Ok(Vec::new())).await.unwrap_err().to_string();
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

        let said = detach(&paths, || Ok(vec!["took the program off lb0".to_owned()])).await.unwrap();
        assert!(said.contains(&"removed 192.0.2.150 from lb0".to_owned()), "{said:?}");
        assert!(!addresses().await.contains(&ip("192.0.2.150")));
        let said = detach(&paths, || Ok(Vec::new())).await.unwrap();
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
        let nowhere = start(&CONFIG.replace("[lb0]", "[eth7]")).await;
        assert!(nowhere.contains("eth7"), "{nowhere}");
        assert!(!addresses().await.contains(&ip("192.0.2.150")));
    });
}
