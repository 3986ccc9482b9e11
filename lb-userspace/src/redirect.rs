//! The port-80 service: every request is answered with a redirect to `https`, or with a refusal.
//!
//! What to answer is decided in [`policy`], which sees a request as values and touches no socket;
//! [`request`] reads a request's head; [`host`] is the only place that says what a valid `Host` is; [`seats`] decides who
//! may be connected; [`listening`] says where there is a listener; [`server`] speaks HTTP/1 and keeps the limits that hold a hostile client's cost down.

pub mod host;
pub mod listening;
pub mod policy;
pub mod request;
pub mod seats;
pub mod server;

#[cfg(test)]
mod server_tests;
