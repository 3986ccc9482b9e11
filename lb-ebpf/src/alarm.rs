//! What somebody must look at, told to the daemon's log: the program's only log lines, and seldom.

use aya_ebpf::{EbpfContext as _, bindings::xdp_md, programs::XdpContext};
use aya_log_ebpf::warn;
use lb_common::reason::Reason;

/// One packet in this many, and the first, of the same reason on the same CPU is logged.
const EVERY: u64 = 4096;

/// Logs a packet's outcome if it is an alarm. `count` is how many had it on this CPU, this one included.
#[inline(always)]
pub(crate) fn tell(context: &XdpContext, reason: Reason, count: u64) {
    if reason.is_alarm() && count % EVERY == 1 {
        log(context.as_ptr().cast(), reason as u32, count);
    }
}

/// A function of its own, for its stack.
#[inline(never)]
fn log(context: *mut xdp_md, number: u32, count: u64) -> u32 {
    let context = XdpContext::new(context);
    let context = &context;
    if number == Reason::EstablishedUnrecorded as u32 {
        warn!(
            context,
            "the sticky table is full: {} clients on this CPU were served by hash and not recorded", count
        );
    } else if number == Reason::FlowTableFull as u32 {
        warn!(
            context,
            "the flow table is full: {} flows on this CPU live in the half-open table, where they may be overwritten",
            count
        );
    } else if number == Reason::PortsExhausted as u32 {
        warn!(
            context,
            "no SNAT port was free for {} packets on this CPU: add source addresses or widen the range",
            count
        );
    } else {
        warn!(context, "every half-open slot was being written for {} packets on this CPU", count);
    }
    0
}
