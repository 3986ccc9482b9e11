//! Hearing who says that it has an address: ARP and Neighbour Advertisements on one interface.

use std::io;
use std::net::IpAddr;

use socket2::{SockFilter, Socket};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::frames::claim;
use super::packet_socket::open_bound;
use super::{Mac, NetError};

/// Claims that were not taken; what is more is heard again when it is asked for.
const ROOM: usize = 256;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Claims {
    tasks: Vec<JoinHandle<()>>,
}

impl Claims {
    /// Listens on the interface of that index, and gives who claims what. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Packet`]: no such interface, or no CAP_NET_RAW.
    pub fn listen(index: u32) -> Result<(Self, mpsc::Receiver<(IpAddr, Mac)>), NetError> {
        let (heard, claims) = mpsc::channel(ROOM);
        let failed = |source| NetError::Packet { doing: "listening with a packet socket", index, source };
        let mut tasks = Vec::new();
        for ethertype in [ETHERTYPE_ARP, ETHERTYPE_IPV6] {
            let socket = open(index, ethertype).map_err(failed)?;
            // SAFETY: the socket keeps its descriptor for as long as it lives, and is owned by what is made here.
            let socket = unsafe { AsyncFd::register(socket) };
            let socket = socket.map_err(|error| failed(io::Error::from(error)))?;
            tasks.push(tokio::spawn(hear(socket, heard.clone())));
        }
        Ok((Self { tasks }, claims))
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn open(index: u32, ethertype: u16) -> io::Result<Socket> {
    if ethertype == ETHERTYPE_ARP {
        return open_bound(index, ethertype);
    }
    // Nothing until the filter is on: whatever the host itself speaks over IPv6 would come here.
    let socket = open_bound(index, 0)?;
    socket.attach_filter(&ADVERTISEMENTS)?;
    super::packet_socket::bind(&socket, index, ethertype)?;
    Ok(socket)
}

/// Classic BPF: Neighbour Advertisements, by the next header at 20 and the type at 54.
const ADVERTISEMENTS: [SockFilter; 6] = [
    SockFilter::new(0x30, 0, 0, 20),
    SockFilter::new(0x15, 0, 3, 58),
    SockFilter::new(0x30, 0, 0, 54),
    SockFilter::new(0x15, 0, 1, 136),
    SockFilter::new(0x06, 0, 0, 0xffff),
    SockFilter::new(0x06, 0, 0, 0),
];

async fn hear(socket: AsyncFd<Socket>, heard: mpsc::Sender<(IpAddr, Mac)>) {
    let mut frame = [0; 256];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let read = ready.try_io(|socket| io::Read::read(&mut socket.get_ref(), &mut frame));
        match read {
            Ok(Ok(length)) => {
                let claim = frame.get(..length).and_then(claim);
                if let Some(claim) = claim
                    && heard.try_send(claim).is_err()
                    && heard.is_closed()
                {
                    return;
                }
            }
            // The interface is down, or gone: whoever listens is told by others.
            Ok(Err(error)) => debug!("a packet socket: {error}"),
            Err(_would_block) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frames::{address_probe, announcement};
    use crate::net::testing::{Lab, ip, within};
    use crate::net::{Net, PacketSocket};

    #[test]
    fn the_kernel_of_another_machine_answers_a_probe_and_is_heard_with_its_mac() {
        let lab = Lab::new();
        lab.balancer.run(async || {
            let link = Net::open().unwrap().link("lb0").await.unwrap();
            let (_claims, mut heard) = Claims::listen(link.index).unwrap();
            let socket = PacketSocket::open(link.index).unwrap();
            for address in [ip(Lab::SERVER), ip(Lab::SERVER_V6)] {
                let answer = within("an answer", async || {
                    socket.send(&address_probe(link.mac, address)).unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    std::iter::from_fn(|| heard.try_recv().ok()).find(|(claimed, _)| *claimed == address)
                });
                assert_eq!(answer.await, (address, Lab::SERVER_MAC));
            }
        });
    }

    #[test]
    fn announcements_are_heard_unasked() {
        let lab = Lab::new();
        let there = lab.server_index();
        let index = lab.balancer_index();
        lab.balancer.run(async || {
            let (_claims, mut heard) = Claims::listen(index).unwrap();
            for address in [ip("192.0.2.150"), ip("2001:db8::150")] {
                lab.server.run(async || {
                    let socket = PacketSocket::open(there).unwrap();
                    announcement(Lab::SERVER_MAC, address)
                        .iter()
                        .for_each(|frame| socket.send(frame).unwrap());
                });
                let claimed = within("the claim", async || {
                    tokio::task::yield_now().await;
                    std::iter::from_fn(|| heard.try_recv().ok()).find(|(claimed, _)| *claimed == address)
                });
                assert_eq!(claimed.await.1, Lab::SERVER_MAC);
            }
        });
    }
}
