//! Mistakes that the model, or who plays the daemon, makes on purpose, to see that the comparison finds them.

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
    /// A tunnel takes a byte less.
    Mtu,
    /// One more of the records that nobody vouched for may stand where a client's lie.
    Unverified,
    /// IPv6 clients of one /64 are one client where they are not, and the other way round.
    Prefix,
    /// Clients have a record a port where they have one, or the other way round.
    Scope,
    /// A server without a port of its own is reached at the service's first port, whatever was asked for.
    Port,
    /// A server's new state does not begin a new epoch: what the program's cache says of its flows stays in force.
    Epoch,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 16] = [
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
        Self::Mtu,
        Self::Unverified,
        Self::Prefix,
        Self::Scope,
        Self::Port,
        Self::Epoch,
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
            Self::Mtu => settings.site.mtu -= 1,
            Self::Unverified => settings.limits.unverified += 1,
            Self::Prefix => settings.site.kinds[0].by_prefix ^= true,
            Self::Scope => settings.site.kinds[0].by_port ^= true,
            // Not the model's: see `Machine::step`.
            Self::Epoch => {}
            Self::Port => {
                let kind = &mut settings.site.kinds[0];
                kind.server_port = kind.server_port.or(Some(kind.ports[0]));
            }
        }
    }
}
