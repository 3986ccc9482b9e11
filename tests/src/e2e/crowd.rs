//! Many clients, each with an address of its own, and who answered them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Result;

use crate::lab::{Lab, Ns, client};

/// Who answered which client.
pub type Homes = BTreeMap<IpAddr, String>;

/// Connections at the same time.
const WORKERS: usize = 8;

/// Each of the clients, by number, connects `times` times: what it was told, in order.
///
/// # Errors
/// The client host is gone. That a client was not answered is in its answers.
pub fn ask_each(
    lab: &Lab,
    clients: impl IntoIterator<Item = usize>,
    times: usize,
    to: SocketAddr,
) -> Result<BTreeMap<IpAddr, Vec<Result<String>>>> {
    let clients: Vec<IpAddr> = clients.into_iter().map(|n| lab.client_address(n)).collect();
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(client) = clients.get(next.fetch_add(1, Ordering::Relaxed)) {
            let told = (0..times).map(|_| client::who_answers(*client, to)).collect();
            answers.lock().unwrap_or_else(PoisonError::into_inner).insert(*client, told);
        }
    };
    lab.in_ns(Ns::Client, || {
        thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(work);
            }
        });
    })?;
    Ok(answers.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Who answers each of the clients, by number, on one connection each.
///
/// # Errors
/// Somebody was not answered.
pub fn homes(lab: &Lab, clients: impl IntoIterator<Item = usize>, to: SocketAddr) -> Result<Homes> {
    let answers = ask_each(lab, clients, 1, to)?;
    answers
        .into_iter()
        .map(|(client, told)| {
            let told: Result<Vec<String>> = told.into_iter().collect();
            Ok((client, told?.concat()))
        })
        .collect()
}

/// How many clients each server has.
pub fn spread(homes: &Homes) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for server in homes.values() {
        *counts.entry(server.as_str()).or_default() += 1;
    }
    counts
}

/// The clients of one server.
pub fn clients_of<'a>(homes: &'a Homes, server: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
    homes.iter().filter(move |(_, home)| *home == server).map(|(client, _)| *client)
}

/// Those who are elsewhere in `after`, and were in `before`: client, from, to.
pub fn moved<'a>(before: &'a Homes, after: &'a Homes) -> Vec<(IpAddr, &'a str, &'a str)> {
    let differs = |(client, now): (&IpAddr, &'a String)| {
        let was = before.get(client)?;
        (was != now).then_some((*client, was.as_str(), now.as_str()))
    };
    after.iter().filter_map(differs).collect()
}
