//! A data path with services and servers in every mode, as the daemon would set it up, in namespaces of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{clock::Ticks, flow::mac_word, reason::REASONS, server::Servers as _, service::MAX_SERVERS};
use lb_userspace::{
    config::{self, XdpMode},
    core::{
        apply::apply,
        desired::{At, Inputs, desired},
        ids::{Ids, InUse},
        name::ServerName,
        overlay::Overlay,
        slow_start::Growth,
    },
    daemon::setup,
    dataplane::{DataPath, Maps, clock::measure_hz},
    object::PROGRAM,
};
use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};

use super::frames::{BALANCER, NEXT_HOP, VIP_PORT};
use crate::lab::host_command;

/// Servers of each `snat` service: so many that a million flows have a SNAT port each.
pub(super) const SNAT_SERVERS: u16 = 32;
/// SNAT ports of each.
pub(super) const SNAT_PORTS: u16 = 32_768;
/// The first of them.
pub(super) const FIRST_PORT: u16 = 1024;
/// Servers of each service in another mode: an answer's frame names the one.
const OTHER_SERVERS: u16 = 1;

/// The balancer's end of the cable.
pub(super) const INTERFACE: &str = "bench0";
/// The other end.
pub(super) const PEER: &str = "bench1";
/// The index of the interface that a test run comes by.
pub(super) const LOOPBACK: u64 = 1;

/// Slots of the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) flows: u32,
    pub(super) half_open: u32,
    pub(super) sticky: u32,
}

/// A service of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) mode: &'static str,
    pub(super) is_v6: bool,
}

impl Service {
    pub(super) const ALL: [Self; 8] = [
        Self { mode: "snat", is_v6: false },
        Self { mode: "snat", is_v6: true },
        Self { mode: "nat", is_v6: false },
        Self { mode: "nat", is_v6: true },
        Self { mode: "dr", is_v6: false },
        Self { mode: "dr", is_v6: true },
        Self { mode: "tunnel", is_v6: false },
        Self { mode: "tunnel", is_v6: true },
    ];

    fn number(self) -> u16 {
        let at = Self::ALL.iter().position(|service| *service == self);
        u16::try_from(at.unwrap_or_default()).unwrap_or_default()
    }

    pub(super) fn label(self) -> String {
        format!("{}{}", self.mode, if self.is_v6 { "6" } else { "4" })
    }

    /// Whether its servers' answers pass the balancer.
    pub(super) fn sees_answers(self) -> bool {
        matches!(self.mode, "snat" | "nat")
    }

    pub(super) fn servers(self) -> u16 {
        if self.mode == "snat" { SNAT_SERVERS } else { OTHER_SERVERS }
    }

    pub(super) fn address(self) -> IpAddr {
        let [_, low] = (150 + self.number()).to_be_bytes();
        if self.is_v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 150 + self.number()).into()
        } else {
            Ipv4Addr::new(192, 168, 85, low).into()
        }
    }

    /// The address of its `server`-th server. The low 16 bits count.
    pub(super) fn server(self, server: u16) -> IpAddr {
        let low = 0x0100 + server + 1;
        if self.is_v6 {
            Ipv6Addr::new(0xfd00, self.number(), 0, 0, 0, 0, 0, low).into()
        } else {
            let [high, low] = low.to_be_bytes();
            Ipv4Addr::new(10, 100 + self.number().to_be_bytes()[1], high, low).into()
        }
    }

    /// From whom its servers get what they get.
    pub(super) fn source(self) -> IpAddr {
        if self.is_v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10).into()
        } else {
            Ipv4Addr::new(192, 168, 85, 10).into()
        }
    }
}

/// The balancer, attached and set up. Frames are not sent to it; it is run on them.
pub(super) struct World {
    pub(super) maps: Arc<Maps>,
    program: PathBuf,
    link: PathBuf,
    pub(super) now: Ticks,
    ids: Ids,
    _path: DataPath,
}

/// Runs the closure on a thread in a network and a mount namespace of its own, on one core. All of it goes with the thread.
///
/// # Errors
/// It may not, or what the closure says.
pub(super) fn alone<T: Send + 'static>(work: impl FnOnce(&Path) -> Result<T> + Send + 'static) -> Result<T> {
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let bpf = directory.path().to_owned();
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("the bench needs root")?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        mount(Some("bpf"), &bpf, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let mut core = CpuSet::new();
        core.set(thread::available_parallelism()?.get() - 1)?;
        sched_setaffinity(Pid::from_raw(0), &core)?;
        go_first()?;
        lay_cable(INTERFACE, PEER)?;
        work(&bpf)
    });
    thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}

/// Makes a pair of veth devices in the calling thread's network namespace.
///
/// # Errors
/// `ip` failed.
pub(super) fn lay_cable(interface: &str, peer: &str) -> Result<()> {
    ip(&["link", "add", interface, "type", "veth", "peer", "name", peer])?;
    // Without IPv6 addresses of their own, for which they would send frames by themselves.
    ip(&["link", "set", interface, "addrgenmode", "none", "up"])?;
    ip(&["link", "set", peer, "addrgenmode", "none", "up"])
}

impl World {
    /// Brings it up with its pins below this directory of a BPF file system.
    ///
    /// # Errors
    /// The kernel refused something.
    pub(super) fn up(pins: &Path, sizes: Sizes) -> Result<Self> {
        Self::with(pins, &yaml(sizes))
    }

    /// As [`World::up`], with another configuration.
    ///
    /// # Errors
    /// The configuration is no good, or the kernel refused something.
    pub(super) fn with(pins: &Path, yaml: &str) -> Result<Self> {
        let config = config::parse("bench", yaml).map_err(|errors| anyhow::anyhow!("{errors}"))?;
        let sources = [Service::ALL[0].source(), Service::ALL[1].source()];
        let geometry = setup::geometry(&config, &sources)?;
        let interface = config.node.interfaces.first().context("a configuration without an interface")?;
        let (path, _) = DataPath::start(pins, interface, XdpMode::Native, geometry)?;
        let maps = Arc::clone(&path.maps);
        let hz = measure_hz(maps.kernel.as_ref())?;
        let secrets = setup::draw_secrets()?;
        setup::settle_fresh(&maps, &geometry, &sources, &secrets, hz)?;
        let arm = &maps.control().arms[0];
        arm.mac.store(mac_word(BALANCER));
        arm.interface.store(LOOPBACK | 1500 << 32);
        let ids = Ids::default().assign(&config, &InUse::default(), geometry.endpoints, 1_800_000_000)?;
        let macs = (0..u16::try_from(MAX_SERVERS)?).map(|id| (id, At { arm: 0, mac: NEXT_HOP })).collect();
        let now = maps.now()?;
        let wanted = desired(&Inputs {
            config: &config,
            overlay: &Overlay::default(),
            health: &BTreeMap::new(),
            macs: &macs,
            leaving: &BTreeMap::new(),
            ids: &ids,
            hz,
            seed: secrets.maglev_seed,
            growth: &Growth::default(),
            uptime: Duration::ZERO,
            listening: &BTreeMap::new(),
            unsure: &BTreeSet::new(),
        })?;
        apply(&maps, &wanted, now, &mut || Ok(()))?;
        setup::open(&maps);
        let program = pins.join("programs").join(PROGRAM);
        let link = pins.join("links").join(interface);
        Ok(Self { maps, program, link, now, ids, _path: path })
    }

    /// Has packets come by this interface of the calling thread's network namespace, instead of by a test run.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn receive_on(&self, interface: &str) -> Result<()> {
        let index =
            if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))?;
        self.maps.control().arms[0].interface.store(u64::from(index) | 1500 << 32);
        Ok(())
    }

    /// Where the link is pinned that holds the program on its interface.
    pub(super) fn link(&self) -> &Path {
        &self.link
    }

    /// Where the program is pinned.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// The number of a service.
    pub(super) fn service_id(&self, service: Service) -> Result<u16> {
        self.numbered_service(&service.label())
    }

    /// The number of a service by its label.
    pub(super) fn numbered_service(&self, label: &str) -> Result<u16> {
        Ok(self.ids.service(label).with_context(|| format!("the service {label} has no number"))?.id)
    }

    /// The number of a server, and that of its endpoint.
    pub(super) fn server_ids(&self, service: Service, server: u16) -> Result<(u16, u16)> {
        self.numbered_server(&service.label(), &format!("s{server}"))
    }

    /// The number of a server by its service's label and its own, and that of its endpoint.
    pub(super) fn numbered_server(&self, service: &str, label: &str) -> Result<(u16, u16)> {
        let name = ServerName::new(service, label);
        let id = self.ids.server(&name).with_context(|| format!("the server {name} has no number"))?;
        let entry = self.maps.servers.present(id).with_context(|| format!("{name} is not in the maps"))?;
        Ok((id, entry.endpoint))
    }

    /// Packets by reason so far.
    pub(super) fn reasons(&self) -> Result<[u64; REASONS]> {
        let counts = self.maps.kernel.reasons()?;
        match counts.try_into() {
            Ok(counts) => Ok(counts),
            Err(_) => bail!("another number of reasons"),
        }
    }
}

/// Lets nobody else have the core while a program is timed: whoever has it in between takes the cache with him.
fn go_first() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads one value, which is on the stack.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) } != 0;
    ensure!(!refused, "no real-time priority: {}", std::io::Error::last_os_error());
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = host_command("ip", arguments).output()?;
    ensure!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn yaml(sizes: Sizes) -> String {
    let Sizes { flows, half_open, sticky } = sizes;
    let mut yaml = format!(
        "version: 1\nnode:\n  interfaces: [{INTERFACE}]\n  snat_ports: {FIRST_PORT}-{}\n  tables: {{ flows: {flows}, \
         half_open: {half_open}, sticky: {sticky}, endpoints: 128 }}\nvirtual_services:\n",
        u32::from(FIRST_PORT) + u32::from(SNAT_PORTS) - 1
    );
    for service in Service::ALL {
        let _infallible = write!(
            yaml,
            "  - label: {}\n    address: \"{}\"\n    ports: [{VIP_PORT}]\n    forwarding: {}\n    health_check: {{ kind: \
             none }}\n    real_servers:\n",
            service.label(),
            service.address(),
            service.mode
        );
        for server in 0..service.servers() {
            let _infallible =
                writeln!(yaml, "      - {{ label: s{server}, address: \"{}\" }}", service.server(server));
        }
    }
    yaml
}
