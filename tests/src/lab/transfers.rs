//! Large files from clients to servers.

use std::{fs, net::IpAddr, process::Stdio};

use anyhow::{Context as _, Result, bail};

use super::{Lab, big, layout::Ns};

/// curl gives up when not a byte came or went for so many seconds.
const STALLED: [&str; 4] = ["--speed-limit", "1", "--speed-time", "15"];

impl Lab {
    /// The SHA-256 of what curl gets, in hexadecimal digits, without keeping it in memory.
    ///
    /// # Errors
    /// Those of [`Lab::curl`].
    pub fn download_sha256(&self, source: impl Into<IpAddr>, url: &str) -> Result<String> {
        let source = source.into().to_string();
        let mut curl = self.command(Ns::Client, "curl", ["-sSfk", "--interface", &source, url]);
        curl.args(STALLED);
        let mut curl =
            curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start curl")?;
        let body = curl.stdout.take().context("curl has no standard output")?;
        let digest = big::sha256(body.into());
        let status = curl.wait()?;
        if !status.success() {
            bail!("curl from {source} to {url}: {status}");
        }
        digest
    }

    /// Has curl put the file behind `/big` to a URL under `/upload/`, from one of the client host's addresses.
    ///
    /// # Errors
    /// Those of [`Lab::curl`].
    pub fn upload(&self, source: impl Into<IpAddr>, url: &str) -> Result<()> {
        let big = self.places.big_file();
        self.curl(source, url, &[&STALLED[..], &["-T", &big.to_string_lossy()]].concat()).map(drop)
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
