//! Network namespaces for the tests: nameless, so that the kernel removes them, with all that is in them, when
//! the test ends in whatever way.

use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use socket2::Socket;

use super::packet_socket::open_bound;
use super::{Mac, Net, NetError};

/// Parses an address of a test.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A network namespace that lives as long as this value or a socket in it.
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("the network tests need root");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self { file: thread::spawn(make).join().unwrap() }
    }

    /// Runs a future in the namespace, on a thread and a runtime of its own, and waits for it.
    pub(crate) fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        let in_namespace = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        };
        thread::scope(|scope| scope.spawn(in_namespace).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// A balancer and a server, joined by a cable: `lb0` here, `srv0` there.
pub(crate) struct Lab {
    pub(crate) balancer: Namespace,
    pub(crate) server: Namespace,
}

impl Lab {
    pub(crate) const BALANCER: &str = "192.0.2.10";
    pub(crate) const SERVER: &str = "192.0.2.20";
    pub(crate) const BALANCER_V6: &str = "2001:db8::10";
    pub(crate) const SERVER_V6: &str = "2001:db8::20";
    pub(crate) const BALANCER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x0a];
    pub(crate) const SERVER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x0b];

    pub(crate) fn new() -> Self {
        let lab = Self { balancer: Namespace::new(), server: Namespace::new() };
        let there = std::os::fd::AsRawFd::as_raw_fd(&lab.server.file);
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            net.handle.link().add(LinkVeth::new("lb0", "srv0").build()).execute().await.unwrap();
            let moved = LinkUnspec::new_with_name("srv0").setns_by_fd(there).build();
            net.handle.link().set(moved).execute().await.unwrap();
            set_up(&net, "lb0", Self::BALANCER_MAC, [Self::BALANCER, Self::BALANCER_V6]).await;
        });
        lab.server.run(async || {
            let net = Net::open().unwrap();
            set_up(&net, "srv0", Self::SERVER_MAC, [Self::SERVER, Self::SERVER_V6]).await;
        });
        lab.balancer.run(async || settle("lb0", Self::BALANCER_V6).await);
        lab.server.run(async || settle("srv0", Self::SERVER_V6).await);
        lab
    }

    pub(crate) fn balancer_index(&self) -> u32 {
        self.balancer.run(async || Net::open().unwrap().link("lb0").await.unwrap().index)
    }

    pub(crate) fn server_index(&self) -> u32 {
        self.server.run(async || Net::open().unwrap().link("srv0").await.unwrap().index)
    }

    /// Hears every frame on the server's end of the cable from now on.
    pub(crate) fn server_ear(&self) -> Ear {
        let index = self.server_index();
        let everything = u16::try_from(libc::ETH_P_ALL).unwrap();
        let socket = self.server.run(async || open_bound(index, everything).unwrap());
        socket.set_nonblocking(false).unwrap();
        Ear { socket }
    }

    /// Changes the server's MAC address without a word to anyone.
    pub(crate) fn set_server_mac(&self, mac: Mac) {
        self.server.run(async || {
            let message = LinkUnspec::new_with_name("srv0").address(mac.to_vec()).build();
            Net::open().unwrap().handle.link().set(message).execute().await.unwrap();
        });
    }
}

async fn set_up(net: &Net, name: &str, mac: Mac, addresses: [&str; 2]) {
    fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0").unwrap();
    let message = LinkUnspec::new_with_name(name).address(mac.to_vec()).up().build();
    net.handle.link().set(message).execute().await.unwrap();
    net.handle.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await.unwrap();
    let index = net.link(name).await.unwrap().index;
    for (address, prefix) in addresses.into_iter().zip([24, 64]) {
        add_address(net, index, ip(address), prefix).await;
    }
}

/// Gives an interface an address of its own, which is usable at once.
pub(crate) async fn add_address(net: &Net, index: u32, address: IpAddr, prefix: u8) {
    let mut request = net.handle.address().add(index, address, prefix);
    request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    request.execute().await.unwrap();
}

/// The kernel finishes some of this later: carrier, queues and the routes of IPv6.
async fn settle(name: &str, own: &str) {
    let net = Net::open().unwrap();
    let link = within("the link", async || net.link(name).await.ok().filter(|link| link.up)).await;
    let is_own = async || matches!(net.next_hop(link.index, ip(own)).await, Err(NetError::OwnAddress { .. }));
    within("the address", async || is_own().await.then_some(())).await;
    within("the link-local route", async || net.next_hop(link.index, ip("fe80::1")).await.ok()).await;
}

/// A socket that hears what passes an interface.
pub(crate) struct Ear {
    socket: Socket,
}

impl Ear {
    /// The first frame of that kind within `time`; the others are passed over.
    pub(crate) fn hears(&self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + time;
        let mut frame = [0; 2048];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        {
            self.socket.set_read_timeout(Some(left)).unwrap();
            let Ok(length) = (&self.socket).read(&mut frame) else {
                return None;
            };
            if wanted(&frame[..length]) {
                return Some(frame[..length].to_vec());
            }
        }
        None
    }
}

/// Asks again and again, for a minute, until there is an answer.
pub(crate) async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Joins two new interfaces of one namespace by a cable, and sets them up.
pub(crate) async fn add_cable(net: &Net, name: &str, peer: &str) {
    net.handle.link().add(LinkVeth::new(name, peer).build()).execute().await.unwrap();
    for end in [name, peer] {
        set_link_up(net, end, true).await;
    }
}

/// Removes an interface, and the one that it is joined to.
pub(crate) async fn remove_link(net: &Net, name: &str) {
    let index = net.link(name).await.unwrap().index;
    net.handle.link().del(index).execute().await.unwrap();
}

pub(crate) async fn set_link_up(net: &Net, name: &str, up: bool) {
    let message = LinkUnspec::new_with_name(name);
    let message = if up { message.up() } else { message.down() };
    net.handle.link().set(message.build()).execute().await.unwrap();
}

pub(crate) async fn add_route(net: &Net, prefix: IpAddr, length: u8, gateway: IpAddr) {
    let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(prefix, length).unwrap();
    net.handle.route().add(route.gateway(gateway).unwrap().build()).execute().await.unwrap();
}

/// Writes an entry into the kernel's neighbour table.
pub(crate) async fn set_neighbour(net: &Net, index: u32, address: IpAddr, mac: Mac, state: NeighbourState) {
    let request = net.handle.neighbours().add(index, address).link_layer_address(&mac).state(state);
    request.replace().execute().await.unwrap();
}
