//! Steadfast's XDP program.
//!
//! Read `pipeline.rs` first: the way of a packet, top to bottom. Everything that can become of one is a
//! [`Reason`](lb_common::reason::Reason), and the entry point below is the table from reasons to the kernel's actions.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod alarm;
#[cfg(target_arch = "bpf")]
mod cache;
#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod establish;
#[cfg(target_arch = "bpf")]
mod fast;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod from_client;
#[cfg(target_arch = "bpf")]
mod from_server;
#[cfg(target_arch = "bpf")]
mod handshake;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod open;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod pipeline;
#[cfg(target_arch = "bpf")]
mod renew;
#[cfg(target_arch = "bpf")]
mod select;

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::{
        EbpfContext as _, bindings::xdp_action, helpers::generated::bpf_jiffies64, macros::xdp,
        programs::XdpContext,
    };
    use lb_common::reason::Action;

    use crate::{
        fast::Fast,
        pipeline::{Outcome, SAME_ARM},
    };

    /// The load balancer. It takes frames in several buffers: headers are in the first.
    #[xdp(frags)]
    #[inline(always)]
    pub(crate) fn steadfast(context: XdpContext) -> u32 {
        match crate::fast::run(context.as_ptr().cast()) {
            Fast::Transmit => return xdp_action::XDP_TX,
            Fast::Pass => return xdp_action::XDP_PASS,
            Fast::Undecided => {}
        }
        let Outcome { reason, arm } = crate::pipeline::run(context.as_ptr().cast());
        let count = crate::count::reason(reason);
        crate::alarm::tell(&context, reason, count);
        match reason.action() {
            Action::Pass => xdp_action::XDP_PASS,
            Action::Transmit if arm == SAME_ARM => xdp_action::XDP_TX,
            Action::Transmit => crate::maps::redirect(arm),
            Action::Drop => xdp_action::XDP_DROP,
        }
    }

    /// Tells user space what time the data path thinks it is: writes `jiffies_64` over the first eight bytes of the
    /// packet it is run on. Never attached.
    #[xdp]
    pub(crate) fn steadfast_clock(context: XdpContext) -> u32 {
        // SAFETY: the helper has no arguments and no effects.
        let jiffies = unsafe { bpf_jiffies64() };
        let at = context.data();
        if at + 8 > context.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        // SAFETY: eight bytes at `at` were checked to lie within the packet.
        unsafe { (at as *mut u64).write_unaligned(jiffies) };
        xdp_action::XDP_PASS
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
