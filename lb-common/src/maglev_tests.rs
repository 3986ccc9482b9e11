//! The scheduler's tables: how even, how stable, and the same on every node.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Equal servers from 192.168.85.200 on, with ids that say nothing.
fn servers(count: u16) -> Vec<Candidate> {
    (0..count).map(|number| server(number, 100)).collect()
}

fn server(number: u16, weight: u32) -> Candidate {
    Candidate {
        id: number,
        address: Address::from_v4_word((0xc0a8_55c8 + u32::from(number)).to_be()),
        port: 443u16.to_be(),
        weight,
    }
}

fn seed(number: u64) -> u64 {
    mix(number + 1)
}

/// Places by server id.
fn shares(table: &Table) -> BTreeMap<u16, u32> {
    let mut shares = BTreeMap::new();
    for id in table.places() {
        *shares.entry(*id).or_insert(0) += 1;
    }
    shares
}

fn percent_of(part: u32, whole: u32) -> f64 {
    f64::from(part) * 100.0 / f64::from(whole)
}

#[test]
fn the_sizes_are_primes() {
    for size in SIZES {
        assert!((2..size).take_while(|n| n * n <= size).all(|n| !size.is_multiple_of(n)));
    }
}

#[test]
fn a_table_has_a_hundred_places_a_server_while_there_are_such_tables() {
    for (servers, size) in [
        (0, 4_099),
        (1, 4_099),
        (40, 4_099),
        (41, 16_411),
        (164, 16_411),
        (165, 65_537),
        (655, 65_537),
        (MAX_SERVERS, 65_537),
    ] {
        assert_eq!(size_for(servers), size, "{servers} servers");
        assert!(servers > 655 || size as usize >= servers * 100);
    }
}

#[test]
#[cfg_attr(miri, ignore = "builds many tables")]
fn equal_servers_have_equal_shares_to_within_one_place() {
    for (count, tolerance) in [(1, 0.0), (2, 0.1), (3, 0.1), (40, 1.0), (160, 1.0), (600, 1.0)] {
        let size = size_for(usize::from(count));
        for number in 0..5 {
            let table = build(seed(number), &servers(count), size);
            let shares = shares(&table);
            assert_eq!(shares.len(), usize::from(count));
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert!(most - least <= 1, "{count} servers: {least} to {most} places");
            assert!(percent_of(most - least, *least) <= tolerance);
        }
    }
}

#[test]
fn shares_follow_the_weights() {
    for number in 0..20 {
        let weighted = [server(0, 100), server(1, 50), server(2, 25), server(3, 0)];
        let shares = shares(&build(seed(number), &weighted, 4_099));
        assert!(!shares.contains_key(&3) && !shares.contains_key(&NOBODY));
        for (id, weight) in [(0, 100), (1, 50), (2, 25)] {
            let expected = f64::from(weight) / 175.0 * 4_099.0;
            assert!((f64::from(shares[&id]) - expected).abs() <= 2.0, "{shares:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 100 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_weights_have_their_shares_to_within_a_round(
        seed in any::<u64>(), weights in proptest::collection::vec(0u32..=1000, 1..40),
    ) {
        let candidates: Vec<_> = (0u16..).zip(&weights).map(|(number, weight)| server(number, *weight)).collect();
        let table = build(seed, &candidates, 4_099);
        let shares = shares(&table);
        let sum: u32 = weights.iter().sum();
        if sum == 0 {
            prop_assert_eq!(shares, BTreeMap::from([(NOBODY, 4_099)]));
            return Ok(());
        }
        for (id, weight) in (0u16..).zip(&weights) {
            let share = shares.get(&id).copied().unwrap_or(0);
            let expected = f64::from(*weight) * 4_099.0 / f64::from(sum);
            // Up to one place of credit and one cut-off round behind; what the others are behind is handed out too.
            let heavier_than_average = weights.len() as f64 * f64::from(*weight) / f64::from(sum);
            let (least, most) = (expected - 2.0, expected + 1.0 + heavier_than_average);
            let share = f64::from(share);
            prop_assert!(least <= share && share <= most, "{}: {} for {}", id, share, expected);
        }
        prop_assert_eq!(shares.values().sum::<u32>(), 4_099);
    }

    #[test]
    fn the_table_depends_on_neither_the_order_nor_the_ids(
        seed in any::<u64>(), weights in proptest::collection::vec(0u32..=100, 1..30),
        (shift, key) in (1..40_000u16, any::<u64>()),
    ) {
        let named: Vec<_> = (0u16..).zip(&weights).map(|(number, weight)| server(number, *weight)).collect();
        let mut shuffled = named.clone();
        shuffled.sort_by_key(|candidate| mix(key ^ u64::from(candidate.id)));
        prop_assert_eq!(build(seed, &named, 4_099), build(seed, &shuffled, 4_099));

        // Another node numbers the servers otherwise: backwards, and from elsewhere.
        let other = |id: u16| if id == NOBODY { NOBODY } else { shift + 100 - id };
        for candidate in &mut shuffled {
            candidate.id = other(candidate.id);
        }
        let there = build(seed, &shuffled, 4_099);
        let here: Vec<_> = build(seed, &named, 4_099).places().iter().map(|id| other(*id)).collect();
        prop_assert_eq!(there.places(), here);
    }

    #[test]
    fn values_read_back_are_the_table(
        seed in any::<u64>(), count in 0..30u16, spare in 0..5usize, size in 0..3usize,
    ) {
        let table = build(seed, &servers(count), SIZES[size]);
        let mut values = table.to_values();
        prop_assert_eq!(values.len(), values_for(SIZES[size]) as usize);
        for (number, id) in (0..).zip(table.places()) {
            let (value, shift) = lane(number);
            prop_assert_eq!((values[value as usize] >> shift) & 0xffff, u64::from(*id));
        }
        // Inner maps may be larger than what lies in them.
        values.extend(std::vec![0; spare]);
        prop_assert_eq!(Table::from_values(&values), Some(table));
    }

    #[test]
    fn values_that_are_no_table_are_refused_and_never_a_panic(
        values in proptest::collection::vec(any::<u64>(), 0..20), size in 0..200u64,
    ) {
        let mut values = values;
        if let Some(first) = values.first_mut() {
            *first = size;
        }
        let fits = !values.is_empty() && size > 0 && values.len() > usize::try_from(size.div_ceil(4)).unwrap();
        prop_assert_eq!(Table::from_values(&values).map(|table| u64::from(table.size())), fits.then_some(size));
    }

    #[test]
    fn every_place_is_in_the_table(seed in any::<u64>(), address in any::<[u64; 2]>(), attempt in 0..8u32) {
        for size in SIZES.into_iter().chain([1, 2]) {
            prop_assert!(place(seed, Address(address), size, attempt) < size);
        }
    }
}

#[test]
fn values_cut_short_or_of_absurd_size_are_refused() {
    let values = build(1, &servers(3), 4_099).to_values();
    for cut in [0, 1, 2, values.len() - 1] {
        assert_eq!(Table::from_values(&values[..cut]), None);
    }
    for size in [0, 4_105, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let mut values = values.clone();
        values[0] = size;
        assert_eq!(Table::from_values(&values), None, "size {size}");
    }
}

#[test]
fn without_a_server_of_any_weight_nobody_is_picked() {
    let client = Address::from_v4_word(1);
    for candidates in [Vec::new(), std::vec![server(1, 0), server(2, 0)]] {
        let table = build(9, &candidates, 4_099);
        assert!(table.places().iter().all(|id| *id == NOBODY));
        assert_eq!(table.pick(9, client), None);
    }
    assert_eq!(build(9, &servers(1), 4_099).pick(9, client), Some(0));
}

#[test]
fn more_servers_than_places_share_them_one_each() {
    let table = build(4, &servers(4_096), 257);
    let shares = shares(&table);
    assert_eq!(shares.len(), 257);
    assert!(!shares.contains_key(&NOBODY));
}

#[test]
fn a_client_has_one_server_and_other_seeds_give_others() {
    let table = |number| build(seed(number), &servers(3), 4_099);
    let picks = |number: u64| -> Vec<_> {
        let table = table(number);
        (0..300u32).map(|client| table.pick(seed(number), Address::from_v4_word(client))).collect()
    };
    assert_eq!(picks(1), picks(1));
    let same = picks(1).iter().zip(&picks(2)).filter(|(one, other)| one == other).count();
    assert!((50..150).contains(&same), "{same} of 300 the same");
}

/// Places that changed hands although neither their old nor their new server is `which`.
fn moved_beside(before: &Table, after: &Table, which: u16) -> u32 {
    let moved = before
        .places()
        .iter()
        .zip(after.places())
        .filter(|(old, new)| old != new && **old != which && **new != which)
        .count();
    u32::try_from(moved).unwrap()
}

/// For each number of servers, the most of the table that may change hands between servers that a change does not
/// concern, in percent: what was seen over the seeds here (0, 0.8, 2.0, 3.0, 1.7, 0.9), and a little. The paper's
/// section 5.3 has about 2 % where a server has a hundred places.
const DISRUPTION: [(u16, f64); 6] = [(2, 0.0), (3, 1.2), (10, 2.5), (40, 3.5), (160, 2.5), (600, 1.5)];

/// Builds the table before and after `change` to one of the servers, and looks at how many of the others' places moved.
fn disrupts_little(change: impl Fn(&mut Vec<Candidate>, usize)) {
    for (count, tolerance) in DISRUPTION {
        let size = size_for(usize::from(count));
        for number in 0..if count < 100 { 20 } else { 4 } {
            let which = u16::try_from(seed(number) % u64::from(count)).unwrap();
            let mut candidates = servers(count);
            let before = build(seed(number), &candidates, size);
            change(&mut candidates, usize::from(which));
            let after = build(seed(number), &candidates, size);
            assert_ne!(before, after);
            let moved = percent_of(moved_beside(&before, &after, which), size);
            assert!(moved <= tolerance, "{count} servers, seed {number}: {moved} % moved");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "builds many tables")]
fn removing_a_server_moves_few_places_of_the_others() {
    disrupts_little(|candidates, which| {
        candidates.remove(which);
    });
}

#[test]
#[cfg_attr(miri, ignore = "builds many tables")]
fn adding_a_server_takes_its_share_and_moves_few_other_places() {
    for (count, tolerance) in DISRUPTION {
        let size = size_for(usize::from(count) + 1);
        for number in 0..4 {
            let before = build(seed(number), &servers(count), size);
            let after = build(seed(number), &servers(count + 1), size);
            let share = percent_of(shares(&after)[&count], size);
            assert!((share - 100.0 / f64::from(count + 1)).abs() < 0.05);
            let moved = percent_of(moved_beside(&before, &after, count), size);
            // Two servers who share with a third are as three of whom one leaves.
            let tolerance = f64::max(tolerance, 1.2);
            assert!(moved <= tolerance, "{count} servers, seed {number}: {moved} % moved");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "builds many tables")]
fn halving_or_doubling_a_weight_moves_few_places_of_the_others() {
    disrupts_little(|candidates, which| candidates[which].weight = 50);
    disrupts_little(|candidates, which| candidates[which].weight = 200);
}

#[test]
#[cfg_attr(miri, ignore = "builds many tables")]
fn a_weight_of_zero_is_as_good_as_not_there() {
    for number in 0..5 {
        let mut candidates = servers(10);
        candidates[4].weight = 0;
        let weightless = build(seed(number), &candidates, 4_099);
        candidates.remove(4);
        assert_eq!(weightless, build(seed(number), &candidates, 4_099));
    }
}

/// A hospital's clinicians come from consecutive addresses. For each server the count is binomial with p = 1/3 and a
/// standard deviation of 26, so 15 % of 1,000 are 5.8 of them: a random table fails with 1 in 50 million. The seeds are
/// fixed, so the test either always passes or never.
#[test]
#[cfg_attr(miri, ignore = "many clients")]
fn three_thousand_consecutive_clients_spread_evenly_over_three_servers() {
    for number in 0..100 {
        let table = build(seed(number), &servers(3), 4_099);
        for network in [0x0a00_0000u32, 0xc0a8_5401, 0xac10_0fff] {
            let mut counts = [0u32; 3];
            for client in network..network + 3_000 {
                let server = table.pick(seed(number), Address::from_v4_word(client.to_be())).unwrap();
                counts[usize::from(server)] += 1;
            }
            assert!(counts.iter().all(|count| (850..=1_150).contains(count)), "{counts:?}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "many clients")]
fn clients_that_differ_in_any_bits_of_an_ipv6_address_spread_evenly() {
    // Privacy addresses differ in the second word, sites in the first.
    for shift in [0, 8, 16, 31, 32, 48, 52] {
        for word in 0..2 {
            let mut counts = [0u32; 3];
            let table = build(77, &servers(3), 4_099);
            for client in 0..3_000u64 {
                let mut address = [0x2001_0db8, 0xfe80];
                address[word] ^= client << shift;
                counts[usize::from(table.pick(77, Address(address)).unwrap())] += 1;
            }
            assert!(counts.iter().all(|count| (850..=1_150).contains(count)), "{shift}: {counts:?}");
        }
    }
}

#[test]
fn further_attempts_go_to_other_servers() {
    // One of three equal servers is hit again with 1/3, seven times in a row with 0.05 %.
    let table = build(5, &servers(3), 4_099);
    let mut missed = 0;
    for client in 0..1_000u32 {
        let at = |attempt| table.places()[place(5, Address::from_v4_word(client), 4_099, attempt) as usize];
        let first = at(0);
        missed += u32::from((1..8).all(|attempt| at(attempt) == first));
    }
    assert!(missed <= 3, "{missed} of 1,000 would find no other server");
}
