//! What tcpdump saw on a namespace's interface.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::namespace::{command, host_command};

/// tcpdump hands a packet on at once; this is for packets still on their way through the kernel.
const LINGER: Duration = Duration::from_millis(200);
/// How long tcpdump may take to write what the kernel has handed it, on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a frame that are kept. A slot of the kernel's ring is as long: with tcpdump's default a ring of 16 MiB had 256.
const LONGEST: u32 = 9_216;
/// Of the ring, in KiB: about 7,000 slots.
const RING: &str = "65536";

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
        tcpdump.args(["-B", RING, "-s", &LONGEST.to_string(), "-Z", "root", "-w"]).arg(&file);
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

    /// Stops tcpdump and lets it go on again, as a busy machine does: meanwhile packets stay in the kernel's ring.
    ///
    /// # Errors
    /// tcpdump has died.
    pub fn starve(&self, starved: bool) -> Result<()> {
        self.signal(if starved { Signal::SIGSTOP } else { Signal::SIGCONT })
    }

    /// Ends it and reads what was captured.
    ///
    /// # Errors
    /// tcpdump had died, its file is not one, or it did not write what the kernel handed it within a minute.
    pub fn stop(self) -> Result<Captured> {
        self.stop_after(0)
    }

    /// Waits until it has seen so many packets, ends it, and reads what was captured.
    ///
    /// # Errors
    /// As [`Capture::stop`]; or there were not so many within a minute.
    pub fn stop_after(mut self, packets: u64) -> Result<Captured> {
        thread::sleep(LINGER);
        let mut last = None;
        // The kernel has these in its ring at least; tcpdump may be behind.
        if let Some(first) = self.counted()? {
            let due = first.received.max(packets);
            let end = Instant::now() + PATIENCE;
            last = Some(first);
            while let Some(counted) = last.filter(|counted| counted.captured + counted.lost < due) {
                if Instant::now() > end {
                    bail!("tcpdump is behind after {PATIENCE:?}, or {due} packets never came: {counted:?}");
                }
                thread::sleep(PAUSE);
                last = self.counted()?;
            }
        }
        if last.is_some() {
            self.signal(Signal::SIGINT)?;
        }
        let mut said = String::new();
        self.stderr.read_to_string(&mut said)?;
        let status = self.tcpdump.wait()?;
        if !status.success() {
            bail!("tcpdump failed: {status}: {}", said.trim_end());
        }
        let counted = Counted::read(&said).or(last).context("tcpdump did not say what it has counted")?;
        let bytes = fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let frames = self::packets(&bytes).with_context(|| {
            format!("{} is cut short, or a frame has over {LONGEST} bytes", self.file.display())
        })?;
        Ok(Captured { packets: frames, lost: counted.lost, file: self.file.clone() })
    }

    /// What tcpdump and the kernel have counted so far; none if it has ended by itself.
    fn counted(&mut self) -> Result<Option<Counted>> {
        if self.tcpdump.try_wait()?.is_some() {
            return Ok(None);
        }
        self.signal(Signal::SIGUSR1)?;
        let mut line = String::new();
        if self.stderr.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Counted::read(&line))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.tcpdump.id())?), signal).context("tcpdump is gone")
    }
}

/// tcpdump's own words, after SIGUSR1 in one line and at its end in three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    /// Packets in the file.
    captured: u64,
    /// Packets that passed the filter, with those that the ring had no room for.
    received: u64,
    /// Packets that the ring had no room for.
    lost: u64,
}

impl Counted {
    fn read(said: &str) -> Option<Self> {
        let parts = || said.lines().flat_map(|line| line.split(", "));
        let number = |what: &str| {
            let part = parts().find(|part| part.contains(what))?;
            part.trim_start_matches("tcpdump: ").split(' ').next()?.parse().ok()
        };
        Some(Self {
            captured: number(" captured")?,
            received: number(" received by filter")?,
            lost: number(" dropped by kernel")?,
        })
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
    lost: u64,
    file: PathBuf,
}

impl Captured {
    /// Whole frames, from their destination MAC on, in the order they were seen.
    pub fn packets(&self) -> &[Vec<u8>] {
        &self.packets
    }

    /// How many packets the kernel could not hand over, because tcpdump was too far behind.
    pub fn lost(&self) -> u64 {
        self.lost
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

/// The records of a pcap file in this machine's byte order, as tcpdump writes it; none where a frame is not whole.
fn packets(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut packets = Vec::new();
    // 24 bytes of file header, then 16 per record: seconds, fraction, captured length, length.
    let mut rest = file.get(24..)?;
    while !rest.is_empty() {
        let (header, body) = rest.split_at_checked(16)?;
        let number = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let length = number(8)?;
        if number(12)? != length {
            return None;
        }
        let (packet, next) = body.split_at_checked(usize::try_from(length).ok()?)?;
        packets.push(packet.to_vec());
        rest = next;
    }
    Some(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcpdumps_counts_are_read_in_one_line_and_in_three() {
        let counted = Some(Counted { captured: 1, received: 4001, lost: 4000 });
        let now =
            "tcpdump: 1 packet captured, 4001 packets received by filter, 4000 packets dropped by kernel\n";
        let end = "1 packet captured\n4001 packets received by filter\n4000 packets dropped by kernel\n";
        assert_eq!(Counted::read(now), counted);
        assert_eq!(Counted::read(end), counted);
        assert_eq!(Counted::read(&format!("{now}{end}")), counted);
        assert_eq!(Counted::read("tcpdump: eth0: no such device\n"), None);
    }

    #[test]
    fn a_frame_that_is_not_whole_is_no_capture() {
        let record = |kept: u32, length: u32| {
            let mut file = vec![0; 24 + 8];
            file.extend([kept.to_ne_bytes(), length.to_ne_bytes()].concat());
            file.extend(vec![7; kept as usize]);
            file
        };
        assert_eq!(packets(&record(60, 60)), Some(vec![vec![7; 60]]));
        assert_eq!(packets(&record(60, 61)), None);
        assert_eq!(packets(&record(60, 60)[..70]), None);
    }
}
