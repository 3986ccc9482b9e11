//! The addresses that the host speaks from to the real servers, in the data path and in health checks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::bail;

use crate::config::{Config, Service};
use crate::net::{Family, Link, Net};

/// The addresses of `node.snat_addresses`; for a family that the services need and the configuration does not name,
/// the interface's own primary address. In the file's order, then IPv4 before IPv6: a restart gives the same again.
///
/// # Errors
/// The interface has no address of a family that is needed.
pub async fn sources(net: &Net, links: &[Link], config: &Config) -> anyhow::Result<Vec<IpAddr>> {
    let mut sources = config.node.snat_addresses.clone();
    let services: Vec<IpAddr> = config.services.iter().map(|service| service.address).collect();
    for family in needed(config) {
        if of_family(&sources, family).is_some() {
            continue;
        }
        let link = towards_servers(net, links, config, family).await;
        match net.primary_address(link.index, family, &services).await? {
            Some(address) => sources.push(address),
            None => bail!(
                "{} has no {} address of its own, from which to speak to the real servers: give it one{}, or name \
                 node.snat_addresses",
                link.name,
                family.name(),
                match family {
                    Family::V4 => "",
                    Family::V6 => " that is global (`ip -6 addr` shows it neither tentative nor deprecated)",
                }
            ),
        }
    }
    Ok(sources)
}

/// The interface by which the first server of the family is reached; the first of all if that can't be told.
async fn towards_servers<'a>(net: &Net, links: &'a [Link], config: &Config, family: Family) -> &'a Link {
    let server = balanced(config)
        .flat_map(|service| &service.real_servers)
        .find(|server| Family::of(server.address) == family);
    if links.len() > 1
        && let Some(server) = server
        && let Ok(hop) = net.next_hop(links[0].index, server.address).await
        && let Some(link) = links.iter().find(|link| link.index == hop.interface)
    {
        return link;
    }
    &links[0]
}

/// The services whose servers see one of our addresses.
fn balanced(config: &Config) -> impl Iterator<Item = &Service> {
    let services = config.services.iter();
    services.filter(|service| service.protocol.is_balanced() && service.forwarding.needs_source())
}

/// The first address of the family.
#[must_use]
pub fn of_family(sources: &[IpAddr], family: Family) -> Option<IpAddr> {
    sources.iter().copied().find(|source| Family::of(*source) == family)
}

/// Whether the configuration names all of them: none depends on which interfaces there are.
#[must_use]
pub fn are_named(config: &Config) -> bool {
    needed(config).into_iter().all(|family| of_family(&config.node.snat_addresses, family).is_some())
}

/// A family that is balanced and that no source address is of. Where no source address is known, nothing is said.
#[must_use]
pub fn without_source(config: &Config, sources: &[IpAddr]) -> Option<Family> {
    let missing = |family: &Family| !sources.is_empty() && of_family(sources, *family).is_none();
    needed(config).into_iter().find(missing)
}

/// The families of the servers that see one of our addresses.
fn needed(config: &Config) -> BTreeSet<Family> {
    balanced(config)
        .flat_map(|service| &service.real_servers)
        .map(|server| Family::of(server.address))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::config;
    use crate::net::testing::{Lab, ip};

    /// A configuration with services at these addresses and these SNAT addresses, whatever the reader says of them.
    fn site(services: &[&str], snat: &[&str]) -> Config {
        let mut config = config(&[("A", 150, &[("a", 20)]), ("B", 151, &[("b", 20)])]);
        config.services.truncate(services.len());
        for (service, address) in config.services.iter_mut().zip(services) {
            service.address = ip(address);
            service.real_servers[0].address =
                ip(if service.address.is_ipv4() { "192.0.2.20" } else { "2001:db8::20" });
        }
        config.node.snat_addresses = snat.iter().map(|address| ip(address)).collect();
        config
    }

    #[test]
    fn each_family_that_is_served_has_a_source_and_no_other() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            let net = Net::open().unwrap();
            let link = net.link("lb0").await.unwrap();
            let (v4, v6) = ("192.0.2.150", "2001:db8::150");
            for (services, snat, expected) in [
                (&[][..], &[][..], &[][..]),
                (&[], &["2001:db8::5"], &["2001:db8::5"]),
                (&[v4], &[], &[Lab::BALANCER]),
                (&[v6], &[], &[Lab::BALANCER_V6]),
                (&[v6, v4], &[], &[Lab::BALANCER, Lab::BALANCER_V6]),
                (&[v6, v4], &["2001:db8::5"], &["2001:db8::5", Lab::BALANCER]),
                (&[v6], &["192.0.2.5", "192.0.2.6"], &["192.0.2.5", "192.0.2.6", Lab::BALANCER_V6]),
                (&[v6, v4], &["2001:db8::5", "192.0.2.5"], &["2001:db8::5", "192.0.2.5"]),
            ] {
                let expected: Vec<IpAddr> = expected.iter().map(|address| ip(address)).collect();
                let found = sources(&net, std::slice::from_ref(&link), &site(services, snat)).await.unwrap();
                assert_eq!(found, expected, "{services:?} {snat:?}");
            }
        });
    }

    #[test]
    fn a_family_without_a_source_is_found() {
        let (v4, v6) = ([ip(Lab::BALANCER)], [ip(Lab::BALANCER_V6)]);
        let both = site(&["2001:db8::150", "192.0.2.150"], &[]);
        assert_eq!(without_source(&both, &v4), Some(Family::V6));
        assert_eq!(without_source(&both, &v6), Some(Family::V4));
        assert_eq!(without_source(&both, &[v4, v6].concat()), None);
        assert_eq!(without_source(&site(&["192.0.2.150"], &[]), &v4), None);
        assert_eq!(without_source(&both, &[]), None);
    }

    #[test]
    fn a_service_address_is_no_source_and_a_missing_one_is_said_with_its_family() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            let net = Net::open().unwrap();
            let link = net.link("lb0").await.unwrap();
            for (own, family) in [(Lab::BALANCER, "no IPv4 address"), (Lab::BALANCER_V6, "no IPv6 address")] {
                let error = sources(&net, std::slice::from_ref(&link), &site(&[own], &[]))
                    .await
                    .unwrap_err()
                    .to_string();
                assert!(error.contains("lb0") && error.contains(family), "{error}");
            }
        });
    }
}
