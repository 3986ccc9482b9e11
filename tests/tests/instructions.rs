//! What the commonest packets take of the program: a change that makes them dearer does so on purpose, and says so here.
#![cfg(test)]

use tests::bench::instructions::instructions;

/// A packet, and the instructions and look-ups that it may take. Those that look into the index may find another entry in the way.
const MOST: [(&str, f64, f64); 12] = [
    ("not ours", 105.0, 3.0),
    ("not ours, first", 260.0, 7.0),
    ("snat4 data to server", 235.0, 6.0),
    ("snat4 data to client", 235.0, 6.0),
    ("snat6 data to server", 250.0, 6.0),
    ("snat6 data to client", 250.0, 6.0),
    ("nat4 data to client", 235.0, 6.0),
    ("dr4 data to server", 205.0, 6.0),
    ("snat4 data to server, first", 600.0, 10.0),
    ("snat4 data to client, first", 650.0, 12.0),
    ("snat6 data to client, first", 720.0, 12.0),
    ("snat4 SYN", 2700.0, 40.0),
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
