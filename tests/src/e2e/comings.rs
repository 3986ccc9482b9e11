//! Clients that come and go in every way that a connection can begin and end.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::SockRef;

use crate::{
    golden::random::Random,
    lab::{Lab, Ns, client},
};

const THREADS: u64 = 4;
/// Addresses that clients have.
const CLIENTS: usize = 300;
/// Connections that one thread has open at once.
const OPEN: usize = 150;
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Connections that were made.
    pub opened: u64,
    /// Of those, how many were used.
    pub answered: u64,
    /// Closed by the client's FIN.
    pub closed: u64,
    /// Closed by the client's RST.
    pub reset: u64,
    /// Left without a word: neither end knows more of the other.
    pub abandoned: u64,
}

impl Done {
    fn and(self, other: Self) -> Self {
        Self {
            opened: self.opened + other.opened,
            answered: self.answered + other.answered,
            closed: self.closed + other.closed,
            reset: self.reset + other.reset,
            abandoned: self.abandoned + other.abandoned,
        }
    }
}

/// The clients of a lab, and what they have open.
pub struct Comings {
    to: SocketAddr,
    threads: Vec<(Random, Vec<TcpStream>)>,
}

impl Comings {
    /// Nobody has come yet; the seed decides who will do what.
    pub fn new(to: SocketAddr, seed: u64) -> Self {
        let threads = (0..THREADS).map(|thread| (Random(seed ^ thread << 32), Vec::new())).collect();
        Self { to, threads }
    }

    /// Connections that clients have open.
    pub fn open(&self) -> usize {
        self.threads.iter().map(|(_, open)| open.len()).sum()
    }

    /// Clients come and go for so long; those who are there then stay.
    ///
    /// # Errors
    /// Somebody could not connect, or was not answered.
    pub fn go_on(&mut self, lab: &Lab, during: Duration) -> Result<Done> {
        let (to, until) = (self.to, Instant::now() + during);
        let work = |random: &mut Random, open: &mut Vec<TcpStream>| {
            let mut done = Done::default();
            while Instant::now() < until {
                step(lab, to, random, open, &mut done)?;
                thread::sleep(PAUSE);
            }
            Ok(done)
        };
        lab.in_ns(Ns::Client, || {
            thread::scope(|scope| {
                let threads =
                    self.threads.iter_mut().map(|(random, open)| scope.spawn(|| work(random, open)));
                let threads: Vec<_> = threads.collect();
                threads.into_iter().try_fold(Done::default(), |done, thread| {
                    let more: Result<Done> = thread.join().ok().context("a thread of clients panicked")?;
                    Ok(done.and(more?))
                })
            })
        })?
    }

    /// Everybody closes.
    pub fn leave(&mut self) {
        self.threads.iter_mut().for_each(|(_, open)| open.clear());
    }
}

fn step(
    lab: &Lab,
    to: SocketAddr,
    random: &mut Random,
    open: &mut Vec<TcpStream>,
    done: &mut Done,
) -> Result<()> {
    if open.len() < OPEN && (open.is_empty() || !random.one_in(3)) {
        let mut stream = client::connect(lab.client_address(random.below(CLIENTS)), to, PATIENCE)?;
        done.opened += 1;
        if random.one_in(2) {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")?;
            let mut answer = [0; 512];
            stream.read(&mut answer).context("nobody answered")?;
            done.answered += 1;
        }
        open.push(stream);
        return Ok(());
    }
    let stream = open.swap_remove(random.below(open.len()));
    match random.below(4) {
        0 => {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            done.reset += 1;
        }
        1 => {
            forget(&stream)?;
            done.abandoned += 1;
        }
        _ => done.closed += 1,
    }
    Ok(())
}

/// Has the kernel forget a connection when it is closed, instead of ending it, as if the client had lost its power.
fn forget(stream: &TcpStream) -> Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on))?;
    // SAFETY: the kernel reads `length` bytes of `on`, which outlives the call.
    let code = unsafe {
        let option = (&raw const on).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, option, length)
    };
    if code != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot have a connection forgotten");
    }
    Ok(())
}
