//! One 64-bit cell of memory that the program and user space share.
//!
//! Everything mutable in the shared tables is a [`Word`]: loads acquire, stores release, and a
//! compare-exchange orders everything. On x86-64, the one architecture supported, loads and stores
//! are plain moves and the compare-exchange is a full barrier, in the program (`lock cmpxchg`, which
//! is what BPF's `BPF_CMPXCHG` becomes) as on the host.

#[cfg(not(any(target_arch = "x86_64", target_arch = "bpf")))]
compile_error!(
    "Steadfast is for x86-64: the order of accesses to the tables that the program and user space share is argued for \
     its memory model alone (lb-common/src/word.rs), and a weaker one, as of aarch64, needs that argument first"
);

#[cfg(all(not(target_arch = "bpf"), not(loom)))]
mod body {
    use core::sync::atomic::{AtomicU64, Ordering, fence};

    #[derive(Debug, Default)]
    pub(super) struct Cell(AtomicU64);

    impl Cell {
        pub(super) const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }
        pub(super) fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }
        pub(super) fn store(&self, value: u64) {
            self.0.store(value, Ordering::Release);
        }
        pub(super) fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
            let result = self.0.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            result
        }
        pub(super) fn fetch_add(&self, value: u64) -> u64 {
            self.0.fetch_add(value, Ordering::AcqRel)
        }
    }
}

#[cfg(all(not(target_arch = "bpf"), loom))]
mod body {
    use loom::sync::atomic::{AtomicU64, Ordering, fence};

    /// Loom remembers of a location the last access alone: of a thread that loads and then stores, it does not see
    /// that the store conflicts with another thread's load before both, and leaves those interleavings out. So every
    /// access first exchanges a second location, which orders nothing, but conflicts with every other.
    #[derive(Debug, Default)]
    pub(super) struct Cell {
        value: AtomicU64,
        touched: AtomicU64,
    }

    impl Cell {
        pub(super) fn new(value: u64) -> Self {
            Self { value: AtomicU64::new(value), touched: AtomicU64::new(0) }
        }
        fn touch(&self) -> &AtomicU64 {
            self.touched.swap(0, Ordering::Relaxed);
            &self.value
        }
        pub(super) fn load(&self) -> u64 {
            self.touch().load(Ordering::Acquire)
        }
        pub(super) fn store(&self, value: u64) {
            self.touch().store(value, Ordering::Release);
        }
        pub(super) fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
            let result = self.touch().compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            result
        }
        pub(super) fn fetch_add(&self, value: u64) -> u64 {
            self.touch().fetch_add(value, Ordering::AcqRel)
        }
    }
}

/// The BPF target has no `AtomicU64::compare_exchange`; the intrinsics compile to `BPF_CMPXCHG` and
/// `BPF_FETCH | BPF_ADD` all the same (instruction set v3, kernel 5.12).
#[cfg(target_arch = "bpf")]
mod body {
    use core::cell::UnsafeCell;
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

    #[repr(transparent)]
    pub(super) struct Cell(UnsafeCell<u64>);

    // SAFETY: every access is a single 64-bit load, store or atomic read-modify-write.
    unsafe impl Sync for Cell {}

    impl Cell {
        #[inline(always)]
        pub(super) fn load(&self) -> u64 {
            // SAFETY: the cell is valid and aligned for as long as it is borrowed; volatile keeps it one load.
            unsafe { self.0.get().read_volatile() }
        }
        #[inline(always)]
        pub(super) fn store(&self, value: u64) {
            // SAFETY: as in `load`; a shared map's memory may be written through a shared reference.
            unsafe { self.0.get().write_volatile(value) }
        }
        #[inline(always)]
        pub(super) fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
            // SAFETY: as in `load`.
            let (seen, done) = unsafe {
                atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    self.0.get(),
                    current,
                    new,
                )
            };
            if done { Ok(seen) } else { Err(seen) }
        }
        #[inline(always)]
        pub(super) fn fetch_add(&self, value: u64) -> u64 {
            // SAFETY: as in `load`.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), value) }
        }
    }
}

/// A shared 64-bit cell. See the module's text for its memory order.
#[cfg_attr(not(target_arch = "bpf"), derive(Debug, Default))]
#[repr(transparent)]
pub struct Word(body::Cell);

impl Word {
    /// A cell that holds `value`.
    #[cfg(all(not(target_arch = "bpf"), not(loom)))]
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(body::Cell::new(value))
    }

    /// A cell that holds `value`.
    #[cfg(loom)]
    #[must_use]
    pub fn new(value: u64) -> Self {
        Self(body::Cell::new(value))
    }

    /// Reads the cell; what was written before the value was stored is visible afterwards.
    #[inline(always)]
    #[must_use]
    pub fn load(&self) -> u64 {
        self.0.load()
    }

    /// Writes the cell; what was written before is visible to whoever reads the value.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        self.0.store(value);
    }

    /// Writes `new` if the cell still holds `current`; a full barrier either way.
    ///
    /// # Errors
    /// The value that was there instead of `current`.
    #[inline(always)]
    pub fn compare_exchange(&self, current: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange(current, new)
    }

    /// Adds, wrapping, and returns what was there before.
    #[inline(always)]
    pub fn fetch_add(&self, value: u64) -> u64 {
        self.0.fetch_add(value)
    }
}
