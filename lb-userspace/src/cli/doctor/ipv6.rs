//! What can be wrong with IPv6 on the host; looked at only where IPv6 is served.

use super::{Findings, Status};
use crate::{
    dataplane::Maps,
    net::{Address, InterfaceSysctl, NetError, SysctlTable},
    view::{Names, flow, names::ip},
};

/// Whether a service or a source address is IPv6.
pub(super) fn is_served(names: &Names, maps: &Maps) -> bool {
    let mut sources = flow::sources(maps.control());
    names.services().any(|(_, info)| ip(info.address).is_ipv6()) || sources.any(|source| source.is_ipv6())
}

/// Looks at the interface's settings, and at its addresses.
pub(super) fn check(findings: &mut Findings, interface: &str, own: &[Address]) {
    if let Err(error) = settings(findings, interface) {
        findings.add("ipv6", Status::Unknown, error.to_string(), "");
    }
    for address in own.iter().filter(|address| address.address.is_ipv6() && address.global) {
        let at = format!("{} on {interface}", address.address);
        if address.duplicate {
            let finding = format!("{at} is another machine's too (duplicate address detection)");
            findings.add("ipv6", Status::Fail, finding, "take it from one of them, and add it here again");
        } else if address.tentative {
            let finding = format!("{at} is not usable yet (tentative)");
            findings.add("ipv6", Status::Warn, finding, "look again in a few seconds; it needs a link");
        }
    }
}

fn settings(findings: &mut Findings, interface: &str) -> Result<(), NetError> {
    let get = |key| InterfaceSysctl::new(SysctlTable::Ipv6Conf, interface, key)?.get();
    if get("disable_ipv6")? != "0" {
        findings.add(
            "ipv6",
            Status::Fail,
            format!("it is switched off on {interface}"),
            &format!("sysctl -w net.ipv6.conf.{interface}.disable_ipv6=0"),
        );
        return Ok(());
    }
    let (accepts, forwards) = (get("accept_ra")?, get("forwarding")? != "0");
    let heeds = accepts == "2" || (accepts == "1" && !forwards);
    let finding = match (accepts.as_str(), heeds) {
        (_, true) => format!("router advertisements are heeded on {interface}"),
        ("0", false) => format!("router advertisements are not heeded on {interface}, by its own setting"),
        (_, false) => format!("router advertisements are not heeded on {interface}, because it forwards"),
    };
    findings.when(
        heeds || accepts == "0",
        Status::Warn,
        "ipv6",
        finding,
        &format!(
            "sysctl -w net.ipv6.conf.{interface}.accept_ra=2, or {interface}.forwarding=0, which the balancer does not \
             need; else an address or a default route that was learnt expires"
        ),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::net::{Net, testing::Lab};
    use crate::view::testing::{Builder, HOUR};

    /// What is found on the lab's interface with these settings, `KEY=VALUE` each.
    fn found(settings: &[&str]) -> Vec<(Status, String)> {
        let lab = Lab::new();
        lab.balancer.run(async || {
            for setting in settings {
                let (key, value) = setting.split_once('=').unwrap();
                fs::write(format!("/proc/sys/net/ipv6/conf/lb0/{key}"), value).unwrap();
            }
            let net = Net::open().unwrap();
            let own = net.addresses(net.link("lb0").await.unwrap().index).await.unwrap();
            let mut findings = Findings::default();
            check(&mut findings, "lb0", &own);
            let told = |finding: super::super::Finding| {
                (finding.status, format!("{}; {}", finding.finding, finding.advice.unwrap_or_default()))
            };
            findings.0.into_iter().map(told).collect()
        })
    }

    #[test]
    fn settings_that_let_addresses_and_routes_expire_are_named_and_others_are_not() {
        for (settings, status, part) in [
            (&[][..], Status::Ok, "are heeded"),
            (&["forwarding=1", "accept_ra=2"], Status::Ok, "are heeded"),
            (&["forwarding=1", "accept_ra=0"], Status::Ok, "its own setting"),
            (&["forwarding=1"], Status::Warn, "accept_ra=2"),
            (&["disable_ipv6=1"], Status::Fail, "disable_ipv6=0"),
        ] {
            let all = found(settings);
            assert_eq!(all.len(), 1, "{settings:?}: {all:?}");
            assert_eq!(all[0].0, status, "{settings:?}: {all:?}");
            assert!(all[0].1.contains(part) && all[0].1.contains("lb0"), "{settings:?}: {all:?}");
        }
    }

    #[test]
    fn an_address_that_is_not_usable_is_named() {
        let plain = Address {
            address: "2001:db8::5".parse().unwrap(),
            prefix: 64,
            global: true,
            secondary: false,
            deprecated: false,
            tentative: false,
            duplicate: false,
            permanent: true,
        };
        let told = |address: &Address| -> Vec<Status> {
            let mut findings = Findings::default();
            check(&mut findings, "nowhere0", std::slice::from_ref(address));
            findings.0.iter().map(|finding| finding.status).collect()
        };
        assert_eq!(told(&plain), [Status::Unknown], "there is no such interface");
        let duplicate = Address { duplicate: true, tentative: true, ..plain.clone() };
        assert_eq!(told(&duplicate), [Status::Unknown, Status::Fail]);
        assert_eq!(told(&Address { tentative: true, ..plain }), [Status::Unknown, Status::Warn]);
    }

    #[test]
    fn ipv6_is_served_where_a_service_is() {
        let builder = Builder::example();
        let served = |builder: &Builder| is_served(&Names::read(&builder.maps), &builder.maps);
        assert!(!served(&builder));
        builder.service(2, "MyChart", "2001:db8::151", HOUR);
        assert!(served(&builder));
    }
}
