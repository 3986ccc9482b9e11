//! The daemon's sweep and census on the program's tables, beside the model's.

use lb_common::{
    life::{Life, SlotState},
    ports::{Owner, PortCell},
    word::Word,
};
use lb_userspace::dataplane::sweep::{Swept, census, sweep};

use super::Machine;
use crate::{
    golden::hospital::SERVERS,
    model::{Freed, Model},
};

impl Machine {
    /// Frees what has expired, in both, and compares everything. Says how much that was.
    pub(crate) fn sweep(&mut self, model: &mut Model) -> Result<Freed, String> {
        let Swept { flows, half_open, sticky } = sweep(&self.maps, self.tick);
        self.look();
        let (freed, must) = (Freed { flows, half_open, sticky }, model.sweep());
        if freed != must {
            return Err(format!("the sweep freed {freed:?} and must free {must:?}"));
        }
        self.compare_all(model)?;
        Ok(freed)
    }

    /// Compares every row of every table with the model's.
    pub(crate) fn compare_all(&self, model: &Model) -> Result<(), String> {
        let differs = |what: &str, slot: usize, is: String, must: String| {
            Err(format!("{what} in place {slot} is\n    {is}\n  and must be\n    {must}"))
        };
        for (what, words, rows) in [
            ("the flow", &self.flows, &model.flows),
            ("the half-open flow", &self.half_open, &model.half_open),
        ] {
            for (slot, must) in rows.iter().enumerate().filter(|(slot, _)| !self.is_claimed(words[*slot][0]))
            {
                let is = self.flow(&words[slot], model)?;
                if is != *must {
                    return differs(what, slot, format!("{is:?}"), format!("{must:?}"));
                }
            }
        }
        for (slot, must) in model.sticky.iter().enumerate() {
            let is = self.record(&self.sticky[slot], model)?;
            if is != *must {
                return differs("the record", slot, format!("{is:?}"), format!("{must:?}"));
            }
        }
        for (place, must) in model.ports.iter().enumerate() {
            let is = self.cell(self.cells[place], model);
            if is != *must {
                return differs("the SNAT port", place, format!("{is:?}"), format!("{must:?}"));
            }
        }
        Ok(())
    }

    /// Whether no row is in any table, and no SNAT port is anybody's.
    pub(crate) fn is_empty(&self) -> bool {
        let tables = &self.bench.tables;
        let free = |life: Life| life.state() == SlotState::Free;
        let nobodys = |cell: &Word| PortCell::from_word(cell.load()).owner == Owner::Free;
        tables.flows.iter().chain(tables.half_open.iter()).all(|slot| free(slot.life()))
            && tables.sticky.iter().all(|slot| free(slot.life()))
            && tables.cells.iter().all(nobodys)
    }

    /// Compares the numbers that the daemon would show with the model's: open connections by server.
    pub(crate) fn compare_counts(&self, model: &Model) -> Result<usize, String> {
        let census = census(&self.maps, self.tick);
        let mut sum = 0;
        for server in &SERVERS {
            let (is, must) = (census.server(server.id).flows, model.open_to(server.id));
            if usize::try_from(is) != Ok(must) {
                return Err(format!("{is} connections to server {} are counted, of {must}", server.id));
            }
            sum += must;
        }
        Ok(sum)
    }
}
