//! How servers are named, and what an administrator can make of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A real server of a virtual service, by their labels: `VIP/SERVER`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServerName {
    /// The virtual service's label.
    pub service: String,
    /// The real server's label.
    pub server: String,
}

/// A text without the slash between two labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" does not name a real server: write VIP/SERVER")]
pub struct NoServerName(pub String);

impl ServerName {
    /// The server `server` of the service `service`.
    #[must_use]
    pub fn new(service: &str, server: &str) -> Self {
        Self { service: service.to_owned(), server: server.to_owned() }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.server)
    }
}

impl FromStr for ServerName {
    type Err = NoServerName;

    fn from_str(text: &str) -> Result<Self, NoServerName> {
        match text.split_once('/') {
            Some((service, server)) if !service.is_empty() && !server.is_empty() && !server.contains('/') => {
                Ok(Self::new(service, server))
            }
            _ => Err(NoServerName(text.to_owned())),
        }
    }
}

impl TryFrom<String> for ServerName {
    type Error = NoServerName;

    fn try_from(text: String) -> Result<Self, NoServerName> {
        text.parse()
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.to_string()
    }
}

/// What an administrator has decided about a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    /// Takes clients, new and known.
    #[default]
    Online,
    /// Takes known clients only, so that it empties by itself.
    Drain,
    /// Takes nobody; its open flows are reset.
    Halt,
}

impl AdminState {
    /// Its number in [`ServerInfo`](lb_common::maps::ServerInfo).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Online => 1,
            Self::Drain => 2,
            Self::Halt => 3,
        }
    }

    /// The state of a number; an unknown one reads as online.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            2 => Self::Drain,
            3 => Self::Halt,
            _ => Self::Online,
        }
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Online => "online",
            Self::Drain => "drain",
            Self::Halt => "halt",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_two_labels_and_a_slash() {
        let name: ServerName = "Hyperspace/Srv_1".parse().unwrap();
        assert_eq!(name, ServerName::new("Hyperspace", "Srv_1"));
        assert_eq!(serde_json::from_str::<ServerName>(&serde_json::to_string(&name).unwrap()).unwrap(), name);
        for bad in ["", "a", "/", "a/", "/b", "a/b/c"] {
            assert!(bad.parse::<ServerName>().is_err(), "{bad}");
        }
    }
}
