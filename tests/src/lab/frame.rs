//! Frames by hand: a packet socket bound to one interface.

use std::{
    ffi::CString,
    io::{self, Read as _},
    mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, RawFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Sends and receives whole Ethernet frames on one interface. It sees what arrives, not what this host sends.
#[derive(Debug)]
pub struct RawSocket(Socket);

impl RawSocket {
    /// Opens it in the namespace of the calling thread.
    ///
    /// # Errors
    /// There is no such interface, or the process is not root.
    pub fn open(interface: &str) -> Result<Self> {
        let name = CString::new(interface).context("an interface's name holds no NUL")?;
        let index = nix::net::if_::if_nametoindex(name.as_c_str());
        let index = index.with_context(|| format!("there is no interface {interface} here"))?;
        let every_protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every_protocol))))
            .context("cannot open a packet socket")?;
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING, 1)?;
        let address = link_address(i32::try_from(index)?, every_protocol)?;
        socket.bind(&address).with_context(|| format!("cannot bind a packet socket to {interface}"))?;
        Ok(Self(socket))
    }

    /// Sends one frame, from its destination MAC on, without a checksum of Ethernet.
    ///
    /// # Errors
    /// The kernel refused it: longer than the interface's MTU allows, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let mut tries = 0;
        let sent = loop {
            match self.0.send(frame) {
                // The interface's queue is full for the moment: the machine is busy.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && tries < 1000 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                sent => break sent.context("cannot send a frame")?,
            }
        };
        if sent != frame.len() {
            bail!("{sent} of a frame's {} bytes were sent", frame.len());
        }
        Ok(())
    }

    /// The next frame that `wanted` takes, or none within the time.
    ///
    /// # Errors
    /// The socket failed.
    pub fn receive(
        &mut self,
        within: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let until = Instant::now() + within;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Zero would mean without limit.
            self.0.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.0.read(&mut buffer) {
                Ok(length) if wanted(&buffer[..length]) => {
                    buffer.truncate(length);
                    return Ok(Some(buffer));
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("cannot receive a frame"),
            }
        }
    }

    /// Frames go straight to the device's queue: faster, and nothing else shares a lab's link.
    pub(super) fn bypass_queueing(&self) -> Result<()> {
        set_option(&self.0, libc::PACKET_QDISC_BYPASS, 1)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn set_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value))?;
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    let code = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const value).cast(), length)
    };
    if code != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot set packet option {option}"));
    }
    Ok(())
}

fn link_address(index: i32, protocol: u16) -> Result<SockAddr> {
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    let mut storage = socket2::SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, smaller than the storage and no stricter aligned.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    // SAFETY: the storage holds a sockaddr_ll of that length.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// An ARP announcement (RFC 5227 section 3): this address is at this MAC.
pub fn arp_announcement(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // Type ARP; Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    debug_assert_eq!(frame.len(), 42);
    frame
}

/// A fresh buffer of message headers, one per frame, pointing into `frames` through `vectors`.
pub(super) fn message_headers(vectors: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    let header = |vector: &mut libc::iovec| {
        // SAFETY: all zeroes is a valid mmsghdr: no name, no vectors, no control data.
        let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        message
    };
    vectors.iter_mut().map(header).collect()
}
