//! Durations as people write them: `60m`, `2s`, `500ms`, `1h30m`, `2d`.

use std::time::Duration;

/// Units from the largest, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration: numbers with the units `d`, `h`, `m`, `s`, `ms`, from the largest to the smallest,
/// each at most once. A bare number counts in `bare_unit`.
///
/// `None` for anything else, and for more than `u64::MAX` milliseconds.
#[must_use]
pub fn parse_duration(text: &str, bare_unit: Duration) -> Option<Duration> {
    if let Some(count) = digits(text) {
        return bare_unit.checked_mul(u32::try_from(count).ok()?);
    }
    let mut rest = text;
    let mut units = UNITS.iter();
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(unit_at);
        let next = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, remaining) = after.split_at(next);
        let (_, millis) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(digits(number)?.checked_mul(*millis)?)?;
        rest = remaining;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

/// Writes a duration the way [`parse_duration`] reads it, without a bare number: `1h30m`, `0s`.
///
/// Less than a millisecond is cut off.
#[must_use]
pub fn display_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, millis) in UNITS {
        let count = rest / u128::from(millis);
        rest %= u128::from(millis);
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn units_add_up_from_the_largest_to_the_smallest() {
        for (text, millis) in [
            ("60m", 3_600_000),
            ("2s", 2_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text, SECOND), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_counts_in_the_unit_of_its_place() {
        assert_eq!(parse_duration("60", Duration::from_secs(60)), Some(Duration::from_secs(3600)));
        assert_eq!(parse_duration("60", SECOND), Some(Duration::from_secs(60)));
    }

    #[test]
    fn what_could_be_read_two_ways_is_not_read() {
        for text in [
            "",
            "soon",
            "m",
            "1.5h",
            "-1s",
            "+1s",
            "1 s",
            "30m1h",
            "1m1m",
            "1h30",
            "5M",
            "1w",
            "99999999999999999999d",
            "18446744073709551615d",
            "٣s",
        ] {
            assert_eq!(parse_duration(text, SECOND), None, "{text}");
        }
    }

    #[test]
    fn a_displayed_duration_is_read_back_as_itself() {
        for millis in [0, 1, 999, 1_000, 60_000, 5_400_000, 93_784_005, 2_592_000_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&display_duration(duration), SECOND), Some(duration));
        }
        assert_eq!(display_duration(Duration::from_secs(5400)), "1h30m");
    }
}
