//! Counters, per CPU.

use lb_common::{maps::Traffic, reason::Reason, schedule::OPEN_WORD};

use crate::maps;

/// Counts a packet's outcome, and says how many had the same on this CPU.
#[inline(always)]
pub(crate) fn reason(reason: Reason) -> u64 {
    let Some(counter) = maps::reason_counter(reason as u32) else { return 0 };
    // SAFETY: the value is this CPU's own for as long as the program runs.
    let count = unsafe { *counter } + 1;
    // SAFETY: as above.
    unsafe { *counter = count };
    count
}

/// Counts something about a service and a server.
#[inline(always)]
fn both(service: u16, server: u16, change: impl Fn(&mut Traffic)) {
    if let Some(traffic) = maps::service_traffic(service) {
        // SAFETY: as in `reason`.
        change(unsafe { &mut *traffic });
    }
    if let Some(traffic) = maps::server_traffic(server) {
        // SAFETY: as in `reason`.
        change(unsafe { &mut *traffic });
    }
}

/// Counts a packet to a server.
#[inline(always)]
pub(crate) fn packet_in(service: u16, server: u16, bytes: u32) {
    both(service, server, |traffic| {
        traffic.packets_in += 1;
        traffic.bytes_in += u64::from(bytes);
    });
}

/// Counts a packet to a client.
#[inline(always)]
pub(crate) fn packet_out(service: u16, server: u16, bytes: u32) {
    both(service, server, |traffic| {
        traffic.packets_out += 1;
        traffic.bytes_out += u64::from(bytes);
    });
}

/// Counts an established flow.
#[inline(always)]
pub(crate) fn flow(service: u16, server: u16) {
    both(service, server, |traffic| traffic.flows += 1);
}

/// Counts a server's open flows: `by` more, wrapping.
#[inline(always)]
pub(crate) fn open(server: u16, by: u64) {
    if let Some(load) = maps::load(server) {
        load[OPEN_WORD].fetch_add(by);
    }
}

/// One less, for [`open`].
pub(crate) const ONE_LESS: u64 = u64::MAX;

/// Counts a flow reset because its server is gone.
#[inline(always)]
pub(crate) fn server_gone(service: u16, server: u16) {
    both(service, server, |traffic| traffic.resets += 1);
}

/// Counts a reset by the service itself.
#[inline(always)]
pub(crate) fn service_reset(service: u16) {
    if let Some(traffic) = maps::service_traffic(service) {
        // SAFETY: as in `reason`.
        unsafe { (*traffic).resets += 1 };
    }
}
