//! The redirect services: a listener for each, tried again until it can be bound.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{info, warn};

use super::descriptors;
use crate::redirect::listening::{Listener, Listening};
use crate::redirect::server::{Admission, RedirectOptions, RedirectStats, serve};

/// The pause before a listener is bound again.
const RETRY: Duration = Duration::from_secs(5);
/// The errno of what has none.
const EIO: u16 = 5;
/// Connections that wait for being accepted.
const BACKLOG: i32 = 1024;

/// The listeners. Dropping it stops them, with what they have running.
#[derive(Debug)]
pub struct Redirects {
    running: BTreeMap<SocketAddr, oneshot::Sender<()>>,
    listening: Listening,
    admission: Arc<Admission>,
}

impl Default for Redirects {
    fn default() -> Self {
        let share = descriptors::share(descriptors::limit());
        let admission = Admission::new(share.all, share.of_one_client);
        Self { running: BTreeMap::new(), listening: Listening::default(), admission }
    }
}

impl Redirects {
    /// Which of them listen: a view that stays current.
    #[must_use]
    pub fn listening(&self) -> Listening {
        self.listening.clone()
    }

    /// Listens on exactly these addresses from now on. Call it within a tokio runtime.
    pub fn follow(&mut self, wanted: &BTreeSet<SocketAddr>) {
        self.running.retain(|address, _| wanted.contains(address));
        self.listening.retain(|address| wanted.contains(address));
        for address in wanted {
            self.running.entry(*address).or_insert_with(|| {
                let (keep, stop) = oneshot::channel();
                tokio::spawn(run(*address, stop, self.listening.clone(), Arc::clone(&self.admission)));
                keep
            });
        }
    }
}

async fn run(
    address: SocketAddr,
    mut stop: oneshot::Receiver<()>,
    listening: Listening,
    admission: Arc<Admission>,
) {
    let mut told = false;
    let listener = loop {
        match bind(address) {
            Ok(listener) => break listener,
            Err(error) => {
                listening.note(address, Listener::Refused(errno(&error)));
                if !told {
                    told = true;
                    warn!(
                        "cannot listen on {address} for the redirect ({error}); trying again every {RETRY:?}"
                    );
                }
            }
        }
        tokio::select! {
            _ = &mut stop => return,
            () = sleep(RETRY) => {}
        }
    };
    listening.note(address, Listener::Open);
    info!("redirecting {address} to https");
    let stopped = async {
        // Told to, or whoever tells is gone.
        let _ = stop.await;
    };
    let stats = Arc::new(RedirectStats::default());
    serve(listener, RedirectOptions::default(), admission, stopped, stats).await;
}

/// The kernel's number for what it refused; EIO for what is not the kernel's.
fn errno(error: &io::Error) -> u16 {
    error.raw_os_error().and_then(|errno| u16::try_from(errno).ok()).unwrap_or(EIO)
}

/// Also before the address is on the interface (`IP_FREEBIND`), and beside connections of the last daemon.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use nix::libc;

    use super::*;
    use crate::net::Net;
    use crate::net::testing::{Lab, within};

    async fn ask(address: SocketAddr, host: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[test]
    fn both_families_are_redirected_on_one_port_from_before_their_addresses_are_there() {
        let lab = Lab::new();
        lab.balancer.run(async move || {
            let mut redirects = Redirects::default();
            let places: [SocketAddr; 2] =
                ["192.0.2.150:80", "[2001:db8::150]:80"].map(|place| place.parse().unwrap());
            redirects.follow(&BTreeSet::from(places));
            tokio::task::yield_now().await;
            let net = Net::open().unwrap();
            let index = net.link("lb0").await.unwrap().index;
            for (place, host) in places.iter().zip(["192.0.2.150", "[2001:db8::150]"]) {
                net.add_address(index, place.ip()).await.unwrap();
                let answer = within("an answer", async || ask(*place, host).await.ok()).await;
                assert!(answer.starts_with("HTTP/1.1 301"), "{answer}");
                let location = format!("location: https://{host}/a\r\n");
                assert!(answer.to_lowercase().contains(&location), "{answer}");
            }
        });
    }

    #[tokio::test]
    async fn a_port_in_use_is_taken_when_it_is_free_and_given_back_when_not_wanted() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let mut redirects = Redirects::default();
        let listening = redirects.listening();
        redirects.follow(&BTreeSet::from([address]));
        tokio::task::yield_now().await;
        let in_use = Listener::Refused(libc::EADDRINUSE.unsigned_abs().try_into().unwrap());
        assert_eq!(listening.all(), BTreeMap::from([(address, in_use)]));
        drop(taken);
        let mut answer = String::new();
        for _ in 0..100 {
            match ask(address, "mychart.example").await {
                Ok(text) => {
                    answer = text;
                    break;
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
        assert!(answer.starts_with("HTTP/1.1 301"), "{answer}");
        assert!(answer.to_lowercase().contains("location: https://mychart.example/a"), "{answer}");
        assert_eq!(listening.all(), BTreeMap::from([(address, Listener::Open)]));
        redirects.follow(&BTreeSet::new());
        assert_eq!(listening.all(), BTreeMap::new());
        for _ in 0..100 {
            if ask(address, "mychart.example").await.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        unreachable!("the listener is still there");
    }
}
