//! `steadfastd detach`: the machine as it was before.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;

use super::lock::RunLock;
use super::store::{Loaded, Store};
use crate::dataplane::load::Seized;
use crate::firewall;
use crate::net::{Net, Removed};
use crate::paths::Paths;

/// Removes the data path, the firewall table and the addresses that the daemon has added; says what it did, a line each. The state (drained
/// servers, weights, numbers) is kept, and nothing is left in the runtime directory but a guard's log. `unload` takes the
/// program off and says what that did.
///
/// # Errors
/// A daemon is running; or what could not be removed.
pub async fn detach(
    paths: &Paths,
    unload: impl FnOnce(Seized) -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<Vec<String>> {
    let lock = RunLock::take(&paths.lock(), "detach")?;
    // Both locks before anything is touched: whoever emptied the runtime directory may have left a daemon running.
    let seized = match Seized::take(&paths.pin_dir) {
        Ok(seized) => seized,
        Err(error) => {
            lock.remove();
            return Err(error);
        }
    };
    // Addresses first: what still comes finds nobody, instead of a host that resets connections.
    let store = Store::new(paths.state_file(), paths.state_stand_in());
    let mut done = remove_addresses(store).await?;
    done.extend(unload(seized)?);
    if firewall::remove()? {
        done.push(format!("removed the firewall table {}", firewall::TABLE));
    }
    if remove_if_there(&paths.socket())? {
        done.push(format!("removed {}", paths.socket().display()));
    }
    remove_if_there(&paths.guard_lock())?;
    lock.remove();
    if done.is_empty() {
        done.push("nothing to do: no program, no address and no socket of Steadfast's is here".to_owned());
    }
    Ok(done)
}

fn remove_if_there(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

async fn remove_addresses(mut store: Store) -> anyhow::Result<Vec<String>> {
    let mut state = match store.load() {
        Loaded::State(state) => *state,
        Loaded::Nothing => return Ok(Vec::new()),
        Loaded::Broken(why) => {
            return Ok(vec![format!(
                "{why}; service addresses are left on the interfaces, whoever added them"
            )]);
        }
    };
    let net = Net::open()?;
    let mut done = Vec::new();
    for own in state.addresses.clone() {
        // An interface that is gone has taken its addresses with it.
        if let Ok(link) = net.link(&own.interface).await
            && net.remove_address(link.index, own.address).await? == Removed::ByUs
        {
            done.push(format!("removed {} from {}", own.address, own.interface));
        }
        state.addresses.remove(&own);
    }
    // That they are gone is found out again; the program has to come off.
    if let Err(error) = store.save(&state) {
        done.push(format!("what was drained, halted or changed by command could not be written: {error:#}"));
    }
    Ok(done)
}
