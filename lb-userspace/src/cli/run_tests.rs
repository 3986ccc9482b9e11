//! Whole commands, over maps filled by hand and a daemon of the test's own.

use std::{
    cell::{Cell, RefCell},
    io::{self, Write},
    rc::Rc,
    time::Duration,
};

use anyhow::bail;
use clap::Parser as _;
use serde_json::{Value, json};

use super::{
    args::Cli,
    is_broken_pipe, run,
    screen::{Format, Screen},
    world::{Request, World},
};
use crate::view::{
    program::{Attachment, ProgramRecord},
    testing::{Builder, address, wall},
};

/// What a command said, and how it ended.
struct Said {
    out: String,
    err: String,
    result: anyhow::Result<()>,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    fn error(&self) -> String {
        format!("{:#}", self.result.as_ref().unwrap_err())
    }
}

fn steadfast(world: &World, line: &str) -> Said {
    let cli = Cli::try_parse_from(std::iter::once("steadfast").chain(line.split_whitespace())).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut screen = Screen { format: Format::of(&cli), escapes: false, out: &mut out, err: &mut err };
    let result = run(&cli, world, &mut screen);
    Said { out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap(), result }
}

fn example() -> Builder {
    let builder = Builder::example();
    builder.sticky(0, address("10.0.0.1"), 1, 1, 10);
    builder
}

/// A world with the example's maps and no daemon.
fn world() -> World {
    World {
        maps: Box::new(|_| Ok(example().maps)),
        programs: Box::new(|_| {
            Ok(vec![ProgramRecord {
                name: "steadfast".to_owned(),
                id: 7,
                tag: "00ff".to_owned(),
                loaded_at: None,
                attached: vec![Attachment {
                    interface: "no-such-if".to_owned(),
                    mode: Some("generic"),
                    link: 1,
                }],
                verified_instructions: None,
                machine_code: 1,
                run_count: None,
                run_time: None,
            }])
        }),
        firewall: Box::new(|| Ok(None)),
        enter: Box::new(|_| Ok(None)),
        ask: Box::new(|_, _| bail!("the daemon is not running")),
        input: Box::new(|| Box::new(io::empty())),
        now: Box::new(wall),
        sleep: Box::new(|_| {}),
    }
}

/// What a daemon was asked: path and body.
type Asked = Rc<RefCell<Vec<(String, Value)>>>;

/// A daemon that answers everything with this, and remembers what it was asked.
fn with_daemon(answer: Value) -> (World, Asked) {
    let asked = Asked::default();
    let log = Rc::clone(&asked);
    let ask = move |_: &_, request: Request<'_>| {
        let (path, body) = match request {
            Request::Get(path) | Request::Glance(path) => (path, Value::Null),
            Request::Post(path, body) => (path, body.clone()),
        };
        log.borrow_mut().push((path.to_owned(), body));
        Ok(answer.clone())
    };
    (World { ask: Box::new(ask), ..world() }, asked)
}

#[test]
fn a_list_is_an_array_and_one_record_is_one() {
    let world = world();
    let services = steadfast(&world, "vip show -j");
    assert_eq!(services.out.lines().count(), 1, "compact");
    assert_eq!(services.json().as_array().map(Vec::len), Some(3));
    assert_eq!(steadfast(&world, "vip show MyChart -j").json()["service"], "MyChart");
    assert_eq!(steadfast(&world, "server show -j").json().as_array().map(Vec::len), Some(5));
    assert_eq!(steadfast(&world, "server show MyChart -j").json().as_array().map(Vec::len), Some(2));
    assert_eq!(steadfast(&world, "server show MyChart/MyChart_Srv_1 -j").json()["server"], "MyChart_Srv_1");
    assert_eq!(steadfast(&world, "sticky lookup 10.0.0.1 -j").json()[0]["server"], "Hyperspace_Srv_1");
    assert_eq!(
        steadfast(&world, "sticky lookup ::ffff:10.0.0.1 -j").json().as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(steadfast(&world, "explain 10.0.0.1 -j").json().as_array().map(Vec::len), Some(2));
    assert_eq!(steadfast(&world, "explain 10.0.0.1 --vip Hyperspace -j").json()["verdict"], "sticky");
    assert_eq!(steadfast(&world, "flow show -j").json(), json!([]));
    assert_eq!(steadfast(&world, "flow count -j").json()["open"], 0);
    assert_eq!(
        steadfast(&world, "map list -j").json().as_array().map(Vec::len),
        Some(lb_common::maps::ALL.len())
    );
    assert_eq!(steadfast(&world, "map dump services -j").json().as_array().map(Vec::len), Some(2));
    assert_eq!(steadfast(&world, "map lookup servers 4 -j").json()["server"], "MyChart_Srv_1");
    assert_eq!(steadfast(&world, "prog show -j").json()[0]["id"], 7);
    assert_eq!(steadfast(&world, "stats -j").json()["tables"].as_array().map(Vec::len), Some(3));
    assert!(steadfast(&world, "vip show -p").out.starts_with("[\n  {\n    \"service\": \"Hyperspace\",\n"));
}

#[test]
fn every_command_that_shows_has_a_text_for_people() {
    let world = world();
    for (line, part) in [
        ("vip show", "Hyperspace_redirect"),
        ("vip show Hyperspace", "persistence"),
        ("vip show Hyperspace_redirect", "redirect to https"),
        ("server show", "MyChart/MyChart_Srv_2"),
        ("server show Hyperspace/Hyperspace_Srv_1", "known clients"),
        ("sticky show", "10.0.0.1"),
        ("sticky show --server MyChart/MyChart_Srv_1", "there are no such sticky records"),
        ("sticky show --limit 0", "1 sticky record"),
        ("sticky lookup 10.0.0.9", "has no sticky record; steadfast explain 10.0.0.9"),
        ("flow show", "there are no such flows"),
        ("flow count", "0 open, 0 half-open, 0 closed"),
        ("map list", "established flows"),
        ("map dump REASONS --limit 2", "reason=truncated"),
        ("map dump FLOWS", "no entry is in use"),
        ("map lookup CONTROL 0", "secret"),
        ("prog show", "no-such-if (generic)"),
        ("stats", "returned"),
        ("stats --reasons", "MEANING"),
        ("explain 10.0.0.1", "its sticky record names Hyperspace_Srv_1"),
    ] {
        let said = steadfast(&world, line);
        assert!(said.result.is_ok(), "{line}: {}", said.error());
        assert!(said.out.contains(part), "{line}: {}", said.out);
        assert!(said.out.ends_with('\n') && !said.out.contains('\x1b'), "{line}: {:?}", said.out);
        assert_eq!(said.err, "", "{line}");
    }
}

#[test]
fn an_unknown_label_fails_with_the_known_ones() {
    let world = world();
    for line in ["vip show Hyperspcae", "server show Hyperspcae", "flow show --vip Hyperspcae"] {
        let error = steadfast(&world, line).error();
        assert!(error.contains("did you mean \"Hyperspace\"?") && error.contains("MyChart"), "{error}");
    }
}

#[test]
fn reading_works_with_the_daemon_dead_and_says_so_on_standard_error() {
    let silent = World {
        maps: Box::new(|_| {
            let builder = example();
            builder.maps.control().heartbeat.store(1);
            Ok(builder.maps)
        }),
        ..world()
    };
    let said = steadfast(&silent, "vip show -j");
    assert_eq!(said.json().as_array().map(Vec::len), Some(3));
    assert!(said.err.starts_with("daemon is not running (last seen "), "{}", said.err);
}

#[test]
fn a_configuration_may_come_by_standard_input() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let running = serde_json::json!({ "yaml": text, "done": "done", "plan": {} });
    let piped = |text: &str| {
        let (world, asked) = with_daemon(running.clone());
        let text = text.to_owned();
        (World { input: Box::new(move || Box::new(io::Cursor::new(text.clone()))), ..world }, asked)
    };
    let (world, _) = piped(&text);
    let said = steadfast(&world, "config check -");
    assert!(said.out.starts_with("standard input: valid, "), "{}", said.err);
    assert_eq!(
        steadfast(&world, "config diff -").out,
        "standard input does not differ from the running configuration\n"
    );
    for command in ["plan", "apply"] {
        let (world, asked) = piped(&text);
        steadfast(&world, &format!("config {command} - -j"));
        let asked = asked.borrow();
        assert_eq!(asked[0].0, format!("/v1/config/{command}"));
        assert_eq!(
            (&asked[0].1["yaml"], &asked[0].1["source"]),
            (&Value::from(text.as_str()), &Value::from("standard input"))
        );
    }
    let (world, asked) = piped("version: 2\n");
    let said = steadfast(&world, "config apply -");
    assert!(said.error().contains("standard input:1:10: version \"2\" is not known"), "{}", said.error());
    assert!(asked.borrow().is_empty());
}

#[test]
fn a_change_shows_what_was_done_and_to_whom() {
    let answer = json!({
        "done": "Hyperspace/Hyperspace_Srv_1 drains",
        "plan": { "moved": [], "draining": [{ "server": "Hyperspace_Srv_1", "clients": 1 }] },
    });
    let (world, asked) = with_daemon(answer.clone());
    let said = steadfast(&world, "server drain Hyperspace/Hyperspace_Srv_1");
    assert!(said.out.starts_with("Hyperspace/Hyperspace_Srv_1 drains\n"), "{}", said.out);
    assert!(said.out.contains("Hyperspace_Srv_1  1"), "{}", said.out);
    assert_eq!(steadfast(&world, "server drain Hyperspace/Hyperspace_Srv_1 -j").json(), answer);
    let said = steadfast(&world, "server drain Hyperspace/Hyperspace_Srv_1 --dry-run");
    assert!(said.out.starts_with("nothing was changed; it would do this:\n"), "{}", said.out);
    assert_eq!(asked.borrow()[0].0, "/v1/servers/state");
    assert_eq!(asked.borrow()[2].1["dry_run"], true);
    let (world, _) = with_daemon(json!({ "forgotten": 2 }));
    assert_eq!(steadfast(&world, "sticky forget 10.0.0.1").out, "forgot 2 sticky records\n");
}

#[test]
fn a_change_without_a_daemon_fails() {
    for line in ["server halt Hyperspace/A", "sticky move 10.0.0.1 Hyperspace/A"] {
        assert_eq!(steadfast(&world(), line).error(), "the daemon is not running", "{line}");
    }
}

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/steadfast.yaml");

#[test]
fn a_file_is_checked_without_a_daemon_and_every_problem_is_said() {
    let good = steadfast(&world(), &format!("config check {FILE}"));
    assert!(good.result.is_ok(), "{}", good.error());
    assert!(good.out.ends_with("valid, 4 virtual services, 5 real servers, 0 warnings\n"), "{}", good.out);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.yaml");
    std::fs::write(&file, "version: 1\nnode: {}\nvirtual_servces: []\n").unwrap();
    let bad = steadfast(&world(), &format!("config check {}", file.display()));
    assert!(bad.error().lines().count() >= 2, "{}", bad.error());
    assert!(bad.error().contains("bad.yaml:3:1:"), "{}", bad.error());
    let bad = steadfast(&world(), &format!("config check -j {}", file.display()));
    assert_eq!(bad.json()["ok"], false);
    assert!(bad.json()["errors"].as_array().is_some_and(|errors| errors.len() >= 2));
    for command in ["plan", "apply", "diff"] {
        let (world, asked) = with_daemon(json!({}));
        assert!(steadfast(&world, &format!("config {command} {}", file.display())).result.is_err());
        assert!(asked.borrow().is_empty(), "the daemon is not bothered with a bad file");
    }
}

#[test]
fn a_file_is_compared_with_what_the_daemon_runs() {
    let running = std::fs::read_to_string(FILE).unwrap().replacen("weight: 100", "weight: 50", 1);
    let (world, asked) = with_daemon(json!({ "yaml": running }));
    let said = steadfast(&world, &format!("config diff {FILE}"));
    assert_eq!(said.out, "~ real server Hyperspace/Hyperspace_Srv_1: weight 50 -> 100\n");
    let records = steadfast(&world, &format!("config diff -j {FILE}")).json();
    assert_eq!(records[0]["change"], "server-changed");
    assert_eq!(asked.borrow()[0].0, "/v1/config");
    assert_eq!(steadfast(&world, "config show").out, running);
    assert_eq!(steadfast(&world, "config show -j").json()["version"], 1);
}

#[test]
fn without_a_daemon_a_configuration_is_not_shown_and_what_is_instead_is_said() {
    for line in ["config show".to_owned(), format!("config diff {FILE}")] {
        let said = steadfast(&world(), &line);
        assert!(
            said.error().contains("`vip show` and `server show` tell what is served"),
            "{}",
            said.error()
        );
        assert!(said.error().ends_with("the daemon is not running"), "{}", said.error());
    }
}

#[test]
fn a_comparison_leaves_out_what_an_apply_would_leave_as_it_is() {
    let running = std::fs::read_to_string(FILE).unwrap().replacen("weight: 100", "weight: 0", 1);
    let set = json!({ "Hyperspace/Hyperspace_Srv_1": 0, "Hyperspace/Gone": 7 });
    let (world, _) = with_daemon(json!({ "yaml": running, "weights_set_by_command": set }));
    let said = steadfast(&world, &format!("config diff {FILE}"));
    assert!(said.out.ends_with("does not differ from the running configuration\n"), "{}", said.out);
    assert_eq!(
        said.err,
        "Hyperspace/Hyperspace_Srv_1 keeps weight 0, as set by command, and not the file's 100: `steadfast server set \
         Hyperspace/Hyperspace_Srv_1 --weight 100` changes it\n"
    );
    assert_eq!(steadfast(&world, &format!("config diff -j {FILE}")).json(), json!([]));
}

#[test]
fn a_plan_and_an_apply_send_the_file_as_it_is() {
    let (world, asked) = with_daemon(json!({ "moved": [] }));
    let said = steadfast(&world, &format!("config plan {FILE}"));
    assert_eq!(said.out, "nobody moves and no connection is reset\n");
    let (path, body) = asked.borrow()[0].clone();
    assert_eq!(path, "/v1/config/plan");
    assert_eq!(body["yaml"], std::fs::read_to_string(FILE).unwrap());
    assert!(body["source"].as_str().is_some_and(|source| source.starts_with('/')));
    let (world, asked) = with_daemon(json!({ "applied": true, "plan": { "moved": [] } }));
    let said = steadfast(&world, &format!("config apply {FILE}"));
    assert!(said.out.ends_with("is in force\nnobody moves and no connection is reset\n"), "{}", said.out);
    assert_eq!(asked.borrow()[0].0, "/v1/config/apply");
}

#[test]
fn watching_ends_after_its_count_and_waits_in_between() {
    let waits = Rc::new(Cell::new(0));
    let counted = Rc::clone(&waits);
    let patient = World {
        sleep: Box::new(move |time| {
            assert_eq!(time, Duration::from_secs(5));
            counted.set(counted.get() + 1);
        }),
        ..world()
    };
    let said = steadfast(&patient, "stats --watch 5 --count 3");
    assert_eq!(waits.get(), 3);
    assert_eq!(said.out.matches("PER SECOND").count(), 3);
    assert!(!said.out.contains('\x1b'), "no terminal, no escape sequences");
    let said = steadfast(&patient, "top 5 --count 2 -j");
    assert_eq!(said.out.lines().count(), 2, "a record a line");
}

#[test]
fn what_the_daemon_says_is_wrong_is_shown_with_the_services_and_by_the_doctor() {
    let text = "what is drained is not durable: no space left on device";
    let problem = json!({ "kind": "state", "subject": "x", "text": text, "since": "2026-03-01T02:00:00Z" });
    let (world, asked) =
        with_daemon(json!({ "version": "1", "problems": [problem, { "of a newer": "shape" }] }));
    let shown = steadfast(&world, "vip show");
    assert!(shown.out.ends_with(&format!("\n{text}\n")), "{}", shown.out);
    assert_eq!(asked.borrow()[0].0, "/v1/status");
    let shown = steadfast(&world, "vip show -j");
    assert_eq!(shown.json().as_array().map(Vec::len), Some(3));
    assert_eq!(shown.err, format!("{text}\n"));
    let findings = steadfast(&world, "doctor -j").json();
    let found = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "problems").unwrap();
    assert_eq!(found["status"], "fail");
    assert!(found["finding"].as_str().unwrap().starts_with(text), "{found}");
}

#[test]
fn a_daemon_that_waits_for_the_network_says_so_where_there_are_no_maps_yet() {
    let text = "the daemon is starting, and waits for the interface eth0 (there are lo)";
    let problem = json!({ "kind": "waiting", "subject": "start", "text": text, "since": "the start" });
    let (world, _) = with_daemon(json!({ "problems": [problem] }));
    let world = World { maps: Box::new(|_| bail!("cannot open the pins")), ..world };
    assert_eq!(steadfast(&world, "vip show").error(), text);
    let findings = steadfast(&world, "doctor -j").json();
    let findings = findings.as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["finding"].as_str().unwrap().starts_with(text)));
}

#[test]
fn the_doctor_says_what_failed_and_what_it_did_not_look_at() {
    let said = steadfast(&world(), "doctor -j");
    let status = |check: &str| -> Vec<String> {
        let all = said.json();
        let found = all.as_array().unwrap().iter().filter(|finding| finding["check"] == check);
        found.map(|finding| finding["status"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(status("driver mode"), ["warn"], "generic");
    assert_eq!(status("daemon"), ["fail"]);
    assert_eq!(status("heartbeat"), ["ok"]);
    assert_eq!(status("neighbours"), ["ok"]);
    assert_eq!(status("reasons"), ["ok"]);
    assert_eq!(status("interface"), ["fail"], "there is no such interface");
    assert_eq!(status("return path"), ["unknown"]);
    assert_eq!(said.error(), "2 checks failed");
}

#[test]
fn the_doctor_looks_at_the_daemons_network_and_says_so_where_it_cannot() {
    let asked = Rc::new(Cell::new(0));
    let log = Rc::clone(&asked);
    let elsewhere = World {
        enter: Box::new(move |process| {
            log.set(process);
            Err(io::Error::from(io::ErrorKind::PermissionDenied).into())
        }),
        ..world()
    };
    let said = steadfast(&elsewhere, "doctor");
    let daemon = example().snapshot().daemon;
    assert_eq!(Some(asked.get()), daemon.pid);
    assert!(said.out.contains("the network of the daemon (process "), "{}", said.out);
    assert!(said.out.contains("run doctor as root, where the daemon runs"), "{}", said.out);
}

#[test]
fn the_doctor_without_rights_does_not_advise_to_start_what_runs() {
    let denied =
        || anyhow::Error::from(io::Error::from(io::ErrorKind::PermissionDenied)).context("cannot open it");
    let stranger = World {
        maps: Box::new(move |_| Err(denied())),
        programs: Box::new(move |_| Err(denied())),
        ..world()
    };
    let said = steadfast(&stranger, "doctor");
    assert_eq!(said.out.matches("run it as root: sudo steadfast doctor").count(), 2, "{}", said.out);
    assert!(!said.out.contains("start the daemon"), "{}", said.out);
    assert!(!said.out.contains("no interface to look at"), "{}", said.out);
}

struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_goes_away_is_recognised_in_every_format() {
    for line in ["vip show", "vip show -j", "vip show -p", "map list", "stats --watch --count 1"] {
        let cli = Cli::try_parse_from(std::iter::once("steadfast").chain(line.split_whitespace())).unwrap();
        let mut screen =
            Screen { format: Format::of(&cli), escapes: false, out: &mut Gone, err: &mut Vec::new() };
        let error = run(&cli, &world(), &mut screen).unwrap_err();
        assert!(is_broken_pipe(&error), "{line}: {error:?}");
    }
    assert!(!is_broken_pipe(&anyhow::anyhow!("something else")));
}
