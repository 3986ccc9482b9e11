//! Contenders: each in a lab of its own, so that nobody has another's rules, program, addresses or ports in his way.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    net::IpAddr,
    ops::Range,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{constant::Constant, load::FILE, napi::Napi};
use crate::lab::{Lab, LabOptions, Mode, Ns, PLAIN_PORT, Services, Topology, own_libraries, tool};

const READY_WITHIN: Duration = Duration::from_secs(20);
/// Hyperspace's, which all contenders balance.
pub(super) const SERVERS: usize = 3;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Contender {
    /// No balancer: clients go to the servers.
    Direct,
    /// HAProxy with so many threads.
    Haproxy { threads: u8 },
    /// The kernel's own address translation.
    Nft,
    /// An XDP program that rewrites addresses by constants: the least that one costs.
    Constant,
    /// Steadfast, in a mode.
    Steadfast(Mode),
}

impl Contender {
    pub(super) const ALL: [Self; 9] = [
        Self::Direct,
        Self::Haproxy { threads: 1 },
        Self::Haproxy { threads: 2 },
        Self::Nft,
        Self::Constant,
        Self::Steadfast(Mode::Snat),
        Self::Steadfast(Mode::Nat),
        Self::Steadfast(Mode::Dr),
        Self::Steadfast(Mode::Tunnel),
    ];

    pub(super) fn name(self) -> String {
        match self {
            Self::Direct => "direct".to_owned(),
            Self::Haproxy { threads } => format!("HAProxy, nbthread {threads}"),
            Self::Nft => "nftables".to_owned(),
            Self::Constant => "constants in XDP".to_owned(),
            Self::Steadfast(mode) => format!("Steadfast, {}", mode.name()),
        }
    }

    fn topology(self) -> Topology {
        let mode = match self {
            Self::Steadfast(mode) => mode,
            _ => Mode::Snat,
        };
        Topology { mode, ..Topology::default() }
    }
}

/// A contender at work.
pub(super) struct Stand {
    pub(super) contender: Contender,
    pub(super) lab: Lab,
    /// Where clients go.
    pub(super) to: Vec<IpAddr>,
    rival: Option<Child>,
    constant: Option<Constant>,
}

impl Stand {
    /// Sets it up, and waits until it answers.
    ///
    /// # Errors
    /// Something did not start.
    pub(super) fn up(contender: Contender) -> Result<Self> {
        let topology = contender.topology();
        let mut lab = Lab::new(LabOptions { big_bytes: FILE, topology, ..LabOptions::default() })?;
        for server in 0..SERVERS {
            lab.start_nginx(server)?;
        }
        let servers: Vec<IpAddr> = lab.servers().take(SERVERS).map(|host| host.address.into()).collect();
        let balancer = lab.address(Ns::Lb)?;
        let mut stand = Self { contender, lab, to: vec![balancer], rival: None, constant: None };
        match contender {
            Contender::Direct => {
                stand.lab.remove_programs();
                stand.to = servers;
            }
            Contender::Haproxy { threads } => {
                stand.lab.remove_programs();
                stand.rival = Some(start_haproxy(&stand.lab, &haproxy_configuration(threads, &servers))?);
            }
            Contender::Nft => {
                stand.lab.remove_programs();
                stand.translate(&servers)?;
            }
            Contender::Constant => stand.constant = Some(Constant::attach(&stand.lab)?),
            Contender::Steadfast(_) => {
                let more = "    health_check: { kind: none }\n".to_owned();
                let services = Services { ports: format!("443, {PLAIN_PORT}"), more };
                stand.lab.write_config(&services.yaml(topology))?;
                stand.lab.start_daemon(&[])?;
                stand.to = vec![topology.hyperspace()];
            }
        }
        stand.wait_until_it_answers()?;
        Ok(stand)
    }

    /// The clients with these numbers, whom it serves from now on.
    ///
    /// # Errors
    /// It has to be told, and was not.
    pub(super) fn clients(&mut self, numbers: Range<usize>) -> Result<Vec<IpAddr>> {
        let mut clients: Vec<IpAddr> = numbers.map(|number| self.lab.client_address(number)).collect();
        if let Some(constant) = &mut self.constant {
            // It knows one.
            clients.truncate(1);
            constant.serve(&self.lab, clients[0])?;
        }
        Ok(clients)
    }

    /// Has what NAPI there is on the balancer's cable run so.
    ///
    /// # Errors
    /// The kernel has no such mode.
    pub(super) fn set_napi(&self, napi: Napi) -> Result<()> {
        let port = self.lab.host(Ns::Lb).context("a lab without a balancer")?.port();
        for (ns, interface) in [(Ns::Lb, crate::lab::INTERFACE), (Ns::Fabric, &port)] {
            self.lab.in_ns(ns, || napi.set(interface))??;
        }
        Ok(())
    }

    /// Makes a router of the balancer that hands connections on by its rules.
    fn translate(&self, servers: &[IpAddr]) -> Result<()> {
        self.lab.in_ns(Ns::Lb, || -> Result<()> {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")
                .context("cannot make a router of the balancer")?;
            for scope in ["all", crate::lab::INTERFACE] {
                fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/send_redirects"), "0")?;
            }
            Ok(())
        })??;
        let rules = nft_rules(self.lab.address(Ns::Lb)?, servers);
        let mut nft = self.lab.command(Ns::Lb, "nft", ["-f", "-"]);
        nft.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut nft = nft.spawn().context("cannot start nft: run `cargo xtask setup`")?;
        // Dropped after the write: the rules end with their input. If nft ended before, its exit says why.
        let written = nft.stdin.take().context("nft has no standard input")?.write_all(rules.as_bytes());
        let output = nft.wait_with_output()?;
        if !output.status.success() {
            bail!("nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        written.context("nft did not read its rules")
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let name = self.contender.name();
        // A client that no run has.
        let [client] = self.clients(64_990..64_991)?[..] else { bail!("one number is one client") };
        let start = Instant::now();
        loop {
            let outcome =
                self.to.iter().try_for_each(|to| self.lab.who_answers(client, *to, PLAIN_PORT).map(drop));
            let Err(error) = outcome else { return Ok(()) };
            if let Some(status) = self.rival.as_mut().map(Child::try_wait).transpose()?.flatten() {
                let log = fs::read_to_string(self.lab.places().dir.join("haproxy.log")).unwrap_or_default();
                bail!("{name} ended: {status}; it said:\n{log}");
            }
            if start.elapsed() > READY_WITHIN {
                return Err(error.context(format!("{name} does not answer within {READY_WITHIN:?}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some(rival) = &mut self.rival {
            // Both fail only where it has ended already.
            let _ = rival.kill();
            let _ = rival.wait();
        }
    }
}

/// Starts HAProxy on the balancer's host.
///
/// # Errors
/// It is not installed or unpacked.
pub(in crate::bench) fn start_haproxy(lab: &Lab, configuration: &str) -> Result<Child> {
    let program = tool("haproxy")?;
    let dir = &lab.places().dir;
    let (config, log) = (dir.join("haproxy.cfg"), dir.join("haproxy.log"));
    fs::write(&config, configuration)?;
    let mut haproxy = lab.command(Ns::Lb, &program, ["-db", "-f"]);
    haproxy.arg(&config);
    haproxy.envs(own_libraries(&program));
    let log = File::create(&log)?;
    haproxy.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    haproxy.spawn().context("cannot start HAProxy")
}

/// As on an appliance: connections are passed on whole, a client stays on its server for an hour.
fn haproxy_configuration(threads: u8, servers: &[IpAddr]) -> String {
    let mut out = format!(
        "global\n    nbthread {threads}\n    maxconn 4096\n\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n"
    );
    for (label, port) in [("tls", 443), ("plain", PLAIN_PORT)] {
        // Writing to a String has no way to fail.
        let _ = write!(
            out,
            "listen {label}\n    bind :{port}\n    balance leastconn\n    stick-table type ip size 1m expire 60m\n    \
             stick on src\n"
        );
        for (number, server) in servers.iter().enumerate() {
            let _ = writeln!(out, "    server s{number} {server}:{port}");
        }
    }
    out
}

/// A client's server by the hash of its address; answers come back through us.
fn nft_rules(service: IpAddr, servers: &[IpAddr]) -> String {
    let count = servers.len();
    let map = servers.iter().enumerate().map(|(number, server)| format!("{number} : {server}"));
    let map = map.collect::<Vec<_>>().join(", ");
    format!(
        "table ip bench {{\n  chain before {{\n    type nat hook prerouting priority dstnat\n    \
         ip daddr {service} tcp dport {{ 443, {PLAIN_PORT} }} dnat to jhash ip saddr mod {count} map {{ {map} }}\n  }}\n  \
         chain after {{\n    type nat hook postrouting priority srcnat\n    masquerade\n  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_balance_the_same_servers() {
        let servers = [IpAddr::from([192, 168, 85, 200]), IpAddr::from([192, 168, 85, 201])];
        let rules = nft_rules(IpAddr::from([192, 168, 85, 10]), &servers);
        assert!(rules.contains("jhash ip saddr mod 2 map { 0 : 192.168.85.200, 1 : 192.168.85.201 }"));
        let haproxy = haproxy_configuration(2, &servers);
        assert!(haproxy.contains("nbthread 2\n"));
        for line in ["server s1 192.168.85.201:443", "server s1 192.168.85.201:8080"] {
            assert!(haproxy.contains(line), "{haproxy}");
        }
    }
}
