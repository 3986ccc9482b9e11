//! What the commonest packets take of the program: a change that makes them dearer does so on purpose, and says so here.
#![cfg(test)]

use tests::bench::instructions::instructions;

/// A packet, and the instructions and look-ups that it may take. Those that look into the index may find another entry in the way.
const MOST: [(&str, f64, f64); 13] = [
    ("not ours", 85.0, 2.0),
    ("not ours, first", 250.0, 6.0),
    ("snat4 data to server", 190.0, 5.0),
    ("snat4 data to client", 195.0, 5.0),
    ("snat6 data to server", 215.0, 5.0),
    ("snat6 data to client", 218.0, 5.0),
    ("nat4 data to client", 195.0, 5.0),
    // It spends a hop of the packet's time to live.
    ("dr4 data to server", 175.0, 5.0),
    ("snat4 data to server, first", 580.0, 9.0),
    ("snat4 data to client, first", 630.0, 11.0),
    ("snat6 data to client, first", 710.0, 11.0),
    ("snat4 SYN", 1830.0, 28.0),
    ("snat4 SYN-ACK", 1100.0, 12.0),
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
