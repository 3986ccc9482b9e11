//! The bench: what a packet costs, beside what it must cost anywhere.
//!
//! Nothing here is a time by itself. Every figure is measured in rounds, in each of which everything is run once, one
//! after the other; what counts are ratios within a round, and their median over the rounds.

pub mod control;
pub mod figures;
pub mod flood;
mod frames;
pub mod instructions;
pub mod lab;
mod machine;
pub mod packet;
pub mod profile;
mod replay;
mod rows;
pub mod scale;
#[path = "../xdp/src/script.rs"]
mod script;
#[path = "../xdp/src/turn.rs"]
mod turn;
pub mod veth;
mod world;
