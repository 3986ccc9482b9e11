//! A client behind a router whose far link takes shorter packets: path MTU discovery has to work through the balancer.
//!
//! ```text
//! br0 ── eth0 router far0 (MTU 1400) ── far1 (MTU 1500) far client
//!        .85.1         10.99.0.1        10.99.0.2
//! ```

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Result;

use crate::lab::{INTERFACE, Lab, Ns};

/// The far client's address.
pub const FAR_CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
/// What the far link takes.
pub const FAR_MTU: u32 = 1400;

/// The two hosts.
#[derive(Clone, Copy, Debug)]
pub struct Far {
    /// Between the hospital's network and the far link.
    pub router: Ns,
    /// The client behind it, which knows nothing of the link's MTU.
    pub client: Ns,
}

/// Adds them to a lab.
///
/// # Errors
/// A tool failed.
pub fn add(lab: &mut Lab) -> Result<Far> {
    let router = Ns::Server(lab.add_server("router", 1)?);
    let client = Ns::Server(lab.add_server("far", 2)?);
    lab.in_ns(router, || {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        // It is to send the frag-needed at once, each time.
        fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")
    })??;
    let far = lab.namespace(client);
    lab.ip(
        router,
        &format!(
            "link add far0 mtu {FAR_MTU} type veth peer name far1 netns {far}\n\
             addr add 10.99.0.1/24 dev far0\n\
             link set far0 up\n"
        ),
    )?;
    lab.ip(
        client,
        &format!(
            "addr flush dev {INTERFACE}\n\
             link set {INTERFACE} down\n\
             link set far1 mtu 1500 up\n\
             addr add {FAR_CLIENT}/24 dev far1\n\
             route add default via 10.99.0.1\n"
        ),
    )?;
    Ok(Far { router, client })
}
