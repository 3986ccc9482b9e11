//! Where a packet's work is: the source lines of what it executes, and the program as the kernel has it.
//!
//! Files for a reader, in a directory: a listing a packet; the program translated (`xlated.txt`, by bpftool, with source lines) and as
//! machine code (`jited.bin`, and disassembled by objdump where there is one); and what `bpftool prog profile` counts of it in the processor, or
//! why it does not.

use std::{
    fmt::Write as _,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;

use super::{
    figures::{Report, Rounds, Row, Table},
    frames::{CLIENT_PORT, Flags, From, script},
    instructions::{Packets, packets},
    machine::Machine,
    packet::{Bench, SNAT, USUAL},
    replay::Program,
    world::{World, alone},
};
use crate::lab::{own_libraries, tool};

/// Packets in a row while the processor counts.
const PACKETS: u32 = 50_000;

/// Runs the suite; files go to this directory.
///
/// # Errors
/// The kernel or bpftool refused something, or a packet came to something else than it should.
pub fn profile(directory: &Path) -> Result<Report> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let into = directory.to_owned();
    let packets = alone(move |pins| {
        let pins = pins.join("steadfast");
        let world = World::up(&pins, USUAL)?;
        dump(world.program(), &into)?;
        let mut machine = Machine::load(&pins.join("maps"), &world.maps)?;
        let packets = packets(&world, &mut machine)?;
        counted(Bench::of(world, 1)?, &into)?;
        Ok(packets)
    })?;
    for (name, taken) in &packets {
        write(
            directory,
            &format!("{}.txt", name.replace([' ', ','], "-")),
            listing(&taken.by_line).as_bytes(),
        )?;
    }
    println!("profile: {}", directory.display());
    Ok(Report { tables: vec![dearest(&packets)], targets: Vec::new() })
}

/// The program as the kernel has it.
fn dump(program: &Path, directory: &Path) -> Result<()> {
    let output = bpftool()?.args(["prog", "dump", "xlated", "pinned"]).arg(program).arg("linum").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bpftool cannot dump the program: {}", said.trim());
    write(directory, "xlated.txt", &output.stdout)?;
    let opened =
        Xdp::from_pin(program, XdpAttachType::Interface).context("cannot open the pinned program")?;
    let machine_code = write(directory, "jited.bin", &machine_code(opened.fd()?.as_fd())?)?;
    let disassembled = Command::new("objdump")
        .args(["-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "--no-show-raw-insn"])
        .arg(machine_code)
        .output();
    if let Ok(output) = disassembled {
        write(directory, "jited.txt", &output.stdout)?;
    }
    Ok(())
}

fn bpftool() -> Result<Command> {
    let program = tool("bpftool")?;
    let mut command = Command::new(&program);
    command.envs(own_libraries(&program));
    Ok(command)
}

/// `struct bpf_prog_info` (include/uapi/linux/bpf.h), as far as it is read here.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: u64,
    jited_length: u32,
    xlated_length: u32,
    jited: u64,
    xlated: u64,
}

/// What `BPF_OBJ_GET_INFO_BY_FD` takes.
#[repr(C)]
struct Question {
    fd: u32,
    length: u32,
    info: u64,
}

/// The program in the processor's own instructions, with all its functions. Debian's bpftool can print none: it has no disassembler.
fn machine_code(program: BorrowedFd<'_>) -> Result<Vec<u8>> {
    /// `BPF_OBJ_GET_INFO_BY_FD`.
    const GET_INFO: u32 = 15;
    let ask = |info: &mut Info| -> Result<()> {
        let mut question = Question {
            fd: program.as_raw_fd().cast_unsigned(),
            length: u32::try_from(size_of::<Info>())?,
            info: (&raw mut *info).expose_provenance() as u64,
        };
        // SAFETY: both are as long as they say, and where the machine code goes to is as long as `jited_length`.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, GET_INFO, &raw mut question, size_of::<Question>()) };
        ensure!(result == 0, "the kernel tells nothing of the program: {}", io::Error::last_os_error());
        Ok(())
    };
    let mut first = Info::default();
    ask(&mut first)?;
    let mut code = vec![0_u8; usize::try_from(first.jited_length)?];
    let jited = code.as_mut_ptr().expose_provenance() as u64;
    ask(&mut Info { jited_length: first.jited_length, jited, ..Info::default() })?;
    Ok(code)
}

/// What the processor counts while a SYN comes again and again; or why it does not.
fn counted(mut bench: Bench, directory: &Path) -> Result<()> {
    let mut counter = bpftool()?
        .args(["prog", "profile", "pinned"])
        .arg(bench.world.program())
        .args(["duration", "2", "cycles", "instructions", "l1d_loads", "llc_misses", "dtlb_misses"])
        .stdout(fs::File::create(directory.join("profile.txt"))?)
        .stderr(fs::File::create(directory.join("profile.err"))?)
        .spawn()
        .context("cannot run bpftool")?;
    let script = script(SNAT, From::Client, Flags::Syn, CLIENT_PORT)?;
    while counter.try_wait()?.is_none() {
        bench.replay.run(Program::Steadfast, &script, PACKETS, 3)?;
    }
    // A bpftool that was built without it says so, and succeeds.
    let said = fs::read_to_string(directory.join("profile.err"))?;
    if !counter.wait()?.success() || !said.is_empty() {
        println!("profile: bpftool counts nothing in this processor: {}", said.trim());
    }
    Ok(())
}

fn write(directory: &Path, name: &str, text: &[u8]) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Instructions by source line, the most first.
type Lines = std::collections::BTreeMap<(String, u32), u64>;

fn sorted(lines: &Lines) -> Vec<(&(String, u32), u64)> {
    let mut sorted: Vec<_> = lines.iter().map(|(line, count)| (line, *count)).collect();
    sorted.sort_by_key(|(line, count)| (std::cmp::Reverse(*count), *line));
    sorted
}

fn listing(lines: &Lines) -> String {
    let mut text = String::new();
    for ((file, line), count) in sorted(lines) {
        let source = fs::read_to_string(file).unwrap_or_default();
        let source = source.lines().nth((*line as usize).saturating_sub(1)).unwrap_or_default().trim();
        let _never_fails = writeln!(text, "{count:6}  {file}:{line}  {source}");
    }
    text
}

/// How many lines of a packet the table has.
const DEAREST: usize = 12;

/// The lines of a SYN that take the most.
fn dearest(packets: &Packets) -> Table {
    let syn = packets.iter().find(|(name, _)| name == "snat4 SYN");
    let lines = syn.map(|(_, taken)| sorted(&taken.by_line)).unwrap_or_default();
    Table {
        title: "The source lines of a SYN that take the most instructions".to_owned(),
        columns: vec!["instructions".to_owned()],
        rows: lines
            .into_iter()
            .take(DEAREST)
            .map(|((file, line), count)| Row {
                name: format!("{}:{line}", file.rsplit_once("/src/").map_or(file.as_str(), |(_, name)| name)),
                cells: vec![Rounds(vec![count as f64])],
            })
            .collect(),
    }
}
