//! The least that a balancer made of XDP can cost: a program that has nothing to look up.

use std::{
    iter,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::Array,
    programs::{Xdp, XdpMode},
};

use crate::{
    bench::turn::Turn,
    lab::{Host, INTERFACE, Lab, Ns, bpf_object},
};

// SAFETY: integers without padding.
unsafe impl Pod for Turn {}

/// `translate` on the balancer's interface, until it is dropped.
pub(super) struct Constant(Ebpf);

impl Constant {
    /// Attaches it; it knows nobody yet.
    ///
    /// # Errors
    /// It is not built, or the kernel refuses it.
    pub(super) fn attach(lab: &Lab) -> Result<Self> {
        let path = bpf_object("bench-xdp.o")?;
        lab.in_ns(Ns::Lb, || {
            let mut ebpf = EbpfLoader::new()
                .load_file(&path)
                .with_context(|| format!("cannot create the maps of {}", path.display()))?;
            let program = ebpf.program_mut("translate").context("no program translate")?;
            let program: &mut Xdp = program.try_into()?;
            program.load().context("the kernel refuses translate")?;
            program.attach(INTERFACE, XdpMode::Driver).context("cannot attach translate")?;
            Ok(Self(ebpf))
        })?
    }

    /// Has it carry one client's packets to the first server, and back.
    ///
    /// # Errors
    /// An address is not IPv4, or the kernel refused.
    pub(super) fn serve(&mut self, lab: &Lab, client: IpAddr) -> Result<()> {
        let IpAddr::V4(client) = client else { bail!("{client} is not IPv4") };
        let host = |ns| lab.host(ns).with_context(|| format!("the lab has no host {ns:?}"));
        let (balancer, client_host, server) = (host(Ns::Lb)?, host(Ns::Client)?, host(Ns::Server(0))?);
        let there = turn([client, balancer.address], [balancer.address, server.address], balancer, server);
        let back =
            turn([server.address, balancer.address], [balancer.address, client], balancer, client_host);
        let map = self.0.map_mut("TURNS").context("no map TURNS")?;
        let mut map: Array<_, Turn> = map.try_into()?;
        for (index, turn) in [(0, there), (1, back)] {
            map.set(index, turn, 0).context("cannot tell the program its constants")?;
        }
        Ok(())
    }
}

/// One direction: sources and destinations before and after, and between which hosts it goes on.
fn turn(from: [Ipv4Addr; 2], to: [Ipv4Addr; 2], by: &Host, next: &Host) -> Turn {
    let wire = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
    let macs: Vec<u8> = next.mac().into_iter().chain(by.mac()).collect();
    let mut words = macs.as_chunks::<2>().0.iter().map(|bytes| u16::from_ne_bytes(*bytes));
    Turn {
        from: from.map(wire),
        to: to.map(wire),
        macs: [(); 6].map(|()| words.next().unwrap_or_default()),
        difference: difference(from, to),
    }
}

/// The one's complement sum of the new words and of the old ones' complements (RFC 1624), in 16 bits.
fn difference(from: [Ipv4Addr; 2], to: [Ipv4Addr; 2]) -> u32 {
    let words = |address: Ipv4Addr| {
        let [a, b, c, d] = address.octets();
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
    };
    let new = to.into_iter().flat_map(words).map(u32::from);
    let old = from.into_iter().flat_map(words).map(|word| u32::from(!word));
    let sum: u32 = new.chain(old).sum();
    iter::repeat_n((), 2).fold(sum, |sum, ()| (sum & 0xffff) + (sum >> 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_that_is_adjusted_is_that_of_the_new_addresses() {
        let sum = |addresses: [Ipv4Addr; 2]| {
            let bytes = addresses.map(|address| address.octets()).concat();
            let sum: u32 =
                bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("it is folded")
        };
        let from = [Ipv4Addr::new(10, 85, 0, 1), Ipv4Addr::new(192, 168, 85, 10)];
        let to = [Ipv4Addr::new(192, 168, 85, 10), Ipv4Addr::new(192, 168, 85, 200)];
        // As the program does it.
        let adjusted = u32::from(!sum(from)) + difference(from, to);
        let adjusted = (adjusted & 0xffff) + (adjusted >> 16);
        assert_eq!(u32::from(!sum(to)), (adjusted & 0xffff) + (adjusted >> 16));
    }
}
