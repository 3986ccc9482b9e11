//! Services and servers by id and by label.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use anyhow::{Context as _, anyhow, bail};
use lb_common::{
    address::Address,
    maps::{LABEL_BYTES, ServerInfo, ServiceInfo},
};

use crate::{
    config::{Label, suggest},
    dataplane::Maps,
};

/// Who has which id, as the daemon wrote it.
#[derive(Clone, Debug, Default)]
pub struct Names {
    services: BTreeMap<u16, ServiceInfo>,
    servers: BTreeMap<u16, ServerInfo>,
}

/// A real server as it is written on the command line: `VIP/SERVER`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerName {
    /// The virtual service's label.
    pub service: Label,
    /// The real server's label.
    pub server: Label,
}

impl FromStr for ServerName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let Some((service, server)) = text.split_once('/') else {
            bail!("write it as VIP/SERVER, such as Hyperspace/Hyperspace_Srv_1");
        };
        let label =
            |what, text: &str| text.parse::<Label>().map_err(|error| anyhow!("the {what}'s label {error}"));
        Ok(Self { service: label("virtual service", service)?, server: label("real server", server)? })
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.server)
    }
}

impl Names {
    /// Reads the names in the maps.
    #[must_use]
    pub fn read(maps: &Maps) -> Self {
        let ids = |length: usize| 0..u16::try_from(length).unwrap_or(u16::MAX);
        let services = ids(maps.service_info.len())
            .filter_map(|id| Some((id, maps.service_info.read(usize::from(id))?)))
            .filter(|(_, info)| info.label[0] != 0)
            .collect();
        let servers = ids(maps.server_info.len())
            .filter_map(|id| Some((id, maps.server_info.read(usize::from(id))?)))
            .filter(|(_, info)| info.label[0] != 0)
            .collect();
        Self { services, servers }
    }

    /// The services with their ids, in the order of their ids.
    pub fn services(&self) -> impl Iterator<Item = (u16, &ServiceInfo)> {
        self.services.iter().map(|(id, info)| (*id, info))
    }

    /// The servers with their ids, by service and then by id.
    #[must_use]
    pub fn servers(&self) -> Vec<(u16, &ServerInfo)> {
        let mut servers: Vec<_> = self.servers.iter().map(|(id, info)| (*id, info)).collect();
        servers.sort_by_key(|(id, info)| (info.service, *id));
        servers
    }

    /// What is known of a server id.
    #[must_use]
    pub fn server_info(&self, id: u16) -> Option<&ServerInfo> {
        self.servers.get(&id)
    }

    /// What is known of a service id.
    #[must_use]
    pub fn service_info(&self, id: u16) -> Option<&ServiceInfo> {
        self.services.get(&id)
    }

    /// The label of a service; `#7` for an id that has none (any more).
    #[must_use]
    pub fn service_label(&self, id: u16) -> String {
        self.services.get(&id).map_or_else(|| format!("#{id}"), |info| text(&info.label))
    }

    /// The label of a server; `#7` for an id that has none (any more).
    #[must_use]
    pub fn server_label(&self, id: u16) -> String {
        self.servers.get(&id).map_or_else(|| format!("#{id}"), |info| text(&info.label))
    }

    /// The id of the service with this label.
    ///
    /// # Errors
    /// There is none; lists those that exist, the likeliest first.
    pub fn service_id(&self, label: &str) -> anyhow::Result<u16> {
        let found = self.services().find(|(_, info)| text(&info.label) == label);
        found.map(|(id, _)| id).with_context(|| {
            let known: Vec<String> = self.services().map(|(_, info)| text(&info.label)).collect();
            unknown("virtual service", label, &known)
        })
    }

    /// The ids of a service and one of its servers.
    ///
    /// # Errors
    /// There is no such service or server; lists those that exist, the likeliest first.
    pub fn server_id(&self, name: &ServerName) -> anyhow::Result<(u16, u16)> {
        let service = self.service_id(name.service.as_str())?;
        let ours = || self.servers().into_iter().filter(|(_, info)| info.service == service);
        let found = ours().find(|(_, info)| text(&info.label) == name.server.as_str());
        let server = found.map(|(id, _)| id).with_context(|| {
            let known: Vec<String> = ours().map(|(_, info)| text(&info.label)).collect();
            let what = format!("real server of {}", name.service);
            unknown(&what, name.server.as_str(), &known)
        })?;
        Ok((service, server))
    }
}

fn unknown(what: &str, label: &str, known: &[String]) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let guess = nearest(label, &known).map_or_else(String::new, |guess| format!(" did you mean {guess:?}?"));
    if known.is_empty() {
        return format!("there is no {what} {label:?}; there are none");
    }
    format!("there is no {what} {label:?};{guess} known: {}", known.join(", "))
}

/// The known word that was probably meant; case does not matter.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower: Vec<String> = known.iter().map(|known| known.to_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    let guess = suggest(word, &lower)?;
    lower.iter().position(|known| *known == guess).map(|index| known[index])
}

/// Text of a fixed size, up to its first zero; what is not printable is replaced, for the terminal's sake.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A label as the maps keep it.
#[must_use]
pub fn label_bytes(label: &str) -> [u8; LABEL_BYTES] {
    let mut bytes = [0; LABEL_BYTES];
    let length = label.len().min(LABEL_BYTES - 1);
    bytes[..length].copy_from_slice(&label.as_bytes()[..length]);
    bytes
}

/// The address in two words of a map.
#[must_use]
pub fn ip(words: [u64; 2]) -> IpAddr {
    Address(words).into()
}

/// An IPv4-mapped IPv6 address is the IPv4 address.
#[must_use]
pub fn client_address(address: IpAddr) -> Address {
    Address::from(address.to_canonical())
}
