//! Checksums, always over all the bytes that they cover (RFC 1071).

/// What a checksum field over these bytes must hold, with the field's own place counted as zero.
pub(super) fn right(covered: &[&[u8]], field: (usize, usize)) -> u16 {
    let mut sum = 0u64;
    for (part, bytes) in covered.iter().enumerate() {
        for (number, pair) in bytes.chunks(2).enumerate() {
            if (part, number * 2) != field {
                sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            }
        }
    }
    u16::try_from(0xffff - folded(sum)).unwrap_or_default()
}

/// The field's new content: right if the old one was, and exactly as wrong as it otherwise: a balancer must not make a
/// packet pass that was corrupted before it came here.
pub(super) fn carried(before: u16, right_before: u16, right_after: u16) -> u16 {
    let error = u64::from(before) + u64::from(!right_before);
    match folded(error + u64::from(right_after)) {
        // The two zeros of one's complement: all bits set is never written.
        0xffff => 0,
        sum => u16::try_from(sum).unwrap_or_default(),
    }
}

fn folded(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        // Section 3: 0001 f203 f4f5 f6f7 add up to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(right(&[&bytes], (9, 9)), !0xddf2);
    }

    #[test]
    fn a_right_sum_stays_right_and_a_wrong_one_wrong() {
        for (before, after) in [(0x1234, 0x4321), (0, 0xfffe), (0xfffe, 0), (0x8000, 0x7fff)] {
            assert_eq!(carried(before, before, after), after);
            assert_ne!(carried(before ^ 0x0100, before, after), after);
        }
    }
}
