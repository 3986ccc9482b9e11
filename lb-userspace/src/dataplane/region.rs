//! An array in memory that others may change: a mapped map, or the heap.

use std::{
    fs::File,
    num::NonZeroUsize,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
};

use lb_common::{
    control::Control,
    maps::{ServerInfo, ServiceInfo},
    table::Slot,
    word::Word,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Types that a map may hold: every bit pattern is a value, and zero is one of them.
///
/// # Safety
/// No padding, no references, no values that are invalid; aligned to at most eight bytes.
pub unsafe trait Plain {}

// SAFETY: cells of 64 bits.
unsafe impl Plain for Word {}
// SAFETY: an array of cells.
unsafe impl Plain for [Word; 4] {}
// SAFETY: an array of cells.
unsafe impl Plain for [Word; 64] {}
// SAFETY: an array of cells.
unsafe impl Plain for [Word; 2] {}
// SAFETY: cells only (`repr(C)`).
unsafe impl<const N: usize> Plain for Slot<N> {}
// SAFETY: cells only (`repr(C)`).
unsafe impl Plain for Control {}
// SAFETY: integers and bytes without padding (`repr(C)`, size asserted in lb-common).
unsafe impl Plain for ServiceInfo {}
// SAFETY: as above.
unsafe impl Plain for ServerInfo {}

/// An array of `T` shared with the kernel, or a stand-in for one.
pub struct Region<T> {
    start: NonNull<T>,
    length: usize,
    body: Body,
}

enum Body {
    Mapped { bytes: NonZeroUsize },
    Heap { _memory: Box<[u64]> },
}

// SAFETY: what is shared is cells, or plain bytes that are copied in and out by volatile accesses.
unsafe impl<T: Plain> Send for Region<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Region<T> {}

impl<T: Plain> Region<T> {
    /// Maps an array map (`BPF_F_MMAPABLE`) with `length` entries of `T`.
    ///
    /// # Errors
    /// The kernel refused; `writable` needs a map opened for writing.
    pub fn map(map: BorrowedFd<'_>, length: usize, writable: bool) -> nix::Result<Self> {
        let page = 4096;
        let bytes = (length * size_of::<T>()).next_multiple_of(page);
        let bytes = NonZeroUsize::new(bytes).ok_or(nix::Error::EINVAL)?;
        let protection =
            if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
        // SAFETY: a fresh mapping, at an address of the kernel's choice; it lives until drop.
        let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, map.as_fd(), 0) }?;
        Ok(Self { start: start.cast(), length, body: Body::Mapped { bytes } })
    }

    /// `length` zeroed entries on the heap.
    #[must_use]
    pub fn heap(length: usize) -> Self {
        const { assert!(align_of::<T>() <= 8) };
        let mut memory = vec![0u64; (length * size_of::<T>()).div_ceil(8)].into_boxed_slice();
        // A boxed slice's pointer is never null.
        let start = NonNull::from(&mut *memory).cast();
        Self { start, length, body: Body::Heap { _memory: memory } }
    }

    /// How many entries there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<T: Plain + Copy> Region<T> {
    /// Copies an entry out. Another process may be writing it.
    #[must_use]
    pub fn read(&self, index: usize) -> Option<T> {
        if index >= self.length {
            return None;
        }
        // SAFETY: within the region.
        let at = unsafe { self.start.add(index) };
        // SAFETY: valid and aligned; every bit pattern is a value.
        Some(unsafe { at.read_volatile() })
    }

    /// Copies an entry in; false if there is no such entry.
    #[must_use]
    pub fn write(&self, index: usize, value: T) -> bool {
        if index >= self.length {
            return false;
        }
        // SAFETY: within the region.
        let at = unsafe { self.start.add(index) };
        // SAFETY: valid and aligned, and shared with others through volatile accesses only.
        unsafe { at.write_volatile(value) };
        true
    }
}

/// Memory made of cells may be borrowed while others change it; plain structs may not.
pub trait Celled {}
impl Celled for Word {}
impl Celled for [Word; 2] {}
impl Celled for [Word; 4] {}
impl Celled for [Word; 64] {}
impl<const N: usize> Celled for Slot<N> {}
impl Celled for Control {}

impl<const N: usize> Region<[Word; N]>
where
    [Word; N]: Plain + Celled,
{
    /// What is there now, on the heap.
    #[must_use]
    pub fn copied(&self) -> Self {
        let copy = Self::heap(self.length);
        for (to, from) in copy.iter().flatten().zip(self.iter().flatten()) {
            to.store(from.load());
        }
        copy
    }
}

impl<T: Plain + Celled> Deref for Region<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the memory is valid for `length` entries as long as the region lives, and made of cells.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        if let Body::Mapped { bytes } = self.body {
            // SAFETY: our own mapping, of that size; nobody can borrow it any more.
            let _nothing_to_do_about_it = unsafe { munmap(self.start.cast(), bytes.get()) };
        }
    }
}

/// A file as something to map, for tests.
#[doc(hidden)]
pub fn of_file<T: Plain>(file: &File, length: usize) -> nix::Result<Region<T>> {
    Region::map(file.as_fd(), length, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_one_file_see_each_other() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let one: Region<Word> = of_file(&file, 8).unwrap();
        let other: Region<Word> = of_file(&file, 8).unwrap();
        one[3].store(77);
        assert_eq!(other[3].load(), 77);
        assert_eq!(other.len(), 8);
    }

    #[test]
    fn a_heap_region_starts_at_zero_and_has_an_end() {
        let region: Region<ServiceInfo> = Region::heap(2);
        assert_eq!(region.read(1).map(|info| info.label), Some([0; 64]));
        assert!(region.read(2).is_none());
    }
}
