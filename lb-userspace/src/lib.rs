//! Steadfast in user space: the daemon's parts and the command line's parts.

pub mod api;
pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod dataplane;
pub mod firewall;
pub mod health;
pub mod net;
pub mod object;
pub mod paths;
pub mod redirect;
pub mod terminal;
pub mod view;
