//! Loads and stores of a packet's bytes.
//!
//! Inline assembly of full width: a packet's fields are not aligned, and `read_unaligned` becomes a load per byte on this
//! target.

use core::arch::asm;

macro_rules! access {
    ($load:ident, $store:ident, $type:ty, $bpf:literal) => {
        /// Loads from `$at + OFFSET` in one instruction.
        ///
        /// # Safety
        /// The bytes must lie within the packet, by a check that the verifier follows.
        #[inline(always)]
        pub(super) unsafe fn $load<const OFFSET: usize>(at: *const u8) -> $type {
            let value: u64;
            // SAFETY: the caller vouches for the bytes; a load has no side effect.
            unsafe {
                asm!(
                    concat!("{value} = *(", $bpf, " *)({at} + {offset})"),
                    value = out(reg) value,
                    at = in(reg) at,
                    offset = const OFFSET,
                    options(pure, readonly, nostack),
                );
            }
            // SAFETY: a load of this width zeroes what is above it.
            unsafe { core::hint::assert_unchecked(value <= <$type>::MAX as u64) };
            value as $type
        }

        /// Stores to `at + OFFSET` in one instruction.
        ///
        /// # Safety
        /// The bytes must lie within the packet, by a check that the verifier follows.
        #[inline(always)]
        pub(super) unsafe fn $store<const OFFSET: usize>(at: *mut u8, value: $type) {
            // SAFETY: the caller vouches for the bytes.
            unsafe {
                asm!(
                    concat!("*(", $bpf, " *)({at} + {offset}) = {value}"),
                    value = in(reg) value,
                    at = in(reg) at,
                    offset = const OFFSET,
                    options(nostack),
                );
            }
        }
    };
}

access!(load8, store8, u8, "u8");
access!(load16, store16, u16, "u16");
access!(load32, store32, u32, "u32");
access!(load64, store64, u64, "u64");

/// Loads a byte anew, so that the verifier does not know what earlier branches learnt of it: what follows is then
/// checked once, for all that the byte can be, and not once a branch.
///
/// # Safety
/// As of [`load8`].
#[inline(always)]
pub(super) unsafe fn load8_anew<const OFFSET: usize>(at: *const u8) -> u64 {
    let value: u64;
    // SAFETY: the caller vouches for the byte.
    unsafe {
        asm!(
            "{value} = *(u8 *)({at} + {offset})",
            value = out(reg) value,
            at = in(reg) at,
            offset = const OFFSET,
            options(nostack),
        );
    }
    value
}

/// 1 where two 16-bit values are the same, else 0, without a branch.
#[inline(always)]
pub(super) fn same(one: u16, other: u16) -> u64 {
    let mut value = u64::from(one ^ other);
    // SAFETY: arithmetic on a register.
    unsafe {
        asm!("{value} += -1", "{value} >>= 63", value = inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// Moves a pointer into the packet by `bytes`, a multiple of 4 up to 60, as one instruction on
/// one register: all that lies behind is at a constant distance from the result, and its bounds are checked once.
#[inline(always)]
pub(super) fn ahead(at: *mut u8, bytes: u64) -> *mut u8 {
    let mut at = at;
    // SAFETY: arithmetic on registers; whoever loads from the result checks its bounds.
    unsafe {
        asm!(
            "{bytes} &= 0x3c",
            "{at} += {bytes}",
            at = inout(reg) at,
            bytes = inout(reg) bytes => _,
            options(pure, nomem, nostack),
        );
    }
    at
}
