//! What holds in every forwarding mode, over both families, with one arm and with two: one row of checks for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    process::Stdio,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    crowd::{self, Homes},
    site::{Site, said},
    stand_in::StandIn,
    turn::Turn,
};
use crate::lab::{Capture, Lab, LabOptions, Mode, Ns, PLAIN_PORT, Port443, Services, Topology, client};

const CLIENTS: usize = 50;
const CONNECTIONS: usize = 5;
/// Bytes of a download and of an upload.
const LARGE: u64 = 16 << 20;
/// Packets that are looked at, at each end of a transfer.
const CAPTURED: u32 = 6_000;
const PATIENCE: Duration = Duration::from_secs(60);
const HEALTH: &str = "    health_check: { kind: tcp, interval: 500ms, timeout: 500ms, fall: 2, rise: 1 }\n";
/// tcpdump's words for ICMP errors that say so.
const TOO_BIG: &str = "icmp[0] == 3 or (icmp6 and ip6[40] == 2)";
const FIRST: &str = "Hyperspace_Srv_1";

/// A balancer at work in a topology.
struct Row {
    site: Site,
    topology: Topology,
}

/// Builds the topology's lab, with a balancer, and makes all checks of its row: with a narrow hop the large transfers,
/// else everything.
///
/// # Errors
/// What did not hold.
pub fn check(topology: Topology) -> Result<()> {
    let mut row = Row::without_balancer(topology)?;
    let services = Services { ports: format!("443, {PLAIN_PORT}"), more: HEALTH.to_owned() };
    row.site.write_config(&services.yaml(topology))?;
    row.site.start_daemon(&[])?;
    row.site.wait_until_reachable()?;
    if topology.narrow {
        return row.large_transfers_pass_the_narrow_hop();
    }
    let homes = row.packets_come_and_go()?;
    row.port_80_redirects()?;
    row.draining_moves_nobody_who_is_known(&homes)?;
    row.a_dead_server_loses_its_clients_and_no_other(&homes)
}

/// Builds the topology's lab and makes those checks of its row that say something about packets, with a balancer that is
/// not ours: what fails here is wrong in the lab or in the check, or was spoilt by `spoil`.
///
/// # Errors
/// What did not hold.
pub fn check_lab(topology: Topology, spoil: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let row = Row::without_balancer(topology)?;
    // An ICMP error comes from a router, whose address says nothing of the client's server.
    let servers = if topology.narrow { 1 } else { 3 };
    let _balancer = StandIn::start(&row.site, servers)?;
    spoil(&row.site)?;
    if topology.narrow {
        return row.large_transfers_pass_the_narrow_hop();
    }
    row.packets_come_and_go().map(drop)
}

impl Row {
    fn without_balancer(topology: Topology) -> Result<Self> {
        let options =
            LabOptions { port_443: Port443::Tls, big_bytes: LARGE, topology, ..LabOptions::default() };
        Ok(Self { site: Site::without_daemon(Turn::shared(), options)?, topology })
    }

    fn packets_come_and_go(&self) -> Result<Homes> {
        let homes = self.each_client_stays_on_one_server()?;
        self.tls_ends_at_the_server(&homes)?;
        self.servers_see_the_source_of_their_mode()?;
        self.large_transfers_arrive_whole()?;
        Ok(homes)
    }

    /// Hyperspace's port without TLS.
    fn plain(&self) -> SocketAddr {
        SocketAddr::new(self.topology.hyperspace(), PLAIN_PORT)
    }

    fn https(&self, path: &str) -> String {
        format!("https://{}{path}", SocketAddr::new(self.topology.hyperspace(), 443))
    }

    fn homes(&self, clients: impl IntoIterator<Item = usize>) -> Result<Homes> {
        crowd::homes(&self.site, clients, self.plain())
    }

    fn each_client_stays_on_one_server(&self) -> Result<Homes> {
        let answers = crowd::ask_each(&self.site, 0..CLIENTS, CONNECTIONS, self.plain())?;
        let mut homes = Homes::new();
        for (client, told) in answers {
            let told: BTreeSet<String> = told.into_iter().collect::<Result<_>>()?;
            let mut told = told.into_iter();
            match (told.next(), told.next()) {
                (Some(home), None) => homes.insert(client, home),
                (home, other) => bail!("{client} was answered by {home:?} and by {other:?}"),
            };
        }
        let spread = crowd::spread(&homes);
        ensure!(spread.len() == 3, "not every server has a client: {spread:?}");
        Ok(homes)
    }

    /// A client of each server verifies that server's own certificate, by its name.
    fn tls_ends_at_the_server(&self, homes: &Homes) -> Result<()> {
        let one_of_each: BTreeMap<&String, &IpAddr> =
            homes.iter().map(|(client, home)| (home, client)).collect();
        for (home, client) in one_of_each {
            let server = self.site.host(Ns::Server(self.site.index(home)?)).context("no such server")?;
            let [_, _, _, octet] = server.address.octets();
            let certificate = self.site.places().dir.join(format!("srv{octet}/certificate.pem"));
            let name = home.replace('_', "-");
            let to = SocketAddr::new(self.topology.hyperspace(), 443);
            let mut curl = self.site.command(Ns::Client, "curl", ["-sSf", "--max-time", "5", "--cacert"]);
            curl.arg(certificate).args(["--interface", &client.to_string()]);
            curl.args(["--connect-to", &format!("{name}:443:{to}"), &format!("https://{name}/")]);
            let output = curl.stdin(Stdio::null()).output().context("cannot start curl")?;
            let answer = String::from_utf8_lossy(&output.stdout);
            ensure!(
                output.status.success() && answer.trim_end() == *home,
                "{client} over TLS, on {home} without: {}",
                said(&output)
            );
        }
        Ok(())
    }

    fn servers_see_the_source_of_their_mode(&self) -> Result<()> {
        for client in [3, 7, 11].map(|n| self.site.client_address(n)) {
            let expected = match self.topology.mode {
                Mode::Snat => self.topology.balancer_to_servers(),
                Mode::Nat | Mode::Dr | Mode::Tunnel => client,
            };
            let to = self.plain();
            let seen = self.site.in_ns(Ns::Client, || client::get(client, to, "/client", PATIENCE))??;
            let seen: IpAddr = String::from_utf8_lossy(&seen).trim_end().parse()?;
            ensure!(seen == expected, "the server sees {client} as {seen}, not as {expected}");
        }
        Ok(())
    }

    fn large_transfers_arrive_whole(&self) -> Result<()> {
        let (client, server) = self.client_and_server(20)?;
        for download in [true, false] {
            let mut captures = self.site.capture_cables(Ns::Client, CAPTURED, "ip or ip6")?;
            captures.extend(self.site.capture_cables(Ns::Server(server), CAPTURED, "ip or ip6")?);
            self.transfer(download, client, server)?;
            let longest = Self::look(captures)?;
            ensure!(longest <= 1514, "a frame of {longest} bytes never was on a wire");
        }
        Ok(())
    }

    /// Each direction has to find out for itself, from the router at its end of the hop.
    fn large_transfers_pass_the_narrow_hop(&self) -> Result<()> {
        let (client, server) = self.client_and_server(20)?;
        for (download, router) in [(true, Ns::Near), (false, Ns::Far)] {
            self.site.forget_paths(Ns::Client)?;
            self.site.forget_paths(Ns::Server(server))?;
            let told = self.site.capture(router, TOO_BIG)?;
            let hop = self.site.capture_on(Ns::Near, "hop0", "tcp")?;
            self.transfer(download, client, server)?;
            let longest = Self::look(vec![hop])?;
            let limit = usize::try_from(Topology::NARROW_MTU)? + 14;
            ensure!(longest == limit, "the longest frame on the narrow hop has {longest} bytes, not {limit}");
            let told = told.stop()?;
            ensure!(
                !told.packets().is_empty(),
                "{router:?} had nothing to say: no packet was too long for the hop"
            );
            ensure!(told.bad_checksums()?.is_empty(), "the ICMP errors of {router:?} have bad checksums");
        }
        Ok(())
    }

    /// A client, by number, and the index of its server.
    fn client_and_server(&self, number: usize) -> Result<(IpAddr, usize)> {
        let homes = self.homes([number])?;
        let (client, home) = homes.first_key_value().context("the client was not asked")?;
        Ok((*client, self.site.index(home)?))
    }

    fn transfer(&self, download: bool, client: IpAddr, server: usize) -> Result<()> {
        let (what, digest) = if download {
            ("download", self.site.download_sha256(client, &self.https("/big"))?)
        } else {
            let name = format!("of-{client}");
            self.site.upload(client, &self.https(&format!("/upload/{name}")))?;
            ("upload", self.site.uploaded_sha256(server, &name)?)
        };
        ensure!(digest == self.site.big_sha256(), "the {what} of {client} differs from the file");
        Ok(())
    }

    /// Ends the captures, in none of which a checksum may be wrong, and returns the length of the longest frame.
    fn look(captures: Vec<Capture>) -> Result<usize> {
        let threads: Vec<_> = captures.into_iter().map(|capture| thread::spawn(|| read(capture))).collect();
        let (mut packets, mut longest) = (0, 0);
        for thread in threads {
            let lengths = thread.join().ok().context("a thread panicked")??;
            packets += lengths.len();
            longest = lengths.into_iter().max().unwrap_or(0).max(longest);
        }
        ensure!(packets > 5_000, "only {packets} packets were captured of {LARGE} bytes");
        Ok(longest)
    }

    fn port_80_redirects(&self) -> Result<()> {
        for vip in [self.topology.hyperspace(), self.topology.mychart()] {
            let host = match vip {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            let format = "%{http_code} %{redirect_url}";
            let url = format!("http://{host}/a?b=c");
            let client = self.site.client_address(1);
            let told = self.site.curl(client, &url, &["--max-time", "5", "-o", "/dev/null", "-w", format])?;
            let told = String::from_utf8_lossy(&told);
            ensure!(told == format!("301 https://{host}/a?b=c"), "{url}: {told}");
        }
        Ok(())
    }

    fn draining_moves_nobody_who_is_known(&self, before: &Homes) -> Result<()> {
        let first = format!("Hyperspace/{FIRST}");
        self.site.done(&["server", "drain", &first])?;
        let known = self.homes(0..CLIENTS)?;
        let moved = crowd::moved(before, &known);
        ensure!(moved.is_empty(), "a drain moved {moved:?}");
        let new = self.homes(CLIENTS..CLIENTS + 30)?;
        let taken: Vec<IpAddr> = crowd::clients_of(&new, FIRST).collect();
        ensure!(taken.is_empty(), "{FIRST} is draining and took {taken:?}");
        self.site.done(&["server", "online", &first])?;
        Ok(())
    }

    fn a_dead_server_loses_its_clients_and_no_other(&mut self, before: &Homes) -> Result<()> {
        let index = self.site.index(FIRST)?;
        self.site.stop_nginx(index)?;
        self.site.wait_for_health(&format!("Hyperspace/{FIRST}"), "down", PATIENCE)?;
        let after = self.homes(0..CLIENTS)?;
        let left: Vec<IpAddr> = crowd::clients_of(&after, FIRST).collect();
        ensure!(left.is_empty(), "{FIRST} is down and answered {left:?}");
        let moved = crowd::moved(before, &after);
        let others: Vec<_> = moved.iter().filter(|(_, from, _)| *from != FIRST).collect();
        ensure!(others.is_empty(), "{FIRST} went down, and these moved: {others:?}");
        Ok(())
    }
}

/// The lengths of a capture's frames.
fn read(capture: Capture) -> Result<Vec<usize>> {
    let captured = capture.stop()?;
    let bad = captured.bad_checksums()?;
    ensure!(bad.is_empty(), "{} bad checksums, such as {}", bad.len(), bad[0]);
    Ok(captured.packets().iter().map(Vec::len).collect())
}
