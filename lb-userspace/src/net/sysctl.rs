//! The network sysctls of one interface, and the host's ephemeral port range. `/proc/sys/net` shows the
//! network namespace of the thread that opens the file.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::NetError;

/// A directory of per-interface settings under `/proc/sys/net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SysctlTable {
    /// `net.ipv4.conf`.
    Ipv4Conf,
    /// `net.ipv6.conf`.
    Ipv6Conf,
    /// `net.ipv4.neigh`.
    Ipv4Neigh,
    /// `net.ipv6.neigh`.
    Ipv6Neigh,
}

/// One setting of one interface; nothing outside `/proc/sys/net/ipv?/{conf,neigh}` can be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSysctl {
    path: PathBuf,
}

impl InterfaceSysctl {
    /// Names a setting, such as `("eth0", "rp_filter")`. The pseudo interfaces `all` and `default` are allowed.
    ///
    /// # Errors
    /// [`NetError::SysctlName`] when either name is none that the kernel gives.
    pub fn new(table: SysctlTable, interface: &str, key: &str) -> Result<Self, NetError> {
        if !is_interface_name(interface) {
            return Err(NetError::SysctlName {
                what: "interface",
                given: interface.to_owned(),
                rule: "1 to 15 bytes, no '/', ':' or space, and not . or ..",
            });
        }
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(NetError::SysctlName {
                what: "key",
                given: key.to_owned(),
                rule: "letters, digits and _",
            });
        }
        let table = match table {
            SysctlTable::Ipv4Conf => "/proc/sys/net/ipv4/conf",
            SysctlTable::Ipv6Conf => "/proc/sys/net/ipv6/conf",
            SysctlTable::Ipv4Neigh => "/proc/sys/net/ipv4/neigh",
            SysctlTable::Ipv6Neigh => "/proc/sys/net/ipv6/neigh",
        };
        Ok(Self { path: Path::new(table).join(interface).join(key) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the setting, without its line end.
    ///
    /// # Errors
    /// [`NetError::Sysctl`] names the file.
    pub fn get(&self) -> Result<String, NetError> {
        read(&self.path)
    }

    /// Writes the setting.
    ///
    /// # Errors
    /// [`NetError::Sysctl`] names the file and the value.
    pub fn set(&self, value: &str) -> Result<(), NetError> {
        fs::write(&self.path, value).map_err(|source| NetError::Sysctl {
            doing: format!("write {value:?} to"),
            path: self.path.clone(),
            source,
        })
    }
}

/// The ports that the host's own connections are given (`net.ipv4.ip_local_port_range`, which IPv6 shares).
///
/// # Errors
/// [`NetError::Sysctl`] or [`NetError::SysctlText`] names the file; [`NetError::EmptyPortRange`].
pub fn ephemeral_range() -> Result<RangeInclusive<u16>, NetError> {
    let path = Path::new("/proc/sys/net/ipv4/ip_local_port_range");
    parse_range(&read(path)?, path)
}

fn read(path: &Path) -> Result<String, NetError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) => Err(NetError::Sysctl { doing: "read".into(), path: path.to_owned(), source }),
    }
}

fn parse_range(text: &str, path: &Path) -> Result<RangeInclusive<u16>, NetError> {
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
        let wanted = "two port numbers";
        return Err(NetError::SysctlText { path: path.to_owned(), text: text.to_owned(), wanted });
    };
    if first > last {
        return Err(NetError::EmptyPortRange(first..=last));
    }
    Ok(first..=last)
}

/// The kernel's own rule (`dev_valid_name`).
fn is_interface_name(name: &str) -> bool {
    let bad =
        |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace() || byte == 0x0b;
    (1..16).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Lab, Namespace};

    #[test]
    fn a_setting_is_written_and_read_back() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            for table in [SysctlTable::Ipv4Neigh, SysctlTable::Ipv6Neigh] {
                let sysctl = InterfaceSysctl::new(table, "lb0", "ucast_solicit").unwrap();
                assert_eq!(sysctl.get().unwrap(), "3");
                sysctl.set("5").unwrap();
                assert_eq!(sysctl.get().unwrap(), "5");
            }
        });
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_interfaces_directory() {
        for name in ["", ".", "..", "../x", "a/b", "eth0:1", "a b", "an-overlong-name"] {
            let error = InterfaceSysctl::new(SysctlTable::Ipv4Conf, name, "rp_filter").unwrap_err();
            assert!(matches!(error, NetError::SysctlName { what: "interface", .. }), "{name}: {error}");
        }
        for key in ["", "..", "a/b", "../../kernel/panic"] {
            let error = InterfaceSysctl::new(SysctlTable::Ipv4Conf, "eth0", key).unwrap_err();
            assert!(matches!(error, NetError::SysctlName { what: "key", .. }), "{key}: {error}");
        }
        let vlan = InterfaceSysctl::new(SysctlTable::Ipv4Conf, "eth0.100", "rp_filter").unwrap();
        assert_eq!(vlan.path(), Path::new("/proc/sys/net/ipv4/conf/eth0.100/rp_filter"));
    }

    #[test]
    fn a_failure_names_the_file_and_the_value() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            let missing = InterfaceSysctl::new(SysctlTable::Ipv4Conf, "eth7", "rp_filter").unwrap();
            let text = missing.get().unwrap_err().to_string();
            assert!(text.contains("cannot read /proc/sys/net/ipv4/conf/eth7/rp_filter"), "{text}");
            let refused = InterfaceSysctl::new(SysctlTable::Ipv4Conf, "lb0", "rp_filter").unwrap();
            let text = refused.set("many").unwrap_err().to_string();
            assert!(
                text.contains("cannot write \"many\" to /proc/sys/net/ipv4/conf/lb0/rp_filter"),
                "{text}"
            );
        });
    }

    #[test]
    fn the_ephemeral_range_is_that_of_the_threads_own_namespace() {
        let namespace = Namespace::new();
        namespace.run(async || {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 20999").unwrap();
            assert_eq!(ephemeral_range().unwrap(), 20000..=20999);
        });
        assert_ne!(ephemeral_range().unwrap(), 20000..=20999);
    }

    #[test]
    fn a_range_that_is_none_is_an_error() {
        let path = Path::new("here");
        assert_eq!(parse_range("32768\t60999", path).unwrap(), 32768..=60999);
        for text in ["", "1", "1 2 3", "a b", "1 70000", "-1 5"] {
            assert!(matches!(parse_range(text, path), Err(NetError::SysctlText { .. })), "{text:?}");
        }
        assert!(matches!(parse_range("9 3", path), Err(NetError::EmptyPortRange(_))));
    }
}
