//! What can go wrong with the host's network, and what to do about it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// A refused or failed operation on the host's network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {}{}", .0, hint(.0))]
    Open(#[source] io::Error),
    /// The netlink socket's task is gone: nothing more can be asked on this handle.
    #[error("{doing}: the netlink connection has ended; open a new one (restart the daemon)")]
    ConnectionLost {
        /// What was being done.
        doing: String,
    },
    /// The kernel answered with something else than what was asked for.
    #[error("{doing}: the kernel's answer was not understood: {answer}")]
    UnexpectedAnswer {
        /// What was being done.
        doing: String,
        /// What came.
        answer: String,
    },
    /// The kernel said no.
    #[error("{doing}: {source}{}", hint(.source))]
    Refused {
        /// What was being done.
        doing: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No interface of that name.
    #[error("there is no interface {name:?}; there are: {}; correct the name, or create it", .known.join(", "))]
    NoSuchLink {
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// The interface has no 6-byte hardware address.
    #[error(
        "interface {name} has no Ethernet address, so no frame can be sent from it; use an Ethernet interface"
    )]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// No route to an address.
    #[error("no route to {to} ({source}): add one (ip route add {to} via GATEWAY), or correct the address")]
    NoRoute {
        /// The destination.
        to: IpAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The routing table forbids an address, or it is nothing that a frame can be sent to.
    #[error(
        "the route to {to} is of the kind {kind:?}, which leads to no other machine: correct the route (ip route get {to}) or the address"
    )]
    UnusableRoute {
        /// The destination.
        to: IpAddr,
        /// The kernel's word for the route.
        kind: String,
    },
    /// The address belongs to this machine.
    #[error(
        "{to} is one of this machine's own addresses: a real server must be another machine; correct the address"
    )]
    OwnAddress {
        /// The destination.
        to: IpAddr,
    },
    /// An IPv6 address for an interface that has none of the family.
    #[error(
        "{address} cannot be added to interface {index}: IPv6 is switched off on it; \
         sysctl -w net.ipv6.conf.NAME.disable_ipv6=0 with the interface's name, or remove the address"
    )]
    Ipv6Off {
        /// The address.
        address: IpAddr,
        /// The interface.
        index: u32,
    },
    /// Two ends of different address families.
    #[error("{from} and {to} are of different address families: give both IPv4 or both IPv6")]
    MixedFamilies {
        /// The source.
        from: SocketAddr,
        /// The destination.
        to: SocketAddr,
    },
    /// A packet socket could not be opened or did not take a frame.
    #[error("{doing} on interface index {index}: {source}{}", hint(.source))]
    Packet {
        /// What was being done.
        doing: &'static str,
        /// The interface.
        index: u32,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A name that would lead out of the interface's own sysctl directory.
    #[error("{what} {given:?} is not a {what} of the kernel: {rule}")]
    SysctlName {
        /// `interface` or `key`.
        what: &'static str,
        /// The name.
        given: String,
        /// What a name must be.
        rule: &'static str,
    },
    /// A sysctl file could not be read or written.
    #[error("cannot {doing} {}: {source}{}", .path.display(), hint(.source))]
    Sysctl {
        /// `read` or `write VALUE to`.
        doing: String,
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A sysctl file does not hold what it should.
    #[error("{} holds {text:?}, where {wanted} was expected", .path.display())]
    SysctlText {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The driver does not know the question, or refuses the setting.
    #[error("cannot {doing} of interface {name}: {source}{}", hint(.source))]
    Ethtool {
        /// What was being done.
        doing: String,
        /// The interface.
        name: String,
        /// The driver's reason.
        source: io::Error,
    },
    /// The ephemeral port range is empty or reversed.
    #[error("the ephemeral port range {}-{} is empty: correct net.ipv4.ip_local_port_range", .0.start(), .0.end())]
    EmptyPortRange(RangeInclusive<u16>),
}

impl NetError {
    /// Puts a netlink error into words: what was being done, and the kernel's errno as an [`io::Error`].
    pub(super) fn netlink(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        let doing = doing.into();
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused { doing, source: message.to_io() },
            rtnetlink::Error::RequestFailed => Self::ConnectionLost { doing },
            other => Self::UnexpectedAnswer { doing, answer: other.to_string() },
        }
    }

    /// The errno, where the kernel gave one.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// What to do about the errors that have one well-known cause.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run as root, or with CAP_NET_ADMIN and CAP_NET_RAW",
        Some(libc::ENODEV | libc::ENXIO) => "; the interface is gone: bring it back, or correct its name",
        Some(libc::ENETDOWN) => "; the interface is down: set it up (ip link set NAME up)",
        Some(libc::EROFS) => {
            "; /proc/sys is read-only here: remount it, or set it from outside the container"
        }
        Some(libc::EOPNOTSUPP) => "; the driver does not support it",
        Some(libc::EAGAIN | libc::ENOBUFS) => "; the queue is full: try again shortly",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_what_to_do() {
        let missing = NetError::NoSuchLink { name: "eth9".into(), known: vec!["lo".into(), "eth0".into()] };
        assert_eq!(
            missing.to_string(),
            "there is no interface \"eth9\"; there are: lo, eth0; correct the name, or create it"
        );
        let refused = NetError::Packet {
            doing: "sending a frame",
            index: 7,
            source: io::Error::from_raw_os_error(libc::ENETDOWN),
        };
        let text = refused.to_string();
        assert!(text.contains("interface index 7") && text.contains("ip link set NAME up"), "{text}");
    }
}
