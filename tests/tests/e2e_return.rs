//! A client that only listens hears every line, whatever becomes of the router between it and the balancer.
#![cfg(test)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use tests::{
    e2e::{Site, Turn},
    lab::{Family, INTERFACE, Lab, LabOptions, Ns, Services, Topology, client},
};

/// Where the servers write their lines.
const LINES_PORT: u16 = 9100;
/// The second interface of the router at the services' end, and its number in the network.
const SECOND: &str = "eth9";
const SECOND_NUMBER: u8 = 9;
/// Lines before the router fails, and in all.
const BEFORE: usize = 10;
const LINES: usize = 60;
const PAUSE: Duration = Duration::from_millis(500);
/// What a line may take, with retransmissions that have backed off.
const PATIENCE: Duration = Duration::from_secs(240);

struct Row {
    site: Site,
    topology: Topology,
}

impl Row {
    /// Clients behind a router, in which `prepare` has changed something before the first packet.
    fn new(family: Family, prepare: impl FnOnce(&Lab, Topology)) -> Self {
        let topology = Topology { narrow: true, family, ..Topology::default() };
        let options = LabOptions { topology, ..LabOptions::default() };
        let mut site = Site::without_daemon(Turn::shared(), options).unwrap();
        let services = Services { ports: format!("443, {LINES_PORT}"), more: String::new() };
        site.write_config(&services.yaml(topology)).unwrap();
        prepare(&site, topology);
        site.start_daemon(&[]).unwrap();
        site.wait_until_reachable().unwrap();
        for number in 0..site.servers().count() {
            let any = match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let bind = || TcpListener::bind((any, LINES_PORT)).unwrap();
            let listener = site.in_ns(Ns::Server(number), bind).unwrap();
            thread::spawn(move || listener.incoming().flatten().for_each(write_lines));
        }
        Self { site, topology }
    }

    /// A client connects and listens; after some lines the router fails, and all lines arrive nevertheless.
    fn every_line_arrives(&self, fail: impl FnOnce(&Lab)) {
        let to = SocketAddr::new(self.topology.hyperspace(), LINES_PORT);
        let source = self.site.client_address(20);
        let connect = || client::connect(source, to, PATIENCE).unwrap();
        let stream = self.site.in_ns(Ns::Client, connect).unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut fail = Some(fail);
        for number in 0..LINES {
            if number == BEFORE {
                fail.take().unwrap()(&self.site);
            }
            let line = lines.next().unwrap_or_else(|| panic!("the connection ended before line {number}"));
            let line =
                line.unwrap_or_else(|error| panic!("line {number}: {error}\n{}", self.site.daemon_log()));
            assert_eq!(line, format!("line {number}"));
        }
    }
}

fn write_lines(mut stream: TcpStream) {
    thread::spawn(move || {
        for number in 0..LINES {
            if writeln!(stream, "line {number}").is_err() {
                return;
            }
            thread::sleep(PAUSE);
        }
    });
}

/// An address on the services' side.
fn beside(topology: Topology, number: u8) -> IpAddr {
    match topology.hyperspace() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, number])
        }
        IpAddr::V6(v6) => {
            let mut words = v6.segments();
            words[7] = number.into();
            IpAddr::from(words)
        }
    }
}

/// Gives the router a second interface on the services' network, which takes over when its first goes.
fn add_second_interface(lab: &Lab, topology: Topology) {
    lab.in_ns(Ns::Near, || {
        for (setting, value) in [("arp_ignore", "1"), ("arp_announce", "2"), ("rp_filter", "0")] {
            fs::write(format!("/proc/sys/net/ipv4/conf/all/{setting}"), value).unwrap();
        }
    })
    .unwrap();
    let fabric = lab.namespace(Ns::Fabric);
    let length = if topology.family == Family::V4 { "24" } else { "64 nodad" };
    let address = beside(topology, SECOND_NUMBER);
    lab.ip(
        Ns::Near,
        &format!(
            "link add {SECOND} address 02:85:00:00:00:99 type veth peer name second netns {fabric}\n\
             addr add {address}/{length} dev {SECOND} metric 4096\n\
             link set {SECOND} up\n"
        ),
    )
    .unwrap();
    lab.ip(Ns::Fabric, "link set second master br0 up\n").unwrap();
}

fn route_to_clients(lab: &Lab, topology: Topology, next: &[u8]) {
    let hops: String = match next {
        [only] => format!("via {}", beside(topology, *only)),
        several => {
            several.iter().map(|number| format!("nexthop via {} ", beside(topology, *number))).collect()
        }
    };
    lab.ip(Ns::Lb, &format!("route replace {} {hops}\n", topology.clients())).unwrap();
}

fn first_interface_is_exchanged(lab: &Lab) {
    lab.ip(Ns::Near, &format!("link set {INTERFACE} address 02:85:00:00:00:77\n")).unwrap();
}

fn first_interface_dies(lab: &Lab) {
    lab.ip(Ns::Near, &format!("link set {INTERFACE} down\n")).unwrap();
}

#[test]
fn a_listener_hears_every_line_when_its_router_has_another_mac_address() {
    Row::new(Family::V4, |_, _| ()).every_line_arrives(first_interface_is_exchanged);
}

#[test]
fn a_listener_over_ipv6_hears_every_line_when_its_router_has_another_mac_address() {
    Row::new(Family::V6, |_, _| ()).every_line_arrives(first_interface_is_exchanged);
}

#[test]
fn a_listener_hears_every_line_when_its_router_dies_and_the_route_has_another() {
    let row = Row::new(Family::V4, |lab, topology| {
        add_second_interface(lab, topology);
        route_to_clients(lab, topology, &[1, SECOND_NUMBER]);
    });
    row.every_line_arrives(first_interface_dies);
}

/// As with HSRP, whose routers send from their own MAC addresses and not from the gateway's.
#[test]
fn a_listener_hears_every_line_when_a_router_dies_that_was_in_no_neighbour_table() {
    let row = Row::new(Family::V4, |lab, topology| {
        add_second_interface(lab, topology);
        route_to_clients(lab, topology, &[SECOND_NUMBER]);
        let [a, b, c, d, e, f] = lab.host(Ns::Lb).unwrap().mac();
        let service = topology.hyperspace();
        let known = format!(
            "neigh replace {service} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev {INTERFACE} nud permanent\n"
        );
        lab.ip(Ns::Near, &known).unwrap();
        lab.ip(Ns::Lb, &format!("neigh flush dev {INTERFACE}\n")).unwrap();
    });
    row.every_line_arrives(first_interface_dies);
}
