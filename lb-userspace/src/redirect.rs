//! The port-80 service: every request is answered with a redirect to `https`, or with a refusal.
//!
//! What to answer is decided in [`policy`], which sees a request as values and touches no socket;
//! [`host`] is the only place that says what a valid `Host` is; [`server`] speaks HTTP/1 and keeps
//! the limits that hold a hostile client's cost down.

pub mod host;
pub mod policy;
pub mod server;

#[cfg(test)]
mod server_tests;
