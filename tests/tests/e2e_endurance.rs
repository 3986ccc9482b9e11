//! What a hospital's balancer goes through in years, in minutes, under 200 running downloads and 300 clients
//! with records: the rows of one table, each in a lab of its own, in every forwarding mode and family of addresses.
//!
//! One row alone: `cargo test -p tests --test e2e_endurance -- --include-ignored deaths-dr-ipv6`; those that are left out
//! for their time: `-- --ignored`.

use std::{
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Trial, run};
use tests::{
    e2e::{Turn, another_build::another_build, busy::Busy, kernel::attached},
    lab::{Family, Mode, Ns, Signal, Topology},
};

const NEW: &str = "Hyperspace/Hyperspace_Srv_4";
const CHANGES: Duration = Duration::from_secs(60);

type Endured = fn(&mut Busy) -> Result<()>;

const TRIALS: [(&str, Endured); 6] = [
    ("deaths", twenty_deaths_of_the_daemon),
    ("replacements", replacements_of_the_program::<6>),
    ("fifty-replacements", replacements_of_the_program::<50>),
    ("changes", a_minute_of_changes),
    ("tables", tables_of_other_sizes),
    ("interface", an_interface_that_goes_down_and_comes_back),
];

/// What is run without being asked for: as much as fits into two minutes.
const USUAL: [(&str, Mode, Family); 5] = [
    ("deaths", Mode::Snat, Family::V4),
    ("replacements", Mode::Tunnel, Family::V6),
    ("changes", Mode::Snat, Family::V4),
    ("interface", Mode::Nat, Family::V6),
    ("tables", Mode::Nat, Family::V4),
];

fn twenty_deaths_of_the_daemon(busy: &mut Busy) -> Result<()> {
    for death in 0..20 {
        busy.site.kill_daemon(Signal::SIGKILL)?;
        busy.site.start_daemon(&[])?;
        // Each at another moment after it was ready.
        thread::sleep(Duration::from_millis(37 * death % 200));
    }
    Ok(())
}

fn replacements_of_the_program<const TIMES: u32>(busy: &mut Busy) -> Result<()> {
    let other = another_build(&busy.site.places().dir)?;
    let first = attached(&busy.site)?;
    let mut program = first.program;
    for number in 1..=TIMES {
        busy.site.kill_daemon(Signal::SIGTERM)?;
        if number % 2 == 1 {
            busy.site.start_daemon_of(&other, &[])?;
        } else {
            busy.site.start_daemon(&[])?;
        }
        let now = attached(&busy.site)?;
        ensure!(now.link == first.link, "the program was taken off");
        ensure!(now.program != program, "replacement {number} replaced nothing");
        program = now.program;
    }
    Ok(())
}

fn a_minute_of_changes(busy: &mut Busy) -> Result<()> {
    let index = busy.site.add_server("Hyperspace_Srv_4", 203)?;
    busy.site.start_nginx(index)?;
    let address = busy.site.address(Ns::Server(index))?.to_string();
    let (begun, mut rounds) = (Instant::now(), 0);
    while begun.elapsed() < CHANGES {
        for change in [
            &["server", "add", NEW, "--address", &address][..],
            &["server", "drain", "Hyperspace/Hyperspace_Srv_1"],
            &["server", "set", "Hyperspace/Hyperspace_Srv_2", "--weight", "7"],
            &["server", "drain", NEW],
            &["server", "online", "Hyperspace/Hyperspace_Srv_1"],
            &["server", "set", "Hyperspace/Hyperspace_Srv_2", "--weight", "100"],
            &["server", "remove", NEW],
        ] {
            busy.site.done(change)?;
        }
        rounds += 1;
    }
    println!("{rounds} rounds of 7 changes");
    Ok(())
}

/// Everything is carried over, the rows of flows without a SNAT port as well.
fn tables_of_other_sizes(busy: &mut Busy) -> Result<()> {
    let path = busy.site.config_path();
    let text = fs::read_to_string(&path)?;
    for (flows, half_open, sticky) in [(65_536, 4096, 16_384), (1 << 20, 65_536, 131_072), (8192, 1024, 4096)]
    {
        let tables =
            format!("node:\n  tables: {{ flows: {flows}, half_open: {half_open}, sticky: {sticky} }}\n");
        busy.site.write_config(&text.replacen("node:\n", &tables, 1))?;
        busy.site.kill_daemon(Signal::SIGTERM)?;
        busy.site.start_daemon(&[])?;
        let log = busy.site.daemon_log();
        let carried = log.lines().rev().find(|line| line.contains("were carried over"));
        ensure!(carried.is_some_and(|line| line.ends_with(" 0 were lost")), "{carried:?}");
    }
    Ok(())
}

fn an_interface_that_goes_down_and_comes_back(busy: &mut Busy) -> Result<()> {
    for _ in 0..5 {
        busy.site.set_interfaces(Ns::Lb, false)?;
        // Shorter than the health checks need to lose a server: fall x interval.
        thread::sleep(Duration::from_millis(700));
        busy.site.set_interfaces(Ns::Lb, true)?;
        // Longer than from one check to the next: what counts as failed is in a row.
        thread::sleep(Duration::from_secs(3));
    }
    busy.site.wait_until_reachable()
}

/// Nobody has noticed anything, and counts end at zero.
fn endure(topology: Topology, what: Endured) -> Result<()> {
    let mut busy = Busy::start(Turn::shared(), topology)?;
    let begun = Instant::now();
    what(&mut busy)?;
    println!("{topology}: {:.1?}", begun.elapsed());
    let counted = busy.unbroken()?;
    ensure!(counted == 0, "{counted} connections are counted, and nobody has any");
    Ok(())
}

fn rows() -> impl Iterator<Item = Trial> {
    let modes = [Mode::Snat, Mode::Nat, Mode::Dr, Mode::Tunnel];
    let topologies = modes.into_iter().flat_map(|mode| {
        [Family::V4, Family::V6].map(|family| Topology { mode, family, ..Topology::default() })
    });
    topologies.flat_map(|topology| TRIALS.into_iter().map(move |(name, what)| row(name, topology, what)))
}

fn row(name: &str, topology: Topology, what: Endured) -> Trial {
    let is_usual = USUAL.contains(&(name, topology.mode, topology.family));
    let family = match topology.family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    Trial::test(format!("{name}-{}-{family}", topology.mode.name()), move || {
        endure(topology, what).map_err(|error| format!("{error:#}").into())
    })
    .with_ignored_flag(!is_usual)
}

fn main() -> ExitCode {
    run(&Arguments::from_args(), rows().collect()).exit_code()
}
