//! What the end-to-end tests share: a site that balances, crowds of clients, and what the command line says of them.

pub mod another_build;
pub mod busy;
pub mod comings;
pub mod crowd;
pub mod devices;
pub mod downloads;
pub mod far;
pub mod http;
pub mod kernel;
pub mod matrix;
pub mod records;
pub mod site;
pub mod stand_in;
pub mod talkers;
pub mod turn;
pub mod wait;
pub mod yaml;

pub use self::{
    crowd::{Homes, ask_each, homes},
    http::{Connection, End},
    site::Site,
    talkers::Talkers,
    turn::Turn,
    wait::{steadily, until},
    yaml::{ServerLine, Wanted},
};
