//! Steadfast in user space: the daemon's parts and the command line's parts.

pub mod cli;
pub mod config;
pub mod dataplane;
pub mod health;
pub mod net;
pub mod object;
pub mod paths;
pub mod redirect;
pub mod view;
