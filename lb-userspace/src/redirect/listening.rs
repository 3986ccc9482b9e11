//! Which redirect services have their listener, as those who listen say it and those who show it read it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Whether there is a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// There is.
    Open,
    /// The kernel refused it, for this errno; it is tried again.
    Refused(u16),
}

impl Listener {
    /// As [`ServiceInfo::listening`](lb_common::maps::ServiceInfo::listening) has it; zero is for what is not known.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Open => 1,
            Self::Refused(errno) => 2 | u32::from(errno) << 16,
        }
    }

    /// The reverse of [`number`](Self::number).
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        match number & 0xffff {
            1 => Some(Self::Open),
            2 => u16::try_from(number >> 16).ok().map(Self::Refused),
            _ => None,
        }
    }

    /// The worse of two, for services with several ports.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        if self == Self::Open { other } else { self }
    }
}

/// What the kernel means by an errno.
#[must_use]
pub fn os_error(errno: u16) -> String {
    io::Error::from_raw_os_error(i32::from(errno)).to_string()
}

/// The listeners that are wanted; clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Listening(Arc<Mutex<BTreeMap<SocketAddr, Listener>>>);

impl Listening {
    /// What was found out when `place` was last bound.
    pub fn note(&self, place: SocketAddr, listener: Listener) {
        self.with(|all| all.insert(place, listener));
    }

    /// Forgets what is not wanted any more.
    pub fn retain(&self, wanted: impl Fn(&SocketAddr) -> bool) {
        self.with(|all| all.retain(|place, _| wanted(place)));
    }

    /// All that is known now.
    #[must_use]
    pub fn all(&self) -> BTreeMap<SocketAddr, Listener> {
        self.with(|all| all.clone())
    }

    /// Each entry is whole between changes, so a lock poisoned by a panic elsewhere is still good.
    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<SocketAddr, Listener>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_survives_its_number() {
        for listener in [Listener::Open, Listener::Refused(98), Listener::Refused(u16::MAX)] {
            assert_eq!(Listener::from_number(listener.number()), Some(listener));
        }
        assert_eq!(Listener::from_number(0), None);
    }
}
