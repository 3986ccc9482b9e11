//! From a drain's start to the first new client that is sent elsewhere.

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, SocketAddrV4},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_userspace::cli::client::Daemon;
use serde_json::json;

use super::{daemon::Process, probe::Probe};
use crate::{
    bench::lab::start_haproxy,
    e2e::until,
    lab::{HYPERSPACE, HYPERSPACE_SERVERS, Lab, LabOptions, Ns, PLAIN_PORT, client},
};

const SERVICE: &str = "Hyperspace";
const READY_WITHIN: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(10);
/// Until a shell waits for its input.
const PROMPT: Duration = Duration::from_millis(50);

/// What a drain took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drained {
    /// Until the first new client was sent elsewhere.
    pub(super) obeyed: Duration,
    /// Until the call returned.
    pub(super) returned: Duration,
}

/// How long `drain` takes. `until` waits in the namespace until the client is at home, or elsewhere, and says when it knew.
fn drained(
    lab: &Lab,
    ns: Ns,
    mut until: impl FnMut(bool) -> Result<Instant> + Send,
    drain: impl FnOnce() -> Result<()>,
) -> Result<Drained> {
    let go = Barrier::new(2);
    thread::scope(|scope| {
        let probing = scope.spawn(|| {
            lab.in_ns(ns, || {
                let home = until(true);
                // Also after a failure: the other one waits.
                go.wait();
                home?;
                until(false)
            })?
        });
        go.wait();
        let start = Instant::now();
        let called = drain();
        let returned = start.elapsed();
        let obeyed = probing.join().map_err(|_| anyhow!("the probe panicked"))?;
        called?;
        Ok(Drained { obeyed: obeyed?.saturating_duration_since(start), returned })
    })
}

/// By what way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// `steadfast server drain`.
    Command,
    /// The same request of the API, without starting a program.
    Api,
}

/// Steadfast, with its program to be asked for SYNs.
pub(super) struct Balancer {
    lab: Lab,
    probe: Probe,
    server: String,
}

impl Balancer {
    /// A lab's balancer as a hospital has it: four services, health checks every two seconds.
    ///
    /// # Errors
    /// Something did not start.
    pub(super) fn up() -> Result<Self> {
        let mut lab = Lab::new(LabOptions::default())?;
        lab.start_all_nginx()?;
        lab.start_daemon(&[])?;
        let first = HYPERSPACE_SERVERS.start;
        let server = lab.host(Ns::Server(first)).context("a lab without servers")?.label.clone();
        let to = SocketAddrV4::new(HYPERSPACE, 443);
        let mut probe = None;
        // Until the servers' MAC addresses are known, SYNs are dropped.
        let found = until("new clients are sent to their servers", READY_WITHIN, || {
            probe = lab.in_ns(Ns::Lb, || Probe::of(&lab, to, first))?.ok();
            Ok(probe.is_some().then_some(()))
        });
        found.with_context(|| lab.daemon_log())?;
        Ok(Self { probe: probe.context("no probe")?, lab, server })
    }

    /// Drains the server and takes it back.
    ///
    /// # Errors
    /// It was refused, or new clients did not obey it.
    pub(super) fn drain(&mut self, how: How) -> Result<Drained> {
        let Self { lab, probe, server } = self;
        let lab = &*lab;
        let command = if how == How::Command { Some(Typed::drain(lab, server)?) } else { None };
        let drained = drained(
            lab,
            Ns::Lb,
            |home| probe.until(home),
            || match command {
                Some(command) => command.enter(),
                None => set_state(lab, server, "drain"),
            },
        )?;
        set_state(lab, server, "online")?;
        lab.in_ns(Ns::Lb, || probe.until(true))??;
        Ok(drained)
    }

    /// Its daemon.
    ///
    /// # Errors
    /// It is not running.
    pub(super) fn process(&self) -> Result<Process> {
        Process::of(&self.lab)
    }
}

/// A shell at whose prompt a command stands: the bench is much larger than a shell, and takes longer to start a process.
struct Typed(Child);

impl Typed {
    /// `steadfast server drain`.
    fn drain(lab: &Lab, server: &str) -> Result<Self> {
        let steadfast = lab.program("steadfast", &["server", "drain", &format!("{SERVICE}/{server}")])?;
        let prompt = [OsStr::new("-c"), OsStr::new("read enter; \"$0\" \"$@\""), steadfast.get_program()];
        let mut shell = lab.command(Ns::Lb, "sh", prompt.into_iter().chain(steadfast.get_args()));
        shell.envs(steadfast.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let shell = shell.spawn().context("cannot start sh")?;
        thread::sleep(PROMPT);
        Ok(Self(shell))
    }

    fn enter(mut self) -> Result<()> {
        self.0.stdin.take().context("a shell without input")?.write_all(b"\n")?;
        let output = self.0.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`steadfast server drain` failed: {}", said.trim_end());
        Ok(())
    }
}

fn set_state(lab: &Lab, server: &str, state: &str) -> Result<()> {
    let daemon = Daemon::at(lab.places().runtime.join("api.sock"));
    let body = json!({ "service": SERVICE, "label": server, "state": state });
    daemon.post("/v1/servers/state", &body).map(drop)
}

/// HAProxy with a hash of the client's address, so that a client's next connection tells whether it is obeyed.
pub(super) struct Haproxy {
    lab: Lab,
    rival: Child,
    socket: PathBuf,
    to: SocketAddr,
    client: IpAddr,
    home: String,
}

impl Haproxy {
    /// Starts it, and waits until it answers.
    ///
    /// # Errors
    /// It did not start.
    pub(super) fn up() -> Result<Self> {
        let mut lab = Lab::new(LabOptions::default())?;
        lab.start_all_nginx()?;
        lab.remove_programs();
        let socket = lab.places().dir.join("haproxy.sock");
        let mut configuration = format!(
            "global\n    nbthread 1\n    stats socket {} mode 600 level admin\ndefaults\n    mode tcp\n    timeout connect 5s\n    \
             timeout client 10m\n    timeout server 10m\nlisten plain\n    bind :{PLAIN_PORT}\n    balance source\n",
            socket.display()
        );
        for (number, host) in lab.servers().take(HYPERSPACE_SERVERS.end).enumerate() {
            configuration += &format!("    server s{number} {}:{PLAIN_PORT}\n", host.address);
        }
        let rival = start_haproxy(&lab, &configuration)?;
        let to = SocketAddr::new(lab.address(Ns::Lb)?, PLAIN_PORT);
        let client = lab.client_address(0);
        let mut haproxy = Self { lab, rival, socket, to, client, home: String::new() };
        let answers = until("HAProxy answers", READY_WITHIN, || {
            if let Some(status) = haproxy.rival.try_wait()? {
                let log = fs::read_to_string(haproxy.lab.places().dir.join("haproxy.log"))?;
                bail!("HAProxy ended: {status}; it said:\n{log}");
            }
            Ok(haproxy.answered().ok())
        });
        (haproxy.home, _) = answers?;
        Ok(haproxy)
    }

    fn answered(&self) -> Result<String> {
        self.lab.in_ns(Ns::Client, || client::who_answers(self.client, self.to))?
    }

    /// Drains the server that has the client, and takes it back.
    ///
    /// # Errors
    /// It was refused, or the client did not obey it.
    pub(super) fn drain(&mut self) -> Result<Drained> {
        let number = self.lab.servers().position(|host| host.label == self.home);
        let name = format!("plain/s{}", number.context("a server that is none of the lab's")?);
        let this = &*self;
        let drain = format!("set server {name} state drain");
        let drained = drained(&this.lab, Ns::Client, |home| this.until(home), || this.tell(&drain))?;
        self.tell(&format!("set server {name} state ready"))?;
        self.lab.in_ns(Ns::Client, || self.until(true))??;
        Ok(drained)
    }

    /// Connects again and again until the server that was the client's answers, or another. When that connection began.
    fn until(&self, at_home: bool) -> Result<Instant> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let began = Instant::now();
            if (client::who_answers(self.client, self.to)? == self.home) == at_home {
                return Ok(began);
            }
        }
        bail!("the client of {} did not change its server within {PATIENCE:?}", self.home)
    }

    fn tell(&self, command: &str) -> Result<()> {
        let mut socket = UnixStream::connect(&self.socket).context("HAProxy's runtime socket")?;
        writeln!(socket, "{command}")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.trim().is_empty(), "HAProxy answered `{command}` by: {}", answer.trim());
        Ok(())
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.rival.kill();
        let _ = self.rival.wait();
    }
}
