//! Numbers for people.

/// Seconds as the two largest units: `45s`, `3m 10s`, `2h 5m`, `9d 4h`.
#[must_use]
pub fn duration(seconds: u64) -> String {
    let (large, small, unit, next) = match seconds {
        0..60 => return format!("{seconds}s"),
        60..3_600 => (seconds / 60, seconds % 60, "m", "s"),
        3_600..86_400 => (seconds / 3_600, seconds % 3_600 / 60, "h", "m"),
        _ => (seconds / 86_400, seconds % 86_400 / 3_600, "d", "h"),
    };
    if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit} {small}{next}") }
}

/// A number with three digits or more of its value: `999`, `12.3k`, `4.56M`.
#[must_use]
pub fn count(number: u64) -> String {
    scaled(number, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes: `999 B`, `12.3 kB`, `4.56 MB` (powers of 1000).
#[must_use]
pub fn bytes(number: u64) -> String {
    scaled(number, 1000, &[" B", " kB", " MB", " GB", " TB", " PB", " EB"])
}

fn scaled(number: u64, base: u64, units: &[&str]) -> String {
    let mut divisor = 1u64;
    let mut unit = 0;
    while unit + 1 < units.len() && number / divisor >= base {
        divisor *= base;
        unit += 1;
    }
    if unit == 0 {
        return format!("{number}{}", units[0]);
    }
    let whole = number / divisor;
    let decimals = if whole < 10 { 2 } else { usize::from(whole < 100) };
    let fraction =
        u128::from(number % divisor) * 10u128.pow(if decimals == 2 { 2 } else { 1 }) / u128::from(divisor);
    match decimals {
        0 => format!("{whole}{}", units[unit]),
        1 => format!("{whole}.{fraction}{}", units[unit]),
        _ => format!("{whole}.{fraction:02}{}", units[unit]),
    }
}

/// `1 client`, `2 clients`.
#[must_use]
pub fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (190, "3m 10s"),
            (3_600, "1h"),
            (7_500, "2h 5m"),
            (86_400 * 9 + 4 * 3_600 + 59, "9d 4h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.00k"),
            (12_345, "12.3k"),
            (123_456, "123k"),
            (4_567_890, "4.56M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(bytes(1_500), "1.50 kB");
        assert_eq!(bytes(7), "7 B");
    }
}
