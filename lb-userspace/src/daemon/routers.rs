//! What a configuration asks of the network that it can't have: `dr` across a router.

use std::net::IpAddr;
use std::thread;

use crate::{
    config::{Config, Forwarding},
    net::Net,
};

/// A sentence for each server with `forwarding: dr` that this host reaches by way of a router. Nothing where the
/// configuration's interfaces are not on this host: another's routes say nothing.
///
/// It asks the kernel and waits for the answer, on a thread of its own: the caller's may be one that must not wait for
/// a future.
#[must_use]
pub fn in_the_way(config: &Config) -> Vec<String> {
    if behind_dr(config).next().is_none() {
        return Vec::new();
    }
    thread::scope(|scope| scope.spawn(|| asked(config)).join().unwrap_or_default())
}

fn asked(config: &Config) -> Vec<String> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    runtime.block_on(async {
        let Ok(net) = Net::open() else { return Vec::new() };
        for interface in &config.node.interfaces {
            if net.link(interface).await.is_err() {
                return Vec::new();
            }
        }
        let mut routers = Vec::new();
        for (_, _, server) in behind_dr(config) {
            let gateway = net.next_hop(0, server).await.ok().and_then(|hop| hop.gateway);
            routers.extend(gateway.map(|gateway| (server, gateway)));
        }
        refusals(config, |server| {
            routers.iter().find(|(behind, _)| *behind == server).map(|(_, router)| *router)
        })
    })
}

/// Service, server and address of each server with `forwarding: dr`.
fn behind_dr(config: &Config) -> impl Iterator<Item = (&str, &str, IpAddr)> {
    let services = config
        .services
        .iter()
        .filter(|service| service.protocol.is_balanced() && service.forwarding == Forwarding::Dr);
    services.flat_map(|service| {
        let servers = service.real_servers.iter();
        servers.map(|server| (service.label.as_str(), server.label.as_str(), server.address))
    })
}

/// The sentences, where it is known by which router a server is reached.
pub(super) fn refusals(config: &Config, router: impl Fn(IpAddr) -> Option<IpAddr>) -> Vec<String> {
    behind_dr(config)
        .filter_map(|(service, label, address)| {
            let router = router(address)?;
            Some(format!(
                "{service}/{label} ({address}) is reached by way of {router}, and with forwarding: dr that router would \
                 get its packets; use forwarding: tunnel, or bring the server into a network of {}",
                config.node.interfaces.join(", ")
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn only_a_server_in_mode_dr_behind_a_router_is_in_the_way() {
        let text = |mode: &str| {
            format!(
                "version: 1\nnode: {{ interfaces: [eth0] }}\nvirtual_services:\n  - label: V\n    address: 192.0.2.10\n    \
                 ports: [443]\n    forwarding: {mode}\n    real_servers:\n      - {{ label: near, address: 192.0.2.21 }}\n      \
                 - {{ label: far, address: 198.51.100.21 }}\n"
            )
        };
        let far: IpAddr = [198, 51, 100, 21].into();
        let router = |address: IpAddr| (address == far).then(|| IpAddr::from([192, 0, 2, 1]));
        let found = refusals(&parse("f", &text("dr")).unwrap(), router);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("V/far (198.51.100.21) is reached by way of 192.0.2.1, "), "{found:?}");
        for mode in ["snat", "nat", "tunnel"] {
            assert_eq!(refusals(&parse("f", &text(mode)).unwrap(), router), Vec::<String>::new());
        }
    }
}
