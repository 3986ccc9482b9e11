//! Every command of the contract parses, and what is not one is a usage error.

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use serde_json::json;

use super::{
    args::{Cli, Command, ServerCommand, Sticky},
    change::Change,
    screen::Format,
};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("steadfast").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_contract_parses() {
    for line in [
        "vip show",
        "vip show Hyperspace",
        "server show",
        "server show Hyperspace",
        "server show Hyperspace/Hyperspace_Srv_1",
        "server add Hyperspace/New --address 192.168.85.203",
        "server add Hyperspace/New --address 192.168.85.203 --port 8443 --weight 0",
        "server remove Hyperspace/New",
        "server remove Hyperspace/New --now --dry-run",
        "server set Hyperspace/New --weight 1000",
        "server drain Hyperspace/New",
        "server halt Hyperspace/New --dry-run",
        "server online Hyperspace/New",
        "sticky show",
        "sticky show --vip Hyperspace --server Hyperspace/A --limit 5",
        "sticky lookup 10.1.2.3",
        "sticky forget 10.1.2.3",
        "sticky forget 10.1.2.3 --vip Hyperspace",
        "sticky move 10.1.2.3 Hyperspace/A",
        "flow show",
        "flow show --vip V --server V/S --client 10.0.0.1 --state established --limit 1",
        "flow count",
        "flow count --vip V",
        "map list",
        "map dump FLOWS",
        "map dump FLOWS --limit 3",
        "map lookup SERVERS Hyperspace/A",
        "prog show",
        "prog confirm",
        "stats",
        "stats --watch",
        "stats --watch 5 --count 2",
        "stats --reasons",
        "stats --watch --reasons",
        "top",
        "top 5 --count 1",
        "explain 10.1.2.3",
        "explain 2001:db8::7",
        "sticky lookup [2001:db8::7]",
        "sticky forget 2001:db8::7",
        "sticky move 2001:db8::7 Hyperspace/A",
        "flow show --client 2001:db8::7",
        "server add Hyperspace/New --address 2001:db8::203",
        "explain 10.1.2.3 --vip Hyperspace",
        "config check FILE",
        "config show",
        "config diff FILE",
        "config apply FILE",
        "config plan FILE",
        "doctor",
        "doctor --interface eth0",
    ] {
        for options in ["", " -j", " --json", " -p", " --pretty --pin-dir /p --runtime-dir /r --state-dir /s"]
        {
            let whole = format!("{line}{options}");
            if let Err(error) = parse(&whole) {
                panic!("{whole}: {error}");
            }
        }
    }
}

#[test]
fn what_is_no_command_is_a_usage_error() {
    for line in [
        "vip",
        "vip list",
        "vip show a/b",
        "server drain",
        "server drain Hyperspace",
        "server drain Hyperspace/",
        "server drain Hyperspace/a/b",
        "server set Hyperspace/A",
        "server set Hyperspace/A --weight 1001",
        "server set Hyperspace/A --weight -1",
        "server add Hyperspace/A",
        "server add Hyperspace/A --address nowhere",
        "server add Hyperspace/A --address 10.0.0.1 --port 0",
        "sticky lookup me",
        "sticky move 10.0.0.1",
        "flow show --state open",
        "stats --count 3",
        "stats --watch 0",
        "map lookup FLOWS",
        "explain",
        "config check",
        "vip show --jsn",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line} parsed"));
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    assert_eq!(parse("").unwrap_err().exit_code(), 2, "no command at all is usage, too");
}

#[test]
fn help_and_version_are_no_failure() {
    for (line, kind) in [("--help", ErrorKind::DisplayHelp), ("--version", ErrorKind::DisplayVersion)] {
        let shown = parse(line).unwrap_err();
        assert_eq!((shown.kind(), shown.exit_code()), (kind, 0));
    }
}

#[test]
fn pretty_means_json() {
    assert_eq!(Format::of(&parse("vip show").unwrap()), Format::Text);
    assert_eq!(Format::of(&parse("vip show -j").unwrap()), Format::Json);
    assert_eq!(Format::of(&parse("-p vip show").unwrap()), Format::Pretty);
    assert_eq!(Format::of(&parse("vip show -jp").unwrap()), Format::Pretty);
}

fn change(line: &str) -> Change {
    match parse(line).unwrap().command {
        Command::Server(command) => ServerCommand::change(&command),
        Command::Sticky(command) => Sticky::change(&command),
        _ => None,
    }
    .unwrap()
}

#[test]
fn changes_become_the_requests_of_the_api() {
    for (line, path, body) in [
        (
            "server add V/S --address 10.0.0.5 --port 8443 --weight 7",
            "/v1/servers/add",
            json!({ "service": "V", "label": "S", "address": "10.0.0.5", "port": 8443, "weight": 7 }),
        ),
        (
            "server add V/S --address 10.0.0.5",
            "/v1/servers/add",
            json!({ "service": "V", "label": "S", "address": "10.0.0.5" }),
        ),
        ("server remove V/S", "/v1/servers/remove", json!({ "service": "V", "label": "S", "now": false })),
        (
            "server remove V/S --now",
            "/v1/servers/remove",
            json!({ "service": "V", "label": "S", "now": true }),
        ),
        (
            "server set V/S --weight 0 --dry-run",
            "/v1/servers/set",
            json!({ "service": "V", "label": "S", "weight": 0, "dry_run": true }),
        ),
        ("server drain V/S", "/v1/servers/state", json!({ "service": "V", "label": "S", "state": "drain" })),
        ("server halt V/S", "/v1/servers/state", json!({ "service": "V", "label": "S", "state": "halt" })),
        (
            "server online V/S",
            "/v1/servers/state",
            json!({ "service": "V", "label": "S", "state": "online" }),
        ),
        ("sticky forget ::ffff:10.0.0.1", "/v1/sticky/forget", json!({ "client": "10.0.0.1" })),
        (
            "sticky forget 10.0.0.1 --vip V",
            "/v1/sticky/forget",
            json!({ "client": "10.0.0.1", "service": "V" }),
        ),
        (
            "sticky move 10.0.0.1 V/S",
            "/v1/sticky/move",
            json!({ "client": "10.0.0.1", "service": "V", "server": "S" }),
        ),
    ] {
        assert_eq!(change(line), Change { path, body }, "{line}");
    }
}
