//! Who may be connected: so many in all, so many of one client. Pure: a seat is a number, and what ends its holder.
//!
//! Nobody is turned away. Who comes when there is no room takes the seat of the one that has been idle for longest: of
//! its own client's where that client has as many as it may have, of all otherwise. A client that has been answered is
//! as fresh as one that has just come; one that sends half a request is as idle as one that sends nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the /64 of an IPv6 address: what one machine can have as many addresses of as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        })
    }
}

/// The seats; `T` is what ends the connection of one that has to give way.
#[derive(Debug)]
pub struct Seats<T> {
    all: usize,
    of_one_client: usize,
    /// By age: the lowest number has been idle for longest.
    taken: BTreeMap<u64, (Client, T)>,
    clients: HashMap<Client, BTreeSet<u64>>,
    next: u64,
}

impl<T> Seats<T> {
    /// So many in all, and so many of one client; at least one.
    #[must_use]
    pub fn new(all: usize, of_one_client: usize) -> Self {
        let of_one_client = of_one_client.max(1);
        Self { all: all.max(1), of_one_client, taken: BTreeMap::new(), clients: HashMap::new(), next: 0 }
    }

    /// Gives `client` a seat, and what ends the connection that gives way for it.
    pub fn admit(&mut self, client: Client, end: T) -> (u64, Option<T>) {
        let own = self.clients.get(&client).filter(|seats| seats.len() >= self.of_one_client);
        let oldest = match own {
            Some(seats) => seats.first().copied(),
            None if self.taken.len() >= self.all => self.taken.keys().next().copied(),
            None => None,
        };
        let gives_way = oldest.and_then(|seat| self.leave(seat));
        (self.sit(client, end), gives_way)
    }

    /// The holder of `seat` was answered: it is as fresh as one that has just come. Gives its new number.
    pub fn renew(&mut self, seat: u64) -> u64 {
        match self.take(seat) {
            Some((client, end)) => self.sit(client, end),
            None => seat,
        }
    }

    /// The holder of `seat` is gone, if it still had it.
    pub fn leave(&mut self, seat: u64) -> Option<T> {
        self.take(seat).map(|(_, end)| end)
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.len()
    }

    fn sit(&mut self, client: Client, end: T) -> u64 {
        let seat = self.next;
        self.next += 1;
        self.taken.insert(seat, (client, end));
        self.clients.entry(client).or_default().insert(seat);
        seat
    }

    fn take(&mut self, seat: u64) -> Option<(Client, T)> {
        let (client, end) = self.taken.remove(&seat)?;
        if let Some(seats) = self.clients.get_mut(&client) {
            seats.remove(&seat);
            if seats.is_empty() {
                self.clients.remove(&client);
            }
        }
        Some((client, end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(text: &str) -> Client {
        Client::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_the_64_of_an_ipv6_address() {
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:9"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
    }

    #[test]
    fn a_client_with_all_it_may_have_takes_its_own_oldest_seat() {
        let mut seats = Seats::new(10, 2);
        let (one, other) = (client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(seats.admit(other, "other").1, None);
        assert_eq!(seats.admit(one, "a").1, None);
        assert_eq!(seats.admit(one, "b").1, None);
        assert_eq!(seats.admit(one, "c").1, Some("a"));
        assert_eq!(seats.admit(one, "d").1, Some("b"));
        assert_eq!(seats.taken(), 3);
    }

    #[test]
    fn where_all_are_taken_the_longest_idle_gives_way_and_an_answer_makes_fresh() {
        let mut seats = Seats::new(2, 9);
        let (first, _) = seats.admit(client("192.0.2.1"), "first");
        seats.admit(client("192.0.2.2"), "second");
        let first = seats.renew(first);
        assert_eq!(seats.admit(client("192.0.2.3"), "third").1, Some("second"));
        assert_eq!(seats.leave(first), Some("first"));
        assert_eq!(seats.leave(first), None, "a seat is left once");
        assert_eq!(seats.renew(first), first, "and not had again");
        assert_eq!(seats.admit(client("192.0.2.4"), "fourth").1, None);
    }

    proptest! {
        /// One address that opens as many as it likes costs the others nothing.
        #[test]
        fn nobody_has_more_than_allowed_and_one_client_never_costs_another_its_seat_while_there_is_room(
            clients in prop::collection::vec(0u8..4, 0..200), of_one in 1usize..5,
        ) {
            let mut seats = Seats::new(of_one * 4, of_one);
            for (number, last) in clients.iter().enumerate() {
                let client = Client::from(IpAddr::from([192, 0, 2, *last]));
                let (_, gone) = seats.admit(client, (client, number));
                prop_assert!(gone.is_none_or(|(whose, _)| whose == client));
                prop_assert!(seats.clients.values().all(|seats| seats.len() <= of_one));
                prop_assert_eq!(seats.clients.values().map(BTreeSet::len).sum::<usize>(), seats.taken());
            }
        }
    }
}
