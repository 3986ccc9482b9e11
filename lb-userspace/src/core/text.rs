//! Text in fixed arrays, padded with zeros, as the info maps hold it; and names made of several.

/// `text` in `N` bytes: cut at a character's boundary if it is too long, and always with a zero behind it.
#[must_use]
pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    let mut length = text.len().min(N.saturating_sub(1));
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    out[..length].copy_from_slice(&text.as_bytes()[..length]);
    out
}

/// The text up to the first zero; bytes that are no UTF-8 become replacement characters.
#[must_use]
pub fn unpadded(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// A service's label, with the port that a sticky record is for, if it is for one.
#[must_use]
pub fn with_port(service: &str, port: Option<u16>) -> String {
    port.map_or_else(|| service.to_owned(), |port| format!("{service}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_and_what_is_too_long_is_cut_between_characters() {
        assert_eq!(unpadded(&padded::<8>("abc")), "abc");
        assert_eq!(unpadded(&padded::<8>("")), "");
        assert_eq!(unpadded(&padded::<8>("abcdefghij")), "abcdefg");
        assert_eq!(unpadded(&padded::<8>("abcdef\u{20ac}")), "abcdef");
    }
}
