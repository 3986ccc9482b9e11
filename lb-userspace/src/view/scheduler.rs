//! The scheduler's tables, as the program reads them.

use lb_common::{
    address::Address,
    maglev::{NOBODY, lane, place},
    service::Service,
};

use crate::dataplane::Maps;

/// A service's scheduler table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scheduler {
    seed: u64,
    service: Option<Service>,
    values: Vec<u64>,
}

impl Scheduler {
    /// Reads the table that is in force.
    pub(crate) fn read(maps: &Maps, service: u16) -> anyhow::Result<Self> {
        Ok(Self {
            seed: maps.control().maglev_seed.load(),
            service: self::service(maps, service),
            values: maps.kernel.schedule(service)?.unwrap_or_default(),
        })
    }

    /// How many places it has; zero if there is no table.
    pub(crate) fn size(&self) -> u32 {
        let size = self.values.first().copied().unwrap_or(0);
        u32::try_from(size).unwrap_or(0)
    }

    /// The place of a client at an attempt.
    pub(crate) fn place(&self, client: Address, attempt: u32) -> Option<u32> {
        let client = self.service.map_or(client, |service| service.client(client));
        (self.size() != 0).then(|| place(self.seed, client, self.size(), attempt))
    }

    /// The pick for a client at an attempt: what the program's `scheduled` does.
    pub(crate) fn pick(&self, client: Address, attempt: u32) -> Option<u16> {
        let (value, shift) = lane(self.place(client, attempt)?);
        let word = self.values.get(usize::try_from(value).ok()?)?;
        #[expect(clippy::cast_possible_truncation, reason = "lanes are 16 bits")]
        let id = (word >> shift) as u16;
        (id != NOBODY).then_some(id)
    }
}

/// The data path's entry of a service, if the id is in use.
pub(crate) fn service(maps: &Maps, id: u16) -> Option<Service> {
    Service::load(maps.services.get(usize::from(id))?)
}
