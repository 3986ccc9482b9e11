//! A light HTTP client over one TCP connection, bound to a source address. It runs in the namespace of its thread.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, Type};

/// A connection from the source address, its port chosen by the kernel.
///
/// # Errors
/// The address cannot be bound here, or the connection was refused, reset or not made within the time.
pub fn connect(source: IpAddr, to: SocketAddr, within: Duration) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    // A port is picked per destination, so that one source can have more connections than ports.
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into()).with_context(|| format!("cannot bind {source}"))?;
    socket.connect_timeout(&to.into(), within).with_context(|| format!("{source} cannot connect to {to}"))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The body of `GET path` over plain HTTP, on a connection that is closed after it.
///
/// # Errors
/// [`connect`]'s, a broken connection, or a status other than 200.
pub fn get(source: IpAddr, to: SocketAddr, path: &str, within: Duration) -> Result<Vec<u8>> {
    let mut stream = connect(source, to, within)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("{to} broke off its answer to {source}"))?;
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let head = head.with_context(|| format!("{to} sent no HTTP answer to {source}"))?;
    let body = answer.split_off(head + 4);
    let status = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    if status.split_whitespace().nth(1) != Some("200") {
        bail!("{to} answered {source}: {status}");
    }
    Ok(body)
}

/// The label of the server that answers the source, over plain HTTP, within 5 s.
///
/// # Errors
/// Those of [`get`].
pub fn who_answers(source: IpAddr, to: SocketAddr) -> Result<String> {
    let body = get(source, to, "/", Duration::from_secs(5))?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}
