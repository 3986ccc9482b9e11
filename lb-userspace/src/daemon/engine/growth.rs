//! Slow start: weights that grow with the daemon's time.

use std::time::Duration;

use lb_common::server::ServerState;
use tracing::info;

use super::{Engine, balanced};
use crate::core::ServerName;
use crate::core::desired::Desired;

impl Engine {
    /// How long the daemon has run, by its ticks.
    pub(super) const fn uptime(&self) -> Duration {
        Duration::from_secs(self.ticks)
    }

    /// Takes in who takes new clients, once that is in the maps.
    pub(super) fn observe_growth(&mut self, desired: &Desired) {
        let takes_new = |id: &u16| {
            desired.servers.get(id).is_some_and(|(server, _)| server.state.has(ServerState::TAKES_NEW))
        };
        let taking: Vec<(u16, Duration)> = balanced(&self.running)
            .flat_map(|service| service.real_servers.iter().map(move |server| (service, server)))
            .filter_map(|(service, server)| {
                let name = ServerName::new(service.label.as_str(), server.label.as_str());
                Some((self.state.ids.server(&name)?, service.slow_start))
            })
            .filter(|(id, _)| takes_new(id))
            .collect();
        let uptime = self.uptime();
        let observed = self.growth.observe(uptime, taking);
        for name in observed.begun.iter().filter_map(|id| self.name_of(*id)) {
            info!("{name} begins with a tenth of its share of new clients (slow_start)");
        }
        for name in observed.grown.iter().filter_map(|id| self.name_of(*id)) {
            info!("{name} has its whole share of new clients");
        }
    }

    /// Gives the servers that grow the share that is due.
    pub(super) fn grow(&mut self) {
        if self.growth.is_growing() {
            self.resync_or_warn("slow start");
        }
    }
}
