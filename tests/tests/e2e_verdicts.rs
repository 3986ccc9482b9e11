//! What is no verdict: failures of the balancer's own machine and network, during which nobody's session may end. And one
//! server that really dies.
#![cfg(test)]

use std::{net::IpAddr, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    e2e::{
        Connection, End, Homes, Site, Talkers, Turn, Wanted, crowd::moved, homes, records, site::said, until,
    },
    lab::{Lab, Ns, Signal},
};

/// Everything here is waited for by condition; this only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(90);
const CHECKS: &str = "    health_check: { kind: tcp, interval: 500ms, timeout: 400ms, fall: 3, rise: 2 }\n";
/// Twice `fall`: so many checks that said something would have called every server down.
const ENOUGH: u64 = 6;
const IDLE: std::ops::Range<usize> = 0..200;
/// As many as let a busy machine's checks still be answered.
const BUSY: std::ops::Range<usize> = 200..240;
const VICTIM: &str = "Hyperspace_Srv_1";
const VICTIM_NAME: &str = "Hyperspace/Hyperspace_Srv_1";

/// Clients that sit silent, and clients at work.
struct Ward {
    site: Site,
    idle: Vec<(Connection, String)>,
    busy: Talkers,
    before: Homes,
}

impl Ward {
    fn open() -> Self {
        let wanted = Wanted {
            hyperspace_more: CHECKS.to_owned(),
            mychart_more: CHECKS.to_owned(),
            ..Wanted::default()
        };
        let site = Site::plain(Turn::shared(), &wanted).unwrap();
        until("every server is up", PATIENCE, || {
            let servers: Vec<records::Server> = records::ask(&site, &["server", "show"])?;
            Ok(servers.iter().all(|server| server.health == "up").then_some(()))
        })
        .unwrap();
        let opened = |number| -> Result<(Connection, String)> {
            let mut connection = Connection::open(site.client_address(number), Site::HYPERSPACE, PATIENCE)?;
            let home = connection.who()?;
            Ok((connection, home))
        };
        let idle = site.in_ns(Ns::Client, || IDLE.map(opened).collect::<Result<Vec<_>>>()).unwrap().unwrap();
        let busy = Talkers::start(&site, BUSY, Site::HYPERSPACE).unwrap();
        let before = recorded(&site).unwrap();
        assert_eq!(before.len(), IDLE.len() + BUSY.len());
        Self { site, idle, busy, before }
    }

    /// Until each server's checks have said nothing often enough since `from`.
    fn wait_for_no_verdicts(&self, from: &[u64]) {
        let waited = until("every server's checks say nothing", PATIENCE, || {
            let now = no_verdicts(&self.site)?;
            Ok(now.iter().zip(from).all(|(now, from)| *now >= from + ENOUGH).then_some(()))
        });
        waited.map_err(|error| format!("{error:#}\n{}", self.site.daemon_log())).unwrap();
    }

    /// Until each server's last check has passed.
    fn wait_until_heard(&self) {
        let waited = until("every server's checks are answered again", PATIENCE, || {
            let checks = checks(&self.site)?;
            let is_good = |check: &Value| check["no_verdict"].is_null() && check["last"]["error"].is_null();
            Ok(checks.iter().all(is_good).then_some(()))
        });
        waited.map_err(|error| format!("{error:#}\n{}", self.site.daemon_log())).unwrap();
    }

    /// Nobody's session has ended, and nobody is anywhere else.
    fn nobody_has_noticed(mut self) {
        let log = self.site.daemon_log();
        assert!(!log.contains(" is down: "), "{log}");
        let talked = self.busy.stop().unwrap();
        assert_eq!(talked.broken, Vec::<String>::new());
        assert_eq!(talked.connections.len(), BUSY.len());
        let mut ended = Vec::new();
        for (connection, home) in &mut self.idle {
            match connection.who() {
                Ok(who) if who == *home => {}
                other => ended.push(format!("{}: {other:?}, was at {home}", connection.client)),
            }
        }
        assert_eq!(ended, Vec::<String>::new());
        assert_eq!(moved(&self.before, &recorded(&self.site).unwrap()), []);
        let counted = records::stats(&self.site).unwrap();
        assert_eq!(counted.reason("reset-server-gone").unwrap_or(0), 0, "{:?}", counted.reasons);
    }

    /// An outage of the balancer's own: it lasts until every server's checks have said nothing often enough.
    fn lives_through(self, begin: impl FnOnce(&Self), end: impl FnOnce(&Self), why: &str) {
        let from = no_verdicts(&self.site).unwrap();
        begin(&self);
        self.wait_for_no_verdicts(&from);
        let told = self.site.done(&["server", "show"]).unwrap();
        assert!(told.contains(why), "{told}");
        let log = self.site.daemon_log();
        assert!(log.contains(why), "{log}");
        end(&self);
        self.wait_until_heard();
        self.nobody_has_noticed();
    }
}

/// What the daemon says of each check, in the order of services and servers.
fn checks(site: &Site) -> Result<Vec<Value>> {
    let socket = site.places().runtime.join("api.sock");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--unix-socket"])
        .arg(&socket)
        .arg("http://localhost/v1/status")
        .output()?;
    ensure!(output.status.success(), "curl: {}", said(&output));
    let status: Value = serde_json::from_slice(&output.stdout)?;
    Ok(status["health_checks"].as_array().context("no health checks")?.clone())
}

/// How many checks of each server have said nothing.
fn no_verdicts(site: &Site) -> Result<Vec<u64>> {
    checks(site)?.iter().map(|check| check["no_verdicts"].as_u64().context("no count")).collect()
}

fn recorded(lab: &Lab) -> Result<Homes> {
    let sticky = records::sticky(lab, "Hyperspace")?;
    Ok(sticky.into_iter().map(|(client, record)| (client, record.server)).collect())
}

/// What the daemon may open; what is open stays open.
fn limit_descriptors(site: &Site, limit: u32) -> Result<()> {
    let pid = site.daemon_pid().context("no daemon")?;
    let args = [format!("--pid={pid}"), format!("--nofile={limit}:")];
    let output = Command::new("prlimit").args(args).output()?;
    ensure!(output.status.success(), "prlimit: {}", said(&output));
    Ok(())
}

fn signal(site: &Site, signal: Signal) {
    let pid = i32::try_from(site.daemon_pid().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

fn nft(site: &Site, rules: &[&str]) {
    let output = site.command(Ns::Lb, "nft", rules).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn without_descriptors_for_checks_nobody_is_reset_and_nobody_moves() {
    let ward = Ward::open();
    let from = no_verdicts(&ward.site).unwrap();
    limit_descriptors(&ward.site, 8).unwrap();
    until("every server's checks say nothing", PATIENCE, || {
        thread::sleep(Duration::from_secs(2));
        // Only with a descriptor does the daemon answer.
        limit_descriptors(&ward.site, 1024)?;
        let now = no_verdicts(&ward.site)?;
        limit_descriptors(&ward.site, 8)?;
        Ok(now.iter().zip(&from).all(|(now, from)| *now >= from + ENOUGH).then_some(()))
    })
    .unwrap();
    limit_descriptors(&ward.site, 1024).unwrap();
    let log = ward.site.daemon_log();
    assert!(log.contains("no file descriptor left"), "{log}");
    ward.wait_until_heard();
    ward.nobody_has_noticed();
}

#[test]
fn while_the_uplink_has_no_carrier_nobody_is_reset_and_nobody_moves() {
    Ward::open().lives_through(
        |ward| ward.site.plug(Ns::Lb, false).unwrap(),
        |ward| ward.site.plug(Ns::Lb, true).unwrap(),
        "no carrier",
    );
}

#[test]
#[ignore = "takes more than a minute"]
fn an_uplink_without_carrier_for_a_minute_is_not_noticed_either() {
    Ward::open().lives_through(
        |ward| {
            ward.site.plug(Ns::Lb, false).unwrap();
            thread::sleep(Duration::from_secs(60));
        },
        |ward| ward.site.plug(Ns::Lb, true).unwrap(),
        "no carrier",
    );
}

#[test]
fn while_the_route_to_the_servers_is_gone_nobody_is_reset_and_nobody_moves() {
    let route = "192.168.85.0/24 dev eth0 proto kernel scope link src 192.168.85.10";
    Ward::open().lives_through(
        |ward| ward.site.ip(Ns::Lb, &format!("route del {route}")).unwrap(),
        |ward| ward.site.ip(Ns::Lb, &format!("route add {route}")).unwrap(),
        "network unreachable",
    );
}

#[test]
fn while_a_switch_further_away_loses_all_servers_nobody_is_reset_and_nobody_moves() {
    let plug = |ward: &Ward, plugged| {
        for index in 0..ward.site.servers().count() {
            ward.site.plug(Ns::Server(index), plugged).unwrap();
        }
    };
    Ward::open().lives_through(|ward| plug(ward, false), |ward| plug(ward, true), "fell silent together");
}

#[test]
fn while_a_firewall_on_the_balancer_drops_the_checks_nobody_is_reset_and_nobody_moves() {
    Ward::open().lives_through(
        |ward| {
            nft(&ward.site, &["add table inet verdicts"]);
            nft(&ward.site, &["add chain inet verdicts out { type filter hook output priority 0; }"]);
            nft(&ward.site, &["add rule inet verdicts out tcp dport 443 tcp flags syn drop"]);
        },
        |ward| nft(&ward.site, &["delete table inet verdicts"]),
        "fell silent together",
    );
}

#[test]
fn while_the_daemon_is_stopped_nobody_is_reset_and_nobody_moves() {
    stopped_for(Duration::from_secs(5));
}

#[test]
#[ignore = "takes half a minute"]
fn a_daemon_that_is_stopped_for_half_a_minute_is_not_noticed_either() {
    stopped_for(Duration::from_secs(30));
}

fn stopped_for(time: Duration) {
    let ward = Ward::open();
    signal(&ward.site, Signal::SIGSTOP);
    thread::sleep(time);
    signal(&ward.site, Signal::SIGCONT);
    // Every check that was under way has ended, and more.
    let from = last_checks(&ward.site).unwrap();
    until("every server was checked anew", PATIENCE, || {
        let now = last_checks(&ward.site)?;
        Ok(now.iter().zip(&from).all(|(now, from)| now != from).then_some(()))
    })
    .unwrap();
    ward.wait_until_heard();
    ward.nobody_has_noticed();
}

fn last_checks(site: &Site) -> Result<Vec<String>> {
    Ok(checks(site)?.iter().map(|check| check["last"]["at"].to_string()).collect())
}

#[test]
fn a_server_that_really_dies_is_noticed_its_sessions_are_reset_and_no_others() {
    let mut ward = Ward::open();
    let index = ward.site.index(VICTIM).unwrap();
    ward.site.plug(Ns::Server(index), false).unwrap();
    ward.site.wait_for_health(VICTIM_NAME, "down", PATIENCE).unwrap();
    let mut victims = 0;
    for (connection, home) in &mut ward.idle {
        if home == VICTIM {
            victims += 1;
            assert_eq!(connection.wait_for_end(PATIENCE).unwrap(), End::Reset, "{}", connection.client);
        } else {
            assert_eq!(connection.who().unwrap(), *home);
        }
    }
    assert!(victims > 0);
    let again: Vec<IpAddr> = homes(&ward.site, IDLE, Site::HYPERSPACE)
        .unwrap()
        .into_iter()
        .filter(|(client, home)| home != ward.before.get(client).unwrap_or(home))
        .map(|(client, _)| client)
        .collect();
    assert!(again.iter().all(|client| ward.before[client] == VICTIM), "{again:?}");
}
