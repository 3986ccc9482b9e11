//! Runs programs on one core, a great many times in one system call.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
};
use aya_obj::programs::XdpAttachType;
use nix::time::ClockId;

use super::{
    frames::bytes,
    script::{FRAME, Script},
    world::World,
};
use crate::lab::bpf_object;

// SAFETY: integers without padding.
unsafe impl Pod for Script {}

/// Addresses and ports, as `parse_and_hash` looks them up.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key([u32; 3]);
// SAFETY: integers without padding.
unsafe impl Pod for Key {}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// The least that an XDP program can do.
    Empty,
    /// Reads addresses and ports.
    Parse,
    /// And looks them up in a hash table of the kernel.
    Hash,
    /// The balancer.
    Steadfast,
}

/// The program that puts frames back, and those that it goes over into.
pub(super) struct Replay {
    ebpf: Ebpf,
    steadfast: ProgramFd,
    current: Option<Program>,
}

impl Replay {
    /// Loads the bench's programs, with room for so many listed values.
    ///
    /// # Errors
    /// They are not built, or the kernel refuses them.
    pub(super) fn load(world: &World, values: u32) -> Result<Self> {
        let path = bpf_object("bench-xdp.o")?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("VALUES", values.max(1))
            .load(&bytes)
            .with_context(|| format!("cannot create the maps of {}", path.display()))?;
        for name in ["replay", "empty", "parse", "parse_and_hash"] {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let pinned = Xdp::from_pin(world.program(), XdpAttachType::Interface)
            .context("cannot open the pinned program")?;
        let steadfast = pinned.fd()?.try_clone()?;
        Ok(Self { ebpf, steadfast, current: None })
    }

    /// Makes a frame's addresses and ports known to the kernel's hash table.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn know(&mut self, script: &Script) -> Result<()> {
        let frame = bytes(script);
        let word = |at: usize| -> Result<u32> {
            Ok(u32::from_ne_bytes(frame[at..].first_chunk().copied().context("a short frame")?))
        };
        let key = Key([word(26)?, word(30)?, word(34)?]);
        let map = self.ebpf.map_mut("KERNEL_HASH").context("no map KERNEL_HASH")?;
        let mut map: HashMap<_, Key, u64> = map.try_into()?;
        map.insert(key, 1, 0).context("cannot fill the kernel's hash table")
    }

    /// What the fields of conversations are, for a script that says `listed`.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn list(&mut self, values: &[u64]) -> Result<()> {
        let map = self.ebpf.map_mut("VALUES").context("no map VALUES")?;
        let mut map: Array<_, u64> = map.try_into()?;
        for (index, value) in (0..).zip(values) {
            map.set(index, value, 0)?;
        }
        Ok(())
    }

    /// Runs a program `repeat` times by a script, and tells how long the core worked on all of it.
    ///
    /// # Errors
    /// The kernel refused, or the last verdict was another one.
    pub(super) fn run(
        &mut self,
        program: Program,
        script: &Script,
        repeat: u32,
        verdict: u32,
    ) -> Result<Duration> {
        self.go_over_into(program)?;
        self.follow(script)?;
        let frame = [0_u8; FRAME];
        let replay = xdp(&mut self.ebpf, "replay")?;
        let options = TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::default() };
        let start = own_time()?;
        let result = replay.test_run(options).context("a test run")?;
        let time = own_time()? - start;
        ensure!(
            result.return_value == verdict,
            "{program:?} gave the verdict {} where {verdict} was expected",
            result.return_value
        );
        Ok(time)
    }

    /// Sends so many real frames by a script, out of an interface, by its index: each is written anew before it goes out.
    /// Tells how long the core worked on all of it, at both ends of the cable.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn send(&mut self, interface: u32, script: &Script, frames: u32) -> Result<Duration> {
        self.go_over_into(Program::Empty)?;
        self.follow(script)?;
        let frame = [0_u8; FRAME];
        // The kernel's xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, u32::try_from(FRAME)?, 0, interface, 0, 0].map(u32::to_ne_bytes).concat();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(0),
            ..TestRunOptions::default()
        };
        let start = own_time()?;
        let run = xdp(&mut self.ebpf, "replay")?.test_run(options).context("a test run with live frames")?;
        // A kernel with CONFIG_IRQ_TIME_ACCOUNTING does not count the soft interrupts, in which the frames are received, as
        // this thread's time. Its own measure does, in whole nanoseconds a frame.
        Ok((own_time()? - start).max(run.duration * frames))
    }

    /// One of the bench's programs.
    ///
    /// # Errors
    /// There is none of that name.
    pub(super) fn program(&mut self, name: &str) -> Result<&mut Xdp> {
        xdp(&mut self.ebpf, name)
    }

    fn follow(&mut self, script: &Script) -> Result<()> {
        let map = self.ebpf.map_mut("SCRIPT").context("no map SCRIPT")?;
        let mut map: Array<_, Script> = map.try_into()?;
        map.set(0, script, 0).context("cannot give the program its script")
    }

    fn go_over_into(&mut self, program: Program) -> Result<()> {
        if self.current == Some(program) {
            return Ok(());
        }
        let fd = match program {
            Program::Steadfast => self.steadfast.try_clone()?,
            Program::Empty => xdp(&mut self.ebpf, "empty")?.fd()?.try_clone()?,
            Program::Parse => xdp(&mut self.ebpf, "parse")?.fd()?.try_clone()?,
            Program::Hash => xdp(&mut self.ebpf, "parse_and_hash")?.fd()?.try_clone()?,
        };
        let map = self.ebpf.map_mut("TARGET").context("no map TARGET")?;
        let mut map: ProgramArray<_> = map.try_into()?;
        map.set(0, &fd, 0).with_context(|| format!("cannot go over into {program:?}"))?;
        self.current = Some(program);
        Ok(())
    }
}

/// What this thread had of its core: what others had of it in between does not count.
fn own_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let Some(program) = ebpf.program_mut(name) else { bail!("no program {name}") };
    Ok(program.try_into()?)
}
