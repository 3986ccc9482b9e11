//! The daemon's decisions: no sockets, no files, no clock; time and randomness are arguments.
//!
//! ```text
//! configuration + overlay -> effective configuration -> Desired -> plan: who would move
//!                            ids, health, neighbours ---^     \--> apply: the differences, in a safe order
//! ```

pub mod apply;
pub mod desired;
pub mod ids;
pub mod name;
pub mod overlay;
pub mod plan;
pub mod rekey;
pub mod rows;
pub mod slow_start;
pub mod text;

#[cfg(test)]
mod apply_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use apply::{Applied, apply};
pub use desired::{Desired, desired};
pub use ids::Ids;
pub use name::{AdminState, ServerName};
pub use overlay::Overlay;
pub use plan::{Before, Plan, plan};
