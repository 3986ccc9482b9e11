//! The scheduler's tables, as the program reads them.

use lb_common::{
    address::Address,
    hash::hash3,
    maglev::{NOBODY, lane, place},
    picks,
    schedule::{self, Asked, Load, turn_place},
    service::Service,
    tcp::TcpState,
};

use crate::dataplane::Maps;

/// A service's scheduler: its table, and what it counts.
pub(crate) struct Scheduler<'a> {
    maps: &'a Maps,
    id: u16,
    port: u16,
    seed: u64,
    turn: u64,
    service: Option<Service>,
    values: Vec<u64>,
}

impl<'a> Scheduler<'a> {
    /// Reads the table that is in force, for connections to this port of the service (as on the wire).
    pub(crate) fn read(maps: &'a Maps, id: u16, port: u16) -> anyhow::Result<Self> {
        Ok(Self {
            maps,
            id,
            port,
            seed: maps.control().maglev_seed.load(),
            turn: maps.turns.get(usize::from(id)).map_or(0, lb_common::word::Word::load),
            service: service(maps, id),
            values: maps.kernel.schedule(id)?.unwrap_or_default(),
        })
    }

    /// How it picks.
    pub(crate) fn kind(&self) -> schedule::Scheduler {
        self.service.map_or_else(Default::default, |service| service.scheduler)
    }

    /// How many places it has; zero if there is no table.
    pub(crate) fn size(&self) -> u32 {
        let size = self.values.first().copied().unwrap_or(0);
        u32::try_from(size).unwrap_or(0)
    }

    fn client(&self, client: Address) -> Address {
        self.service.map_or(client, |service| service.client(client))
    }

    /// The place of a client at an attempt; with `least-conn` the first of the two that are compared.
    pub(crate) fn place(&self, client: Address, attempt: u32) -> Option<u32> {
        let size = self.size();
        (size != 0).then(|| match self.kind() {
            schedule::Scheduler::RoundRobin => turn_place(self.turn, size, attempt),
            _ => place(self.seed, self.client(client), size, attempt),
        })
    }

    /// What is counted of a server.
    pub(crate) fn load(&self, id: u16) -> Load {
        self.maps.server_loads.get(usize::from(id)).map_or_else(Load::default, Load::read)
    }

    /// The server that was picked for a client a moment ago, and that it goes to until it has its record.
    pub(crate) fn noted(&self, client: Address) -> Option<u16> {
        let service = self.service?;
        if !service.scheduler.is_live() || service.persistence.0 == 0 {
            return None;
        }
        let key = self.maps.sticky_key(client, self.id, self.port).words();
        let hash = hash3(&self.maps.key(), key);
        let cell = self.maps.picks.get(usize::try_from(picks::place(hash)).ok()?)?;
        let lifetime = self.maps.control().idle(TcpState::SynSent, service.idle);
        picks::noted(cell.load(), hash, self.maps.now().ok()?, lifetime)
    }

    /// The pick for a client at an attempt, if it connected now: what the program would give.
    pub(crate) fn pick(&self, client: Address, attempt: u32) -> Option<u16> {
        let noted = self.noted(client);
        match (noted, attempt) {
            (Some(noted), 0) => Some(noted),
            (Some(_), attempt) => self.scheduled(client, attempt - 1),
            (None, attempt) => self.scheduled(client, attempt),
        }
    }

    fn scheduled(&self, client: Address, attempt: u32) -> Option<u16> {
        let size = self.size();
        if size == 0 {
            return None;
        }
        let asked = Asked { seed: self.seed, client: self.client(client), salt: 0, size, attempt };
        let at = |place| {
            let (value, shift) = lane(place);
            let word = self.values.get(usize::try_from(value).ok()?)?;
            #[expect(clippy::cast_possible_truncation, reason = "lanes are 16 bits")]
            let id = (word >> shift) as u16;
            (id != NOBODY).then_some(id)
        };
        schedule::pick(self.kind(), asked, self.turn, |id| self.load(id), at)
    }
}

/// The data path's entry of a service, if the id is in use.
pub(crate) fn service(maps: &Maps, id: u16) -> Option<Service> {
    Service::load(maps.services.get(usize::from(id))?)
}
