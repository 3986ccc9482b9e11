//! XDP programs of the bench: what is measured beside the balancer, and what feeds them all.
//!
//! `replay` is run instead of a program: it puts the frame back as it was (from the second repeat on, a rewriting program
//! would see its own output), gives it the next conversation's addresses and ports, and goes over into the program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[path = "script.rs"]
mod script;
#[cfg(target_arch = "bpf")]
mod turn;

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::xdp_action,
        helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
        macros::{map, xdp},
        maps::{Array, HashMap, ProgramArray},
        programs::XdpContext,
    };

    use crate::{
        script::{FRAME, Script},
        turn::Turn,
    };

    #[map]
    static SCRIPT: Array<Script> = Array::with_max_entries(1, 0);
    #[map]
    static VALUES: Array<u64> = Array::with_max_entries(1, 0);
    #[map]
    static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

    #[xdp]
    fn replay(context: XdpContext) -> u32 {
        let Some(script) = SCRIPT.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
        // SAFETY: nobody else has it while the program runs, on the bench's one core.
        let script = unsafe { &mut *script };
        let length = context.data_end() - context.data();
        if length != FRAME {
            let missing = FRAME as i32 - length as i32;
            let packet = context.as_ptr().cast();
            let _restored = if script.cut == 0 {
                // SAFETY: the context is the kernel's; pointers into the packet are only made after it.
                unsafe { bpf_xdp_adjust_head(packet, -missing) }
            } else {
                // SAFETY: as above.
                unsafe { bpf_xdp_adjust_tail(packet, missing) }
            };
        }
        let start = context.data();
        if start + FRAME > context.data_end() {
            return xdp_action::XDP_ABORTED;
        }
        let words = start as *mut u64;
        let mut i = 0;
        while i < FRAME / 8 {
            // SAFETY: within the packet.
            unsafe { words.add(i).write(script.frame[i]) };
            i += 1;
        }
        let conversation = script.cursor;
        script.cursor =
            conversation.wrapping_mul(script.multiplier).wrapping_add(script.increment) & script.mask;
        let mut value = 0;
        if script.listed != 0 {
            let Some(listed) = VALUES.get(conversation as u32) else { return xdp_action::XDP_ABORTED };
            value = *listed;
        }
        let mut i = 0;
        while i < 2 {
            let field = &script.fields[i];
            if field.at != 0 {
                let number = if script.listed != 0 {
                    (value >> (16 * i)) as u16
                } else {
                    field.base.wrapping_add((conversation >> field.shift) as u32 & field.mask) as u16
                };
                put(&context, field.at, number);
            }
            i += 1;
        }
        if script.sequence_at != 0 {
            let sequence = (script.runs as u32).wrapping_mul(script.sequence_step).wrapping_add(1);
            put(&context, script.sequence_at, (sequence >> 16) as u16);
            put(&context, script.sequence_at + 2, sequence as u16);
        }
        script.runs += 1;
        // SAFETY: the map is a program array.
        let _gone_over = unsafe { TARGET.tail_call(&context, 0) };
        xdp_action::XDP_ABORTED
    }

    /// Writes 16 bits of the frame, most significant byte first.
    #[inline(always)]
    fn put(context: &XdpContext, at: u32, value: u16) {
        let place = context.data() + (at as usize & 0x7e);
        if place + 2 <= context.data_end() {
            // SAFETY: within the packet.
            unsafe { (place as *mut u16).write(value.to_be()) };
        }
    }

    /// The least that an XDP program can do.
    #[xdp]
    fn empty(_: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// The end of a frame's way.
    #[xdp]
    fn sink(_: XdpContext) -> u32 {
        xdp_action::XDP_DROP
    }

    /// Reads what every balancer must read.
    #[xdp]
    fn parse(context: XdpContext) -> u32 {
        match key(&context) {
            Some(key) if key.ports != 0 => xdp_action::XDP_TX,
            _ => xdp_action::XDP_PASS,
        }
    }

    #[map]
    static TURNS: Array<Turn> = Array::with_max_entries(2, 0);

    /// The least that a balancer can do: one client's packets to one server and back, with nothing to look up.
    #[xdp]
    fn translate(context: XdpContext) -> u32 {
        let start = context.data();
        if start + 54 > context.data_end()
            || read::<u16>(start + 12) != 0x0800_u16.to_be()
            || read::<u8>(start + 14) != 0x45
            || read::<u8>(start + 23) != 6
        {
            return xdp_action::XDP_PASS;
        }
        let addresses = [half(start + 26), half(start + 30)];
        let mut direction = 0;
        while direction < 2 {
            let Some(turn) = TURNS.get(direction) else { return xdp_action::XDP_PASS };
            if turn.from == addresses {
                apply(start, turn);
                return xdp_action::XDP_TX;
            }
            direction += 1;
        }
        xdp_action::XDP_PASS
    }

    #[inline(always)]
    fn apply(start: usize, turn: &Turn) {
        let mut i = 0;
        while i < 6 {
            write(start + 2 * i, turn.macs[i]);
            i += 1;
        }
        let mut i = 0;
        while i < 2 {
            write(start + 26 + 4 * i, turn.to[i] as u16);
            write(start + 28 + 4 * i, (turn.to[i] >> 16) as u16);
            i += 1;
        }
        // Of the IP header, and of TCP, whose pseudo header has the addresses too.
        adjust(start + 24, turn.difference);
        adjust(start + 50, turn.difference);
    }

    /// A checksum after a change of what it is of (RFC 1624, equation 3).
    #[inline(always)]
    fn adjust(at: usize, difference: u32) {
        let sum = u32::from(!read::<u16>(at)) + difference;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        write(at, !(sum as u16));
    }

    /// 16 bits of a frame whose bounds were checked.
    #[inline(always)]
    fn write(at: usize, value: u16) {
        // SAFETY: within the packet, and aligned: headers lie at even addresses.
        unsafe { (at as *mut u16).write(value) };
    }

    /// Addresses and ports, as on the wire.
    #[repr(C)]
    struct Key {
        source: u32,
        destination: u32,
        ports: u32,
    }

    #[map]
    static KERNEL_HASH: HashMap<Key, u64> = HashMap::with_max_entries(1024, 0);

    /// That, and one look-up in a hash table of the kernel.
    #[xdp]
    fn parse_and_hash(context: XdpContext) -> u32 {
        let Some(key) = key(&context) else { return xdp_action::XDP_PASS };
        // SAFETY: the value is only compared.
        match unsafe { KERNEL_HASH.get(&key) } {
            Some(value) if *value != 0 => xdp_action::XDP_TX,
            _ => xdp_action::XDP_PASS,
        }
    }

    #[inline(always)]
    fn key(context: &XdpContext) -> Option<Key> {
        let start = context.data();
        if start + 54 > context.data_end() || read::<u16>(start + 12) != 0x0800_u16.to_be() {
            return None;
        }
        if read::<u8>(start + 14) != 0x45 || read::<u8>(start + 23) != 6 {
            return None;
        }
        let source = half(start + 26);
        let destination = half(start + 30);
        Some(Key { source, destination, ports: half(start + 34) })
    }

    /// 32 bits at an address that is even.
    #[inline(always)]
    fn half(at: usize) -> u32 {
        u32::from(read::<u16>(at)) | u32::from(read::<u16>(at + 2)) << 16
    }

    /// A value of a frame whose bounds were checked.
    #[inline(always)]
    fn read<T: Copy>(at: usize) -> T {
        // SAFETY: within the packet, and aligned to what is read: headers lie at even addresses.
        unsafe { (at as *const T).read() }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
