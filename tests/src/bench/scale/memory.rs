//! Memory: what the kernel charges for the tables of a data path, and what is left on this machine.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lb_common::service::MAX_SERVICES;

use crate::bench::world::World;

const MEBIBYTE: f64 = 1_048_576.0;

/// MiB of all pinned maps, and of the schedulers' tables, which are maps without a pin.
///
/// # Errors
/// A map cannot be opened.
pub(super) fn of(pins: &Path, world: &World) -> Result<f64> {
    let mut bytes = 0;
    let directory = pins.join("maps");
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let map = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        bytes +=
            field(&info, "memlock").with_context(|| format!("{}: no memlock in {info}", path.display()))?;
    }
    for service in 0..u16::try_from(MAX_SERVICES)? {
        let schedule = world.maps.kernel.schedule(service)?;
        bytes += schedule.map_or(0, |values| size_of_val(values.as_slice()) as u64);
    }
    Ok(bytes as f64 / MEBIBYTE)
}

/// MiB of a table in memory.
pub(super) fn of_slice<T>(slots: &[T]) -> f64 {
    size_of_val(slots) as f64 / MEBIBYTE
}

/// Bytes that programs can still have.
///
/// # Errors
/// The kernel does not say.
pub(super) fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kibibytes = field(&text, "MemAvailable").context("/proc/meminfo has no MemAvailable")?;
    Ok(kibibytes * 1024)
}

/// The number of a line `name: number`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(field, _)| *field == name)?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "MemTotal:       24689456 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(field(text, "MemAvailable"), Some(20_000_000));
        assert_eq!(field(text, "Mem"), None);
    }
}
