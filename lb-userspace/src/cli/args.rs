//! The commands and their arguments.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand, value_parser};
use lb_common::tcp::TcpState;

use super::{address::address, change::Change};
use crate::{
    config::{Label, Server},
    paths::Paths,
    view::{ServerName, flow},
};

/// The load balancer's command line.
///
/// What shows things reads the kernel's maps and works with the daemon dead; what changes things asks the daemon.
#[derive(Debug, Parser)]
#[command(name = "steadfast", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Where things are.
    #[command(flatten)]
    pub paths: Paths,
    /// JSON on one line: a list of records, or the one that was asked for.
    #[arg(short, long, global = true)]
    pub json: bool,
    /// JSON, indented.
    #[arg(short, long, global = true)]
    pub pretty: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Virtual services.
    #[command(subcommand)]
    Vip(Vip),
    /// Real servers: show, add, remove, drain, ...
    #[command(subcommand)]
    Server(ServerCommand),
    /// Sticky records: which server a client belongs to.
    #[command(subcommand)]
    Sticky(Sticky),
    /// Flows: TCP connections through the balancer.
    #[command(subcommand)]
    Flow(Flow),
    /// The kernel's maps, raw and decoded.
    #[command(subcommand)]
    Map(Map),
    /// The XDP program.
    #[command(subcommand)]
    Prog(Prog),
    /// Counters: traffic, reasons, tables.
    Stats(Stats),
    /// The busiest servers, redrawn every second.
    Top(Top),
    /// Why a client is on its server, and where a new connection would land now.
    Explain(Explain),
    /// The configuration: check, show, diff, plan, apply.
    #[command(subcommand)]
    Config(Config),
    /// Looks for what could go wrong: driver mode, offloads, MTU, neighbours, ports.
    Doctor(Doctor),
}

/// Virtual services.
#[derive(Debug, Subcommand)]
pub enum Vip {
    /// All virtual services, or one in full.
    Show {
        /// The virtual service's label.
        label: Option<Label>,
    },
}

/// A virtual service, or one of its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `VIP`.
    Service(Label),
    /// `VIP/SERVER`.
    Server(ServerName),
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.contains('/') {
            text.parse().map(Self::Server)
        } else {
            let label: Result<Label, _> = text.parse();
            label.map(Self::Service).map_err(|error| anyhow::anyhow!("the virtual service's label {error}"))
        }
    }
}

/// Real servers.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// All real servers, those of a virtual service, or one in full.
    Show {
        /// The virtual service, or the one server.
        #[arg(value_name = "VIP[/SERVER]")]
        target: Option<Target>,
    },
    /// Adds a real server; no client that has a record moves.
    Add {
        /// Its name.
        #[arg(value_name = "VIP/SERVER")]
        server: ServerName,
        /// Its address.
        #[arg(long, value_parser = address)]
        address: IpAddr,
        /// Its port; the virtual service's own if not given.
        #[arg(long, value_parser = value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// Its share of new clients.
        #[arg(long, value_parser = weights())]
        weight: Option<u16>,
        /// Whether to do it.
        #[command(flatten)]
        dry: DryRun,
    },
    /// Removes a real server: it finishes its open connections, and gets no others.
    Remove {
        /// Its name.
        #[arg(value_name = "VIP/SERVER")]
        server: ServerName,
        /// Do not wait for its open connections: they are reset.
        #[arg(long)]
        now: bool,
        /// Whether to do it.
        #[command(flatten)]
        dry: DryRun,
    },
    /// Sets a real server's share of new clients.
    Set {
        /// Its name.
        #[arg(value_name = "VIP/SERVER")]
        server: ServerName,
        /// Its share of new clients; 0 for none.
        #[arg(long, value_parser = weights())]
        weight: u16,
        /// Whether to do it.
        #[command(flatten)]
        dry: DryRun,
    },
    /// Sends no new clients to a real server; those who are there stay.
    Drain(State),
    /// Takes a real server out at once: its connections are reset, its clients go elsewhere.
    Halt(State),
    /// Puts a real server into service.
    Online(State),
}

/// A real server whose state is changed.
#[derive(Debug, Args)]
pub struct State {
    /// Its name.
    #[arg(value_name = "VIP/SERVER")]
    pub server: ServerName,
    /// Whether to do it.
    #[command(flatten)]
    pub dry: DryRun,
}

/// Whether a change is made.
#[derive(Clone, Copy, Debug, Args)]
pub struct DryRun {
    /// Only say what the change would do, and to whom.
    #[arg(long)]
    pub dry_run: bool,
}

fn weights() -> clap::builder::RangedI64ValueParser<u16> {
    value_parser!(u16).range(..=i64::from(Server::MAX_WEIGHT))
}

impl ServerCommand {
    /// The change that it asks for; none if it only shows.
    pub(super) fn change(&self) -> Option<Change> {
        let state = |state: &State, word| Change::state(&state.server, word, state.dry);
        Some(match self {
            Self::Show { .. } => return None,
            Self::Add { server, address, port, weight, dry } => {
                Change::add(server, *address, *port, *weight, *dry)
            }
            Self::Remove { server, now, dry } => Change::remove(server, *now, *dry),
            Self::Set { server, weight, dry } => Change::weight(server, *weight, *dry),
            Self::Drain(server) => state(server, "drain"),
            Self::Halt(server) => state(server, "halt"),
            Self::Online(server) => state(server, "online"),
        })
    }
}

/// Sticky records.
#[derive(Debug, Subcommand)]
pub enum Sticky {
    /// The records, of all or of some.
    Show {
        /// Only of this virtual service.
        #[arg(long, value_name = "VIP")]
        vip: Option<Label>,
        /// Only of this real server.
        #[arg(long, value_name = "VIP/SERVER")]
        server: Option<ServerName>,
        /// At most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// The records of one client.
    Lookup {
        /// The client's address.
        #[arg(value_parser = address)]
        client: IpAddr,
    },
    /// Forgets a client's records; its next connection is scheduled anew.
    Forget {
        /// The client's address.
        #[arg(value_parser = address)]
        client: IpAddr,
        /// Only with this virtual service.
        #[arg(long, value_name = "VIP")]
        vip: Option<Label>,
        /// Whether to do it.
        #[command(flatten)]
        dry: DryRun,
    },
    /// Moves a client to a real server, from its next connection on.
    Move {
        /// The client's address.
        #[arg(value_parser = address)]
        client: IpAddr,
        /// Where to.
        #[arg(value_name = "VIP/SERVER")]
        server: ServerName,
        /// Whether to do it.
        #[command(flatten)]
        dry: DryRun,
    },
}

impl Sticky {
    /// The change that it asks for; none if it only shows.
    pub(super) fn change(&self) -> Option<Change> {
        match self {
            Self::Show { .. } | Self::Lookup { .. } => None,
            Self::Forget { client, vip, dry } => Some(Change::forget(*client, vip.as_ref(), *dry)),
            Self::Move { client, server, dry } => Some(Change::move_client(*client, server, *dry)),
        }
    }
}

/// Flows.
#[derive(Debug, Subcommand)]
pub enum Flow {
    /// The flows, of all or of some.
    Show {
        /// Which.
        #[command(flatten)]
        filter: FlowFilter,
        /// At most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// How many there are, by state.
    Count {
        /// Which.
        #[command(flatten)]
        filter: FlowFilter,
    },
}

/// Which flows.
#[derive(Debug, Args)]
pub struct FlowFilter {
    /// Only of this virtual service.
    #[arg(long, value_name = "VIP")]
    pub vip: Option<Label>,
    /// Only of this real server.
    #[arg(long, value_name = "VIP/SERVER")]
    pub server: Option<ServerName>,
    /// Only of this client.
    #[arg(long, value_name = "CLIENT", value_parser = address)]
    pub client: Option<IpAddr>,
    /// Only in this state, such as established.
    #[arg(long, value_parser = flow::state)]
    pub state: Option<TcpState>,
}

/// Maps.
#[derive(Debug, Subcommand)]
pub enum Map {
    /// All maps.
    List,
    /// The entries of a map that are in use.
    Dump {
        /// The map's name.
        name: String,
        /// At most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// One entry.
    Lookup {
        /// The map's name.
        name: String,
        /// An index, a virtual service's label, VIP/SERVER, or a reason, as the map has it.
        key: String,
    },
}

/// The program.
#[derive(Debug, Subcommand)]
pub enum Prog {
    /// What is loaded, where it is attached and how it runs.
    Show,
    /// Keeps a program that was attached with `steadfastd run --confirm-within`; else it is taken off again.
    Confirm,
}

impl Prog {
    /// The change that it asks for; none if it only shows.
    pub(super) fn change(&self) -> Option<Change> {
        match self {
            Self::Show => None,
            Self::Confirm => Some(Change::confirm()),
        }
    }
}

/// Counters.
#[derive(Debug, Args)]
pub struct Stats {
    /// Rates per second, every so many seconds (1 if not given) until Ctrl-C.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = value_parser!(u32).range(1..=3600)
    )]
    pub watch: Option<u32>,
    /// End after so many.
    #[arg(long, value_name = "N", requires = "watch", value_parser = value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// Every reason for which a packet was passed, transmitted or dropped, in a sentence.
    #[arg(long)]
    pub reasons: bool,
}

/// The busiest servers.
#[derive(Debug, Args)]
pub struct Top {
    /// Seconds from one picture to the next.
    #[arg(default_value_t = 1, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// End after so many.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub count: Option<u32>,
}

/// Why a client is where it is.
#[derive(Debug, Args)]
pub struct Explain {
    /// The client's address.
    #[arg(value_parser = address)]
    pub client: IpAddr,
    /// Only with this virtual service.
    #[arg(long, value_name = "VIP")]
    pub vip: Option<Label>,
}

/// The configuration.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Says everything that is wrong with a file; needs no daemon.
    Check {
        /// The candidate; `-` is standard input.
        file: PathBuf,
    },
    /// The configuration in force, with every default.
    Show,
    /// What is different in a file.
    Diff {
        /// The candidate; `-` is standard input.
        file: PathBuf,
    },
    /// What applying a file would do: who would move, before anything does.
    Plan {
        /// The candidate; `-` is standard input.
        file: PathBuf,
    },
    /// Puts a file in force.
    Apply {
        /// The candidate; `-` is standard input.
        file: PathBuf,
    },
}

/// Looks for what could go wrong.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The interface to look at; the one that the program is attached to if not given.
    #[arg(long)]
    pub interface: Option<String>,
}
