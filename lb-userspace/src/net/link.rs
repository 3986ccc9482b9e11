//! Interfaces: index, hardware address, MTU, state and kind.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use super::{Mac, Net, NetError};

/// An interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of the interface; it changes when the interface is created anew.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; zeros for the loopback.
    pub mac: Mac,
    /// Its MTU in bytes, without the Ethernet header.
    pub mtu: u32,
    /// It is set up (`IFF_UP`), has carrier (`IFF_LOWER_UP`) and is operational (`IFF_RUNNING`, RFC 2863):
    /// before the last, the kernel silently drops what is sent.
    pub up: bool,
    /// The kernel's kind of a virtual interface (`veth`, `vlan`, `bond`, ..); `None` for a physical one.
    pub kind: Option<String>,
}

impl Net {
    /// The interface of that name.
    ///
    /// # Errors
    /// [`NetError::NoSuchLink`] lists the interfaces that exist; [`NetError::NotEthernet`] when it has no
    /// 6-byte hardware address.
    pub async fn link(&self, name: &str) -> Result<Link, NetError> {
        let messages = self.link_messages().await?;
        let known: Vec<String> = messages.iter().map(name_of).collect();
        match messages.iter().find(|message| name_of(message) == name) {
            Some(message) => {
                Link::from_message(message).ok_or_else(|| NetError::NotEthernet { name: name.to_owned() })
            }
            None => Err(NetError::NoSuchLink { name: name.to_owned(), known }),
        }
    }

    /// All Ethernet interfaces of this namespace and its loopback, in the kernel's order.
    ///
    /// # Errors
    /// A netlink error, in words.
    pub async fn links(&self) -> Result<Vec<Link>, NetError> {
        Ok(self.link_messages().await?.iter().filter_map(Link::from_message).collect())
    }

    async fn link_messages(&self) -> Result<Vec<LinkMessage>, NetError> {
        self.handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| NetError::netlink("listing the interfaces", error))
    }
}

impl Link {
    /// One that is not there.
    #[must_use]
    pub fn missing(name: &str) -> Self {
        Self { index: 0, name: name.to_owned(), mac: [0; 6], mtu: 0, up: false, kind: None }
    }

    /// Whether the kernel has it.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.index != 0
    }

    /// `None` when the interface has no 6-byte hardware address.
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        let mut mac = None;
        let mut mtu = 0;
        let mut kind = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::LinkInfo(infos) => kind = kind_of(infos),
                _ => {}
            }
        }
        Some(Self {
            index: message.header.index,
            name: name_of(message),
            mac: mac?,
            mtu,
            up: message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp | LinkFlags::Running),
            kind,
        })
    }
}

fn name_of(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn kind_of(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Lab, Namespace};

    #[test]
    fn a_link_is_described_as_the_kernel_has_it() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let link = Net::open().unwrap().link("lb0").await.unwrap();
            assert_eq!(link.name, "lb0");
            assert_eq!(link.mac, Lab::BALANCER_MAC);
            assert_eq!(link.mtu, 1500);
            assert!(link.up);
            assert_eq!(link.kind.as_deref(), Some("veth"));
        });
    }

    #[test]
    fn a_missing_link_is_an_error_that_names_those_that_exist() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let error = Net::open().unwrap().link("eth7").await.unwrap_err();
            let NetError::NoSuchLink { name, known } = &error else { panic!("{error}") };
            assert_eq!(name, "eth7");
            assert!(known.contains(&"lo".to_owned()) && known.contains(&"lb0".to_owned()), "{known:?}");
        });
    }

    #[test]
    fn a_link_that_is_set_down_is_not_up() {
        let namespace = Namespace::new();
        namespace.run(async || {
            let loopback = Net::open().unwrap().link("lo").await.unwrap();
            assert!(!loopback.up, "a new namespace starts with its loopback down");
        });
    }
}
