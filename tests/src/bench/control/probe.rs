//! SYNs of new clients, run by the balancer's program as if they had come by its interface.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use etherparse::PacketBuilder;
use lb_userspace::object::PROGRAM;
use nix::net::if_::if_nametoindex;

use crate::lab::{INTERFACE, Lab, Ns};

const TRANSMIT: u32 = 3;
/// Where the destination address of IPv4 stands in an untagged frame.
const DESTINATION: usize = 30;
/// Between two SYNs: each takes a SNAT port for a while.
const PAUSE: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_secs(10);
/// The first port of the clients.
const FIRST_PORT: u16 = 1024;

/// The program of a lab's balancer.
pub(super) struct Probe {
    program: Xdp,
    context: Vec<u8>,
    macs: [[u8; 6]; 2],
    to: SocketAddrV4,
    /// Clients that the scheduler has at one server.
    clients: Vec<Ipv4Addr>,
    home: Ipv4Addr,
    next: u32,
}

impl Probe {
    /// Finds clients that a server has, by its index. Call it in the balancer's namespace.
    ///
    /// # Errors
    /// The program is not pinned, or has no client there.
    pub(super) fn of(lab: &Lab, to: SocketAddrV4, server: usize) -> Result<Self> {
        let pin = lab.places().pins.join("programs").join(PROGRAM);
        let program = Xdp::from_pin(&pin, XdpAttachType::Interface)
            .with_context(|| format!("cannot open {}", pin.display()))?;
        let index = if_nametoindex(INTERFACE).context("the balancer has no interface")?;
        let host = |ns| lab.host(ns).with_context(|| format!("the lab has no host {ns:?}"));
        let macs = [host(Ns::Client)?.mac(), host(Ns::Lb)?.mac()];
        let home = host(Ns::Server(server))?.address;
        let mut probe =
            Self { program, context: context(index, 0), macs, to, clients: Vec::new(), home, next: 0 };
        for number in 0..64 {
            let IpAddr::V4(client) = lab.client_address(number) else { bail!("the lab is not one of IPv4") };
            if probe.server_of(client, FIRST_PORT)? == home {
                probe.clients.push(client);
            }
        }
        ensure!(!probe.clients.is_empty(), "none of 64 clients is at {home}");
        Ok(probe)
    }

    /// Whether the next of the clients, as one that nobody knows, is sent where they all were.
    ///
    /// # Errors
    /// Its SYN was not sent on.
    pub(super) fn is_at_home(&mut self) -> Result<bool> {
        self.next += 1;
        let count = u32::try_from(self.clients.len())?;
        let client = self.clients[usize::try_from(self.next % count)?];
        // Every SYN is of another flow.
        let port = FIRST_PORT + 1 + u16::try_from(self.next / count % 60_000)?;
        Ok(self.server_of(client, port)? == self.home)
    }

    /// Sends one new client after the other until one is at home, or is not.
    ///
    /// # Errors
    /// It did not come to that.
    pub(super) fn until(&mut self, at_home: bool) -> Result<Instant> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.is_at_home()? == at_home {
                return Ok(Instant::now());
            }
            thread::sleep(PAUSE);
        }
        bail!("new clients of {} did not change their server within {PATIENCE:?}", self.home)
    }

    fn server_of(&mut self, client: Ipv4Addr, port: u16) -> Result<Ipv4Addr> {
        let mut syn = Vec::new();
        PacketBuilder::ethernet2(self.macs[0], self.macs[1])
            .ipv4(client.octets(), self.to.ip().octets(), 64)
            .tcp(port, self.to.port(), 1, 64_240)
            .syn()
            .write(&mut syn, &[])?;
        let mut sent = vec![0; 2 * syn.len()];
        self.context[4..8].copy_from_slice(&u32::try_from(syn.len())?.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&syn),
            data_out: Some(&mut sent),
            ctx_in: Some(&self.context),
            ..TestRunOptions::default()
        };
        let result = self.program.test_run(options).context("a test run")?;
        ensure!(
            result.return_value == TRANSMIT,
            "a SYN of {client}:{port} came to verdict {} and not to XDP_TX",
            result.return_value
        );
        let address: [u8; 4] = *sent[DESTINATION..].first_chunk().context("a short frame")?;
        Ok(address.into())
    }
}

/// The kernel's `xdp_md` of a frame that came by an interface: data, `data_end`, `data_meta`, `ingress_ifindex`,
/// `rx_queue_index`, `egress_ifindex`.
fn context(interface: u32, length: u32) -> Vec<u8> {
    [0, length, 0, interface, 0, 0].map(u32::to_ne_bytes).concat()
}
