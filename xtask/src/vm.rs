//! `cargo xtask vm`: other kernels, each in a machine of QEMU, with the real program and the golden packets.

mod debian;
mod image;
mod kernels;
mod machine;
mod plan;
mod programs;
mod report;
mod spoilt;
mod table;
mod tools;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::{
    debian::make,
    image::Image,
    kernels::{Kernel, Unpacked},
    machine::Lines,
    plan::Plan,
    programs::TARGET,
    table::Row,
    tools::Tools,
};
use crate::{build, command::Cmd, workspace::Workspace};

const OBJECTS: [&str; 2] = ["steadfast.o", "xdp-pass.o"];
/// nginx wants to know whom it must not be.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";

#[derive(Args)]
pub(crate) struct Arguments {
    /// Only this kernel (5.10, 6.1, 6.12, newest); may be given several times
    #[arg(long = "kernel", value_name = "NAME")]
    kernels: Vec<String>,
    /// Run this test of tests/tests/ instead of golden and one of e2e_web; may be given several times
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Minutes that a machine may take
    #[arg(long, default_value_t = 15)]
    limit: u64,
    /// Download the kernels that the mirror has now, also where there are some
    #[arg(long)]
    update: bool,
    /// Keep the kernels' rows of the table in docs/reference/kernels.md; for the usual tests only
    #[arg(long, conflicts_with_all = ["tests", "filter"])]
    record: bool,
    /// Given to the tests: only those whose name contains this
    #[arg(last = true)]
    filter: Vec<String>,
}

pub(crate) fn vm(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let wanted = kernels::named(&arguments.kernels)?;
    let plan = Plan::new(&arguments.tests, &arguments.filter);
    println!("vm: what is needed, in {}", workspace.target().join("vm").display());
    let tools = Tools::find(workspace)?;
    let ready: Result<Vec<(Kernel, Unpacked)>> =
        wanted.into_iter().map(|kernel| Ok((kernel, kernel.fetch(workspace, arguments.update)?))).collect();
    let ready = ready?;
    build::objects(workspace)?;
    let programs = programs::collect(workspace, &plan)?;
    let limit = Duration::from_secs(arguments.limit * 60);
    let mut rows = Vec::new();
    for (kernel, unpacked) in &ready {
        println!("\n=== Linux {} ({})", kernel.name, unpacked.release);
        let start = Instant::now();
        let outcome = boot(workspace, &tools, &plan, &programs, (kernel, unpacked), limit);
        let row = Row::new(kernel, unpacked, &plan, outcome, start.elapsed());
        println!("{row}");
        rows.push(row);
    }
    println!("\n=== summary\n{}", table::markdown(&rows, true));
    let failed = rows.iter().filter(|row| !row.holds()).count();
    if failed > 0 {
        bail!("{failed} of {} kernels failed: see above", rows.len());
    }
    if arguments.record {
        table::record(workspace, &rows)?;
    }
    Ok(())
}

/// Runs the plan on a kernel; what the machine reported.
fn boot(
    workspace: &Workspace,
    tools: &Tools,
    plan: &Plan,
    programs: &BTreeMap<String, PathBuf>,
    (kernel, unpacked): (&Kernel, &Unpacked),
    limit: Duration,
) -> Result<String> {
    let directory = workspace.target().join("vm/run").join(kernel.name);
    make(&directory)?;
    let image = Image::begin(directory.join("root"), tools)?;
    image.modules(unpacked)?;
    for (path, program) in programs {
        image.program(program, path)?;
    }
    fill(&image, workspace, &plan.script(kernel.wanted))?;
    let initramfs = directory.join("initramfs");
    image.pack(&initramfs)?;
    let (console, report) = (directory.join("console"), directory.join("report"));
    let lines = Lines { console: &console, report: &report };
    machine::run(tools, unpacked, &initramfs, &lines, limit)
}

/// Everything that is neither a program nor a module.
fn fill(image: &Image<'_>, workspace: &Workspace, script: &str) -> Result<()> {
    let object = |name: &str| {
        let path = workspace.bpf().join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    for name in OBJECTS {
        image.file(&format!("{TARGET}/bpf/{name}"), object(name)?)?;
    }
    image.file(plan::SPOILT, spoilt::spoil(&object(OBJECTS[0])?)?)?;
    // By this file the tests know the directory where the objects are.
    image.file(&format!("{TARGET}/CACHEDIR.TAG"), "")?;
    image.file("/steps", script)?;
    image.file("/etc/passwd", PASSWD)?;
    image.file("/etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    image.file("/init", include_str!("vm/init.sh"))?;
    Cmd::new("chmod").arg("755").arg(image.path(Path::new("/init"))).run()
}
