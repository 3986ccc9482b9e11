//! What a kernel makes of the balancer: `cargo xtask vm` runs this in each of its machines.

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_userspace::{
    config::XdpMode,
    dataplane::{
        DataPath, Geometry,
        load::detach,
        program::{Mode, status},
    },
};

const PINS: &str = "/sys/fs/bpf/steadfast-probe";

/// Attaches the balancer's program to each interface, in its driver, says what the kernel says of it, and takes it off.
#[derive(Parser)]
struct Arguments {
    #[arg(required = true)]
    interfaces: Vec<String>,
}

fn main() -> ExitCode {
    for interface in &Arguments::parse().interfaces {
        if let Err(error) = probe(interface) {
            eprintln!("probe: {interface}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn probe(interface: &str) -> Result<()> {
    let pins = Path::new(PINS);
    let (path, _) = DataPath::start(pins, interface, XdpMode::Native, Geometry::SMALL)?;
    let seen = programs(pins, interface);
    drop(path);
    detach(pins)?;
    println!("native {interface} {}", driver(interface)?);
    for line in seen? {
        println!("{line}");
    }
    Ok(())
}

/// A line for each program, by what the kernel says of it.
fn programs(pins: &Path, interface: &str) -> Result<Vec<String>> {
    let programs = status(pins)?;
    let attached = programs.iter().flat_map(|program| &program.attached);
    let native = attached.filter(|to| to.interface == interface && to.mode == Some(Mode::Native)).count();
    ensure!(native == 1, "the kernel says that {native} programs are in the driver of {interface}, not 1");
    let line = |program: &lb_userspace::dataplane::program::ProgramStatus| {
        let verified = program.verified_instructions.context("the kernel does not count what it verifies")?;
        Ok(format!("program {} {verified} {}", program.name, program.machine_code))
    };
    programs.iter().map(line).collect()
}

/// The driver of an interface, or its kind where it is no device's.
fn driver(interface: &str) -> Result<String> {
    let link = format!("/sys/class/net/{interface}/device/driver");
    match fs::read_link(&link) {
        Ok(driver) => Ok(driver.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        Err(_) => Ok("virtual".to_owned()),
    }
}
