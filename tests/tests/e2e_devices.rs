//! The program with the kernel's own tunnel and VLAN devices around it. A kernel that does not have a device skips its rows,
//! and says so by name; `cargo xtask vm` runs them on kernels that have all.

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Trial, run};
use tests::{
    e2e::devices::{behind_vlans, tunnel_ends_at},
    lab::{Device, Family, Tags, refused},
};

type Play = fn() -> Result<()>;

const ROWS: [(&str, Device, Play); 8] = [
    ("tunnel_ipv4_in_ipv4", Device::Ipip, || tunnel_ends_at(Device::Ipip, Family::V4, Family::V4)),
    ("tunnel_ipv6_in_ipv4", Device::Sit, || tunnel_ends_at(Device::Sit, Family::V6, Family::V4)),
    ("tunnel_ipv6_in_ipv6", Device::Ip6Ip6, || tunnel_ends_at(Device::Ip6Ip6, Family::V6, Family::V6)),
    ("tunnel_ipv4_in_ipv6", Device::IpIp6, || tunnel_ends_at(Device::IpIp6, Family::V4, Family::V6)),
    ("vlan_ipv4", Device::Vlan, || behind_vlans(Family::V4, Tags::One)),
    ("vlan_ipv6", Device::Vlan, || behind_vlans(Family::V6, Tags::One)),
    ("vlan_within_vlan_ipv4", Device::ServiceVlan, || behind_vlans(Family::V4, Tags::Two)),
    ("vlan_within_vlan_ipv6", Device::ServiceVlan, || behind_vlans(Family::V6, Tags::Two)),
];

/// A test, ignored where its device is missing: then it says what the kernel said.
fn trial((name, device, play): (&'static str, Device, Play)) -> Trial {
    let missing = refused(device).unwrap_or_else(|error| Some(format!("{error:#}")));
    if let Some(said) = &missing {
        println!("skipped {name}: this kernel has no {}: {said}", device.name());
    }
    let test = move || play().map_err(|error| format!("{error:#}").into());
    Trial::test(name, test).with_ignored_flag(missing.is_some())
}

fn main() -> ExitCode {
    run(&Arguments::from_args(), ROWS.map(trial).into()).exit_code()
}
