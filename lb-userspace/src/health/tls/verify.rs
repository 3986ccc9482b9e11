//! Whether a probe judges the server's certificate, and by which authorities.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Where the distributions keep the authorities that the system trusts: Debian, Red Hat, SUSE, Alpine.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// By what a server's certificate is judged: chain, name and expiry, all or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verify {
    /// It is not.
    #[default]
    None,
    /// By the authorities that this system trusts.
    System,
    /// By the authorities in this PEM file.
    File(PathBuf),
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::System => f.write_str("system"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A file's verifier, and when the file was changed that it was made of.
type Kept = HashMap<PathBuf, (Option<SystemTime>, Arc<WebPkiServerVerifier>)>;

/// Each file is read again only when it has changed: a verifier of the system's authorities takes milliseconds.
static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

impl Verify {
    /// What judges; none where nothing is to be judged.
    ///
    /// # Errors
    /// The file cannot be read, or has no certificate in it: a sentence, which says nothing about the server.
    pub(super) fn verifier(&self) -> Result<Option<Arc<WebPkiServerVerifier>>, String> {
        let path = match self {
            Self::None => return Ok(None),
            Self::File(path) => path.as_path(),
            Self::System => SYSTEM
                .iter()
                .map(Path::new)
                .find(|path| path.exists())
                .ok_or("this system has no file of certificate authorities: install ca-certificates")?,
        };
        let changed = fs::metadata(path).and_then(|file| file.modified()).ok();
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, verifier)) = kept.get(path)
            && *of == changed
        {
            return Ok(Some(Arc::clone(verifier)));
        }
        let verifier = read(path)?;
        kept.insert(path.to_owned(), (changed, Arc::clone(&verifier)));
        Ok(Some(verifier))
    }
}

fn read(path: &Path) -> Result<Arc<WebPkiServerVerifier>, String> {
    let unreadable = |error: &dyn fmt::Display| {
        format!("cannot read the certificate authorities in {}: {error}", path.display())
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(&error))? {
        // Some of a system's are such as nobody takes any more.
        let _ = roots.add(certificate.map_err(|error| unreadable(&error))?);
    }
    if roots.is_empty() {
        return Err(unreadable(&"there is no certificate in it that can be used"));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| unreadable(&error))
}
