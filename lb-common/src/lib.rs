//! What crosses the kernel boundary, and the pure logic both sides share.
//!
//! Shared memory first: [`word`], [`life`], [`table`] and [`tags`] are the tables' algorithm, [`flow`], [`sticky`], [`ports`],
//! [`service`], [`server`] and [`control`] what lies in them, [`maps`] their names, kinds and sizes. Then the
//! decisions: [`choose`], [`schedule`], [`maglev`], [`picks`], [`cache`], [`tcp`], [`mss`], [`path_mtu`], [`checksum`], [`hash`], [`clock`], and [`reason`], the outcome of every
//! packet.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "see word.rs"))]

#[cfg(any(test, loom))]
extern crate std;

pub mod address;
pub mod cache;
pub mod checksum;
pub mod choose;
pub mod clock;
pub mod control;
pub mod flow;
pub mod forwarding;
pub mod handshake;
pub mod hash;
pub mod life;
pub mod maglev;
pub mod maps;
pub mod mss;
pub mod path_mtu;
pub mod picks;
pub mod ports;
pub mod reason;
pub mod schedule;
pub mod server;
pub mod service;
pub mod sticky;
pub mod table;
pub mod tags;
pub mod tcp;
pub mod word;

/// The IP protocol number of TCP.
pub const TCP: u8 = 6;
/// The IP protocol number of UDP.
pub const UDP: u8 = 17;
/// The IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// The IP protocol number of ICMP for IPv6.
pub const ICMPV6: u8 = 58;
