//! Who may run when: labs share the machine's cores, and a flood in one is felt in all.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// So many tests run at once, however many threads the harness has.
const PLACES: u32 = 2;

static TAKEN: Mutex<u32> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

/// A test's right to run; given back when it is dropped, also by a panic.
#[derive(Debug)]
pub struct Turn {
    places: u32,
}

impl Turn {
    /// Waits for one of the two places.
    pub fn shared() -> Self {
        Self::take(1)
    }

    /// Waits until nothing else runs.
    pub fn alone() -> Self {
        Self::take(PLACES)
    }

    fn take(places: u32) -> Self {
        let free = |taken: &mut u32| *taken + places > PLACES;
        let mut taken = GIVEN_BACK.wait_while(taken(), free).unwrap_or_else(PoisonError::into_inner);
        *taken += places;
        Self { places }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *taken() -= self.places;
        GIVEN_BACK.notify_all();
    }
}

/// A test that failed has poisoned nothing: the number is whole at every moment.
fn taken() -> MutexGuard<'static, u32> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}
