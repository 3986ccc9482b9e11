//! Servers' open flows, which `least-conn` compares. The program counts them; what user space frees it counts here, and
//! after a start that adopts, counts that a killed process has left wrong are mended.

use lb_common::{
    flow::{FlowServer, SERVER_WORD},
    schedule::{OPEN_WORD, WEIGHT_WORD},
    tcp::TcpState,
};

use super::{Maps, sweep::is_live};

/// Counts the end of an open flow of a server.
pub fn ended(maps: &Maps, server: u16) {
    if let Some(load) = maps.server_loads.get(usize::from(server)) {
        load[OPEN_WORD].fetch_add(u64::MAX);
    }
}

/// Sets a server's weight; false if it has it already.
pub fn set_weight(maps: &Maps, server: u16, weight: u32) -> bool {
    let Some(load) = maps.server_loads.get(usize::from(server)) else { return false };
    let differs = load[WEIGHT_WORD].load() != u64::from(weight);
    if differs {
        load[WEIGHT_WORD].store(weight.into());
    }
    differs
}

/// By how much each server's count is wrong, at least: flows come and go while they are counted.
#[must_use]
pub fn drift(maps: &Maps) -> Vec<i64> {
    let counted = || maps.server_loads.iter().map(|load| load[OPEN_WORD].load().cast_signed());
    let before: Vec<i64> = counted().collect();
    let mut open = vec![0i64; before.len()];
    for slot in maps.flows.iter() {
        let life = slot.life();
        if is_live(life) && !TcpState::from_note(life.note()).is_closed() {
            let server = FlowServer::from_word(slot.words[SERVER_WORD].load()).server;
            if let Some(open) = open.get_mut(usize::from(server)) {
                *open += 1;
            }
        }
    }
    open.into_iter()
        .zip(before.iter().zip(counted()))
        .map(|(open, (before, after))| {
            let (low, high) = (after.min(*before), after.max(*before));
            if open > high { open - high } else { (open - low).min(0) }
        })
        .collect()
}

/// Mends the counts that were wrong in an earlier [`drift`] and still are, in the same direction; gives how many.
///
/// Call it at least a second after that.
pub fn mend(maps: &Maps, earlier: &[i64]) -> usize {
    let wrong = drift(maps);
    let both = wrong.iter().zip(earlier).zip(maps.server_loads.iter());
    both.filter(|((now, earlier), load)| {
        let by = if now.signum() == earlier.signum() { **now.min(earlier) } else { 0 };
        let by = if by < 0 { **now.max(earlier) } else { by };
        if by != 0 {
            load[OPEN_WORD].fetch_add(by.cast_unsigned());
        }
        by != 0
    })
    .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::{Case, client, config, flow};
    use lb_common::{clock::Ticks, schedule::Load};

    #[test]
    fn counts_that_stay_wrong_are_mended_and_those_that_move_are_left() {
        let case = Case::new(config(&[("V", 150, &[("a", 1), ("b", 2), ("c", 3)])]));
        case.apply().unwrap();
        let maps = &case.maps;
        let [a, b, c] = ["a", "b", "c"].map(|server| case.id("V", server));
        for (port, (server, state)) in (5000..).zip([
            (a, TcpState::Established),
            (a, TcpState::ClientFin),
            (a, TcpState::TimeWait),
            (b, TcpState::Established),
        ]) {
            flow(maps, 0, client(1), port, server, 443, state, Ticks(100));
        }
        let slot = |server: u16| &maps.server_loads[usize::from(server)][OPEN_WORD];
        slot(b).store(1);
        slot(c).store(7);
        let first = drift(maps);
        assert_eq!([a, b, c].map(|server| first[usize::from(server)]), [2, 0, -7]);
        // One of c's seven ends for good meanwhile; of a's two, one is counted late.
        slot(c).fetch_add(u64::MAX);
        slot(a).fetch_add(1);
        assert_eq!(mend(maps, &first), 2);
        let open = |server: u16| Load::read(&maps.server_loads[usize::from(server)]).open;
        assert_eq!([a, b, c].map(open), [2, 1, 0]);
        assert_eq!(mend(maps, &drift(maps)), 0);
        ended(maps, a);
        assert_eq!(open(a), 1);
    }
}
