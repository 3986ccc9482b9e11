#![no_std]
//! What crosses the kernel boundary, and the pure logic both sides share.

