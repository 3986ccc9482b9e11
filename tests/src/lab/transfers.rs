//! Large files from clients to servers.

use std::{fs, net::IpAddr};

use anyhow::{Context as _, Result};

use super::{Lab, big, layout::Ns};

impl Lab {
    /// Has curl put the file behind `/big` to a URL under `/upload/`, from one of the client host's addresses.
    ///
    /// # Errors
    /// Those of [`Lab::curl`].
    pub fn upload(&self, source: impl Into<IpAddr>, url: &str) -> Result<()> {
        let big = self.places.big_file();
        self.curl(source, url, &["-T", &big.to_string_lossy()]).map(drop)
    }

    /// The SHA-256 of what was put to `/upload/NAME` of a server, in hexadecimal digits.
    ///
    /// # Errors
    /// There is no such server, or no such file.
    pub fn uploaded_sha256(&self, index: usize, name: &str) -> Result<String> {
        let server = self.existing_host(Ns::Server(index))?.suffix();
        let path = self.places.dir.join(server).join("upload").join(name);
        let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        big::sha256(file.into())
    }
}
