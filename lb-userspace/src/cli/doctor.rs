//! Looks for what could go wrong, and says what it did not look at.

mod ipv6;

use std::io;

use anyhow::bail;
use lb_common::{clock::Ticks, control::Snat, reason::Reason};
use serde::Serialize;
use serde_json::Value;

use super::{
    args::Doctor,
    screen::Screen,
    world::{Request, World},
};
use crate::{
    daemon::problems::Problem,
    dataplane::{Maps, confirm},
    firewall::{Guarded, Report, TABLE},
    net::{self, Net, Offload, namespace::Inside},
    paths::Paths,
    view::{
        Snapshot, flow,
        format::plural,
        program::{Attachment, ProgramRecord},
        server::{AdminState, Health, ServerRecord},
        service::{NOBODY_TAKES, ServiceRecord},
        stats::{Stats, percent},
        table::{Align, render},
    },
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
    /// Could not be looked at.
    Unknown,
}

impl Status {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    finding: String,
    /// What to do about it.
    advice: Option<String>,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, status: Status, finding: String, advice: &str) {
        let advice = (status != Status::Ok && !advice.is_empty()).then(|| advice.to_owned());
        self.0.push(Finding { check, status, finding, advice });
    }

    fn ok(&mut self, check: &'static str, finding: String) {
        self.add(check, Status::Ok, finding, "");
    }

    /// What could not be looked at; where that is for want of rights, that is the advice.
    fn failed(&mut self, check: &'static str, error: &anyhow::Error, advice: &str) {
        let denied = |cause: &(dyn std::error::Error + 'static)| {
            let cause = cause.downcast_ref::<io::Error>();
            cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
        };
        let advice = if error.chain().any(denied) { "run it as root: sudo steadfast doctor" } else { advice };
        self.add(check, Status::Fail, format!("{error:#}"), advice);
    }

    fn when(&mut self, good: bool, bad: Status, check: &'static str, finding: String, advice: &str) {
        self.add(check, if good { Status::Ok } else { bad }, finding, advice);
    }
}

pub(super) fn run(
    args: &Doctor,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    let maps = match (world.maps)(&paths.pin_dir) {
        Ok(maps) => Some(maps),
        Err(error) => {
            findings.failed("maps", &error, "start the daemon: it makes the maps");
            None
        }
    };
    // What is looked at from here on is the daemon's network, wherever this was typed.
    let _inside = maps.as_ref().and_then(|maps| network_of_the_daemon(&mut findings, world, maps));
    let attached = programs(&mut findings, world, paths);
    let was_looked_at = attached.is_some();
    let interfaces = match &args.interface {
        Some(interface) => vec![interface.clone()],
        None => attached.unwrap_or_default(),
    };
    daemon(&mut findings, world, paths);
    if let Some(maps) = &maps
        && let Err(error) = in_maps(&mut findings, world, maps)
    {
        findings.add("maps", Status::Fail, format!("{error:#}"), "");
    }
    if let Some(maps) = &maps {
        firewall(&mut findings, world, maps);
    }
    if interfaces.is_empty() && was_looked_at {
        findings.add(
            "interface",
            Status::Unknown,
            "no interface to look at: no program is attached in this network namespace".to_owned(),
            "name one with --interface",
        );
    }
    for interface in &interfaces {
        on_interface(&mut findings, interface);
    }
    if let Some(maps) = &maps {
        ports(&mut findings, maps);
    }
    if let Some(maps) = &maps
        && let Err(error) = runtime()
            .and_then(|runtime| runtime.block_on(addresses_and_routes(&mut findings, &interfaces, maps)))
    {
        findings.add("routes", Status::Fail, format!("{error:#}"), "");
    }
    findings.add(
        "return path",
        Status::Unknown,
        "not looked at: that answers of the servers come back here shows in `returned` counting up"
            .to_owned(),
        "steadfast stats --watch while a client connects",
    );
    screen.show(&findings.0, || text(&findings.0))?;
    screen.out.flush()?;
    let failed = findings.0.iter().filter(|finding| finding.status == Status::Fail).count();
    if failed > 0 {
        bail!("{} failed", plural(failed as u64, "check", "checks"));
    }
    Ok(())
}

fn text(findings: &[Finding]) -> String {
    let columns = [("CHECK", Align::Left), ("STATUS", Align::Left), ("FINDING", Align::Left)];
    render(
        &columns,
        findings.iter().map(|finding| {
            let advice = finding.advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}"));
            vec![
                finding.check.to_owned(),
                finding.status.as_str().to_owned(),
                format!("{}{advice}", finding.finding),
            ]
        }),
    )
}

/// Goes to the network of the daemon that lives, if that is another than this command's.
fn network_of_the_daemon(findings: &mut Findings, world: &World, maps: &Maps) -> Option<Inside> {
    let process = world.daemon_process(maps)?;
    match (world.enter)(process) {
        Ok(Some(inside)) => {
            findings.ok(
                "network",
                format!("looked at from where the daemon (process {process}) is, another namespace"),
            );
            Some(inside)
        }
        Ok(None) => None,
        Err(error) => {
            let finding =
                format!("the network of the daemon (process {process}) cannot be looked at: {error:#}");
            findings.add("network", Status::Unknown, finding, "run doctor as root, where the daemon runs");
            None
        }
    }
}

/// Whether the program is attached and in the driver; where. None: that could not be looked at.
fn programs(findings: &mut Findings, world: &World, paths: &Paths) -> Option<Vec<String>> {
    match (world.programs)(&paths.pin_dir) {
        Ok(programs) => Some(attachments(findings, &programs)),
        Err(error) => {
            findings.failed("program", &error, "start the daemon: it loads the program");
            None
        }
    }
}

/// The interfaces of this network namespace that the program is on.
fn attachments(findings: &mut Findings, programs: &[ProgramRecord]) -> Vec<String> {
    let places: Vec<_> = programs.iter().flat_map(|program| &program.attached).collect();
    if places.is_empty() {
        findings.add(
            "program",
            Status::Fail,
            "the program is not attached to an interface".to_owned(),
            "start the daemon: it attaches the program",
        );
    }
    places.into_iter().filter_map(|place| attachment(findings, place)).collect()
}

fn attachment(findings: &mut Findings, place: &Attachment) -> Option<String> {
    let interface = &place.interface;
    match place.mode {
        Some("native") => findings.ok("driver mode", format!("native on {interface}")),
        Some(mode) => findings.add(
            "driver mode",
            Status::Warn,
            format!(
                "{mode} on {interface}: after the kernel has built a packet of each frame, which is slower"
            ),
            "use a network card whose driver has native XDP, and xdp_mode: native to insist on it",
        ),
        None => findings.add(
            "driver mode",
            Status::Unknown,
            format!("the program's interface {interface} is not in this network namespace"),
            "run doctor where the daemon runs",
        ),
    }
    place.mode.map(|_| interface.clone())
}

fn daemon(findings: &mut Findings, world: &World, paths: &Paths) {
    match (world.ask)(paths, Request::Get("/v1/status")) {
        Ok(status) => {
            let version = status.get("version").and_then(|version| version.as_str()).unwrap_or("?");
            findings.ok("daemon", format!("answers, version {version}"));
            for problem in status.get("problems").map(Problem::list).unwrap_or_default() {
                findings.add(
                    "problems",
                    Status::Fail,
                    format!("{} (since {})", problem.text, problem.since),
                    "",
                );
            }
            descriptors(findings, &status);
            let ours = env!("CARGO_PKG_VERSION");
            if version != "?" && version != ours {
                findings.add(
                    "versions",
                    Status::Warn,
                    format!("the daemon is {version}, this command is {ours}"),
                    "use both of one release",
                );
            }
        }
        Err(error) => findings.add("daemon", Status::Fail, format!("{error:#}"), ""),
    }
}

/// Whether the daemon may have as many descriptors as it needs.
fn descriptors(findings: &mut Findings, status: &Value) {
    let number = |key: &str| status.pointer(&format!("/descriptors/{key}")).and_then(Value::as_u64);
    let Some(limit) = number("limit") else { return };
    let open = number("open").map_or_else(String::new, |open| format!("{open} of "));
    match status.pointer("/descriptors/shortage").and_then(Value::as_str) {
        None => findings.ok("descriptors", format!("{open}{limit} in use by the daemon")),
        Some(shortage) => findings.add("descriptors", Status::Warn, shortage.to_owned(), ""),
    }
}

/// What the maps tell: neighbours, health, tables, reasons.
fn in_maps(findings: &mut Findings, world: &World, maps: &Maps) -> anyhow::Result<()> {
    let snapshot = Snapshot::read(maps, (world.now)())?;
    findings.ok("maps", format!("layout {}", maps.control().layout.load()));
    let seen = match snapshot.daemon.warning() {
        Some(warning) => (Status::Fail, warning),
        None => (Status::Ok, "gave a sign of life within the last seconds".to_owned()),
    };
    findings.add("heartbeat", seen.0, seen.1, "start the daemon: health is not followed without it");
    let stats = Stats::read(&snapshot)?;
    for server in &stats.servers {
        let in_use = server.state != AdminState::Halt;
        if in_use && !server.reachable {
            findings.add(
                "neighbours",
                Status::Fail,
                format!("the next hop of {} ({}) has no known MAC address", server.name(), server.address),
                "check that it is switched on and in the same network, or that there is a route to it",
            );
        }
        if in_use && server.health == Health::Down {
            let why = server.health_reason.as_deref().unwrap_or("no reason given");
            findings.add("health", Status::Warn, format!("{} is down: {why}", server.name()), "");
        }
        if let Some(why) = server.no_verdict.as_ref().filter(|_| in_use) {
            let name = server.name();
            findings.add(
                "health",
                Status::Warn,
                format!("the checks of {name} say nothing, it stays {}: {why}", server.health.as_str()),
                "look at this machine and its network: the server may be well",
            );
        }
    }
    if !stats.servers.is_empty() && stats.servers.iter().all(|server| server.reachable) {
        let known = plural(stats.servers.len() as u64, "server", "servers");
        findings.ok("neighbours", format!("the next hop of all {known} is known"));
    }
    not_checked(findings, &stats.servers);
    not_listening(findings, &stats.services);
    nobody_takes(findings, &stats);
    unconfirmed(findings, &snapshot, maps);
    full(findings, &stats);
    troubles(findings, &stats);
    Ok(())
}

/// Services whose new clients are refused: the first that is said.
fn nobody_takes(findings: &mut Findings, stats: &Stats) {
    for service in stats.services.iter().filter(|service| service.takes_nobody()).rev() {
        findings.0.insert(
            0,
            Finding {
                check: "services",
                status: Status::Fail,
                finding: format!("{}: {}", service.service, NOBODY_TAKES),
                advice: Some(
                    "see `steadfast server show`: bring a server up or online, or give one a weight"
                        .to_owned(),
                ),
            },
        );
    }
}

/// Servers that count as up whatever happens to them.
fn not_checked(findings: &mut Findings, servers: &[ServerRecord]) {
    let not_checked: Vec<&ServerRecord> =
        servers.iter().filter(|server| server.health == Health::NotChecked).collect();
    let Some(first) = not_checked.first() else { return };
    let many = plural(not_checked.len() as u64, "server is", "servers are");
    let why = first.health_reason.as_deref().unwrap_or("no reason given");
    findings.add(
        "health",
        Status::Warn,
        format!("{many} not checked, and count as up, such as {}: {why}", first.name()),
        "give the virtual service a health_check of kind tcp, tls, http or https",
    );
}

/// Redirects whose port somebody else has.
fn not_listening(findings: &mut Findings, services: &[ServiceRecord]) {
    for service in services.iter().filter(|service| service.listening == Some(false)) {
        let error = service.listening_error.as_deref().unwrap_or("no reason given");
        findings.add(
            "redirects",
            Status::Fail,
            format!("{}: nobody is redirected, the daemon cannot listen: {error}", service.service),
            "`ss -ltnp` shows who listens on that port: end it; the daemon tries again every 5 s",
        );
    }
}

/// Whether the attachment is to be undone.
fn unconfirmed(findings: &mut Findings, snapshot: &Snapshot<'_>, maps: &Maps) {
    if let Some(at) = confirm::undone_at(maps.control()) {
        let at = snapshot.clock.at(Ticks::from_jiffies(at));
        findings.add(
            "confirmation",
            Status::Warn,
            format!("the program was attached for a trial: at {at} everything is undone, as by detach"),
            "`steadfast prog confirm` keeps it",
        );
    }
}

fn full(findings: &mut Findings, stats: &Stats) {
    for table in stats.tables.iter().filter(|table| table.table != "half_open") {
        findings.when(
            table.used * 5 < table.capacity * 4,
            Status::Warn,
            "tables",
            format!(
                "{}: {} of {} in use ({})",
                table.table,
                table.used,
                table.capacity,
                percent(table.used, table.capacity)
            ),
            "raise node.tables in the configuration; a full table turns nobody away, but new clients get no record",
        );
    }
}

/// Reasons that should not count up, and what to do when they do.
const TROUBLES: [(Reason, &str); 6] = [
    (Reason::NoNeighbour, "packets were dropped before a server's MAC address was known"),
    (Reason::PortsExhausted, "add source addresses (node.snat_addresses)"),
    (Reason::FlowTableFull, "raise node.tables.flows"),
    (Reason::EstablishedUnrecorded, "raise node.tables.sticky"),
    (Reason::HalfOpenBusy, "raise node.tables.half_open"),
    (Reason::NotConfigured, "packets came before the daemon had set up the maps"),
];

fn troubles(findings: &mut Findings, stats: &Stats) {
    let mut quiet = true;
    for (reason, advice) in TROUBLES {
        let packets = stats.reasons.of(reason);
        if packets > 0 {
            quiet = false;
            let packets = plural(packets, "packet", "packets");
            findings.add(
                "reasons",
                Status::Warn,
                format!("{packets} with reason {}", reason.label()),
                advice,
            );
        }
    }
    if quiet {
        findings
            .ok("reasons", "no packet met a full table, a missing port or an unknown neighbour".to_owned());
    }
}

/// Whether the host would reset connections while the program is off its interface.
fn firewall(findings: &mut Findings, world: &World, maps: &Maps) {
    let guarded = Guarded::of(maps);
    match (world.firewall)() {
        Ok(there) => {
            let report = Report::of(there.as_ref(), &guarded);
            findings.when(
                report.in_force,
                Status::Warn,
                "firewall",
                format!(
                    "the table {TABLE} {} {} service and {} server ports from the host's own stack; dropped so far: {} \
                     packets of clients, {} of servers",
                    if report.in_force { "guards" } else { "is missing or not as it must be: it should guard" },
                    guarded.services.len(),
                    guarded.servers.len() + guarded.nat_servers.len(),
                    report.from_clients,
                    report.from_servers
                ),
                "the daemon makes it: start it, or see in its log what is in the way",
            );
        }
        Err(error) => findings.add("firewall", Status::Warn, format!("{error:#}"), ""),
    }
}

/// What the host tells of the interface.
fn on_interface(findings: &mut Findings, interface: &str) {
    match net::driver(interface) {
        Ok(driver) => {
            findings.ok("driver", format!("{} on {interface}, {}", driver.name, or_none(&driver.bus)));
        }
        Err(error) => findings.add("driver", Status::Unknown, error.to_string(), ""),
    }
    offloads(findings, interface);
    if let Err(error) = runtime().and_then(|runtime| runtime.block_on(network(findings, interface))) {
        findings.add("interface", Status::Fail, format!("{error:#}"), "");
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "no bus" } else { text }
}

fn offloads(findings: &mut Findings, interface: &str) {
    let unwanted = [
        (
            Offload::LargeReceive,
            "large receive (LRO) merges packets that are to be forwarded",
            format!("ethtool -K {interface} lro off"),
        ),
        (
            Offload::RxVlan,
            "receive VLAN (rxvlan) hides 802.1Q tags from the program",
            format!("ethtool -K {interface} rxvlan off, where the balancer is on a tagged VLAN"),
        ),
    ];
    for (offload, what, advice) in &unwanted {
        match net::offload(interface, *offload) {
            Ok(true) => findings.add("offloads", Status::Warn, format!("{what}, and is on"), advice),
            Ok(false) => findings.ok("offloads", format!("{what}; it is off")),
            Err(error) => findings.add("offloads", Status::Unknown, error.to_string(), ""),
        }
    }
}

/// SNAT ports must stay out of the host's own.
fn ports(findings: &mut Findings, maps: &Maps) {
    let snat = Snat::from_word(maps.control().snat.load());
    let last = u32::from(snat.first_port) + snat.ports.saturating_sub(1);
    match net::ephemeral_range() {
        Ok(own) => findings.when(
            last < u32::from(*own.start()) || u32::from(snat.first_port) > u32::from(*own.end()),
            Status::Fail,
            "snat ports",
            format!(
                "{}-{last}; the host's own ephemeral ports are {}-{}",
                snat.first_port,
                own.start(),
                own.end()
            ),
            "the ranges must not overlap: change node.snat_ports or net.ipv4.ip_local_port_range",
        ),
        Err(error) => findings.add("snat ports", Status::Unknown, error.to_string(), ""),
    }
}

/// The largest MTU with which drivers commonly take an XDP program without fragments: a page less headroom.
const LARGEST_MTU: u32 = 3_498;

async fn network(findings: &mut Findings, interface: &str) -> anyhow::Result<()> {
    let net = Net::open()?;
    let link = net.link(interface).await?;
    findings.when(
        link.up,
        Status::Fail,
        "interface",
        format!("{interface} is {}", if link.up { "operational" } else { "not operational" }),
        &format!("ip link set {interface} up, and check the cable"),
    );
    findings.when(
        (1_280..=LARGEST_MTU).contains(&link.mtu),
        Status::Warn,
        "mtu",
        format!("{} on {interface}", link.mtu),
        "clients, balancer and servers need the same MTU; above about 3,498 drivers have native XDP only if they take \
         frames in several buffers",
    );
    Ok(())
}

/// The kernel's numbers of the interfaces of the running data path.
fn arms(maps: &Maps) -> impl Iterator<Item = u32> {
    let arms = maps.control().arms.iter().map(|arm| arm.interface.load());
    arms.filter_map(|interface| u32::try_from(interface & 0xffff_ffff).ok().filter(|index| *index != 0))
}

/// What the running data path needs of the host's addresses and routes, over all its interfaces.
async fn addresses_and_routes(
    findings: &mut Findings,
    interfaces: &[String],
    maps: &Maps,
) -> anyhow::Result<()> {
    let arms: Vec<u32> = arms(maps).collect();
    let Some(first) = arms.first().copied() else { return Ok(()) };
    let net = Net::open()?;
    let mut own = Vec::new();
    for arm in &arms {
        own.extend(net.addresses(*arm).await?);
    }
    for source in flow::sources(maps.control()) {
        findings.when(
            own.iter().any(|address| address.address == source),
            Status::Fail,
            "snat addresses",
            format!("{source} on the interfaces"),
            "the servers' answers come to this address: put it on one of the interfaces",
        );
    }
    let names = crate::view::Names::read(maps);
    if ipv6::is_served(&names, maps) {
        for interface in interfaces {
            let link = net.link(interface).await?;
            ipv6::check(findings, interface, &net.addresses(link.index).await?);
        }
    }
    for (_, info) in names.servers() {
        let server = crate::view::names::ip(info.address);
        let label = crate::view::names::text(&info.label);
        match net.next_hop(first, server).await {
            Ok(hop) => findings.when(
                arms.contains(&hop.interface),
                Status::Fail,
                "routes",
                match hop.gateway {
                    Some(gateway) => format!("{label} ({server}) by {gateway}"),
                    None => format!("{label} ({server}) directly"),
                },
                "the route leaves by an interface without the program: name it in node.interfaces, or correct the route",
            ),
            Err(error) => findings.add("routes", Status::Fail, format!("{label}: {error}"), ""),
        }
    }
    Ok(())
}
