//! What the commonest packets take of the program: a change that makes them dearer does so on purpose, and says so here.
#![cfg(test)]

use tests::bench::instructions::instructions;

/// A packet, and the instructions and look-ups that it may take.
const MOST: [(&str, f64, f64); 6] = [
    ("not ours", 150.0, 4.0),
    ("snat4 data to server", 480.0, 8.0),
    ("snat4 data to client", 530.0, 10.0),
    ("snat6 data to server", 530.0, 8.0),
    ("snat6 data to client", 600.0, 10.0),
    ("snat4 SYN", 2700.0, 36.0),
];

#[test]
fn the_commonest_packets_take_no_more_than_they_did() {
    let report = instructions().unwrap();
    for (name, instructions, lookups) in MOST {
        let row = report.tables[0].rows.iter().find(|row| row.name == name).expect(name);
        let [executed, looked_up] = [0, 1].map(|cell: usize| row.cells[cell].median());
        println!("{name}: {executed} instructions, {looked_up} look-ups");
        assert!(executed <= instructions && looked_up <= lookups, "{name}: {executed}, {looked_up}");
        assert!(executed > instructions / 2.0, "{name}: {executed}");
    }
}
