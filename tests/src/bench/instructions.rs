//! What a packet takes of the program in instructions: a figure that another load on the machine does not change.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Action;

use super::{
    figures::{Report, Rounds, Row, Table},
    frames::{CLIENT_PORT, Flags, From, bytes, management, script},
    machine::{Machine, Taken},
    packet::{USUAL, verdict, way},
    rows::snat_ports,
    script::Script,
    world::{LOOPBACK, Service, World, alone},
};

/// Runs the suite.
///
/// # Errors
/// The kernel refused something, or a packet came to something else than it should.
pub fn instructions() -> Result<Report> {
    let packets = alone(|pins| {
        let pins = pins.join("steadfast");
        let world = World::up(&pins, USUAL)?;
        let mut machine = Machine::load(&pins.join("maps"), &world.maps)?;
        packets(&world, &mut machine)
    })?;
    Ok(Report { tables: vec![totals(&packets), by_file(&packets)], targets: Vec::new() })
}

/// The first packet of a conversation, the second, of which a decision is kept, and all others.
const TURNS: [&str; 3] = [", first", ", second", ""];

/// What packets took, by what they are.
pub(super) type Packets = Vec<(String, Taken)>;

/// Has the machine run the commonest packets.
///
/// # Errors
/// One came to something else than it should.
pub(super) fn packets(world: &World, machine: &mut Machine) -> Result<Packets> {
    let mut packets = Packets::new();
    for name in TURNS {
        packets.push((format!("not ours{name}"), run(machine, &management()?, None, Action::Pass)?));
    }
    for service in Service::ALL {
        connection(world, machine, service, &mut packets)
            .with_context(|| format!("{}: a connection", service.label()))?;
    }
    Ok(packets)
}

/// A connection, packet by packet.
fn connection(world: &World, machine: &mut Machine, service: Service, packets: &mut Packets) -> Result<()> {
    let answers = service.sees_answers();
    let client = |flags, first_port| script(service, From::Client, flags, first_port);
    let server = |flags| script(service, From::Server, flags, CLIENT_PORT);
    let mut note = |name: &str, taken: Taken| packets.push((format!("{} {name}", service.label()), taken));
    note("SYN", run(machine, &client(Flags::Syn, CLIENT_PORT)?, None, Action::Transmit)?);
    let listed = if service.mode == "snat" {
        snat_ports(world, service, 1, CLIENT_PORT)?.first().copied()
    } else {
        None
    };
    if answers {
        note("SYN-ACK", run(machine, &server(Flags::SynAck)?, listed, Action::Transmit)?);
    }
    note("establishing ACK", run(machine, &client(Flags::Ack, CLIENT_PORT)?, None, Action::Transmit)?);
    for from in [From::Client, From::Server] {
        if from == From::Client || answers {
            let script = script(service, from, Flags::Ack, CLIENT_PORT)?;
            let listed = if from == From::Server { listed } else { None };
            for name in TURNS {
                note(&format!("data {}{name}", way(from)), run(machine, &script, listed, Action::Transmit)?);
            }
        }
    }
    note("FIN of the client", run(machine, &client(Flags::Fin, CLIENT_PORT)?, None, Action::Transmit)?);
    if answers {
        note("FIN of the server", run(machine, &server(Flags::Fin)?, listed, Action::Transmit)?);
    }
    let again = client(Flags::Syn, CLIENT_PORT + 1000)?;
    note("SYN of a known client", run(machine, &again, None, Action::Transmit)?);
    Ok(())
}

/// Runs the program on the script's first frame, with the fields that are listed, if some are.
fn run(machine: &mut Machine, script: &Script, listed: Option<u64>, wanted: Action) -> Result<Taken> {
    let mut frame = bytes(script);
    for (field, shift) in script.fields.iter().zip([0, 16]) {
        if let Some(listed) = listed {
            let [low, high, ..] = (listed >> shift).to_le_bytes();
            let at = usize::try_from(field.at)?;
            frame.get_mut(at..at + 2).context("the frame ends before")?.copy_from_slice(&[high, low]);
        }
    }
    let taken = machine.run(&frame, u32::try_from(LOOPBACK)?)?;
    let verdict = verdict(wanted);
    ensure!(taken.verdict == verdict, "the verdict is {}, not {verdict}", taken.verdict);
    ensure!((taken.frame != frame) == (wanted == Action::Transmit), "the frame was not rewritten");
    Ok(taken)
}

const COLUMNS: [&str; 5] =
    ["instructions", "look-ups in maps", "other calls of the kernel", "calls within", "atomic operations"];

fn cell(number: u64) -> Rounds {
    Rounds(vec![number as f64])
}

fn totals(packets: &Packets) -> Table {
    let rows = packets.iter().map(|(name, taken)| Row {
        name: name.clone(),
        cells: [taken.instructions, taken.lookups, taken.others, taken.calls, taken.atomics]
            .map(cell)
            .to_vec(),
    });
    Table {
        title: "A packet in instructions, and calls of the kernel".to_owned(),
        columns: COLUMNS.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

/// Where the instructions of the commonest packets come from.
fn by_file(packets: &Packets) -> Table {
    let columns = ["not ours", "snat4 data to server", "snat4 data to client", "snat4 SYN"];
    let mut files = BTreeMap::<String, Vec<u64>>::new();
    for (at, column) in columns.iter().enumerate() {
        let found = packets.iter().find(|(name, _)| name == column);
        for ((file, _), count) in found.iter().flat_map(|(_, taken)| &taken.by_line) {
            files.entry(shortened(file)).or_insert_with(|| vec![0; columns.len()])[at] += count;
        }
    }
    Table {
        title: "Where they come from: instructions by source file".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: files
            .into_iter()
            .map(|(name, counts)| Row { name, cells: counts.into_iter().map(cell).collect() })
            .collect(),
    }
}

/// A file within the workspace; all others are libraries.
fn shortened(file: &str) -> String {
    let own = ["lb-common/src/", "lb-ebpf/src/"].into_iter().find_map(|part| file.find(part));
    own.map_or_else(|| "libraries".to_owned(), |at| file[at..].to_owned())
}
