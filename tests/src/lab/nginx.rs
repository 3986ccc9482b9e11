//! A server: nginx in the foreground, from a directory of its own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};

use super::{
    layout::Host,
    namespace::{command, run_in},
    places,
};

/// The port that answers without TLS, whatever port 443 does.
pub const PLAIN_PORT: u16 = 8080;
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// What port 443 of the servers speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Port443 {
    /// HTTPS, each server with its own self-signed certificate.
    #[default]
    Tls,
    /// Plain HTTP: for tests of thousands of connections.
    Plain,
}

/// Starts it and waits until it answers. `big` is the file behind `/big` and `/slow`.
pub(super) fn start(namespace: &str, host: &Host, dir: &Path, big: &Path, port: Port443) -> Result<Child> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::create_dir_all(dir.join("upload"))?;
    write_certificate(host, dir)?;
    fs::write(dir.join("nginx.conf"), configuration(host, big, port))?;
    let error_log = dir.join("error.log");
    let mut nginx = command(namespace, places::tool("nginx")?, ["-e", "error.log", "-c", "nginx.conf", "-p"]);
    nginx.arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
    nginx.stderr(fs::File::create(dir.join("stderr.log"))?);
    let mut child = nginx.spawn().context("cannot start nginx")?;
    if let Err(error) = wait_until_it_answers(namespace, &mut child) {
        // It is the failed start that is reported.
        let _ = child.kill();
        let _ = child.wait();
        let log = fs::read_to_string(&error_log).unwrap_or_default();
        bail!("nginx of {} did not start: {error:#}; its log:\n{log}", host.label);
    }
    Ok(child)
}

fn wait_until_it_answers(namespace: &str, child: &mut Child) -> Result<()> {
    let start = Instant::now();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PLAIN_PORT));
    while start.elapsed() < STARTS_WITHIN {
        if run_in(namespace, || TcpStream::connect(address).is_ok())? {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended: {status}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("nothing listens on {address} after {STARTS_WITHIN:?}")
}

/// One process, so that killing it leaves nothing behind; every path within its directory.
fn configuration(host: &Host, big: &Path, port: Port443) -> String {
    let label = &host.label;
    let big = big.display();
    let ssl = match port {
        Port443::Tls => " ssl",
        Port443::Plain => "",
    };
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
worker_rlimit_nofile 131072;
events {{ worker_connections 65536; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    sendfile on;
    # No server gives a client up before a test does.
    keepalive_timeout 600s;
    client_header_timeout 600s;
    send_timeout 600s;
    keepalive_requests 1000000;
    ssl_certificate certificate.pem;
    ssl_certificate_key key.pem;
    server {{
        listen 443{ssl} backlog=4096;
        listen [::]:443{ssl} backlog=4096;
        listen {PLAIN_PORT} backlog=4096;
        listen [::]:{PLAIN_PORT} backlog=4096;
        default_type text/plain;
        location = / {{ return 200 "{label}\n"; }}
        location = /client {{ return 200 "$remote_addr\n"; }}
        location = /big {{ default_type application/octet-stream; alias {big}; }}
        location = /slow {{ default_type application/octet-stream; alias {big}; limit_rate 64k; }}
        location /upload/ {{ dav_methods PUT; client_max_body_size 1g; root .; }}
    }}
}}
"#
    )
}

/// A self-signed certificate whose common name is the server's label.
fn write_certificate(host: &Host, dir: &Path) -> Result<()> {
    let mut params = CertificateParams::new(vec![host.label.replace('_', "-")])?;
    params.distinguished_name.push(DnType::CommonName, host.label.as_str());
    params.subject_alt_names.push(SanType::IpAddress(host.address.into()));
    let key = KeyPair::generate()?;
    fs::write(dir.join("certificate.pem"), params.self_signed(&key)?.pem())?;
    fs::write(dir.join("key.pem"), key.serialize_pem())?;
    Ok(())
}
