//! XDP programs of the lab's hosts.
//!
//! `decapsulate` is a tunnel server's end of its tunnel, on kernels without the devices `ipip`, `sit` and `ip6_tunnel`: it
//! strips one outer header. `hand_over` sends every frame to another interface, as a two-arm balancer does.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use core::ptr;

    use aya_ebpf::{
        EbpfContext as _,
        bindings::xdp_action,
        helpers::generated::{bpf_redirect, bpf_xdp_adjust_head},
        macros::xdp,
        programs::XdpContext,
    };

    const ETHERNET: usize = 14;
    const IPV4: usize = 20;
    const IPV6: usize = 40;
    const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
    const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];

    /// IPv4 or IPv6 in either (RFC 2003, 4213 and 2473): protocols 4 and 41, without options or extension headers.
    #[xdp]
    fn decapsulate(context: XdpContext) -> u32 {
        let outer = match read::<2>(&context, 12) {
            Some(TYPE_IPV4) if read::<1>(&context, ETHERNET) == Some([0x45]) => ETHERNET + 9,
            Some(TYPE_IPV6) => ETHERNET + 6,
            _ => return xdp_action::XDP_PASS,
        };
        let Some(inner) = inner_type(&context, outer) else {
            return xdp_action::XDP_PASS;
        };
        let stripped = if outer == ETHERNET + 9 {
            strip::<IPV4>(&context, inner)
        } else {
            strip::<IPV6>(&context, inner)
        };
        if stripped.is_some() { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
    }

    /// The index of the interface that `hand_over` sends to; set when it is loaded.
    #[unsafe(no_mangle)]
    static TO: u32 = 0;

    #[xdp]
    fn hand_over(_context: XdpContext) -> u32 {
        // SAFETY: a global of the program, which the loader has set; volatile, since the compiler knows a zero.
        let to = unsafe { ptr::read_volatile(&raw const TO) };
        // SAFETY: a helper without pointers.
        let action = unsafe { bpf_redirect(to, 0) };
        u32::try_from(action).unwrap_or(xdp_action::XDP_ABORTED)
    }

    /// The EtherType of what an outer header carries, by its protocol at the offset.
    fn inner_type(context: &XdpContext, offset: usize) -> Option<[u8; 2]> {
        match read::<1>(context, offset)? {
            [4] => Some(TYPE_IPV4),
            [41] => Some(TYPE_IPV6),
            _ => None,
        }
    }

    /// Takes an outer header away and puts the MAC addresses before what it carried.
    #[inline(always)]
    fn strip<const OUTER: usize>(context: &XdpContext, inner: [u8; 2]) -> Option<()> {
        let macs: [u8; 12] = read(context, 0)?;
        // SAFETY: the context is the kernel's; pointers into the packet from before are not used after it.
        let moved = unsafe { bpf_xdp_adjust_head(context.as_ptr().cast(), OUTER as i32) };
        if moved != 0 {
            return None;
        }
        write(context, 0, macs)?;
        write(context, 12, inner)
    }

    #[inline(always)]
    fn at<const N: usize>(context: &XdpContext, offset: usize) -> Option<*mut [u8; N]> {
        let start = context.data() + offset;
        (start + N <= context.data_end()).then_some(start as *mut [u8; N])
    }

    #[inline(always)]
    fn read<const N: usize>(context: &XdpContext, offset: usize) -> Option<[u8; N]> {
        // SAFETY: within the packet, and an array of bytes needs no alignment.
        at(context, offset).map(|bytes| unsafe { ptr::read(bytes) })
    }

    #[inline(always)]
    fn write<const N: usize>(context: &XdpContext, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: within the packet, and an array of bytes needs no alignment.
        at(context, offset).map(|place| unsafe { ptr::write(place, bytes) })
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
