//! The driver behind an interface and its offloads, through the ethtool ioctl (`linux/ethtool.h`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use socket2::{Domain, Socket, Type};

use super::NetError;

/// `linux/sockios.h`; the libc crate does not have it for this target.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;

/// What the driver says of itself. Empty text where it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// Its name, such as `ixgbe`, `virtio_net` or `veth`.
    pub name: String,
    /// Its version; in-tree drivers give the kernel's.
    pub version: String,
    /// The firmware's version.
    pub firmware: String,
    /// Where the device sits, such as a PCI address.
    pub bus: String,
}

/// Work that an interface may take from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Filling in transport checksums of frames sent. On a veth it means that they are never filled in, and
    /// a program that reads frames there meets partial ones.
    TxChecksum,
    /// Checking transport checksums of frames received.
    RxChecksum,
    /// Cutting large TCP segments (TSO).
    TcpSegmentation,
    /// Cutting large packets late, in software (GSO).
    GenericSegmentation,
    /// Merging received packets (GRO).
    GenericReceive,
    /// Merging received packets in hardware (LRO), which loses their boundaries; no use when forwarding.
    LargeReceive,
    /// Taking the 802.1Q tag out of received frames, so that an XDP program does not see it.
    RxVlan,
    /// Putting the 802.1Q tag into sent frames.
    TxVlan,
}

/// How the ioctl names an offload.
enum Access {
    /// Its own pair of commands, with 0 or 1 as the value.
    Own { get: u32, set: u32 },
    /// A bit of the common flags word.
    Flag(u32),
}

impl Offload {
    fn access(self) -> Access {
        match self {
            Self::RxChecksum => Access::Own { get: 0x14, set: 0x15 },
            Self::TxChecksum => Access::Own { get: 0x16, set: 0x17 },
            Self::TcpSegmentation => Access::Own { get: 0x1e, set: 0x1f },
            Self::GenericSegmentation => Access::Own { get: 0x23, set: 0x24 },
            Self::GenericReceive => Access::Own { get: 0x2b, set: 0x2c },
            Self::TxVlan => Access::Flag(1 << 7),
            Self::RxVlan => Access::Flag(1 << 8),
            Self::LargeReceive => Access::Flag(1 << 15),
        }
    }
}

/// The driver of an interface.
///
/// # Errors
/// [`NetError::Ethtool`]: no such interface, or its driver does not tell.
pub fn driver(interface: &str) -> Result<Driver, NetError> {
    // struct ethtool_drvinfo: cmd, then driver, version, fw_version, bus_info of 32 bytes each, and more.
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_GDRVINFO;
    ask(interface, &mut info).map_err(failed("read the driver", interface))?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |field: usize| {
        let start = 4 + 32 * field;
        let field = bytes.get(start..start + 32).unwrap_or_default();
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        String::from_utf8_lossy(&field[..end]).into_owned()
    };
    Ok(Driver { name: text(0), version: text(1), firmware: text(2), bus: text(3) })
}

/// Whether an offload is on.
///
/// # Errors
/// [`NetError::Ethtool`]: no such interface, or its driver does not know this offload.
pub fn offload(interface: &str, which: Offload) -> Result<bool, NetError> {
    let failed = failed(&format!("read {which:?}"), interface);
    match which.access() {
        Access::Own { get, .. } => value(interface, get).map(|value| value != 0),
        Access::Flag(bit) => value(interface, ETHTOOL_GFLAGS).map(|flags| flags & bit != 0),
    }
    .map_err(failed)
}

/// Sets an offload on or off.
///
/// # Errors
/// [`NetError::Ethtool`]: no such interface, no CAP_NET_ADMIN, or the driver keeps it as it is.
pub fn set_offload(interface: &str, which: Offload, on: bool) -> Result<(), NetError> {
    let word = if on { "on" } else { "off" };
    let doing = format!("turn {word} {which:?}");
    let set = |command, value| ask(interface, &mut [command, value]);
    match which.access() {
        Access::Own { set: command, .. } => set(command, u32::from(on)),
        Access::Flag(bit) => value(interface, ETHTOOL_GFLAGS)
            .and_then(|flags| set(ETHTOOL_SFLAGS, if on { flags | bit } else { flags & !bit })),
    }
    .map_err(failed(&doing, interface))?;
    if offload(interface, which)? == on {
        return Ok(());
    }
    // The legacy commands report success also where a feature is fixed.
    Err(failed(&doing, interface)(io::Error::from_raw_os_error(libc::EOPNOTSUPP)))
}

fn failed(doing: &str, interface: &str) -> impl FnOnce(io::Error) -> NetError + use<> {
    let (doing, name) = (doing.to_owned(), interface.to_owned());
    move |source| NetError::Ethtool { doing, name, source }
}

/// Asks a command that answers with one word.
fn value(interface: &str, command: u32) -> io::Result<u32> {
    let mut request = [command, 0];
    ask(interface, &mut request)?;
    Ok(request[1])
}

/// Hands a request to the driver of an interface; the answer replaces it. `request[0]` is the command, and the
/// rest must be as long as the command's structure.
fn ask(interface: &str, request: &mut [u32]) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut asked = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: request.as_mut_ptr().cast() },
    };
    let socket: OwnedFd = Socket::new(Domain::IPV4, Type::DGRAM, None)?.into();
    // SAFETY: the descriptor is open, `asked` is a whole ifreq with a terminated name, and `ifru_data` points to
    // `request`, which lives through the call and is as long as the structure of the command in its first word:
    // 196 bytes for ETHTOOL_GDRVINFO, 8 for the others (ethtool_value).
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut asked) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::net::testing::{Lab, ip};

    #[test]
    fn the_driver_of_a_veth_is_veth() {
        let lab = Lab::new();
        let driver = lab.balancer.run(async || driver("lb0").unwrap());
        assert_eq!(driver.name, "veth");
    }

    #[test]
    fn an_offload_is_read_and_set() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            for which in [
                Offload::TxChecksum,
                Offload::TcpSegmentation,
                Offload::GenericSegmentation,
                Offload::GenericReceive,
                Offload::RxVlan,
                Offload::TxVlan,
            ] {
                for on in [false, true, false] {
                    // Segmentation offload depends on the checksum's.
                    if which == Offload::TcpSegmentation {
                        set_offload("lb0", Offload::TxChecksum, true).unwrap();
                    }
                    set_offload("lb0", which, on).unwrap();
                    assert_eq!(offload("lb0", which).unwrap(), on, "{which:?}");
                }
            }
        });
    }

    /// The kernel's own proof: what leaves a veth has its checksum only where the offload is off.
    #[test]
    fn a_frame_leaves_with_its_checksum_only_when_the_offload_is_off() {
        let lab = Lab::new();
        let ear = lab.server_ear();
        let closed = SocketAddr::new(ip(Lab::SERVER), 4433);
        for on in [true, false] {
            lab.balancer.run(async || {
                set_offload("lb0", Offload::TxChecksum, on).unwrap();
                assert!(TcpStream::connect(closed).is_err(), "nobody listens there");
            });
            let is_syn = |frame: &[u8]| has_right_checksum(frame, closed.port()).is_some();
            let syn = ear.hears(Duration::from_secs(2), is_syn).expect("the SYN");
            assert_eq!(has_right_checksum(&syn, closed.port()), Some(!on), "offload {on}");
        }
    }

    /// `None` for what is no IPv4 TCP segment to the port.
    fn has_right_checksum(frame: &[u8], port: u16) -> Option<bool> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (packet.net, packet.transport)
        else {
            return None;
        };
        let right = tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).ok()?;
        (tcp.destination_port() == port).then_some(tcp.checksum() == right)
    }

    #[test]
    fn an_offload_that_the_driver_lacks_and_a_missing_interface_are_errors() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            let error = set_offload("lb0", Offload::LargeReceive, true).unwrap_err();
            assert!(error.to_string().contains("turn on LargeReceive of interface lb0"), "{error}");
            for name in ["eth7", "a-name-that-is-far-too-long"] {
                let error = driver(name).unwrap_err();
                assert!(error.to_string().contains(&format!("driver of interface {name}")), "{error}");
            }
        });
    }
}
