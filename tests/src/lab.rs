//! The lab: a client host, the balancer, Hyperspace and MyChart servers, each a network namespace on one bridge.
//!
//! ```text
//!              br0 (fabric)
//!   ┌──────────┬───┴──────┬─────────────────┐
//! client       lb         srv200 .201 .202   srv210 .211
//! .85.100      .85.10     Hyperspace         MyChart
//! 10.85/16     + .150, .151 by the daemon
//! ```
//!
//! That is the default; [`Topology`] says what else there is.
//!
//! Dropping a [`Lab`] removes everything, also after a panic; what a killed process left is removed by the next lab.

mod big;
mod capture;
pub mod client;
mod daemon;
mod devices;
mod flood;
mod forged;
mod frame;
mod hosts;
mod junk;
mod layout;
mod namespace;
mod network;
mod nginx;
mod places;
mod programs;
mod registry;
mod services;
mod topology;
mod transfers;
mod ways;

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;

pub use self::{
    capture::{Capture, Captured},
    daemon::starts_within,
    devices::{Device, refused},
    flood::{FloodReport, SynFlood},
    forged::ForgedAcks,
    frame::{RawSocket, arp_announcement},
    junk::Junk,
    layout::{
        BRIDGE, CLIENT, CLIENTS, HYPERSPACE, HYPERSPACE_SERVERS, Host, INTERFACE, LB, MYCHART, Ns,
        client_address,
    },
    namespace::{path as namespace_path, unblock_signals},
    nginx::{PLAIN_PORT, Port443},
    places::{Places, bin_dir, bpf_object},
    registry::sweep,
    services::Services,
    topology::{Arms, Family, Mode, Tags, Topology},
};
pub(crate) use self::{
    namespace::host_command,
    places::{own_libraries, tool},
};
pub use nix::sys::signal::Signal;

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// What port 443 of the servers speaks.
    pub port_443: Port443,
    /// Bytes behind `/big` and `/slow`.
    pub big_bytes: u64,
    /// Forwarding mode, family of addresses, arms.
    pub topology: Topology,
    /// In mode `tunnel`, leave the tunnels' ends at the servers to [`Lab::add_tunnel_device`].
    pub open_tunnels: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            port_443: Port443::Tls,
            big_bytes: 1024 * 1024,
            topology: Topology::default(),
            open_tunnels: false,
        }
    }
}

/// A lab that is up. Dropping it removes it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    options: LabOptions,
    places: Places,
    lb: Host,
    client: Host,
    servers: Vec<Server>,
    /// None, or the two of a narrow hop.
    routers: Vec<Host>,
    big_sha256: String,
    daemon: Option<Child>,
    captures: AtomicU32,
    /// Keeps the programs at the bridge's ends of the balancer's links, and those of tunnel servers.
    programs: Vec<Ebpf>,
}

#[derive(Debug)]
struct Server {
    host: Host,
    nginx: Option<Child>,
}

impl Lab {
    /// Builds the network: namespaces, links, addresses. Nothing runs in it yet.
    ///
    /// # Errors
    /// Not root, or a tool is missing (`cargo xtask setup`).
    pub fn new(options: LabOptions) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "the lab makes network namespaces, which needs root: use `cargo xtask run` or `cargo xtask test`"
            );
        }
        sweep().context("cannot remove what an earlier lab left behind")?;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sf{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let places = Places::new(&name);
        registry::register(&name, &places)?;
        let topology = options.topology;
        // From here on, a failure drops the lab and with it all that was made.
        let mut lab = Self {
            name,
            options,
            places,
            lb: Host::lb(),
            client: Host::client(topology.client_network()),
            servers: Vec::new(),
            routers: Vec::new(),
            big_sha256: String::new(),
            daemon: None,
            captures: AtomicU32::new(0),
            programs: Vec::new(),
        };
        lab.build()?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        let topology = self.options.topology;
        let network = topology.server_network();
        for (index, (label, octet)) in layout::SERVERS.into_iter().enumerate() {
            self.servers.push(Server { host: Host::server(index, label, network, octet), nginx: None });
        }
        if topology.narrow {
            self.routers.extend(Host::routers(topology::CLIENT_SIDE, topology::FAR_SIDE));
        }
        let fabric = self.namespace(Ns::Fabric);
        network::add_fabric(&fabric, &topology.bridges())?;
        let hosts = [&self.lb, &self.client].into_iter().chain(&self.routers).chain(self.servers());
        let hosts: Vec<_> = hosts.map(|host| (host, self.namespace(host.ns))).collect();
        network::add_hosts(topology, &fabric, &hosts)?;
        if topology.narrow {
            network::join(topology, &self.namespace(Ns::Near), &self.namespace(Ns::Far))?;
        }
        for cable in topology.cables(&self.lb) {
            self.programs.push(programs::pass(&fabric, &cable.port)?);
        }
        for index in 0..self.servers.len() {
            self.end_tunnel(index)?;
        }
        self.big_sha256 = big::write(&self.places.big_file(), self.options.big_bytes)?;
        self.write_config(&self.config_yaml())
    }

    /// The name of a namespace, as `ip netns` lists it.
    pub fn namespace(&self, ns: Ns) -> String {
        let suffix = self.host(ns).map_or_else(|| "fabric".to_owned(), Host::suffix);
        format!("{}-{suffix}", self.name)
    }

    /// The host of a namespace; the fabric has none, nor has a server that was never added.
    pub fn host(&self, ns: Ns) -> Option<&Host> {
        match ns {
            Ns::Fabric => None,
            Ns::Lb => Some(&self.lb),
            Ns::Client => Some(&self.client),
            Ns::Server(index) => self.servers.get(index).map(|server| &server.host),
            Ns::Near => self.routers.first(),
            Ns::Far => self.routers.get(1),
        }
    }

    fn existing_host(&self, ns: Ns) -> Result<&Host> {
        self.host(ns).with_context(|| format!("the lab has no host {ns:?}"))
    }

    /// The servers, in the order of their indices.
    pub fn servers(&self) -> impl Iterator<Item = &Host> {
        self.servers.iter().map(|server| &server.host)
    }

    /// Where this lab keeps its files.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The SHA-256 of what `/big` and `/slow` serve, in hexadecimal digits.
    pub fn big_sha256(&self) -> &str {
        &self.big_sha256
    }

    /// A command that will run inside the namespace and otherwise like any other: /sys and the pins are the host's.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        ns: Ns,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        namespace::command(&self.namespace(ns), program, args)
    }

    /// Runs the closure on a fresh thread inside the namespace. A socket made there stays there, wherever it is used.
    ///
    /// # Errors
    /// The namespace cannot be entered. A panic of the closure goes on in the caller.
    pub fn in_ns<T: Send>(&self, ns: Ns, closure: impl FnOnce() -> T + Send) -> Result<T> {
        namespace::run_in(&self.namespace(ns), closure)
    }

    /// Adds a server with that octet on the servers' network (192.168.85.0/24 in a one-arm lab) and returns its index; nothing runs on it yet.
    ///
    /// # Errors
    /// The address is taken, or a tool failed.
    pub fn add_server(&mut self, label: &str, octet: u8) -> Result<usize> {
        let index = self.servers.len();
        let topology = self.options.topology;
        let host = Host::server(index, label, topology.server_network(), octet);
        let mut others = [&self.lb, &self.client].into_iter().chain(self.servers());
        let taken = others.find(|other| other.address == host.address).map(|other| other.label.clone());
        drop(others);
        if let Some(label) = taken {
            bail!("{} is {label}'s address", host.address);
        }
        self.servers.push(Server { host: host.clone(), nginx: None });
        network::add_hosts(topology, &self.namespace(Ns::Fabric), &[(&host, self.namespace(host.ns))])?;
        self.end_tunnel(index)?;
        Ok(index)
    }

    /// Starts a server's nginx and waits until it answers: `/` its label, `/client` the address it saw, `/big` a file,
    /// `/slow` the same at 64 KiB/s, and what is put under `/upload/` in its directory of that name; on 443 and, always without TLS, on [`PLAIN_PORT`].
    ///
    /// # Errors
    /// There is no such server, it is running already, or nginx did not start.
    pub fn start_nginx(&mut self, index: usize) -> Result<()> {
        let host = self.existing_host(Ns::Server(index))?;
        if self.servers[index].nginx.is_some() {
            bail!("nginx of {} is running already", host.label);
        }
        let dir = self.places.dir.join(host.suffix());
        let namespace = self.namespace(host.ns);
        let nginx = nginx::start(&namespace, host, &dir, &self.places.big_file(), self.options.port_443)?;
        self.servers[index].nginx = Some(nginx);
        Ok(())
    }

    /// Starts the nginx of every server that has none running.
    ///
    /// # Errors
    /// Those of [`Lab::start_nginx`].
    pub fn start_all_nginx(&mut self) -> Result<()> {
        for index in 0..self.servers.len() {
            if self.servers[index].nginx.is_none() {
                self.start_nginx(index)?;
            }
        }
        Ok(())
    }

    /// Kills a server's nginx: its kernel resets or closes what was open and refuses what comes.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop_nginx(&mut self, index: usize) -> Result<()> {
        let server = self.servers.get_mut(index).with_context(|| format!("the lab has no server {index}"))?;
        let mut nginx =
            server.nginx.take().with_context(|| format!("nginx of {} is not running", server.host.label))?;
        nginx.kill().context("cannot kill nginx")?;
        nginx.wait().context("cannot wait for nginx")?;
        Ok(())
    }

    /// Pulls a host's cables or puts them back: what was open hangs, unlike after [`Lab::stop_nginx`].
    ///
    /// # Errors
    /// There is no such host.
    pub fn plug(&self, ns: Ns, plugged: bool) -> Result<()> {
        network::plug(self.options.topology, &self.namespace(Ns::Fabric), self.existing_host(ns)?, plugged)
    }

    /// Gives a host an address on its loopback, as a `dr` or `tunnel` server owns the service's, or takes it back.
    ///
    /// # Errors
    /// It has it already, or has it not.
    pub fn loopback_address(&self, ns: Ns, address: Ipv4Addr, present: bool) -> Result<()> {
        network::loopback_address(&self.namespace(ns), address, present)
    }

    /// Runs lines of `ip` commands in a namespace, such as `route replace default via 192.168.85.10`.
    ///
    /// # Errors
    /// One of them failed; the others before it were done.
    pub fn ip(&self, ns: Ns, lines: &str) -> Result<()> {
        network::ip(Some(&self.namespace(ns)), lines)
    }

    /// Frames that the namespace's `eth0` has received.
    ///
    /// # Errors
    /// It has no `eth0`.
    pub fn received_frames(&self, ns: Ns) -> Result<u64> {
        network::received_frames(&self.namespace(ns), INTERFACE)
    }

    /// The configuration of the four services: Hyperspace and MyChart on 443, and their redirects on 80.
    pub fn config_yaml(&self) -> String {
        Services::default().yaml(self.options.topology)
    }

    /// Replaces the file that the daemon is started with; at first it is [`Lab::config_yaml`].
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_config(&self, yaml: &str) -> Result<()> {
        let path = self.config_path();
        fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The file that the daemon is started with.
    pub fn config_path(&self) -> PathBuf {
        self.places.config()
    }

    /// Starts `steadfastd run --config FILE` with further arguments and waits until the command line can talk to it.
    ///
    /// # Errors
    /// It is running already, or it ended or was not ready within 30 s: the end of its log is part of the error.
    pub fn start_daemon(&mut self, extra: &[&str]) -> Result<()> {
        self.start_daemon_of(&daemon::built()?, extra)
    }

    /// As [`Lab::start_daemon`], with another program than that of this build.
    ///
    /// # Errors
    /// Those of [`Lab::start_daemon`].
    pub fn start_daemon_of(&mut self, program: &Path, extra: &[&str]) -> Result<()> {
        if self.daemon.is_some() {
            bail!("steadfastd is running already");
        }
        self.daemon = Some(daemon::start(&self.namespace(Ns::Lb), &self.places, program, extra)?);
        Ok(())
    }

    /// Sends the daemon a signal and waits for its end. Its program and tables stay: that is the point of them.
    ///
    /// # Errors
    /// It is not running, or is still there after 10 s (it is killed then).
    pub fn kill_daemon(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("steadfastd is not running")?;
        daemon::end(&mut daemon, signal)
    }

    /// The daemon's process id, while it is running.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The last lines that the daemon logged.
    pub fn daemon_log(&self) -> String {
        daemon::log_end(&self.places)
    }

    /// Runs `steadfast` and returns what it printed and its exit code.
    ///
    /// # Errors
    /// It is not built.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        daemon::cli(&self.namespace(Ns::Lb), &self.places, args)
    }

    /// What `steadfast` printed as JSON.
    ///
    /// # Errors
    /// It failed, with what it said, or printed something else.
    pub fn cli_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let output = self.cli(args)?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`steadfast {}` failed: {}: {}", args.join(" "), output.status, complaint.trim_end());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`steadfast {}` printed no JSON", args.join(" ")))
    }

    /// Runs `steadfastd` with the arguments to its end, such as `detach`.
    ///
    /// # Errors
    /// It is not built.
    pub fn daemon_command(&self, args: &[&str]) -> Result<Output> {
        let mut steadfastd = daemon::in_lab(&self.namespace(Ns::Lb), &self.places, "steadfastd", args)?;
        steadfastd.stdin(Stdio::null()).output().context("cannot start steadfastd")
    }

    /// One of the balancer's programs with arguments, to be run on its host.
    ///
    /// # Errors
    /// It is not built.
    pub fn program(&self, program: &str, args: &[&str]) -> Result<Command> {
        daemon::in_lab(&self.namespace(Ns::Lb), &self.places, program, args)
    }

    /// The label of the server that answers a client's address; with TLS on 443 this takes curl and its time.
    ///
    /// # Errors
    /// Nobody answered within 5 s, or not with 200.
    pub fn who_answers(
        &self,
        source: impl Into<IpAddr>,
        vip: impl Into<IpAddr>,
        port: u16,
    ) -> Result<String> {
        let (source, to) = (source.into(), SocketAddr::new(vip.into(), port));
        if port == 443 && self.options.port_443 == Port443::Tls {
            let body = self.curl(source, &format!("https://{to}/"), &["--max-time", "5"])?;
            return Ok(String::from_utf8_lossy(&body).trim_end().to_owned());
        }
        self.in_ns(Ns::Client, || client::who_answers(source, to))?
    }

    /// What curl gets from the client host, from one of its addresses, without verifying certificates.
    ///
    /// # Errors
    /// curl failed, or the status was 400 or above.
    pub fn curl(&self, source: impl Into<IpAddr>, url: &str, extra: &[&str]) -> Result<Vec<u8>> {
        let source = source.into().to_string();
        let mut curl = self.command(Ns::Client, "curl", ["-sSfk", "--interface", &source]);
        let output = curl.args(extra).arg(url).stdin(Stdio::null()).output().context("cannot start curl")?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("curl from {source} to {url}: {}", complaint.trim_end());
        }
        Ok(output.stdout)
    }

    /// Captures what passes a namespace's `eth0`; the filter is tcpdump's, and may be empty.
    ///
    /// # Errors
    /// tcpdump did not start.
    pub fn capture(&self, ns: Ns, filter: &str) -> Result<Capture> {
        self.capture_on(ns, INTERFACE, filter)
    }

    /// Captures on another interface than `eth0`, such as a bridge port: [`Host::port`] in [`Ns::Fabric`].
    ///
    /// # Errors
    /// tcpdump did not start.
    pub fn capture_on(&self, ns: Ns, interface: &str, filter: &str) -> Result<Capture> {
        Capture::start(&self.namespace(ns), interface, None, filter, self.next_capture_file())
    }

    /// Captures no more than so many packets of a namespace's `eth0`.
    ///
    /// # Errors
    /// tcpdump did not start.
    pub fn capture_first(&self, ns: Ns, packets: u32, filter: &str) -> Result<Capture> {
        Capture::start(&self.namespace(ns), INTERFACE, Some(packets), filter, self.next_capture_file())
    }

    fn next_capture_file(&self) -> PathBuf {
        let number = self.captures.fetch_add(1, Ordering::Relaxed);
        self.places.dir.join(format!("capture{number}.pcap"))
    }

    /// Floods a host with spoofed SYNs from the client host, and returns when it is over.
    ///
    /// # Errors
    /// There is no such host, or the kernel refused a frame.
    pub fn syn_flood(&self, to: Ns, flood: &SynFlood) -> Result<FloodReport> {
        let (from, to) = (self.client.mac(), self.existing_host(to)?.mac());
        self.in_ns(Ns::Client, || flood::send(flood, from, to))?
    }

    /// Sends forged acknowledgements from the client host to the balancer.
    ///
    /// # Errors
    /// The client host is gone, or its socket refused.
    pub fn forged_acks(&self, forged: &ForgedAcks) -> Result<FloodReport> {
        let (from, to) = (self.client.mac(), self.lb.mac());
        self.in_ns(Ns::Client, || forged::send(forged, from, to))?
    }

    /// Sends fragments or malformed packets from the client host to the balancer.
    ///
    /// # Errors
    /// The client host is gone, or its socket refused.
    pub fn junk(&self, junk: &Junk) -> Result<FloodReport> {
        let (from, to) = (self.client.mac(), self.lb.mac());
        self.in_ns(Ns::Client, || junk::send(junk, from, to))?
    }

    /// Takes the lab's own XDP programs off again: a veth device copies what its peer sends before it runs one, which
    /// is no cost of a balancer that is not made of XDP.
    pub fn remove_programs(&mut self) {
        self.programs.clear();
    }

    /// A socket for whole frames on a namespace's `eth0`.
    ///
    /// # Errors
    /// It has no `eth0`.
    pub fn raw_socket(&self, ns: Ns) -> Result<RawSocket> {
        self.in_ns(ns, || RawSocket::open(INTERFACE))?
    }

    /// How the balancer's programs find this lab: the variables that [`Lab::cli`] runs with.
    pub fn environment(&self) -> [(&'static str, &Path); 3] {
        daemon::environment(&self.places)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let children = self.servers.iter_mut().filter_map(|server| server.nginx.as_mut());
        for child in children.chain(self.daemon.as_mut()) {
            // Both fail only where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = registry::remove(&self.name, &self.places.dir) {
            eprintln!(
                "the lab {} is not removed whole, `cargo xtask clean` tries again: {error:#}",
                self.name
            );
        }
    }
}
