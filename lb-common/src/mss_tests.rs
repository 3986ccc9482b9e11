use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::checksum::fold;

/// A packet's bytes from a header on, and the length that the header claims.
struct Told<'a>(&'a [u8], u64);

impl Header for Told<'_> {
    fn byte(&self, at: u64) -> u64 {
        assert!(at < 64);
        self.0.get(usize::try_from(at).unwrap()).map_or(ABSENT, |byte| u64::from(*byte))
    }

    fn has(&self, bytes: u64) -> bool {
        bytes <= self.1
    }
}

/// A TCP header with these options, as long as it says.
fn header(options: &[u8]) -> Vec<u8> {
    let mut header = std::vec![0x5a; 20];
    header.extend(options);
    header.resize(header.len().next_multiple_of(4), 0);
    header
}

fn place(options: &[u8]) -> u64 {
    let header = header(options);
    find(&Told(&header, header.len() as u64))
}

/// As [`find`], by another way: whole options are cut off.
fn reference(options: &[u8]) -> u64 {
    let (mut rest, mut found) = (options, 0);
    loop {
        let size = match rest {
            [] | [0, ..] => return found,
            [1, ..] => 1,
            [2, 4, ..] | [3..=255, 2..=255, ..] if usize::from(rest[1]) <= rest.len() => usize::from(rest[1]),
            _ => return 0,
        };
        if rest[0] == 2 {
            found = (20 + options.len() - rest.len() + 2) as u64;
        }
        rest = &rest[size..];
    }
}

fn sum(bytes: &[u8]) -> u16 {
    !fold(bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum())
}

#[test]
fn the_option_is_found_wherever_it_stands() {
    assert_eq!(place(&[2, 4, 5, 180]), 22);
    // As Linux, Windows and macOS send it.
    assert_eq!(place(&[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]), 22);
    assert_eq!(place(&[1, 3, 3, 8, 2, 4, 5, 180, 1, 1, 4, 2]), 26);
    assert_eq!(place(&[1, 2, 4, 5, 180]), 23);
    let mut last = std::vec![1; 36];
    last.extend([2, 4, 5, 180]);
    assert_eq!(place(&last), 58);
}

#[test]
fn no_option_and_malformed_ones_are_not_found() {
    for options in [
        &[][..],
        &[1; 40],
        &[0, 2, 4, 5],
        &[3, 0, 2, 4, 5, 180],
        &[3, 1, 2, 4, 5, 180],
        &[2, 4, 5, 180, 8, 0],
        &[2, 3, 5, 1],
        &[2, 5, 5, 180, 0],
        &[8, 10, 2, 4, 5, 180],
        &[1, 1, 2, 4],
        &[1, 1, 1, 2],
    ] {
        assert_eq!(place(options), 0, "{options:?}");
    }
}

#[test]
fn what_fits_is_the_mtu_without_headers_and_an_unknown_mtu_is_no_limit() {
    assert_eq!(fitting(1500, true), 1460);
    assert_eq!(fitting(1500, false), 1440);
    assert_eq!(fitting(0, true), NO_LIMIT);
    assert_eq!(fitting(576, true), NO_LIMIT);
    assert_eq!(fitting(577, true), 537);
}

#[test]
fn the_limit_is_a_number_or_what_fits_there_and_back() {
    for (clamp, mtus, limit) in [
        (MssClamp::None, [1500, 1500], NO_LIMIT),
        (MssClamp::Bytes(9000), [1500, 1500], 9000),
        (MssClamp::Auto, [1480, 0], 1440),
        (MssClamp::Auto, [9000, 1500], 1460),
        (MssClamp::Auto, [1400, 1500], 1360),
        (MssClamp::Auto, [0, 0], NO_LIMIT),
    ] {
        assert_eq!(clamp.limit(true, mtus), limit, "{clamp:?} {mtus:?}");
    }
    assert_eq!(MssClamp::Auto.limit(false, [1460, 0]), 1400);
}

#[test]
fn numbers_and_settings_are_the_same() {
    for clamp in [MssClamp::None, MssClamp::Auto, MssClamp::Bytes(MssClamp::LEAST), MssClamp::Bytes(u16::MAX)]
    {
        assert_eq!(MssClamp::from_number(clamp.number()), clamp);
    }
}

/// Options as they come, mostly sound.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        3 => Just(std::vec![1]),
        3 => any::<[u8; 2]>().prop_map(|value| std::vec![2, 4, value[0], value[1]]),
        3 => (3..=8u8, 2..=10u8).prop_map(|(kind, size)| {
            let mut option = std::vec![kind, size];
            option.resize(size.into(), 0xee);
            option
        }),
        1 => any::<[u8; 2]>().prop_map(Vec::from),
    ];
    proptest::collection::vec(one, 0..12).prop_map(|parts| {
        let mut options = parts.concat();
        options.truncate(40);
        options
    })
}

proptest! {
    #[test]
    fn the_loop_finds_what_cutting_options_off_finds(options in options()) {
        let header = header(&options);
        prop_assert_eq!(find(&Told(&header, header.len() as u64)), reference(&header[20..]));
    }

    #[test]
    fn any_bytes_are_read_within_the_header(
        bytes in proptest::collection::vec(any::<u8>(), 20..=60), words in 5..=15u64,
    ) {
        let length = 4 * words;
        let at = find(&Told(&bytes, length));
        let inside = at >= 22 && at + 2 <= length && at + 2 <= bytes.len() as u64;
        prop_assert!(at == 0 || inside, "{at} of {} bytes, {length} told", bytes.len());
    }

    #[test]
    fn the_checksum_by_difference_is_the_checksum_of_the_whole(
        mut bytes in proptest::collection::vec(1..=255u8, 60), at in 20..=58usize, new in any::<u16>(),
    ) {
        let before = sum(&bytes);
        let old = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        bytes[at..at + 2].copy_from_slice(&new.to_ne_bytes());
        prop_assert_eq!(checksum(before, at as u64, old, new), sum(&bytes));
    }
}
