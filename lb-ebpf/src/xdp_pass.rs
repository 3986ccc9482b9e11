//! An XDP program that lets every frame pass.
//!
//! The lab puts it on the bridge's end of a veth pair: a veth device hands a frame to `XDP_TX` or `XDP_REDIRECT`
//! only if its peer runs an XDP program too.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

    #[xdp]
    fn xdp_pass(_context: XdpContext) -> u32 {
        xdp_action::XDP_PASS
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
