//! The next hop towards an address, as the kernel's own routing answers.

use std::net::IpAddr;

use futures_util::{StreamExt, pin_mut};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType, RouteVia,
};

use super::address::Family;
use super::{Net, NetError};

/// Where a frame for an address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Whose MAC address the frame carries: the gateway's or, when on-link, the destination itself.
    pub neighbour: IpAddr,
    /// The gateway; `None` when the destination is on-link.
    pub gateway: Option<IpAddr>,
    /// The index of the interface the frame leaves by.
    pub interface: u32,
    /// The source address that the host itself would use.
    pub source: Option<IpAddr>,
}

impl Net {
    /// Asks the kernel how it would reach `to` (RTM_GETROUTE). `index` is the interface that gives a
    /// link-local address its meaning; for any other address the kernel chooses the interface itself,
    /// and [`NextHop::interface`] says which.
    ///
    /// # Errors
    /// [`NetError::NoRoute`], [`NetError::OwnAddress`], [`NetError::UnusableRoute`], or a netlink error in words.
    pub async fn next_hop(&self, index: u32, to: IpAddr) -> Result<NextHop, NetError> {
        from_message(&self.route(index, to, RouteFlags::empty()).await?, to)
    }

    /// As [`Self::next_hop`], and behind it the other next hops of the same route.
    ///
    /// # Errors
    /// Those of [`Self::next_hop`].
    pub async fn next_hops(&self, index: u32, to: IpAddr) -> Result<Vec<NextHop>, NetError> {
        let first = self.next_hop(index, to).await?;
        let route = self.route(index, to, RouteFlags::FibMatch).await?;
        let others = others(&route, to)
            .into_iter()
            .filter(|other| (other.neighbour, other.interface) != (first.neighbour, first.interface));
        Ok(std::iter::once(first).chain(others).collect())
    }

    /// The kernel's answer to RTM_GETROUTE; with [`RouteFlags::FibMatch`] the route itself, and not what comes of it.
    async fn route(&self, index: u32, to: IpAddr, flags: RouteFlags) -> Result<RouteMessage, NetError> {
        let mut query = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, Family::of(to).host_prefix())
            .map_err(|error| NetError::UnexpectedAnswer { doing: asking(to), answer: error.to_string() })?
            .build();
        // Not for other addresses: with an interface given, the kernel calls an IPv4 destination without a
        // route on-link.
        if is_link_local(to) {
            query.attributes.push(RouteAttribute::Oif(index));
        }
        query.header.flags |= flags;
        let answers = self.handle.route().get(query).execute();
        pin_mut!(answers);
        match answers.next().await {
            Some(Ok(route)) => Ok(route),
            Some(Err(error)) => Err(no_route(to, NetError::netlink(asking(to), error))),
            None => Err(NetError::ConnectionLost { doing: asking(to) }),
        }
    }
}

fn asking(to: IpAddr) -> String {
    format!("asking for the route to {to}")
}

/// How the kernel says that it has no usable route: the errno of the lookup, or of a route of that kind.
fn no_route(to: IpAddr, error: NetError) -> NetError {
    match error {
        NetError::Refused { source, .. }
            if matches!(
                source.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            NetError::NoRoute { to, source }
        }
        other => other,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn from_message(route: &RouteMessage, to: IpAddr) -> Result<NextHop, NetError> {
    match route.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(NetError::OwnAddress { to }),
        kind => {
            return Err(NetError::UnusableRoute { to, kind: format!("{kind:?}").to_lowercase() });
        }
    }
    let mut gateway = None;
    let mut interface = None;
    let mut source = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    let interface = interface.ok_or_else(|| NetError::UnexpectedAnswer {
        doing: asking(to),
        answer: "a route without an interface".into(),
    })?;
    Ok(NextHop { neighbour: gateway.unwrap_or(to), gateway, interface, source })
}

/// The next hops of a route that has several.
fn others(route: &RouteMessage, to: IpAddr) -> Vec<NextHop> {
    let of_route = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    of_route
        .flatten()
        .filter(|hop| !hop.flags.intersects(dead))
        .map(|hop| {
            let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(address) => ip_of(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
                RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            });
            let neighbour = gateway.unwrap_or(to);
            NextHop { neighbour, gateway, interface: hop.interface_index, source: None }
        })
        .collect()
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Lab, add_route, ip};

    #[test]
    fn a_neighbour_is_on_link_and_a_remote_address_is_behind_its_gateway() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            for (own, peer, remote, prefix) in [
                (Lab::BALANCER, Lab::SERVER, "198.51.100.7", ("198.51.100.0", 24)),
                (Lab::BALANCER_V6, Lab::SERVER_V6, "2001:db8:7::7", ("2001:db8:7::", 64)),
            ] {
                let direct = net.next_hop(index, ip(peer)).await.unwrap();
                assert_eq!(direct.gateway, None);
                assert_eq!(direct.neighbour, ip(peer));
                assert_eq!(direct.interface, index);
                assert_eq!(direct.source, Some(ip(own)));

                add_route(&net, ip(prefix.0), prefix.1, ip(peer)).await;
                let routed = net.next_hop(index, ip(remote)).await.unwrap();
                assert_eq!(routed.gateway, Some(ip(peer)));
                assert_eq!(routed.neighbour, ip(peer));
                assert_eq!(routed.interface, index);
            }
        });
    }

    #[test]
    fn an_ipv4_destination_may_be_behind_an_ipv6_gateway() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            add_route(&net, ip("198.51.100.0"), 24, ip(Lab::SERVER_V6)).await;
            let routed = net.next_hop(index, ip("198.51.100.7")).await.unwrap();
            assert_eq!(routed.neighbour, ip(Lab::SERVER_V6));
        });
    }

    #[test]
    fn no_route_is_an_error_that_says_to_add_one() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            for nowhere in ["203.0.113.9", "2001:db8:ffff::9"] {
                let error = net.next_hop(index, ip(nowhere)).await.unwrap_err();
                assert!(matches!(error, NetError::NoRoute { .. }), "{error}");
                assert!(error.to_string().contains(&format!("ip route add {nowhere} via")), "{error}");
            }
        });
    }

    #[test]
    fn a_route_that_leads_nowhere_is_an_error_that_names_the_address() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            for (prefix, length) in [("198.51.100.0", 24), ("2001:db8:7::", 64)] {
                for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
                    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(ip(prefix), length);
                    let route = route.unwrap().kind(kind).build();
                    net.handle.route().add(route.clone()).execute().await.unwrap();
                    let error = net.next_hop(0, ip(prefix)).await.unwrap_err();
                    assert!(
                        matches!(error, NetError::NoRoute { .. } | NetError::UnusableRoute { .. }),
                        "{kind:?}: {error}"
                    );
                    assert!(error.to_string().contains(prefix), "{error}");
                    net.handle.route().del(route).execute().await.unwrap();
                }
            }
        });
    }

    #[test]
    fn the_hosts_own_address_is_not_a_next_hop() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            for own in [Lab::BALANCER, Lab::BALANCER_V6] {
                let error = net.next_hop(index, ip(own)).await.unwrap_err();
                assert!(matches!(error, NetError::OwnAddress { .. }), "{error}");
            }
            let error = net.next_hop(index, ip("224.0.0.1")).await.unwrap_err();
            assert!(
                matches!(error, NetError::UnusableRoute { .. } | NetError::NoRoute { .. }),
                "a multicast group is no machine: {error}"
            );
        });
    }

    #[test]
    fn a_link_local_address_is_on_the_interface_that_was_named() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            let hop = net.next_hop(index, ip("fe80::1234")).await.unwrap();
            assert_eq!((hop.neighbour, hop.interface), (ip("fe80::1234"), index));
        });
    }
}
