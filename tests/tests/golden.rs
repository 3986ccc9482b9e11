//! Golden packets through the built program. `tests/src/golden/` holds the cases, a file for each test here.

use std::collections::BTreeSet;

use lb_common::reason::Reason;
use tests::golden::{self, Case, random};

/// What happens only in modes and protocols that the cases do not have, and the stories of all modes have.
const IN_MODES: [Reason; 3] = [Reason::TooBig, Reason::ForwardedUnknown, Reason::NoServer];

fn hold(cases: &[Case]) {
    let report = golden::run(cases).err().unwrap_or_default();
    assert!(report.is_empty(), "{report}");
}

#[test]
fn what_is_not_ours_passes_untouched() {
    hold(&golden::passing::cases());
}

#[test]
fn what_is_malformed_is_dropped_and_changes_nothing() {
    hold(&golden::malformed::cases());
}

#[test]
fn syns_go_where_they_must_and_write_nothing_lasting() {
    hold(&golden::open::cases());
}

#[test]
fn handshakes_establish_flows_and_data_goes_both_ways() {
    hold(&golden::handshake::cases());
}

#[test]
fn sticky_records_decide_move_and_expire() {
    hold(&golden::sticky::cases());
}

#[test]
fn flows_close_and_are_not_closed_by_strangers() {
    hold(&golden::closing::cases());
}

#[test]
fn resets_are_answered_in_the_services_name() {
    hold(&golden::answers::cases());
}

#[test]
fn schedulers_that_count_choose_by_what_they_count() {
    let report = golden::schedulers::run().err().unwrap_or_default();
    assert!(report.is_empty(), "{report}");
}

#[test]
fn full_tables_serve_everybody() {
    hold(&golden::full::cases());
}

#[test]
fn icmp_errors_are_translated_both_ways() {
    hold(&golden::icmp::cases());
}

#[test]
fn vlan_tags_and_padding_are_kept() {
    hold(&golden::tags::cases());
}

#[test]
fn every_mode_and_family_and_interface_makes_of_packets_what_it_must() {
    let reasons = golden::modes::run().unwrap_or_else(|report| panic!("{report}"));
    assert!(IN_MODES.iter().all(|reason| reasons.contains(reason)));
}

#[test]
fn what_finds_no_row_while_rows_are_carried_over_is_dropped() {
    hold(&golden::carrying::cases());
}

#[test]
fn records_that_could_be_forged_fill_half_of_the_slots_and_make_way_for_those_that_could_not() {
    assert_eq!(golden::modes::unverified_records_give_way().unwrap(), [4, 8]);
}

#[test]
fn flows_that_could_be_forged_fill_half_of_the_slots_and_make_way_for_those_that_could_not() {
    assert_eq!(golden::modes::unverified_flows_give_way().unwrap(), [4, 8]);
}

#[test]
fn every_reason_is_the_outcome_of_a_golden_packet() {
    let seen: BTreeSet<_> = golden::all().iter().flat_map(Case::reasons).chain(IN_MODES).collect();
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
    assert!(missing.is_empty(), "no golden packet has {missing:?}");
}

#[test]
fn every_case_is_a_sentence_of_its_own() {
    let cases = golden::all();
    let names: BTreeSet<_> = cases.iter().map(Case::name).collect();
    assert_eq!(names.len(), cases.len());
    assert!(cases.len() >= 150, "{} cases", cases.len());
    for case in &cases {
        assert!(case.reasons().next().is_some(), "{}: no frame", case.name());
    }
}

#[test]
fn random_frames_pass_untouched() {
    random::random_frames_pass(30_000).unwrap();
}

#[test]
fn mutated_frames_are_never_corrupted() {
    random::mutations_are_not_corrupted(30_000).unwrap();
}

#[test]
fn a_flood_of_spoofed_syns_leaves_no_trace_in_what_lasts() {
    let flood = random::flood(200_000).unwrap();
    assert_eq!(flood.sent + flood.dropped, 200_000);
    assert!(flood.sent > 199_000, "{flood:?}");
}

#[test]
fn a_client_connects_after_a_flood_larger_than_the_half_open_table() {
    random::handshake_amid_flood(1_000).unwrap();
}
