//! Sites with so many services, and with so many servers of a service. All are up at the same time, and each round goes
//! through all of them.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;

use super::memory;
use crate::bench::{
    figures::Rounds,
    frames::{
        CLIENT_PORT, DESTINATION, DESTINATION_LOW, DESTINATION_PORT, Flags, From, SOURCE, SOURCE_LOW,
        VIP_PORT, narrow, patched, script, sequence_at,
    },
    packet::{Bench, SNAT, in_turn, shuffled},
    rows::{Place, establish_at},
    script::{Field, Script},
    world::{FIRST_PORT, World, lay_cable},
};

const COUNTS: [u32; 4] = [1, 16, 256, 4096];
/// Flows that are spread over all services or servers.
const FLOWS: u32 = 4096;
/// New clients in a round.
const STRANGERS: u32 = 2048;
/// Services are at 10.90.0.1 and up, servers at 10.91.0.1 and up.
const SERVICES: u32 = 0x0a5a_0001;
const SERVERS: u32 = 0x0a5b_0001;

/// What is measured of each site, in this order.
pub(super) const HOT: &str = "one flow, to server";
const SPREAD: &str = "4,096 flows over all of them, to server";
const BACK: &str = "4,096 flows over all of them, to client";
pub(super) const SYN: &str = "SYN of a new client";

/// Whether something is promised of this.
pub(super) fn is_promised(name: &str) -> bool {
    [HOT, SPREAD, BACK].contains(&name)
}

/// A site's figures.
pub(super) struct Site {
    /// Services, or servers.
    pub(super) count: u32,
    pub(super) mebibytes: f64,
    /// Nanoseconds, by what was measured.
    pub(super) figures: Vec<(String, Rounds)>,
}

/// All sites, from one service or server up.
pub(super) struct Sites {
    pub(super) services: Vec<Site>,
    pub(super) servers: Vec<Site>,
}

/// Which of both there are many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Many {
    Services,
    Servers,
}

pub(super) fn measure(pins: &Path, rounds: usize, repeat: u32) -> Result<Sites> {
    let kinds =
        [Many::Services, Many::Servers].into_iter().flat_map(|many| COUNTS.map(|count| (many, count)));
    let mut ups = Vec::new();
    for (number, (many, count)) in kinds.enumerate() {
        ups.push(Up::start(pins, number, many, count).with_context(|| format!("{count} {many:?}"))?);
    }
    for round in 0..=rounds {
        // Nobody is always the first.
        ups.rotate_left(1);
        for up in &mut ups {
            up.run(round, repeat).with_context(|| format!("{} {:?}", up.site.count, up.many))?;
        }
    }
    let mut sites = Sites { services: Vec::new(), servers: Vec::new() };
    for up in ups {
        let of_kind = if up.many == Many::Services { &mut sites.services } else { &mut sites.servers };
        of_kind.push(up.site);
    }
    sites.services.sort_by_key(|site| site.count);
    sites.servers.sort_by_key(|site| site.count);
    Ok(sites)
}

/// A site that is up.
struct Up {
    many: Many,
    bench: Bench,
    site: Site,
}

impl Up {
    fn start(pins: &Path, number: usize, many: Many, count: u32) -> Result<Self> {
        let interface = format!("site{number}");
        lay_cable(&interface, &format!("peer{number}"))?;
        let pins: PathBuf = pins.join(&interface);
        let world = World::with(&pins, &yaml(&interface, many, count))?;
        let mebibytes = memory::of(&pins, &world)?;
        fill(&world, many, count)?;
        let names = [HOT, SPREAD, BACK, SYN].map(|name| (name.to_owned(), Rounds::default()));
        let site = Site { count, mebibytes, figures: names.to_vec() };
        Ok(Self { many, bench: Bench::of(world, 1)?, site })
    }

    fn run(&mut self, round: usize, repeat: u32) -> Result<()> {
        let count = self.site.count;
        let spread = to_server(self.many, count, Flags::Ack, CLIENT_PORT)?;
        let hot = Script { sequence_at: sequence_at(SNAT), sequence_step: 1448, ..spread };
        // Nobody comes twice from the same port.
        let port = CLIENT_PORT + 1 + u16::try_from(round)?;
        let strangers = in_turn(to_server(self.many, count, Flags::Syn, port)?, FLOWS, 1 << 16);
        let figures = [
            self.bench.balancer(&hot, repeat, Reason::Forwarded)?,
            self.bench.balancer(&shuffled(spread, FLOWS), repeat, Reason::Forwarded)?,
            self.bench.balancer(&shuffled(to_client(self.many, count)?, FLOWS), repeat, Reason::Returned)?,
            self.bench.mostly(
                &strangers,
                STRANGERS,
                Reason::NewByScheduler,
                u64::from(STRANGERS) * 98 / 100,
            )?,
        ];
        // The first round is to warm up.
        if round > 0 {
            for ((_, rounds), figure) in self.site.figures.iter_mut().zip(figures) {
                rounds.0.push(figure);
            }
        }
        Ok(())
    }
}

/// A segment of conversation n: of the n-th client, to the n-th service where there are many.
fn to_server(many: Many, count: u32, flags: Flags, port: u16) -> Result<Script> {
    let service = Ipv4Addr::from(SERVICES).octets();
    let script = patched(script(SNAT, From::Client, flags, port)?, DESTINATION, &service)?;
    let services = if many == Many::Services { count - 1 } else { 0 };
    let fields = [
        Field { at: SOURCE_LOW, shift: 0, mask: 0xffff, base: 0 },
        Field { at: DESTINATION_LOW, shift: 0, mask: services, base: u32::from(narrow(SERVICES)) },
    ];
    Ok(Script { fields, ..script })
}

/// Its answer.
fn to_client(many: Many, count: u32) -> Result<Script> {
    let server = Ipv4Addr::from(SERVERS).octets();
    let script = patched(script(SNAT, From::Server, Flags::Ack, CLIENT_PORT)?, SOURCE, &server)?;
    // Each service has the server of its number, and a conversation's port is as `establish_at` gives it.
    let shift = if many == Many::Servers { count.trailing_zeros() } else { 0 };
    let fields = [
        Field { at: SOURCE_LOW, shift: 0, mask: count - 1, base: u32::from(narrow(SERVERS)) },
        Field { at: DESTINATION_PORT, shift, mask: 0xffff, base: u32::from(FIRST_PORT) },
    ];
    Ok(Script { fields, ..script })
}

/// Establishes the conversations.
fn fill(world: &World, many: Many, count: u32) -> Result<()> {
    let (services, servers) = if many == Many::Services { (count, 1) } else { (1, narrow(count)) };
    let places = (0..services).map(|number| Place::numbered(world, SNAT, &format!("S{number}"), servers));
    let places = places.collect::<Result<Vec<_>>>()?;
    for conversation in 0..FLOWS {
        let place = &places[usize::try_from(conversation % services)?];
        let without = establish_at(place, conversation..conversation + 1)?;
        ensure!(without == 0, "a flow found no room");
    }
    Ok(())
}

fn yaml(interface: &str, many: Many, count: u32) -> String {
    let (services, servers) = if many == Many::Services { (count, 1) } else { (1, count) };
    // Ports for every flow and stranger at a single server; with thousands of servers, fewer each.
    let ports = if count > 256 { 8192 } else { 31_744 };
    let mut yaml = format!(
        "version: 1\nnode:\n  interfaces: [{interface}]\n  snat_ports: {FIRST_PORT}-{}\n  tables: {{ endpoints: {} }}\n\
         virtual_services:\n",
        FIRST_PORT + ports - 1,
        count.max(16)
    );
    for service in 0..services {
        let _infallible = write!(
            yaml,
            "  - label: S{service}\n    address: {}\n    ports: [{VIP_PORT}]\n    health_check: {{ kind: none }}\n    \
             real_servers:\n",
            Ipv4Addr::from(SERVICES + service)
        );
        for server in 0..servers {
            let address = Ipv4Addr::from(SERVERS + service + server);
            let _infallible = writeln!(yaml, "      - {{ label: s{server}, address: {address} }}");
        }
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configurations_are_good() {
        for many in [Many::Services, Many::Servers] {
            for count in COUNTS {
                let config = lb_userspace::config::parse("bench", &yaml("site0", many, count));
                assert!(config.is_ok(), "{count} {many:?}: {:?}", config.err());
            }
        }
    }
}
