//! The daemon: one task owns the configuration and the maps ([`engine`]), the others bring it news.
//!
//! ```text
//! health checks ---\
//! netlink ----------> run: one loop -> engine -> maps, state file
//! API, signals ----/            \--> outside: addresses, neighbours, checks, redirects
//! ```

pub mod conflicts;
pub mod descriptors;
pub mod detach;
pub mod elicit;
pub mod engine;
pub mod guard;
pub mod kernel_log;
pub mod lock;
pub mod outside;
pub mod problems;
pub mod redirects;
pub mod return_hops;
pub mod routers;
pub mod run;
pub mod setup;
pub mod sources;
pub mod store;
pub mod wait;

#[cfg(test)]
mod run_tests;
