//! What tcpdump saw on a namespace's interface.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::namespace::{command, host_command};

/// tcpdump hands a packet on at once; this is for packets still on their way through the kernel.
const LINGER: Duration = Duration::from_millis(200);

/// A capture that is running; dropped without [`Capture::stop`] it ends and is thrown away.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    /// Kept open: tcpdump would die of a closed one.
    stderr: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Capture {
    /// Returns once packets are being captured; ends by itself after `first` of them, if that is given.
    pub(super) fn start(
        namespace: &str,
        interface: &str,
        first: Option<u32>,
        filter: &str,
        file: PathBuf,
    ) -> Result<Self> {
        let mut tcpdump = command(namespace, "tcpdump", ["-i", interface, "-n", "-U", "--immediate-mode"]);
        tcpdump.args(["-B", "16384", "-Z", "root", "-w"]).arg(&file);
        if let Some(first) = first {
            tcpdump.args(["-c", &first.to_string()]);
        }
        tcpdump.arg(filter).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tcpdump = tcpdump.spawn().context("cannot start tcpdump: run `cargo xtask setup`")?;
        let stderr = tcpdump.stderr.take().context("tcpdump has no standard error")?;
        let mut capture = Self { tcpdump, stderr: BufReader::new(stderr), file };
        let mut said = String::new();
        while capture.stderr.read_line(&mut said)? > 0 {
            if said.contains("listening on") {
                return Ok(capture);
            }
        }
        bail!("tcpdump did not start: {}", said.trim_end())
    }

    /// Ends it and reads what was captured.
    ///
    /// # Errors
    /// tcpdump had died, or its file is not one.
    pub fn stop(mut self) -> Result<Captured> {
        thread::sleep(LINGER);
        // It has ended already if it has seen the packets that it was to see.
        if self.tcpdump.try_wait()?.is_none() {
            kill(Pid::from_raw(i32::try_from(self.tcpdump.id())?), Signal::SIGINT)
                .context("tcpdump is gone")?;
        }
        let status = self.tcpdump.wait()?;
        if !status.success() {
            bail!("tcpdump failed: {status}");
        }
        let bytes = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let packets = packets(&bytes).with_context(|| format!("{} is cut short", self.file.display()))?;
        Ok(Captured { packets, file: self.file.clone() })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// The packets of a capture that has ended.
#[derive(Clone, Debug)]
pub struct Captured {
    packets: Vec<Vec<u8>>,
    file: PathBuf,
}

impl Captured {
    /// Whole frames, from their destination MAC on, in the order they were seen.
    pub fn packets(&self) -> &[Vec<u8>] {
        &self.packets
    }

    /// The pcap file; it goes with the lab.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// tcpdump's lines about packets whose IP, TCP, UDP or ICMP checksum is wrong.
    ///
    /// # Errors
    /// tcpdump could not read its own file.
    pub fn bad_checksums(&self) -> Result<Vec<String>> {
        let mut tcpdump = host_command("tcpdump", ["-n", "-vv", "-Z", "root", "-r"]);
        tcpdump.arg(&self.file);
        let output = tcpdump.output().context("cannot start tcpdump")?;
        if !output.status.success() {
            bail!("tcpdump -r failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let is_bad = |line: &&str| {
            ["incorrect", "bad cksum", "bad udp cksum", "wrong icmp cksum"]
                .iter()
                .any(|words| line.contains(words))
        };
        Ok(text.lines().filter(is_bad).map(|line| line.trim().to_owned()).collect())
    }
}

/// The records of a pcap file in this machine's byte order, as tcpdump writes it.
fn packets(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut packets = Vec::new();
    // 24 bytes of file header, then 16 per record: seconds, fraction, captured length, length.
    let mut rest = file.get(24..)?;
    while !rest.is_empty() {
        let (header, body) = rest.split_at_checked(16)?;
        let length = u32::from_ne_bytes(header.get(8..12)?.try_into().ok()?);
        let (packet, next) = body.split_at_checked(usize::try_from(length).ok()?)?;
        packets.push(packet.to_vec());
        rest = next;
    }
    Some(packets)
}
