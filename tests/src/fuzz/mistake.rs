//! Mistakes that the model makes on purpose, to see that the comparison finds them.

use lb_common::server::ServerState;

use crate::model::Model;

/// A mistake, as small as it can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A number one further than what counts as near counts too.
    Near,
    /// A number is recorded one short of the distance from which it is.
    Stride,
    /// A deadline is moved a tick too early.
    Refresh,
    /// The last number that may complete a handshake does not.
    FirstWindow,
    /// Established flows may be silent for a tick longer.
    Idle,
    /// Sticky records last a tick longer.
    Persistence,
    /// One service's scheduler is the other's.
    Schedule,
    /// The first server counts as drained.
    Drained,
    /// A byte more was counted.
    Counter,
    /// Time is a tick ahead.
    Clock,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Near,
        Self::Stride,
        Self::Refresh,
        Self::FirstWindow,
        Self::Idle,
        Self::Persistence,
        Self::Schedule,
        Self::Drained,
        Self::Counter,
        Self::Clock,
    ];

    /// Makes it.
    pub(super) fn make(self, model: &mut Model) {
        let settings = &mut model.settings;
        match self {
            Self::Near => settings.limits.near += 1,
            Self::Stride => settings.limits.stride -= 1,
            Self::Refresh => settings.limits.refresh -= 1,
            Self::FirstWindow => settings.limits.first_window -= 1,
            Self::Idle => settings.idle[0] += 1,
            Self::Persistence => settings.persistence[0] += 1,
            Self::Schedule => settings.schedules.swap(0, 1),
            Self::Drained => model.servers[0].0 &= !ServerState::TAKES_NEW,
            Self::Counter => model.traffic[0].bytes_in += 1,
            Self::Clock => model.now += 1,
        }
    }
}
