//! The binary itself: exit status, standard error, and reading maps that are really pinned, without a daemon.
//!
//! Needs root: each test has a network and a mount namespace of its own, which end with its thread.
#![expect(clippy::unwrap_used, reason = "a helper fails as its test does")]

use std::{
    io::Read as _,
    net::IpAddr,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use lb_common::{
    address::Address,
    clock::Ticks,
    control::LAYOUT_VERSION,
    forwarding::Forwarding,
    hash::hash3,
    maglev::{Candidate, build, size_for},
    maps::{ServerInfo, ServiceInfo},
    mss::MssClamp,
    schedule::Scheduler,
    server::{Server, ServerState},
    service::Service,
    sticky::{STICKY_WORDS, Stickies, StickyServer},
    table::insert_if_absent,
};
use lb_userspace::{
    config::XdpMode,
    dataplane::{DataPath, Geometry, Maps},
    view::names::label_bytes,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

/// Runs a test in namespaces of its own, with a BPF file system and a pair of veths.
fn in_namespaces(test: impl FnOnce(&Path) + Send + 'static) {
    let directory = tempfile::tempdir().unwrap();
    let bpf = directory.path().to_owned();
    let result = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        for line in [
            "link add lb0 type veth peer name peer0",
            "link set lb0 up",
            "link set peer0 up",
            "address add 192.168.85.10/24 dev lb0",
        ] {
            let done = Command::new("/usr/sbin/ip").args(line.split(' ')).status().unwrap();
            assert!(done.success(), "ip {line}");
        }
        test(&bpf.join("steadfast"));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn command(pin_dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
    command
        .args(line.split_whitespace())
        .env("STEADFAST_PIN_DIR", pin_dir)
        .env("STEADFAST_RUNTIME_DIR", pin_dir.with_file_name("no-daemon-here"));
    command
}

fn steadfast(pin_dir: &Path, line: &str) -> Output {
    command(pin_dir, line).output().unwrap()
}

fn json(pin_dir: &Path, line: &str) -> Value {
    let output = steadfast(pin_dir, line);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {complaint}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

/// One service, two servers, one client with a record of the second.
fn fill(maps: &Maps) {
    let control = maps.control();
    control.hz.store(1000);
    for (word, value) in control.hash_key.iter().zip([1, 2, 3, 4]) {
        word.store(value);
    }
    control.maglev_seed.store(5);
    control.snat.store(Geometry::SMALL.snat().word());
    let hour = Ticks::span_of_millis(3_600_000, 1000);
    let service = Service {
        address: address("192.168.85.150"),
        persistence: hour,
        idle: hour,
        forwarding: Forwarding::Snat,
        by_prefix: false,
        by_port: false,
        is_udp: false,
        scheduler: Scheduler::SourceHash,
        mss_clamp: MssClamp::None,
    };
    for (word, value) in maps.services[0].iter().zip(service.words()) {
        word.store(value);
    }
    let info = ServiceInfo {
        label: label_bytes("Hyperspace"),
        address: service.address.0,
        persistence_ms: 3_600_000,
        idle_ms: 3_600_000,
        since: 1,
        port: 443,
        protocol: 1,
        forwarding: 1,
        listening: 0,
    };
    assert!(maps.service_info.write(0, info));
    let mut candidates = Vec::new();
    for (id, at) in [(0u16, "192.168.85.200"), (1, "192.168.85.201")] {
        let server = Server {
            address: address(at),
            port: 443u16.to_be(),
            endpoint: id,
            service: 0,
            forwarding: Forwarding::Snat,
            arm: 0,
            mac: [2, 0, 0, 0, 0, 1],
            state: ServerState(
                ServerState::PRESENT
                    | ServerState::REACHABLE
                    | ServerState::TAKES_NEW
                    | ServerState::TAKES_KNOWN,
            ),
        };
        for (word, value) in maps.servers[usize::from(id)].iter().zip(server.words()) {
            word.store(value);
        }
        let info = ServerInfo {
            label: label_bytes(&format!("Srv_{id}")),
            address: server.address.0,
            health_since: 1,
            certificate_expires: 0,
            service: 0,
            port: 443,
            weight: 100,
            state: 1,
            health: 1,
            health_reason: [0; 96],
        };
        assert!(maps.server_info.write(usize::from(id), info));
        candidates.push(Candidate { id, address: server.address, port: server.port, weight: 100 });
    }
    let table = build(5, &candidates, size_for(candidates.len()));
    maps.kernel.set_schedule(0, &table.to_values()).unwrap();
    let now = maps.now().unwrap();
    let client = address("10.1.2.3");
    let to = StickyServer { service: 0, port: 0, server: 1, made_at: now, verified: true };
    let words = [client.0[0], client.0[1], to.word()];
    let hash = hash3(&maps.key(), [words[0], words[1], 0]);
    let deadline = now.plus(hour);
    let _inserted = insert_if_absent::<STICKY_WORDS, Stickies, _>(
        &maps.sticky,
        hash,
        &words,
        0,
        deadline,
        now,
        |_, _, _| {},
    );
    control.layout.store(LAYOUT_VERSION);
}

#[test]
fn pinned_maps_are_read_without_a_daemon() {
    in_namespaces(|pins| {
        let (path, _) = DataPath::start(pins, "lb0", XdpMode::Auto, Geometry::SMALL).unwrap();
        fill(&path.maps);
        drop(path);

        let services = json(pins, "vip show --json");
        assert_eq!(
            (&services[0]["service"], services.as_array().map(Vec::len)),
            (&"Hyperspace".into(), Some(1))
        );
        assert_eq!(json(pins, "server show Hyperspace/Srv_1 -j")["sticky_clients"], 1);
        let explained = json(pins, "explain 10.1.2.3 --vip Hyperspace -j");
        assert_eq!((&explained["verdict"], &explained["server"]), (&"sticky".into(), &"Srv_1".into()));
        let record = &json(pins, "sticky lookup 10.1.2.3 -j")[0];
        let expires = record["expires_in"].as_u64().unwrap();
        assert!((3_590..=3_601).contains(&expires), "{record}");
        assert_eq!(json(pins, "map lookup SCHEDULE Hyperspace -j")["size"], 4099);
        assert_eq!(json(pins, "stats -j")["tables"][2]["used"], 1);
        let programs = json(pins, "prog show -j");
        assert_eq!(programs[0]["attached"][0]["interface"], "lb0");

        let text = steadfast(pins, "vip show");
        let warning = String::from_utf8_lossy(&text.stderr).into_owned();
        assert!(text.status.success() && warning.starts_with("daemon is not running"), "{warning}");
        for line in
            ["map dump SERVERS", "prog show", "server show", "sticky show", "flow count", "top --count 1"]
        {
            let output = steadfast(pins, line);
            assert!(output.status.success() && !output.stdout.is_empty(), "{line}");
        }
        let doctor = steadfast(pins, "doctor");
        assert_eq!(doctor.status.code(), Some(1), "the daemon is dead");
        let findings = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(findings.contains("driver mode") && findings.contains("mtu"), "{findings}");
    });
}

#[test]
fn the_exit_status_tells_usage_from_failure() {
    let nowhere = Path::new("/nonexistent/steadfast");
    for (line, status, part) in [
        ("vip show", 1, "cannot open"),
        ("server drain Hyperspace/A", 1, "changes need the daemon: start it with"),
        ("config check /nonexistent/file.yaml", 1, "/nonexistent/file.yaml:1:1: cannot read the file"),
        ("server drain Hyperspace", 2, "write it as VIP/SERVER"),
        ("vip shwo", 2, "Usage"),
        ("--help", 0, ""),
    ] {
        let output = steadfast(nowhere, line);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{line}: {complaint}");
        assert!(complaint.contains(part), "{line}: {complaint}");
        assert_eq!(output.stdout.is_empty(), status != 0, "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    in_namespaces(|pins| {
        let (path, _) = DataPath::start(pins, "lb0", XdpMode::Auto, Geometry::SMALL).unwrap();
        fill(&path.maps);
        path.maps.control().heartbeat.store(u64::MAX / 2);
        let mut child = command(pins, "stats --watch --reasons --count 1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut complaint = String::new();
        child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        assert_eq!((child.wait().unwrap().code(), complaint.as_str()), (Some(0), ""));
    });
}
