//! What shows things: from the pinned maps alone, so also with the daemon dead.

use anyhow::{anyhow, bail};

use super::{
    args::{Explain, Flow, FlowFilter, Map, ServerCommand, Sticky, Target, Vip},
    screen::Screen,
    world::{Request, World},
};
use crate::{
    config::Label,
    daemon::problems::Problem,
    paths::Paths,
    view::{
        Names, ServerName, Snapshot, Time, explain as explanations, flow as flows, map as maps,
        names::client_address,
        ports::SnatPorts,
        program,
        server::{self as servers, ServerRecord},
        service as services, sticky as stickies,
    },
};

/// What the daemon says is wrong, of what the maps do not tell. Nothing if it does not answer at once.
pub(super) fn problems(world: &World, paths: &Paths) -> Vec<Problem> {
    let status = (world.ask)(paths, Request::Glance("/v1/status")).unwrap_or_default();
    status.get("problems").map(Problem::list).unwrap_or_default()
}

/// A daemon that waits for something has made no maps yet, and says what it waits for.
fn why(world: &World, paths: &Paths, error: anyhow::Error) -> anyhow::Error {
    match problems(world, paths).into_iter().find(|problem| problem.kind == "waiting") {
        Some(waiting) => anyhow!(waiting.text),
        None => error,
    }
}

/// Opens the maps, takes a look at them, and says so if the daemon is silent.
pub(super) fn look(
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
    show: impl FnOnce(&Snapshot<'_>, &mut Screen<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let maps = (world.maps)(&paths.pin_dir).map_err(|error| why(world, paths, error))?;
    let snapshot = Snapshot::read(&maps, (world.now)())?;
    show(&snapshot, screen)?;
    screen.out.flush()?;
    screen.warn_of_silence(&snapshot)
}

pub(super) fn vip(
    command: &Vip,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let Vip::Show { label } = command;
    look(world, paths, screen, |snapshot, screen| {
        let census = snapshot.census();
        let mut servers = servers::records(snapshot, &census)?;
        let mut services = services::records(snapshot, &census, &servers)?;
        let problems = if snapshot.daemon.running { problems(world, paths) } else { Vec::new() };
        let Some(label) = label else {
            screen.show(&services, || services::overview(&services, &servers))?;
            return screen.tell_problems(&problems);
        };
        let id = snapshot.names.service_id(label.as_str())?;
        services.retain(|service| service.id == id);
        servers.retain(|server| server.service_id == id);
        match services.as_slice() {
            [service] => screen.show(service, || services::detail(service, &servers)),
            _ => bail!("{label} was removed in this moment"),
        }
    })
}

pub(super) fn server(
    command: &ServerCommand,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let ServerCommand::Show { target } = command else {
        bail!("this command changes something");
    };
    look(world, paths, screen, |snapshot, screen| {
        let all = servers::records(snapshot, &snapshot.census())?;
        let of = |wanted: &dyn Fn(&ServerRecord) -> bool| -> Vec<ServerRecord> {
            all.iter().filter(|server| wanted(server)).cloned().collect()
        };
        match target {
            None => screen.show(&all, || servers::overview(&all)),
            Some(Target::Service(label)) => {
                let id = snapshot.names.service_id(label.as_str())?;
                let of_service = of(&|server| server.service_id == id);
                screen.show(&of_service, || servers::overview(&of_service))
            }
            Some(Target::Server(name)) => {
                let (_, id) = snapshot.names.server_id(name)?;
                match of(&|server| server.id == id).as_slice() {
                    [server] => {
                        let mut server = server.clone();
                        server.snat_ports = SnatPorts::towards(snapshot, id);
                        screen.show(&server, || servers::detail(&server))
                    }
                    _ => bail!("{name} was removed in this moment"),
                }
            }
        }
    })
}

pub(super) fn sticky(
    command: &Sticky,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    look(world, paths, screen, |snapshot, screen| match command {
        Sticky::Show { vip, server, limit } => {
            let (service, server) = ids(&snapshot.names, vip.as_ref(), server.as_ref())?;
            let filter = stickies::Filter { service, server };
            let (records, total) = stickies::records(snapshot, filter, *limit);
            screen.show(&records, || stickies::table(&records, total))
        }
        Sticky::Lookup { client } => {
            let records = stickies::of_client(snapshot, client_address(*client));
            screen.show(&records, || {
                if records.is_empty() {
                    format!(
                        "{client} has no sticky record; steadfast explain {client} says where it would go\n"
                    )
                } else {
                    stickies::table(&records, records.len())
                }
            })
        }
        Sticky::Forget { .. } | Sticky::Move { .. } => bail!("this command changes something"),
    })
}

/// The ids of what a filter names.
fn ids(
    names: &Names,
    vip: Option<&Label>,
    server: Option<&ServerName>,
) -> anyhow::Result<(Option<u16>, Option<u16>)> {
    let service = vip.map(|label| names.service_id(label.as_str())).transpose()?;
    let server = server.map(|name| names.server_id(name)).transpose()?;
    Ok((service, server.map(|(_, server)| server)))
}

fn filter(names: &Names, filter: &FlowFilter) -> anyhow::Result<flows::Filter> {
    let (service, server) = ids(names, filter.vip.as_ref(), filter.server.as_ref())?;
    Ok(flows::Filter { service, server, client: filter.client.map(client_address), state: filter.state })
}

pub(super) fn flow(
    command: &Flow,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    look(world, paths, screen, |snapshot, screen| match command {
        Flow::Show { filter: wanted, limit } => {
            let wanted = filter(&snapshot.names, wanted)?;
            let (records, total) = flows::records(snapshot, wanted, *limit);
            screen.show(&records, || flows::table(&records, total))
        }
        Flow::Count { filter: wanted } => {
            let count = flows::count(snapshot, filter(&snapshot.names, wanted)?);
            screen.show(&count, || flows::count_text(&count))
        }
    })
}

pub(super) fn map(
    command: &Map,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    look(world, paths, screen, |snapshot, screen| match command {
        Map::List => {
            let records = maps::list(snapshot.maps());
            screen.show(&records, || maps::list_text(&records))
        }
        Map::Dump { name, limit } => {
            let records = maps::dump(snapshot, maps::named(name)?, *limit)?;
            screen.show(&records, || maps::entries_text(&records))
        }
        Map::Lookup { name, key } => {
            let record = maps::lookup(snapshot, maps::named(name)?, key)?;
            screen.show(&record, || maps::entry_text(&record))
        }
    })
}

pub(super) fn prog(world: &World, paths: &Paths, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    // Interfaces are looked up where the daemon is; where that cannot be, they are shown as being elsewhere.
    let daemon = (world.maps)(&paths.pin_dir).ok().and_then(|maps| world.daemon_process(&maps));
    let _inside = daemon.and_then(|process| (world.enter)(process).ok().flatten());
    let programs = (world.programs)(&paths.pin_dir)?;
    screen.show(&programs, || program::table(&programs, Time::new((world.now)())))
}

pub(super) fn explain(
    explain: &Explain,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    look(world, paths, screen, |snapshot, screen| {
        let vip = explain.vip.as_ref();
        let service = vip.map(|label| snapshot.names.service_id(label.as_str())).transpose()?;
        let found = explanations::explain(snapshot, client_address(explain.client), service)?;
        match (found.as_slice(), service) {
            ([one], Some(_)) => screen.show(one, || explanations::text(&found)),
            _ => screen.show(&found, || explanations::text(&found)),
        }
    })
}
