//! Follows the kernel's neighbour table, link, routes and addresses of one interface, and keeps the watched
//! neighbours fresh. The decisions are in [`super::neighbour_state`]; this carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::neighbour_state::{Command, Entry, NeighbourTable, Nud, Timing};
use super::outbox::Outbox;
use super::{Link, LinkEvent, Mac, NeighbourEvent, Net, NetError, NetEvent};

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Neigh,
    MulticastGroup::Link,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
];

/// Room for a burst of events; what does not fit is made good by reading everything again.
const RECEIVE_BUFFER: i32 = 1 << 20; // bytes

/// The pause before the event socket is opened again after it broke.
const REOPEN: Duration = Duration::from_secs(1);

/// `linux/rtnetlink.h`.
const RT_TABLE_LOCAL: u8 = 255;

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Keeps the watched neighbours of one interface fresh, until dropped.
#[derive(Debug)]
pub struct Neighbours {
    watched: watch::Sender<BTreeSet<IpAddr>>,
    task: JoinHandle<()>,
}

impl Neighbours {
    /// Starts to follow the interface, and gives the receiver of what changes. A neighbour whose MAC address was
    /// never known is not reported; any other change of `link` from how it is given here is. Call it within a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Open`] when the kernel refuses the event socket.
    pub fn start(
        net: &Net,
        link: Link,
        timing: Timing,
        watched: BTreeSet<IpAddr>,
    ) -> Result<(Self, mpsc::Receiver<NetEvent>), NetError> {
        let socket = EventSocket::open()?;
        // Of size one: what waits behind it is kept to the newest by the outbox.
        let (sender, receiver) = mpsc::channel(1);
        let (wanted, watched) = watch::channel(watched);
        let tracker = Tracker {
            net: net.clone(),
            link,
            is_removed: false,
            resync: timing.resync,
            table: NeighbourTable::new(timing),
            outbox: Outbox::default(),
            watched,
        };
        let task = tokio::spawn(tracker.run(socket, sender));
        Ok((Self { watched: wanted, task }, receiver))
    }

    /// Watches exactly these addresses from now on: the next hops on this interface.
    pub fn watch(&self, addresses: BTreeSet<IpAddr>) {
        self.watched.send_replace(addresses);
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The kernel's events. Its task ends with it.
struct EventSocket {
    messages: Pin<Box<dyn Stream<Item = (Message, SocketAddr)> + Send>>,
    task: JoinHandle<()>,
}

impl EventSocket {
    fn open() -> Result<Self, NetError> {
        let (mut connection, _requests, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(NetError::Open)?;
        let socket = connection.socket_mut().socket_mut();
        socket.set_rx_buf_sz(RECEIVE_BUFFER).map_err(NetError::Open)?;
        Ok(Self { messages: Box::pin(messages), task: tokio::spawn(connection) })
    }

    /// The next message of the kernel, or of nobody else; `None` when the socket broke.
    async fn next(&mut self) -> Option<Message> {
        loop {
            let (message, from) = self.messages.next().await?;
            if from.port_number() == 0 {
                return Some(message);
            }
        }
    }
}

impl Drop for EventSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a tracker stopped following its event socket.
enum End {
    SocketBroke,
    NobodyListens,
}

struct Tracker {
    net: Net,
    link: Link,
    is_removed: bool,
    resync: Duration,
    table: NeighbourTable,
    outbox: Outbox,
    watched: watch::Receiver<BTreeSet<IpAddr>>,
}

impl Tracker {
    async fn run(mut self, mut socket: EventSocket, sender: mpsc::Sender<NetEvent>) {
        while let End::SocketBroke = self.follow(&mut socket, &sender).await {
            warn!(interface = %self.link.name, "the netlink event socket broke; opening another");
            socket = loop {
                tokio::time::sleep(REOPEN).await;
                match EventSocket::open() {
                    Ok(socket) => break socket,
                    Err(error) => warn!(interface = %self.link.name, %error, "no event socket; trying again"),
                }
            };
            self.lost_events();
        }
    }

    async fn follow(&mut self, socket: &mut EventSocket, sender: &mpsc::Sender<NetEvent>) -> End {
        self.watch_as_wanted();
        let mut resync_at = Instant::now();
        loop {
            if resync_at <= Instant::now() {
                self.read_everything().await;
                resync_at = Instant::now() + self.resync;
            }
            self.carry_out_what_is_due().await;
            let wake_at = self.table.deadline().map_or(resync_at, |at| at.min(resync_at));
            tokio::select! {
                message = socket.next() => match message {
                    None => return End::SocketBroke,
                    Some(message) => {
                        if matches!(message.payload, NetlinkPayload::Overrun(_)) {
                            debug!(interface = %self.link.name, "netlink events were lost; reading everything");
                            self.lost_events();
                            resync_at = Instant::now();
                        } else if let NetlinkPayload::InnerMessage(event) = message.payload {
                            self.take_in(&event);
                        }
                    }
                },
                room = sender.reserve(), if !self.outbox.is_empty() => match (room, self.outbox.pop()) {
                    (Ok(room), Some(event)) => room.send(event),
                    (Ok(_), None) => {}
                    (Err(_), _) => return End::NobodyListens,
                },
                changed = self.watched.changed() => {
                    if changed.is_err() {
                        return End::NobodyListens;
                    }
                    self.watch_as_wanted();
                    resync_at = Instant::now();
                }
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    fn watch_as_wanted(&mut self) {
        let wanted = self.watched.borrow_and_update().clone();
        self.table.set_watched(&wanted, Instant::now());
        self.outbox.retain_neighbours(|address| wanted.contains(address));
    }

    /// Events were lost, so any route or address may have changed.
    fn lost_events(&mut self) {
        self.outbox.push(NetEvent::RouteChanged);
        self.outbox.push(NetEvent::AddressChanged);
    }

    /// Reads the link and the neighbour table. Events that come in meanwhile wait on the event socket and are
    /// taken in afterwards, so that what is newest is taken in last.
    async fn read_everything(&mut self) {
        match self.net.links().await {
            Ok(links) => match links.into_iter().find(|link| link.index == self.link.index) {
                Some(link) => self.link_is(link),
                None => self.link_is_removed(),
            },
            Err(error) => warn!(interface = %self.link.name, %error, "the link was not read"),
        }
        match self.net.neighbours(self.link.index).await {
            Ok(table) => {
                for report in self.table.resync(&table, Instant::now()) {
                    self.report(report);
                }
            }
            Err(error) => warn!(interface = %self.link.name, %error, "the neighbours were not read"),
        }
    }

    async fn carry_out_what_is_due(&mut self) {
        for command in self.table.poll(Instant::now()) {
            let done = match command {
                Command::Report(..) => {
                    self.report(command);
                    continue;
                }
                Command::Confirm(address) => self.net.confirm_neighbour(self.link.index, address).await,
                Command::Resolve(address) => self.net.resolve_neighbour(self.link.index, address).await,
            };
            if let Err(error) = done {
                warn!(interface = %self.link.name, %error, "the neighbour was not asked for; trying again");
            }
        }
    }

    fn report(&mut self, command: Command) {
        if let Command::Report(address, mac) = command {
            self.outbox.push(NetEvent::Neighbour(NeighbourEvent { address, mac }));
        }
    }

    fn take_in(&mut self, event: &RouteNetlinkMessage) {
        match event {
            RouteNetlinkMessage::NewNeighbour(message) => self.take_in_neighbour(message, false),
            RouteNetlinkMessage::DelNeighbour(message) => self.take_in_neighbour(message, true),
            RouteNetlinkMessage::NewLink(message) if self.is_ours(message) => {
                if let Some(link) = Link::from_message(message) {
                    self.link_is(link);
                }
            }
            RouteNetlinkMessage::DelLink(message) if self.is_ours(message) => {
                self.link_is_removed();
            }
            // The local table only mirrors the addresses.
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)
                if message.header.table != RT_TABLE_LOCAL =>
            {
                self.outbox.push(NetEvent::RouteChanged);
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message)
                if message.header.index == self.link.index =>
            {
                self.outbox.push(NetEvent::AddressChanged);
            }
            _ => {}
        }
    }

    /// A bridge tells of its ports by link messages of its own family: "deleted" then means "left the bridge".
    fn is_ours(&self, message: &LinkMessage) -> bool {
        message.header.index == self.link.index && message.header.interface_family == AddressFamily::Unspec
    }

    fn take_in_neighbour(&mut self, message: &NeighbourMessage, is_gone: bool) {
        if message.header.ifindex != self.link.index {
            return;
        }
        if let Some((address, entry)) = parse(message) {
            let entry = (!is_gone).then_some(entry);
            if let Some(report) = self.table.observe(address, entry, Instant::now()) {
                self.report(report);
            }
        }
    }

    fn link_is_removed(&mut self) {
        if !self.is_removed {
            self.is_removed = true;
            self.outbox.push(NetEvent::Link(LinkEvent::Removed));
        }
    }

    fn link_is(&mut self, link: Link) {
        if link == self.link {
            return;
        }
        if link.up && (!self.link.up || link.mac != self.link.mac) {
            self.table.link_changed(Instant::now());
        }
        self.link = link.clone();
        self.outbox.push(NetEvent::Link(LinkEvent::Changed(link)));
    }
}

impl Net {
    /// The neighbour table of an interface.
    ///
    /// # Errors
    /// A netlink error, in words.
    pub async fn neighbours(&self, index: u32) -> Result<BTreeMap<IpAddr, Entry>, NetError> {
        let messages: Vec<NeighbourMessage> =
            self.handle.neighbours().get().execute().try_collect().await.map_err(|error| {
                NetError::netlink(format!("reading the neighbours of interface {index}"), error)
            })?;
        Ok(messages.iter().filter(|message| message.header.ifindex == index).filter_map(parse).collect())
    }

    /// Has the kernel probe the MAC address it has, now (NUD_PROBE). Should it have lost it meanwhile, it asks
    /// everyone instead.
    pub(crate) async fn confirm_neighbour(&self, index: u32, address: IpAddr) -> Result<(), NetError> {
        let request = self.handle.neighbours().add(index, address).state(NeighbourState::Probe).replace();
        match request.execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = NetError::netlink(format!("confirming the neighbour {address}"), error);
                if error.errno() != Some(libc::EINVAL) {
                    return Err(error);
                }
                self.resolve_neighbour(index, address).await
            }
        }
    }

    /// Has the kernel ask everyone on the link who has the address (NTF_USE: as if a packet were waiting).
    pub(crate) async fn resolve_neighbour(&self, index: u32, address: IpAddr) -> Result<(), NetError> {
        let request = self.handle.neighbours().add(index, address);
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
        request
            .execute()
            .await
            .map_err(|error| NetError::netlink(format!("resolving the neighbour {address}"), error))
    }
}

/// `None` for what is no neighbour of ours: proxy entries, other families.
fn parse(message: &NeighbourMessage) -> Option<(IpAddr, Entry)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    Some((address?, Entry { nud: nud_of(message.header.state), mac }))
}

fn nud_of(state: NeighbourState) -> Nud {
    match state {
        NeighbourState::Incomplete => Nud::Incomplete,
        NeighbourState::Reachable => Nud::Reachable,
        NeighbourState::Stale => Nud::Stale,
        NeighbourState::Delay => Nud::Delay,
        NeighbourState::Probe => Nud::Probe,
        NeighbourState::Failed => Nud::Failed,
        NeighbourState::Noarp => Nud::NoArp,
        NeighbourState::Permanent => Nud::Permanent,
        // A state that this program does not know promises nothing.
        _ => Nud::None,
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod wire_tests;
