//! The daemon as a process: large changes by the command line, restarts with many flows, and what it takes while idle.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{server::Servers as _, service};
use lb_userspace::{
    cli::client::Daemon,
    dataplane::{
        Maps,
        pinned::{self, Access},
    },
};

use crate::{
    bench::{
        figures::Rounds,
        packet::SNAT,
        rows::{Place, establish_at},
    },
    e2e::until,
    lab::{Lab, LabOptions, Signal},
};

/// How long an idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(2);
/// After a start, for what a daemon does then.
const SETTLES: Duration = Duration::from_secs(1);
/// For what takes about a minute.
const PATIENCE: Duration = Duration::from_secs(300);
/// What an idle daemon's answer takes at most.
const AT_ONCE: Duration = Duration::from_millis(100);
/// How often services come and go by the thousand: it takes about a minute.
const LARGEST: usize = 1;
/// Services of the largest configuration.
const SERVICES: usize = service::MAX_SERVICES as usize;
/// Servers of one service.
const SERVERS: usize = 1000;
/// Flows that a restarted daemon adopts.
const FLOWS: u32 = 1_000_000;
/// Servers among which they are: so many that each flow has a SNAT port.
const FLOW_SERVERS: usize = 40;

/// A change by the command line; milliseconds until it returned.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) name: &'static str,
    pub(super) took: Rounds,
}

/// Large changes, the largest of them [`LARGEST`] times.
///
/// # Errors
/// One was refused.
pub(super) fn changes(rounds: usize) -> Result<Vec<Change>> {
    let [mut grown, mut shrunk, mut weight] = [
        "4,096 services in place of 1, until they are in force",
        "1 service in place of 4,096, until it is in force",
        "a server's weight among 1,000 servers, until the command returned",
    ]
    .map(|name| Change { name, took: Rounds::default() });
    let many = Site::start(&of_services(1))?;
    let small = many.file("small.yaml", &of_services(1))?;
    let large = many.file("large.yaml", &of_services(SERVICES))?;
    let servers = Site::start(&of_servers(SERVERS))?;
    servers.wait_until_idle()?;
    for round in 0..rounds {
        let heavy = if round % 2 == 0 { "200" } else { "100" };
        if round < LARGEST {
            grown.took.0.push(many.apply(&large, SERVICES)?);
            shrunk.took.0.push(many.apply(&small, 1)?);
        }
        weight.took.0.push(servers.timed(&["server", "set", "Large/s0", "--weight", heavy])?);
    }
    Ok(vec![grown, shrunk, weight])
}

/// Restarts, milliseconds until the command line is answered, and the daemon after them.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    pub(super) empty: Rounds,
    pub(super) full: Rounds,
    pub(super) idle: Idle,
}

/// Restarts without a flow, and with a million.
///
/// # Errors
/// The daemon did not start again, or a flow was lost.
pub(super) fn restarts(rounds: usize) -> Result<Restarts> {
    let mut restarts = Restarts::default();
    let mut site = Site::start(&of_servers(FLOW_SERVERS))?;
    for _ in 0..rounds {
        restarts.empty.0.push(site.restart()?);
    }
    let maps = pinned::open(&site.0.places().pins, Access::ReadWrite)?;
    fill(&maps)?;
    for _ in 0..rounds {
        restarts.full.0.push(site.restart()?);
        let left = maps.flows.iter().filter(|slot| slot.life.load() != 0).count();
        ensure!(left == usize::try_from(FLOWS)?, "{left} of {FLOWS} flows are there after a restart");
        thread::sleep(SETTLES);
        restarts.idle.add(&Process::of(&site.0)?.watch()?);
    }
    Ok(restarts)
}

fn fill(maps: &Maps) -> Result<()> {
    let servers = (0..u16::MAX).filter_map(|id| Some((id, maps.servers.present(id)?.endpoint)));
    let servers: Vec<_> = servers.take(FLOW_SERVERS).collect();
    ensure!(servers.len() == FLOW_SERVERS, "{} of {FLOW_SERVERS} servers are in the maps", servers.len());
    let is_present = |slot| service::Service::load(slot).is_some();
    let id = maps.services.iter().position(is_present).context("no service is in the maps")?;
    let place = Place { maps, now: maps.now()?, service: SNAT, id: u16::try_from(id)?, servers };
    let without = establish_at(&place, 0..FLOWS)?;
    ensure!(without == 0, "{without} of {FLOWS} flows found no room");
    Ok(())
}

/// A lab with a balancer and no clients.
struct Site(Lab);

impl Site {
    fn start(yaml: &str) -> Result<Self> {
        let mut lab = Lab::new(LabOptions::default())?;
        lab.write_config(yaml)?;
        lab.start_daemon(&[])?;
        Ok(Self(lab))
    }

    fn file(&self, name: &str, yaml: &str) -> Result<String> {
        let path = self.0.places().dir.join(name);
        fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Milliseconds of a command.
    fn timed(&self, command: &[&str]) -> Result<f64> {
        let start = Instant::now();
        let output = self.0.cli(command)?;
        let took = start.elapsed();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`steadfast {}` failed: {}", command.join(" "), said.trim_end());
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Milliseconds until a configuration is in force, with so many services. The command line may have lost its patience
    /// before.
    fn apply(&self, file: &str, services: usize) -> Result<f64> {
        let start = Instant::now();
        let output = self.0.cli(&["config", "apply", file])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() || said.contains("did not answer within"),
            "`steadfast config apply` failed: {}",
            said.trim_end()
        );
        until(&format!("{services} services are in force"), PATIENCE, || {
            let shown = self.0.cli_json(&["vip", "show", "-j"])?;
            Ok((shown.as_array().map(Vec::len) == Some(services)).then_some(()))
        })?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// Waits until the daemon answers at once.
    fn wait_until_idle(&self) -> Result<()> {
        let daemon = Daemon::at(self.0.places().runtime.join("api.sock"));
        until("the daemon answers at once", PATIENCE, || {
            let start = Instant::now();
            let answered = daemon.get("/v1/status").is_ok();
            Ok((answered && start.elapsed() < AT_ONCE).then_some(()))
        })?;
        Ok(())
    }

    /// Milliseconds until a new daemon is there.
    fn restart(&mut self) -> Result<f64> {
        self.0.kill_daemon(Signal::SIGTERM)?;
        let start = Instant::now();
        self.0.start_daemon(&[])?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// So many services of a server each; the servers are ports of the lab's three.
fn of_services(count: usize) -> String {
    let mut yaml = head("1024-2047", "endpoints: 4096");
    for number in 0..count {
        let address = Ipv4Addr::from(0x0a5a_0001 + u32::try_from(number).unwrap_or_default());
        let _infallible = write!(
            yaml,
            "  - label: S{number}\n    address: {address}\n    ports: [443]\n    health_check: {{ kind: none }}\n    real_servers:\n{}",
            server("s", number)
        );
    }
    yaml
}

/// One service with so many servers.
fn of_servers(count: usize) -> String {
    let mut yaml = head("1024-32767", "flows: 4194304, sticky: 1048576, endpoints: 1024");
    yaml += "  - label: Large\n    address: 192.168.85.150\n    ports: [443]\n    health_check: { kind: none }\n    real_servers:\n";
    for number in 0..count {
        yaml += &server(&format!("s{number}"), number);
    }
    yaml
}

fn head(ports: &str, tables: &str) -> String {
    format!(
        "version: 1\nnode:\n  interfaces: [eth0]\n  snat_ports: {ports}\n  tables: {{ {tables} }}\nvirtual_services:\n"
    )
}

fn server(label: &str, number: usize) -> String {
    format!(
        "      - {{ label: {label}, address: 192.168.85.{}, port: {} }}\n",
        200 + number % 3,
        10_000 + number
    )
}

/// A running daemon.
pub(super) struct Process(PathBuf);

/// What it took while it was watched.
pub(super) struct Watched {
    cpu: f64,
    own: f64,
    resident: f64,
}

/// The same, round by round: hundredths of a processor, MiB of memory that is its own, MiB with what it maps of the
/// tables.
#[derive(Debug, Default)]
pub(super) struct Idle {
    pub(super) cpu: Rounds,
    pub(super) own: Rounds,
    pub(super) resident: Rounds,
}

impl Idle {
    pub(super) fn add(&mut self, watched: &Watched) {
        self.cpu.0.push(watched.cpu);
        self.own.0.push(watched.own);
        self.resident.0.push(watched.resident);
    }
}

impl Process {
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let pid = lab.daemon_pid().context("the daemon is not running")?;
        Ok(Self(PathBuf::from(format!("/proc/{pid}"))))
    }

    /// Lets it be for a while, and says what it took.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn watch(&self) -> Result<Watched> {
        let (start, before) = (Instant::now(), self.worked()?);
        thread::sleep(WATCHED);
        let worked = self.worked()?.saturating_sub(before);
        let cpu = 100.0 * worked.as_secs_f64() / start.elapsed().as_secs_f64();
        let status = fs::read_to_string(self.0.join("status")).context("the daemon has ended")?;
        let mebibytes = |field| kibibytes(&status, field).map(|kibibytes| kibibytes / 1024.0);
        Ok(Watched { cpu, own: mebibytes("RssAnon")?, resident: mebibytes("VmRSS")? })
    }

    /// What all of its threads had of the processors.
    fn worked(&self) -> Result<Duration> {
        let mut sum = 0;
        for thread in fs::read_dir(self.0.join("task")).context("the daemon has ended")? {
            // Nanoseconds on a processor, those of waiting, and how often.
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            sum += text.split_whitespace().next().context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }
}

fn kibibytes(status: &str, field: &str) -> Result<f64> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) =
        lines.find(|(name, _)| *name == field).with_context(|| format!("status has no {field}"))?;
    let number = value.trim().strip_suffix(" kB").with_context(|| format!("{field} is {value}"))?;
    Ok(number.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_are_good() {
        for yaml in [of_services(SERVICES), of_servers(SERVERS), of_servers(FLOW_SERVERS)] {
            let config = lb_userspace::config::parse("bench", &yaml);
            assert!(config.is_ok(), "{:?}", config.err());
        }
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let status = "VmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n";
        assert!((kibibytes(status, "RssAnon").expect("it is there") - 1024.0).abs() < f64::EPSILON);
        assert!(kibibytes(status, "Rss").is_err());
    }
}
