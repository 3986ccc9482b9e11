//! A lab in which the balancer runs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::{Deref, DerefMut},
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    records::{self, Server},
    turn::Turn,
    wait::until,
    yaml::Wanted,
};
use crate::lab::{HYPERSPACE, Lab, LabOptions, MYCHART, Mode, Ns, Port443, Topology, starts_within};

const READY_WITHIN: Duration = Duration::from_secs(60);
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// A lab with its servers and its balancer at work.
#[derive(Debug)]
pub struct Site {
    // Dropped first: the next test starts when this one has cleared away.
    lab: Lab,
    _turn: Turn,
}

impl Site {
    /// Hyperspace's port 443.
    pub const HYPERSPACE: SocketAddr = SocketAddr::new(IpAddr::V4(HYPERSPACE), 443);
    /// MyChart's port 443.
    pub const MYCHART: SocketAddr = SocketAddr::new(IpAddr::V4(MYCHART), 443);

    /// Plain HTTP on 443, the usual size of files.
    ///
    /// # Errors
    /// Those of [`Site::with`].
    pub fn plain(turn: Turn, wanted: &Wanted) -> Result<Self> {
        let options = LabOptions { port_443: Port443::Plain, ..LabOptions::default() };
        Self::with(turn, options, wanted)
    }

    /// A lab, its servers, and the balancer with a configuration, ready for clients.
    ///
    /// # Errors
    /// Something did not start.
    pub fn with(turn: Turn, options: LabOptions, wanted: &Wanted) -> Result<Self> {
        Self::serving(turn, options, &wanted.yaml())
    }

    /// As [`Site::with`], with a configuration's text.
    ///
    /// # Errors
    /// Something did not start.
    pub fn serving(turn: Turn, options: LabOptions, yaml: &str) -> Result<Self> {
        let mut site = Self::without_daemon(turn, options)?;
        site.write_config(yaml)?;
        site.start_daemon(&[])?;
        site.wait_until_reachable()?;
        Ok(site)
    }

    /// A lab and its servers.
    ///
    /// # Errors
    /// Something did not start.
    pub fn without_daemon(turn: Turn, options: LabOptions) -> Result<Self> {
        let mut lab = Lab::new(options)?;
        lab.start_all_nginx()?;
        Ok(Self { lab, _turn: turn })
    }

    /// Waits until every server's MAC address is known and its checks, if it has any, have found it up: one that is added takes unknown clients
    /// only then. Where a daemon may start slowly, as long.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_until_reachable(&self) -> Result<()> {
        let within = READY_WITHIN.max(starts_within()?);
        let ready = until("all servers are reachable and up", within, || {
            let servers: Vec<Server> = records::ask(&self.lab, &["server", "show"])?;
            let is_ready =
                |server: &Server| server.reachable && matches!(server.health.as_str(), "up" | "not checked");
            Ok((!servers.is_empty() && servers.iter().all(is_ready)).then_some(()))
        });
        let (state, log) = (self.cli(&["server", "show"]), self.daemon_log());
        ready.with_context(|| format!("{state:?}; the end of the daemon's log:\n{log}"))?;
        Ok(())
    }

    /// Waits until a server, `VIP/SERVER`, has this health, and says how long it took.
    ///
    /// # Errors
    /// Not within the time.
    pub fn wait_for_health(&self, name: &str, health: &str, within: Duration) -> Result<Duration> {
        let what = format!("{name} is {health}");
        let ((), took) = until(&what, within, || {
            let server = records::server(&self.lab, name)?;
            Ok((server.health == health).then_some(()))
        })?;
        Ok(took)
    }

    /// Runs `steadfast`, which must succeed, and returns what it printed.
    ///
    /// # Errors
    /// It failed: with what it said.
    pub fn done(&self, args: &[&str]) -> Result<String> {
        let output = self.cli(args)?;
        if !output.status.success() {
            bail!("`steadfast {}` failed: {}", args.join(" "), said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `steadfastd run` with a configuration that it must not start with, and returns how it ended.
    ///
    /// # Errors
    /// It is still running after 15 s; it is killed then.
    pub fn refused_start(&self, config: &Path) -> Result<Output> {
        let mut daemon = self.program("steadfastd", &["run", "--config"])?;
        let mut daemon = daemon
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start steadfastd")?;
        let ended = until("the daemon ends", ENDS_WITHIN, || Ok(daemon.try_wait()?));
        if ended.is_err() {
            daemon.kill()?;
        }
        let output = daemon.wait_with_output()?;
        ended.with_context(|| format!("it started, and said: {}", said(&output)))?;
        Ok(output)
    }

    /// The index of a server by its label.
    ///
    /// # Errors
    /// There is none.
    pub fn index(&self, label: &str) -> Result<usize> {
        let index = self.servers().position(|host| host.label == *label);
        index.with_context(|| format!("the lab has no server {label}"))
    }

    /// How many connections to port 443 a server's kernel has established with clients.
    ///
    /// # Errors
    /// Those of [`Site::peers_of`].
    pub fn established_at(&self, label: &str) -> Result<u64> {
        Ok(u64::try_from(self.peers_of(label)?.len())?)
    }

    /// With whom a server's kernel has connections to port 443 established: in `snat` with the balancer's SNAT ports, above
    /// which health checks come from, else with the clients' own addresses.
    ///
    /// # Errors
    /// ss is missing.
    pub fn peers_of(&self, label: &str) -> Result<BTreeSet<SocketAddr>> {
        let clients = match self.topology() {
            Topology { mode: Mode::Snat, .. } => "dport < :32768".to_owned(),
            topology => format!("dst {}", topology.clients()),
        };
        let filter = ["-Htn", "state", "established", &format!("sport = :443 and {clients}")];
        let mut ss = self.command(Ns::Server(self.index(label)?), "ss", filter);
        let output = ss.output().context("cannot start ss")?;
        if !output.status.success() {
            bail!("ss failed: {}", said(&output));
        }
        let peer = |line: &str| {
            let peer = line.split_whitespace().last().context("ss printed an empty line")?;
            peer.parse().with_context(|| format!("ss printed {line}"))
        };
        String::from_utf8_lossy(&output.stdout).lines().map(peer).collect()
    }
}

impl Deref for Site {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

/// What a command said on standard error, and on standard output if that was nothing.
pub fn said(output: &Output) -> String {
    let streams = [&output.stderr, &output.stdout];
    let texts = streams.map(|bytes| String::from_utf8_lossy(bytes).trim_end().to_owned());
    texts.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
}
