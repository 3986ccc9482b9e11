//! An address as it is typed or pasted.

use std::net::IpAddr;

use anyhow::{anyhow, bail};

/// Reads an address: IPv6 also in brackets as in a URL, an IPv4-mapped one as what it is. Neither port nor interface.
pub(super) fn address(text: &str) -> anyhow::Result<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Some((link_local, interface)) = bare.split_once('%') {
        bail!("the balancer knows addresses without interfaces: write {link_local} without %{interface}");
    }
    let address: Result<IpAddr, _> = bare.parse();
    match address {
        Ok(IpAddr::V4(_)) if bare.len() < text.len() => Err(anyhow!("brackets are for IPv6: write {bare}")),
        Ok(address) => Ok(address.to_canonical()),
        Err(_) => Err(anyhow!("write one IP address without port, as in 10.1.2.3 or 2001:db8::7")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_in_every_spelling() {
        for (text, meant) in [
            ("10.1.2.3", "10.1.2.3"),
            ("2001:DB8:0:0::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("[::ffff:10.1.2.3]", "10.1.2.3"),
        ] {
            assert_eq!(address(text).unwrap().to_string(), meant, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_what_to_write() {
        for (text, remedy) in [
            ("[10.1.2.3]", "write 10.1.2.3"),
            ("fe80::7%eth0", "write fe80::7 without %eth0"),
            ("[2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]:443", "without port"),
            ("10.1.2.3:443", "without port"),
            ("mychart.example", "one IP address"),
            ("", "one IP address"),
        ] {
            let error = address(text).unwrap_err().to_string();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }
}
