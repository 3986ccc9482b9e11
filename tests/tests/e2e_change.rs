//! Changes at run time: who moves, who was said to move, and what a bad configuration does not touch.
#![cfg(test)]

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tests::{
    e2e::{
        Homes, ServerLine, Site, Talkers, Turn, Wanted,
        crowd::{clients_of, moved, spread},
        homes,
        records::{self, Plan},
        site::said,
        until,
    },
    lab::client_address,
};

const PATIENCE: Duration = Duration::from_secs(60);
const SECOND: &str = "Hyperspace/Hyperspace_Srv_2";

/// The part of the clients that are elsewhere in `after`, in percent.
fn percent_moved(before: &Homes, after: &Homes) -> f64 {
    assert_eq!(before.len(), after.len());
    let count = |number: usize| f64::from(u32::try_from(number).unwrap());
    count(moved(before, after).len()) / count(before.len()) * 100.0
}

fn plan(site: &Site, args: &[&str]) -> Plan {
    Plan::of(&records::ask::<Value>(site, args).unwrap()).unwrap()
}

#[test]
fn a_server_added_by_command_moves_nobody_and_takes_its_share_of_the_unknown() {
    let mut site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let known = homes(&site, 0..300, Site::HYPERSPACE).unwrap();
    let sample = 5000..5150;
    let picked: Homes = sample
        .clone()
        .map(|number| {
            let client = client_address(number);
            (client, records::predicted(&site, client, "Hyperspace").unwrap())
        })
        .collect();
    let index = site.add_server("Hyperspace_Srv_4", 203).unwrap();
    site.start_nginx(index).unwrap();
    let add = ["server", "add", "Hyperspace/Hyperspace_Srv_4", "--address", "192.168.85.203"];
    let dry: Vec<&str> = add.into_iter().chain(["--dry-run"]).collect();
    let planned = plan(&site, &dry);
    assert!(planned.moved.is_empty(), "{:?}", planned.moved);
    assert!((20.0..30.0).contains(&planned.percent("Hyperspace")), "{planned:?}");
    assert!(planned.percent("MyChart") == 0.0, "{planned:?}");
    let shown: Vec<Value> = records::ask(&site, &["server", "show", "Hyperspace"]).unwrap();
    assert_eq!(shown.len(), 3, "a dry run adds nothing");

    site.done(&add).unwrap();
    site.wait_until_reachable().unwrap();
    assert_eq!(moved(&known, &homes(&site, 0..300, Site::HYPERSPACE).unwrap()), []);
    let landed = homes(&site, sample, Site::HYPERSPACE).unwrap();
    let measured = percent_moved(&picked, &landed);
    println!(
        "of 300 known clients none moved; unknown picks changed: planned {:.1} %, measured {measured:.1} % of 150",
        planned.percent("Hyperspace")
    );
    // Four standard deviations of a sample of 150.
    assert!((measured - planned.percent("Hyperspace")).abs() <= 14.2);
    // Maglev hashing is not quite consistent: a few places change hands between the others (Eisenbud et al., figure 12). They are what is
    // planned beyond the new server's quarter; of them, too, four standard deviations.
    let elsewhere =
        moved(&picked, &landed).into_iter().filter(|(_, _, to)| *to != "Hyperspace_Srv_4").count();
    let expected = (planned.percent("Hyperspace") - 24.0).max(1.0) / 100.0 * 150.0;
    assert!(
        elsewhere as f64 <= 4.0f64.mul_add(expected.sqrt(), expected),
        "{elsewhere} of 150 unknown clients go to another of the old servers, and {expected:.1} were expected"
    );
}

#[test]
fn a_plan_names_the_share_of_unknown_clients_that_then_go_elsewhere() {
    // Without records, every connection asks the scheduler: the sample is of real connections before and after.
    let mut wanted =
        Wanted { mychart_more: "    persistence: { mode: none }\n".to_owned(), ..Wanted::default() };
    let mut site = Site::plain(Turn::shared(), &wanted).unwrap();
    let known = homes(&site, 0..300, Site::HYPERSPACE).unwrap();
    let before = homes(&site, 0..2000, Site::MYCHART).unwrap();
    for (label, octet) in [("Hyperspace_Srv_4", 203), ("MyChart_Srv_3", 212)] {
        let index = site.add_server(label, octet).unwrap();
        site.start_nginx(index).unwrap();
    }
    wanted.hyperspace.push(ServerLine::new("Hyperspace_Srv_4", 203, 100));
    wanted.mychart.push(ServerLine::new("MyChart_Srv_3", 212, 100));
    let file = candidate(&site, "more.yaml", wanted.yaml().as_bytes());
    let planned = plan(&site, &["config", "plan", &file]);
    assert!(planned.moved.is_empty(), "{:?}", planned.moved);
    assert_eq!(moved(&before, &homes(&site, 0..2000, Site::MYCHART).unwrap()), [], "a plan changes nothing");
    site.done(&["config", "apply", &file]).unwrap();
    site.wait_until_reachable().unwrap();
    assert_eq!(moved(&known, &homes(&site, 0..300, Site::HYPERSPACE).unwrap()), []);
    let after = homes(&site, 0..2000, Site::MYCHART).unwrap();
    let measured = percent_moved(&before, &after);
    println!(
        "MyChart: planned {:.1} %, measured {measured:.1} % of 2000 clients; Hyperspace: planned {:.1} %, none of 300 \
         known clients moved",
        planned.percent("MyChart"),
        planned.percent("Hyperspace")
    );
    // Four standard deviations of a sample of 2000.
    assert!((measured - planned.percent("MyChart")).abs() <= 4.2, "{measured} {planned:?}");
    assert!((20.0..30.0).contains(&planned.percent("Hyperspace")), "{planned:?}");
}

/// No unknown client, of so many from a number on, lands on the drained server.
fn assert_closed_to_unknown(site: &Site, first: usize, when: &str) {
    assert_eq!(records::server(site, SECOND).unwrap().state, "drain", "{when}");
    let unknown = homes(site, first..first + 60, Site::HYPERSPACE).unwrap();
    assert_eq!(clients_of(&unknown, "Hyperspace_Srv_2").count(), 0, "{when}: {:?}", spread(&unknown));
}

#[test]
fn a_drained_server_keeps_its_clients_gets_no_others_and_stays_drained() {
    let mut site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let talkers = Talkers::start(&site, 0..40, Site::HYPERSPACE).unwrap();
    let known = homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    assert_eq!(moved(&talkers.homes, &known), []);
    site.done(&["server", "drain", SECOND]).unwrap();
    assert_eq!(moved(&known, &homes(&site, 0..150, Site::HYPERSPACE).unwrap()), []);
    assert_closed_to_unknown(&site, 1000, "drained");

    site.kill_daemon(Signal::SIGTERM).unwrap();
    site.start_daemon(&[]).unwrap();
    assert_closed_to_unknown(&site, 1100, "after a restart");
    site.kill_daemon(Signal::SIGKILL).unwrap();
    site.start_daemon(&[]).unwrap();
    assert_closed_to_unknown(&site, 1200, "after a crash");
    let config = site.config_path();
    site.done(&["config", "apply", &config.display().to_string()]).unwrap();
    assert_closed_to_unknown(&site, 1300, "after the same file was applied");
    let pid = site.daemon_pid().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_closed_to_unknown(&site, 1400, "after SIGHUP");
    assert_eq!(site.daemon_pid(), Some(pid));
    assert_eq!(moved(&known, &homes(&site, 0..150, Site::HYPERSPACE).unwrap()), []);

    let talked = talkers.stop().unwrap();
    println!(
        "{} requests on 40 open connections over a drain, a restart, a crash, an apply and a SIGHUP, the slowest {:?}; \
         broken: {:?}",
        talked.exchanges, talked.slowest, talked.broken
    );
    assert_eq!(talked.broken, Vec::<String>::new());
    site.done(&["server", "online", SECOND]).unwrap();
    let unknown = homes(&site, 1500..1600, Site::HYPERSPACE).unwrap();
    assert!(clients_of(&unknown, "Hyperspace_Srv_2").count() > 0, "{:?}", spread(&unknown));
}

#[test]
fn a_removed_server_finishes_its_connections_and_its_clients_go_elsewhere() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let talkers = Talkers::start(&site, 0..40, Site::HYPERSPACE).unwrap();
    let known = homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    let planned = plan(&site, &["server", "remove", SECOND, "--dry-run"]);
    let said = site.done(&["server", "remove", SECOND]).unwrap();
    println!("{said}");
    assert!(said.contains("is removed as soon as its"), "{said}");
    assert!(!planned.moved.is_empty());
    let after = homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    assert_eq!(clients_of(&after, "Hyperspace_Srv_2").count(), 0);
    for (client, from, _) in moved(&known, &after) {
        assert_eq!(from, "Hyperspace_Srv_2", "{client}");
    }
    std::thread::sleep(Duration::from_secs(2));
    let talked = talkers.stop().unwrap();
    assert_eq!(talked.broken, Vec::<String>::new());
    drop(talked);
    // Its row goes when the closed connections' last segments can no longer come.
    until("the removed server has no connection", PATIENCE, || {
        Ok((records::server(&site, SECOND)?.connections == 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_halted_server_loses_its_connections_and_clients_at_once_and_others_feel_nothing() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let talkers = Talkers::start(&site, 0..60, Site::HYPERSPACE).unwrap();
    let known = homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    let of_second = clients_of(&talkers.homes, "Hyperspace_Srv_2").count();
    assert!(of_second > 0);
    let planned = records::ask::<Value>(&site, &["server", "halt", SECOND, "--dry-run"]).unwrap();
    let planned = Plan::of(&planned).unwrap();
    site.done(&["server", "halt", SECOND]).unwrap();
    let after = homes(&site, 0..150, Site::HYPERSPACE).unwrap();
    assert_eq!(clients_of(&after, "Hyperspace_Srv_2").count(), 0);
    for (client, from, to) in moved(&known, &after) {
        assert_eq!(from, "Hyperspace_Srv_2", "{client} moved to {to}");
    }
    assert_eq!(moved(&known, &after).len(), clients_of(&known, "Hyperspace_Srv_2").count());
    assert_eq!(planned.moved.len().min(100), moved(&known, &after).len().min(100));
    let talked = talkers.stop().unwrap();
    assert_eq!(talked.broken.len(), of_second, "{:?}", talked.broken);
    for broken in &talked.broken {
        assert!(broken.starts_with("Hyperspace_Srv_2: ") && broken.contains("reset"), "{broken}");
    }
    until("no flow of the halted server counts", PATIENCE, || {
        Ok((records::server(&site, SECOND)?.connections == 0).then_some(()))
    })
    .unwrap();
    println!("{of_second} connections reset, {} clients moved, nobody else", moved(&known, &after).len());

    site.done(&["server", "online", SECOND]).unwrap();
    assert_eq!(moved(&after, &homes(&site, 0..150, Site::HYPERSPACE).unwrap()), []);
    let unknown = homes(&site, 1000..1100, Site::HYPERSPACE).unwrap();
    assert!(clients_of(&unknown, "Hyperspace_Srv_2").count() > 0, "{:?}", spread(&unknown));
}

/// A file in the lab's directory.
fn candidate(site: &Site, name: &str, content: &[u8]) -> String {
    let path = site.places().dir.join(name);
    fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// A file that is no configuration.
struct BadFile {
    what: &'static str,
    content: Vec<u8>,
    /// Words of the errors that there must be, each with the line that it is about.
    errors: Vec<(usize, &'static str)>,
}

fn bad_files() -> Vec<BadFile> {
    let good = Wanted::default().yaml();
    let line_of = |text: &str, part: &str| {
        let found = text.lines().position(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("{part} in {text}")) + 1
    };
    let with = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replacen(from, to, 1)
    };
    let mut files = Vec::new();
    let mut add = |what, text: String, errors: &[(&str, &'static str)]| {
        let errors = errors.iter().map(|(part, words)| (line_of(&text, part), *words)).collect();
        files.push(BadFile { what, content: text.into_bytes(), errors });
    };
    let second = "label: Hyperspace_Srv_2, address: 192.168.85.201";
    add(
        "an unknown key",
        with("    ports: [443]\n", "    ports: [443]\n    persistance: { timeout: 60m }\n"),
        &[("persistance", "persistance")],
    );
    add(
        "a duplicate label",
        with("label: Hyperspace_Srv_2", "label: Hyperspace_Srv_1"),
        &[("192.168.85.201", "Hyperspace_Srv_1")],
    );
    add(
        "an address twice",
        with("192.168.85.201", "192.168.85.200"),
        &[("Hyperspace_Srv_2", "192.168.85.200")],
    );
    add(
        "weight -1",
        with(&format!("{second}, weight: 100"), &format!("{second}, weight: -1")),
        &[("weight: -1", "weight")],
    );
    add(
        "timeout soon",
        with("    ports: [443]\n", "    ports: [443]\n    persistence: { timeout: soon }\n"),
        &[("timeout: soon", "soon")],
    );
    add(
        "a server of another family",
        with("192.168.85.201", "2001:db8::201"),
        &[("2001:db8::201", "2001:db8::201")],
    );
    add(
        "three mistakes",
        with(second, "lable: Hyperspace_Srv_2, address: 192.168.85.999").replacen(
            "ports: [443]",
            "ports: [44300000]",
            1,
        ),
        &[("lable", "lable"), ("192.168.85.999", "192.168.85.999"), ("44300000", "44300000")],
    );
    add("a tab", with("    ports: [443]\n", "\tports: [443]\n"), &[]);
    for (what, content, errors) in [
        ("a file of 8 MiB", vec![b'#'; 8 << 20], vec![(1, "larger")]),
        ("an empty file", Vec::new(), vec![(1, "empty")]),
        ("no text", vec![0xff, 0xfe, 0, 0x80, b'\n'], vec![(1, "UTF-8")]),
    ] {
        files.push(BadFile { what, content, errors });
    }
    files
}

/// Each line of the complaint that is about the file says line, column, what is wrong, and what to do about it.
fn assert_complaint(what: &str, complaint: &str, file: &str, expected: &[(usize, &str)]) {
    let mut found = Vec::new();
    for line in complaint.lines() {
        let Some((_, rest)) = line.split_once(&format!("{file}:")) else {
            continue;
        };
        let mut parts = rest.splitn(3, ':');
        let (row, column) = (parts.next().unwrap(), parts.next().unwrap_or_default());
        let row: usize = row.parse().unwrap_or_else(|_| panic!("{what}: no line in {line}"));
        let column: usize = column.parse().unwrap_or_else(|_| panic!("{what}: no column in {line}"));
        assert!(column >= 1, "{what}: {line}");
        let text = parts.next().unwrap_or_default();
        let (wrong, remedy) = text.split_once("; ").unwrap_or_else(|| panic!("{what}: no remedy in {line}"));
        assert!(!wrong.trim().is_empty() && !remedy.trim().is_empty(), "{what}: {line}");
        found.push((row, text.to_owned()));
    }
    assert!(!found.is_empty(), "{what}: no error with a place in:\n{complaint}");
    for (row, words) in expected {
        assert!(
            found.iter().any(|(at, text)| at == row && text.contains(words)),
            "{what}: nothing of {words:?} on line {row} in:\n{complaint}"
        );
    }
}

/// What is in force: the maps that say so, as bytes, by map and place. The daemon's sign of life is not part of it.
fn in_force(site: &Site) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for name in [
        "CONTROL",
        "SERVICE_INDEX",
        "SERVICES",
        "SERVERS",
        "SCHEDULE",
        "SERVICE_INFO",
        "SERVER_INFO",
        "STICKY",
    ] {
        let dump: Vec<Value> = records::ask(site, &["map", "dump", name]).unwrap();
        for mut row in dump {
            if name == "CONTROL" {
                for moving in ["heartbeat", "daemon", "raw"] {
                    row.as_object_mut().unwrap().remove(moving);
                }
            }
            // The bytes, where they are shown: a time of day is rounded anew each time.
            let content = row.get("raw").unwrap_or(&row);
            rows.insert(format!("{name} {}: {content}", row["index"]));
        }
    }
    rows
}

fn assert_untouched(before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let (gone, new) = (before - after, after - before);
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
}

fn all_up(site: &Site) {
    for name in [
        "Hyperspace/Hyperspace_Srv_1",
        SECOND,
        "Hyperspace/Hyperspace_Srv_3",
        "MyChart/MyChart_Srv_1",
        "MyChart/MyChart_Srv_2",
    ] {
        site.wait_for_health(name, "up", PATIENCE).unwrap();
    }
}

#[test]
fn a_bad_configuration_is_refused_with_every_place_and_remedy_and_touches_nothing() {
    let mut site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let known = homes(&site, 0..30, Site::HYPERSPACE).unwrap();
    all_up(&site);
    let files: Vec<(String, BadFile)> = (0..)
        .zip(bad_files())
        .map(|(number, bad): (u32, _)| (candidate(&site, &format!("bad{number}.yaml"), &bad.content), bad))
        .collect();
    let config = || site.done(&["config", "show", "-j"]).unwrap();
    let (before, config_before) = (in_force(&site), config());
    for (file, BadFile { what, errors, .. }) in &files {
        for command in ["check", "plan", "apply"] {
            let output = site.cli(&["config", command, file]).unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "config {command} of {what}: {complaint}");
            assert_complaint(&format!("config {command} of {what}"), &complaint, file, errors);
        }
    }
    let missing = site.places().dir.join("missing.yaml").display().to_string();
    let output = site.cli(&["config", "check", &missing]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_complaint("a missing file", &said(&output), &missing, &[(1, "cannot read")]);
    assert_untouched(&before, &in_force(&site));
    assert_eq!(config(), config_before);

    // Nor does a daemon start with one: what its predecessor left stays in force.
    site.kill_daemon(Signal::SIGTERM).unwrap();
    let before = in_force(&site);
    for (file, BadFile { what, errors, .. }) in &files {
        let output = site.refused_start(Path::new(file)).unwrap();
        let complaint = said(&output);
        assert_eq!(output.status.code(), Some(1), "a start with {what}: {complaint}");
        assert_complaint(&format!("a start with {what}"), &complaint, file, errors);
    }
    assert_untouched(&before, &in_force(&site));
    assert_eq!(moved(&known, &homes(&site, 0..30, Site::HYPERSPACE).unwrap()), []);
    println!("{} bad files refused by check, plan, apply and start", files.len());
    site.start_daemon(&[]).unwrap();
}
