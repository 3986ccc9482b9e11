//! Addresses as keys: always 16 bytes, IPv4 mapped into IPv6 (RFC 4291 section 2.5.5.2).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in network byte order, as two words with the bytes in the order of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address(pub [u64; 2]);

/// The second word of a mapped IPv4 address has these bytes in front: `::ffff:a.b.c.d`.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

impl Address {
    /// The address whose four bytes were loaded as one native word from the packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, MAPPED | ((word as u64) << 32)])
    }

    /// The four bytes of a mapped IPv4 address, as one native word; meaningless for IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(self) -> u32 {
        (self.0[1] >> 32) as u32
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is compared")]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] as u32 == MAPPED as u32
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let (high, low) = bytes.split_at(8);
        let word = |half: &[u8]| {
            let mut out = [0; 8];
            out.copy_from_slice(half);
            u64::from_ne_bytes(out)
        };
        Self([word(high), word(low)])
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.0[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&address.0[1].to_ne_bytes());
        if address.is_v4() {
            Self::V4(Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]))
        } else {
            Self::V6(Ipv6Addr::from(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_survives_the_round_trip() {
        for text in ["192.168.85.150", "0.0.0.0", "255.255.255.255", "2001:db8::1", "::", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
            assert_eq!(Address::from(address).is_v4(), address.is_ipv4());
        }
    }

    #[test]
    fn a_v4_word_is_the_four_bytes_as_loaded() {
        let word = u32::from_ne_bytes([192, 168, 85, 150]);
        let address = Address::from_v4_word(word);
        assert_eq!(IpAddr::from(address), IpAddr::from([192, 168, 85, 150]));
        assert_eq!(address.v4_word(), word);
    }

    #[test]
    fn only_mapped_addresses_are_v4() {
        for text in ["::fffe:1.2.3.4", "::1:ffff:102:304", "1::ffff:1.2.3.4", "::1.2.3.4", "64:ff9b::1.2.3.4"]
        {
            let address: IpAddr = text.parse().unwrap();
            assert!(!Address::from(address).is_v4(), "{text}");
        }
        let mapped: IpAddr = "::ffff:1.2.3.4".parse().unwrap();
        assert!(Address::from(mapped).is_v4());
        assert_eq!(IpAddr::from(Address::from(mapped)), IpAddr::from([1, 2, 3, 4]));
    }

    proptest! {
        #[test]
        fn any_address_survives_the_round_trip(octets in any::<[u8; 16]>(), v4 in any::<[u8; 4]>()) {
            let six = Ipv6Addr::from(octets);
            prop_assert_eq!(IpAddr::from(Address::from(IpAddr::V6(six))), IpAddr::V6(six).to_canonical());
            let four = Ipv4Addr::from(v4);
            let address = Address::from(IpAddr::V4(four));
            prop_assert_eq!(IpAddr::from(address), IpAddr::V4(four));
            prop_assert_eq!(address, Address::from_v4_word(u32::from_ne_bytes(v4)));
            prop_assert_eq!(address.v4_word().to_ne_bytes(), v4);
        }

        #[test]
        fn the_words_are_the_bytes_of_the_wire(octets in any::<[u8; 16]>()) {
            let address = Address::from(IpAddr::from(octets));
            prop_assert_eq!(address.0[0].to_ne_bytes(), <[u8; 8]>::try_from(&octets[..8]).unwrap());
            prop_assert_eq!(address.0[1].to_ne_bytes(), <[u8; 8]>::try_from(&octets[8..]).unwrap());
        }
    }
}
