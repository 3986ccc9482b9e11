//! What is settled once, before packets are handled: sizes, ports, secrets, times.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use anyhow::{Context as _, bail, ensure};
use lb_common::address::Address;
use lb_common::clock::Ticks;
use lb_common::control::{LAYOUT_VERSION, MAX_SOURCES, SPARED_SECONDS, Snat, idle_seconds};
use lb_common::ports::QUARANTINE_SECONDS;
use lb_common::tcp::TcpState;

use super::store::Secrets;
use crate::config::{Config, Forwarding, PortRange, Service};
use crate::dataplane::{Geometry, Maps};

/// The sizes that a configuration asks for.
///
/// # Errors
/// More source addresses than there can be.
pub fn geometry(config: &Config, sources: &[IpAddr]) -> anyhow::Result<Geometry> {
    let node = &config.node;
    let of_family = |v4: bool| sources.iter().filter(|source| source.is_ipv4() == v4).count();
    let (v4, v6) = (of_family(true), of_family(false));
    ensure!(
        v4.max(v6) <= MAX_SOURCES,
        "{} source addresses of a family are not possible: name up to {MAX_SOURCES} in node.snat_addresses",
        v4.max(v6)
    );
    Ok(Geometry {
        flows: node.tables.flows,
        half_open: node.tables.half_open,
        sticky: node.tables.sticky,
        endpoints: node.tables.endpoints,
        sources: u8::try_from(v4)?,
        sources_v6: u8::try_from(v6)?,
        first_port: node.snat_ports.first,
        ports: node.snat_ports.count(),
    })
}

/// The host must not use our ports for connections of its own: an answer to them would be taken for a server's. Where
/// nothing is sent from SNAT ports, nothing is in the way.
///
/// # Errors
/// The ranges overlap; what to change.
pub fn ports_apart(config: &Config, host: &RangeInclusive<u16>) -> anyhow::Result<()> {
    let ours = config.node.snat_ports;
    let is_snat =
        |service: &Service| service.protocol.is_balanced() && service.forwarding == Forwarding::Snat;
    if ours.last < *host.start() || ours.first > *host.end() || !config.services.iter().any(is_snat) {
        return Ok(());
    }
    let (first, last) = (host.start(), host.end());
    bail!(
        "the ports towards the servers (node.snat_ports: {ours}) overlap the ports that this host's own connections get \
         ({first}-{last}): {}",
        remedy(ours, PortRange { first: *first, last: *last })
    )
}

/// What to write or to run so that both have ports enough.
fn remedy(ours: PortRange, host: PortRange) -> String {
    let write = |range: PortRange| format!("write `snat_ports: {range}` in the section node");
    let run = |range: PortRange| {
        format!(
            "run `sysctl -w net.ipv4.ip_local_port_range=\"{} {}\"` (and write it into /etc/sysctl.d)",
            range.first, range.last
        )
    };
    match (below(host).or_else(|| above(host)), above(ours).or_else(|| below(ours))) {
        (Some(ours), Some(host)) => format!("{}, or {}", write(ours), run(host)),
        (Some(ours), None) => write(ours),
        (None, Some(host)) => run(host),
        (None, None) => {
            let ours = PortRange::default();
            let host = above(ours).unwrap_or(ours);
            format!("{}, and {}", write(ours), run(host))
        }
    }
}

/// Fewer ports than these are no range to advise.
const ENOUGH: u32 = 4096;

fn below(range: PortRange) -> Option<PortRange> {
    let below = PortRange { first: PortRange::LOWEST, last: range.first.saturating_sub(1) };
    (below.last >= below.first && below.count() >= ENOUGH).then_some(below)
}

fn above(range: PortRange) -> Option<PortRange> {
    let above = PortRange { first: range.last.checked_add(1)?, last: u16::MAX };
    (above.count() >= ENOUGH).then_some(above)
}

/// Writes the settings of fresh maps, all but the layout version: the program passes everything until that is there.
///
/// # Errors
/// A source address too many.
pub fn settle_fresh(
    maps: &Maps,
    geometry: &Geometry,
    sources: &[IpAddr],
    secrets: &Secrets,
    hz: u64,
) -> anyhow::Result<()> {
    let control = maps.control();
    control.hz.store(hz);
    control.snat.store(geometry.snat().word());
    for (word, value) in control.hash_key.iter().zip(secrets.hash_key) {
        word.store(value);
    }
    control.maglev_seed.store(secrets.maglev_seed);
    settle_times(maps, hz);
    settle_sources(maps, sources)
}

/// Checks adopted maps against the configuration, and refreshes what may be refreshed under way.
///
/// # Errors
/// The maps were set up for other ports or source addresses.
pub fn settle_adopted(maps: &Maps, geometry: &Geometry, sources: &[IpAddr]) -> anyhow::Result<()> {
    let control = maps.control();
    let live = Snat::from_word(control.snat.load());
    let wanted = geometry.snat();
    let same_ports = (live.first_port, live.ports) == (wanted.first_port, wanted.ports);
    let Some(adopted) = live.adopt(wanted).filter(|_| same_ports) else {
        bail!(
            "the running data path was set up with other SNAT ports or another number of source addresses: its connections \
         depend on them; put node.snat_ports and node.snat_addresses back, or `steadfastd detach` and start again, \
         which ends all connections"
        );
    };
    for (number, source) in numbered(sources) {
        let is_new = live.sources_like(Address::from(source)) == 0;
        if is_new {
            settle_source(maps, number, source)?;
        }
        let live = IpAddr::from(control.source(number, Address::from(source)));
        ensure!(
            live == source,
            "the running data path speaks to the servers from {live}, the configuration (or the interface) says \
             {source}: put it back, or `steadfastd detach` and start again, which ends all connections"
        );
    }
    control.snat.store(adopted.word());
    settle_times(maps, control.hz.load());
    control.changed();
    Ok(())
}

fn settle_times(maps: &Maps, hz: u64) {
    let control = maps.control();
    let ticks = |seconds: u64| u64::from(Ticks::span_of_millis(seconds * 1000, hz).0);
    control.quarantine.store(ticks(QUARANTINE_SECONDS));
    control.idle_syn.store(ticks(idle_seconds(TcpState::SynSent)));
    control.idle_handshake.store(ticks(idle_seconds(TcpState::SynReceived)));
    control.idle_half_closed.store(ticks(idle_seconds(TcpState::ClientFin)));
    control.idle_closed.store(ticks(idle_seconds(TcpState::TimeWait)));
    control.spared.store(ticks(SPARED_SECONDS));
}

fn settle_sources(maps: &Maps, sources: &[IpAddr]) -> anyhow::Result<()> {
    numbered(sources).try_for_each(|(number, source)| settle_source(maps, number, source))
}

fn settle_source(maps: &Maps, number: u8, source: IpAddr) -> anyhow::Result<()> {
    let control = maps.control();
    let family = if source.is_ipv4() { &control.sources } else { &control.sources_v6 };
    let words = family.get(usize::from(number)).context("more source addresses than there can be")?;
    for (word, value) in words.iter().zip(Address::from(source).0) {
        word.store(value);
    }
    Ok(())
}

/// The source addresses with their numbers, which count in each family.
fn numbered(sources: &[IpAddr]) -> impl Iterator<Item = (u8, IpAddr)> {
    let family = |v4: bool| (0u8..).zip(sources.iter().copied().filter(move |source| source.is_ipv4() == v4));
    family(true).chain(family(false))
}

/// Puts fresh maps in force.
pub fn open(maps: &Maps) {
    maps.control().layout.store(LAYOUT_VERSION);
}

/// The secrets in adopted maps: their rows lie where these say.
#[must_use]
pub fn secrets_of(maps: &Maps) -> Secrets {
    let control = maps.control();
    Secrets { hash_key: control.key().0, maglev_seed: control.maglev_seed.load() }
}

/// New secrets from the kernel's random numbers.
///
/// # Errors
/// The kernel has none.
pub fn draw_secrets() -> anyhow::Result<Secrets> {
    let draw =
        || getrandom::u64().map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"));
    Ok(Secrets { hash_key: [draw()?, draw()?, draw()?, draw()?], maglev_seed: draw()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::config;
    use crate::dataplane::fake::{FakeKernel, maps};
    use crate::view::flow;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    /// A site that sends from these ports.
    fn site(ours: PortRange) -> Config {
        let mut config = config(&[("V", 150, &[("a", 20)])]);
        config.node.snat_ports = ours;
        config
    }

    fn refusal(ours: PortRange, host: RangeInclusive<u16>) -> String {
        ports_apart(&site(ours), &host).unwrap_err().to_string()
    }

    #[test]
    fn ports_that_the_host_uses_itself_are_refused_with_remedies_that_work() {
        assert!(ports_apart(&site(range(1024, 32767)), &(32768..=60999)).is_ok());
        assert!(ports_apart(&site(range(61000, 65535)), &(32768..=60999)).is_ok());
        for ours in [range(1024, 32768), range(60999, 65535), range(40000, 50000)] {
            let refused = refusal(ours, 32768..=60999);
            assert!(
                refused.contains("snat_ports: 1024-32767") && refused.contains(", or run `sysctl -w"),
                "{refused}"
            );
        }
        let refused = refusal(range(1024, 32767), 1024..=60999);
        assert!(refused.contains("snat_ports: 61000-65535"), "{refused}");
        assert!(refused.contains("ip_local_port_range=\"32768 65535\""), "{refused}");
        // All of the host's ports: another range of ours would not help, and there is none.
        let refused = refusal(range(1024, 32767), 1024..=65535);
        assert!(!refused.contains("write `snat_ports"), "{refused}");
        assert!(refused.contains("ip_local_port_range=\"32768 65535\""), "{refused}");
        // All of them on both sides: it takes both.
        let refused = refusal(range(1024, 65535), 1024..=65535);
        assert!(refused.contains("snat_ports: 1024-32767` in the section node, and run"), "{refused}");
        assert!(refused.contains("ip_local_port_range=\"32768 65535\""), "{refused}");
    }

    #[test]
    fn every_range_that_is_advised_can_be_written_and_overlaps_nothing() {
        let some =
            [1024, 1025, 5119, 5120, 5121, 30000, 32767, 32768, 60999, 61000, 61440, 61441, 65534, 65535];
        let ranges = || some.iter().flat_map(|first| some.iter().map(|last| range(*first, *last)));
        for (ours, host) in ranges().flat_map(|ours| ranges().map(move |host| (ours, host))) {
            if ours.first > ours.last || host.first > host.last {
                continue;
            }
            for (advised, other) in
                [(below(host), host), (above(host), host), (below(ours), ours), (above(ours), ours)]
            {
                let Some(advised) = advised else { continue };
                assert!(
                    advised.first >= PortRange::LOWEST && advised.count() >= PortRange::FEWEST,
                    "{advised}"
                );
                assert!(advised.last < other.first || advised.first > other.last, "{advised} beside {other}");
            }
        }
    }

    #[test]
    fn the_hosts_ports_are_in_nobodys_way_where_nothing_is_sent_from_snat_ports() {
        for forwarding in [Forwarding::Dr, Forwarding::Nat, Forwarding::Tunnel] {
            let mut site = site(range(1024, 32767));
            site.services[0].forwarding = forwarding;
            assert!(ports_apart(&site, &(1024..=65535)).is_ok(), "{forwarding:?}");
        }
    }

    #[test]
    fn adopted_maps_of_other_ports_or_sources_are_refused() {
        let maps = maps(FakeKernel::default());
        let source: IpAddr = [192, 0, 2, 10].into();
        let sizes = Geometry {
            flows: 4096,
            half_open: 4096,
            sticky: 4096,
            endpoints: 16,
            sources: 1,
            sources_v6: 0,
            first_port: 1024,
            ports: 1024,
        };
        let secrets = Secrets { hash_key: [1, 2, 3, 4], maglev_seed: 5 };
        settle_fresh(&maps, &sizes, &[source], &secrets, 250).unwrap();
        assert_eq!(secrets_of(&maps), secrets);
        settle_adopted(&maps, &sizes, &[source]).unwrap();
        assert_eq!(maps.control().idle_closed.load(), u64::from(Ticks::span_of_millis(60_000, 250).0));
        let other = settle_adopted(&maps, &sizes, &[[192, 0, 2, 11].into()]).unwrap_err();
        assert!(other.to_string().contains("192.0.2.10"), "{other}");
        assert!(settle_adopted(&maps, &Geometry { ports: 2048, ..sizes }, &[source]).is_err());
        assert!(settle_adopted(&maps, &Geometry { sources: 2, ..sizes }, &[source]).is_err());

        // A family that nobody needed until now has no connections; one that nobody needs any more keeps its own.
        let v6: IpAddr = "2001:db8::10".parse().unwrap();
        settle_adopted(&maps, &Geometry { sources: 0, sources_v6: 1, ..sizes }, &[v6]).unwrap();
        settle_adopted(&maps, &Geometry { sources_v6: 1, ..sizes }, &[source, v6]).unwrap();
        assert_eq!(flow::sources(maps.control()).collect::<Vec<_>>(), [source, v6]);
    }

    #[test]
    fn secrets_differ() {
        assert_ne!(draw_secrets().unwrap(), draw_secrets().unwrap());
    }
}
