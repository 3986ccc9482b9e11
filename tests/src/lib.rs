//! The lab: a hospital's network in namespaces, and what the end-to-end tests need to look at it.

pub mod bench;
pub mod e2e;
pub mod fuzz;
pub mod golden;
pub mod lab;
mod model;
