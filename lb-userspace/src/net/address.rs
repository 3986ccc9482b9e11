//! The addresses of an interface: listing, choosing the primary one, adding and removing service addresses.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};

use tokio::time::{Instant, sleep};

use super::{Net, NetError};

/// How long an address is given to pass duplicate address detection: one probe of a second, and up to a second
/// of random delay before it (RFC 4862 sections 5.1 and 5.4.2).
const DETECTION: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(100);

/// An IP address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The prefix length that covers one address: 32 or 128.
    #[must_use]
    pub fn host_prefix(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub address: IpAddr,
    /// Its prefix length in bits.
    pub prefix: u8,
    /// It is of global scope: neither link-local nor host-local.
    pub global: bool,
    /// Another address of its prefix came first (IPv4), or it is a temporary one (IPv6, RFC 8981):
    /// the kernel uses one flag for both.
    pub secondary: bool,
    /// Not to be used for new connections.
    pub deprecated: bool,
    /// Duplicate address detection has not finished (RFC 4862 section 5.4).
    pub tentative: bool,
    /// Another machine has it: duplicate address detection failed.
    pub duplicate: bool,
    /// It has no end of life, as addresses have that are not learnt (DHCP, router advertisements).
    pub permanent: bool,
}

/// What adding an address did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It was not there; it is now.
    ByUs,
    /// It was there before, with whatever prefix.
    AlreadyThere,
}

/// What removing an address did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It was there; it is gone now.
    ByUs,
    /// There was no such host address.
    NotThere,
}

impl Net {
    /// The address that this host speaks from on the interface: one of the family that is global, neither
    /// secondary nor deprecated nor a duplicate, and not in `except` (the service addresses). One that is still
    /// being looked for on the link (tentative) is waited for, a few seconds.
    ///
    /// One with a prefix of its network comes before a bare host address, which is how other software adds
    /// service addresses. For IPv4 the first one counts. For IPv6, whose order in the kernel changes with every
    /// one added, a permanent one comes before one that was learnt, then the lowest.
    ///
    /// # Errors
    /// A netlink error, in words.
    pub async fn primary_address(
        &self,
        index: u32,
        family: Family,
        except: &[IpAddr],
    ) -> Result<Option<IpAddr>, NetError> {
        let until = Instant::now() + DETECTION;
        loop {
            let mut addresses = self.addresses(index).await?;
            match choose_primary(&addresses, family, except) {
                Some(chosen) if !chosen.tentative => return Ok(Some(chosen.address)),
                None => return Ok(None),
                Some(_) if Instant::now() < until => sleep(PAUSE).await,
                Some(_) => {
                    addresses.retain(|address| !address.tentative);
                    return Ok(choose_primary(&addresses, family, except).map(|chosen| chosen.address));
                }
            }
        }
    }

    /// The addresses of an interface, in the kernel's order.
    ///
    /// # Errors
    /// A netlink error, in words.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Address>, NetError> {
        let messages: Vec<AddressMessage> =
            self.handle.address().get().set_link_index_filter(index).execute().try_collect().await.map_err(
                |error| NetError::netlink(format!("listing the addresses of interface {index}"), error),
            )?;
        Ok(messages.iter().filter_map(Address::from_message).collect())
    }

    /// Adds a service address as a host address (/32 or /128). Adding it again changes nothing.
    ///
    /// An IPv6 one is added without duplicate address detection, so that it answers at once (in a pair the
    /// other node may just have had it), and as deprecated, so that the host never speaks from it unasked.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn add_address(&self, index: u32, address: IpAddr) -> Result<Added, NetError> {
        // The kernel takes 192.0.2.1/32 beside 192.0.2.1/24 as a second address: look first.
        if self.addresses(index).await?.iter().any(|present| present.address == address) {
            return Ok(Added::AlreadyThere);
        }
        let mut request = self.handle.address().add(index, address, Family::of(address).host_prefix());
        if address.is_ipv6() {
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_valid = u32::MAX;
            let attributes = &mut request.message_mut().attributes;
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
        match request.execute().await {
            Ok(()) => Ok(Added::ByUs),
            Err(error) => {
                let error = NetError::netlink(format!("adding {address} to interface {index}"), error);
                match error.errno() {
                    Some(libc::EEXIST) => Ok(Added::AlreadyThere),
                    // Missing privileges are EPERM.
                    Some(libc::EACCES) if address.is_ipv6() => Err(NetError::Ipv6Off { address, index }),
                    _ => Err(error),
                }
            }
        }
    }

    /// Removes a host address (/32 or /128); the same address with a wider prefix is left alone.
    ///
    /// # Errors
    /// The kernel's refusal, in words.
    pub async fn remove_address(&self, index: u32, address: IpAddr) -> Result<Removed, NetError> {
        let family = Family::of(address);
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = family.host_prefix();
        message.header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.attributes = vec![AddressAttribute::Address(address), AddressAttribute::Local(address)];
        match self.handle.address().del(message).execute().await {
            Ok(()) => Ok(Removed::ByUs),
            Err(error) => {
                let error = NetError::netlink(format!("removing {address} from interface {index}"), error);
                if error.errno() == Some(libc::EADDRNOTAVAIL) { Ok(Removed::NotThere) } else { Err(error) }
            }
        }
    }
}

impl Address {
    /// `None` when the message carries no address.
    pub(super) fn from_message(message: &AddressMessage) -> Option<Self> {
        let mut address = None;
        let mut local = None;
        let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Self {
            // On a point-to-point link IFA_ADDRESS is the other end's and IFA_LOCAL our own.
            address: local.or(address)?,
            prefix: message.header.prefix_len,
            global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
            secondary: flags.contains(AddressFlags::Secondary),
            deprecated: flags.contains(AddressFlags::Deprecated),
            tentative: flags.contains(AddressFlags::Tentative),
            duplicate: flags.contains(AddressFlags::Dadfailed),
            permanent: flags.contains(AddressFlags::Permanent),
        })
    }
}

/// The best one, tentative or not.
fn choose_primary<'a>(addresses: &'a [Address], family: Family, except: &[IpAddr]) -> Option<&'a Address> {
    addresses
        .iter()
        .filter(|candidate| Family::of(candidate.address) == family)
        .filter(|candidate| candidate.global && !candidate.secondary)
        .filter(|candidate| !candidate.deprecated && !candidate.duplicate)
        .filter(|candidate| !except.contains(&candidate.address))
        .min_by_key(|candidate| (candidate.prefix == family.host_prefix(), candidate.order()))
}

impl Address {
    /// What decides among equals instead of the kernel's order, where that is not to be relied on: learnt or not,
    /// and the address.
    fn order(&self) -> Option<(bool, Ipv6Addr)> {
        match self.address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some((!self.permanent, address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::net::testing::{Lab, ip};

    fn plain(address: &str, prefix: u8) -> Address {
        Address {
            address: ip(address),
            prefix,
            global: true,
            secondary: false,
            deprecated: false,
            tentative: false,
            duplicate: false,
            permanent: true,
        }
    }

    fn chosen(list: &[Address], family: Family, except: &[IpAddr]) -> Option<IpAddr> {
        choose_primary(list, family, except).map(|chosen| chosen.address)
    }

    #[test]
    fn the_primary_address_is_the_first_global_one_of_the_family() {
        let list = [
            Address { global: false, ..plain("169.254.1.1", 16) },
            plain("2001:db8::5", 64),
            plain("192.0.2.5", 24),
            plain("192.0.2.6", 24),
        ];
        assert_eq!(chosen(&list, Family::V4, &[]), Some(ip("192.0.2.5")));
        assert_eq!(chosen(&list, Family::V6, &[]), Some(ip("2001:db8::5")));
        assert_eq!(chosen(&list[..1], Family::V4, &[]), None);
    }

    #[test]
    fn an_address_that_must_not_be_spoken_from_is_passed_over() {
        let bad = plain("192.0.2.5", 24);
        for unusable in [
            Address { secondary: true, ..bad.clone() },
            Address { deprecated: true, ..bad.clone() },
            Address { duplicate: true, ..bad.clone() },
            Address { global: false, ..bad.clone() },
        ] {
            let list = [unusable, plain("192.0.2.9", 24)];
            assert_eq!(chosen(&list, Family::V4, &[]), Some(ip("192.0.2.9")), "{list:?}");
        }
        let list = [bad, plain("192.0.2.9", 24)];
        assert_eq!(chosen(&list, Family::V4, &[ip("192.0.2.5")]), Some(ip("192.0.2.9")));
    }

    #[test]
    fn a_host_address_is_only_the_last_resort() {
        for (family, service, own) in [
            (Family::V4, plain("192.0.2.150", 32), plain("192.0.2.9", 24)),
            (Family::V6, plain("2001:db8::1", 128), plain("2001:db8::9", 64)),
        ] {
            assert_eq!(chosen(&[service.clone(), own.clone()], family, &[]), Some(own.address));
            assert_eq!(chosen(std::slice::from_ref(&service), family, &[]), Some(service.address));
        }
    }

    #[test]
    fn an_ipv6_address_is_chosen_by_what_it_is_and_not_by_when_it_came() {
        let learnt = Address { permanent: false, ..plain("2001:db8::1", 64) };
        let mut list = vec![plain("fd00::9", 64), plain("2001:db8::9", 64), learnt];
        for _ in 0..list.len() {
            list.rotate_left(1);
            assert_eq!(chosen(&list, Family::V6, &[]), Some(ip("2001:db8::9")), "{list:?}");
        }
    }

    #[test]
    fn a_service_address_is_added_once_and_removed_once() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            for (text, prefix) in [("192.0.2.150", 32), ("2001:db8::150", 128)] {
                let address = ip(text);
                assert_eq!(net.add_address(index, address).await.unwrap(), Added::ByUs);
                let present = net.addresses(index).await.unwrap();
                let one = present.iter().find(|one| one.address == address).expect("it is there");
                assert_eq!(one.prefix, prefix);
                assert!(!one.tentative, "it answers at once");
                assert_eq!(one.deprecated, address.is_ipv6());
                assert_eq!(net.add_address(index, address).await.unwrap(), Added::AlreadyThere);
                assert_eq!(net.remove_address(index, address).await.unwrap(), Removed::ByUs);
                assert_eq!(net.remove_address(index, address).await.unwrap(), Removed::NotThere);
            }
        });
    }

    #[test]
    fn an_address_of_the_host_with_its_network_prefix_is_neither_doubled_nor_removed() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            let before = net.addresses(index).await.unwrap();
            for own in [Lab::BALANCER, Lab::BALANCER_V6] {
                assert_eq!(net.add_address(index, ip(own)).await.unwrap(), Added::AlreadyThere);
                assert_eq!(net.remove_address(index, ip(own)).await.unwrap(), Removed::NotThere, "{own}");
            }
            assert_eq!(net.addresses(index).await.unwrap(), before);
        });
    }

    #[test]
    fn the_primary_address_is_the_hosts_own_beside_service_addresses() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            net.add_address(index, ip("192.0.2.150")).await.unwrap();
            net.add_address(index, ip("2001:db8::150")).await.unwrap();
            let primary = async |family| net.primary_address(index, family, &[]).await.unwrap();
            assert_eq!(primary(Family::V4).await, Some(ip(Lab::BALANCER)));
            assert_eq!(primary(Family::V6).await, Some(ip(Lab::BALANCER_V6)));
            let except = [ip(Lab::BALANCER), ip("192.0.2.150")];
            assert_eq!(net.primary_address(index, Family::V4, &except).await.unwrap(), None);
        });
    }

    #[test]
    fn an_address_that_is_being_looked_for_is_waited_for() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            fs::write("/proc/sys/net/ipv6/conf/lb0/accept_dad", "1").unwrap();
            let own = ip("2001:db8:0:1::7");
            net.handle.address().add(index, own, 64).execute().await.unwrap();
            let listed = net.addresses(index).await.unwrap();
            assert!(listed.iter().any(|one| one.address == own && one.tentative), "{listed:?}");
            let except = [ip(Lab::BALANCER_V6)];
            assert_eq!(net.primary_address(index, Family::V6, &except).await.unwrap(), Some(own));
            let listed = net.addresses(index).await.unwrap();
            assert!(listed.iter().any(|one| one.address == own && !one.tentative), "{listed:?}");
        });
    }

    #[test]
    fn an_address_that_another_machine_has_is_not_spoken_from() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            fs::write("/proc/sys/net/ipv6/conf/lb0/accept_dad", "1").unwrap();
            net.handle.address().add(index, ip(Lab::SERVER_V6), 64).execute().await.unwrap();
            let except = [ip(Lab::BALANCER_V6)];
            assert_eq!(net.primary_address(index, Family::V6, &except).await.unwrap(), None);
            let listed = net.addresses(index).await.unwrap();
            assert!(listed.iter().any(|one| one.duplicate), "{listed:?}");
        });
    }

    #[test]
    fn where_ipv6_is_switched_off_the_setting_is_named() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            fs::write("/proc/sys/net/ipv6/conf/lb0/disable_ipv6", "1").unwrap();
            let error = net.add_address(index, ip("2001:db8::150")).await.unwrap_err().to_string();
            assert!(error.contains("2001:db8::150") && error.contains("disable_ipv6"), "{error}");
            assert_eq!(net.add_address(index, ip("192.0.2.150")).await.unwrap(), Added::ByUs);
        });
    }

    #[test]
    fn an_address_on_an_interface_that_is_gone_is_refused_in_words() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let error = Net::open().unwrap().add_address(9999, ip("192.0.2.150")).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("adding 192.0.2.150 to interface 9999"), "{text}");
            assert!(text.contains("bring it back"), "{text}");
        });
    }
}
