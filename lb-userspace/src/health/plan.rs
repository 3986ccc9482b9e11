//! What to change when the targets change: desired minus current, pure.

use std::collections::BTreeMap;

use thiserror::Error;

use super::spec::TargetSpec;

/// Two desired targets have one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("two health-check targets have the number {0}: nothing was changed")]
pub struct DuplicateTarget(pub u32);

/// What a new set of targets changes; every number is in exactly one of the lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Not watched before.
    pub added: Vec<TargetSpec>,
    /// Watched before in another way.
    pub replaced: Vec<TargetSpec>,
    /// Not watched any more.
    pub removed: Vec<u32>,
    /// Watched as before.
    pub unchanged: Vec<u32>,
}

/// The changes from `current` to `desired`.
///
/// # Errors
/// A number that occurs twice in `desired`.
pub fn changes(
    current: &BTreeMap<u32, TargetSpec>,
    desired: impl IntoIterator<Item = TargetSpec>,
) -> Result<Changes, DuplicateTarget> {
    let mut wanted = BTreeMap::new();
    for spec in desired {
        let id = spec.id;
        if wanted.insert(id, spec).is_some() {
            return Err(DuplicateTarget(id));
        }
    }
    let removed = current.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
    let mut changes = Changes { removed, ..Changes::default() };
    for (id, spec) in wanted {
        match current.get(&id) {
            None => changes.added.push(spec),
            Some(before) if *before == spec => changes.unchanged.push(id),
            Some(_) => changes.replaced.push(spec),
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::health::spec::{ProbeKind, ProbeSpec, Rhythm};

    fn target(id: u32, port: u16) -> TargetSpec {
        let second = Duration::from_secs(1);
        TargetSpec {
            id,
            address: ([127, 0, 0, 1], port).into(),
            probe: ProbeSpec::new(ProbeKind::Tcp, second, None).unwrap(),
            rhythm: Rhythm::new(second, 3, 2).unwrap(),
        }
    }

    fn by_id(specs: impl IntoIterator<Item = TargetSpec>) -> BTreeMap<u32, TargetSpec> {
        specs.into_iter().map(|spec| (spec.id, spec)).collect()
    }

    #[test]
    fn a_number_used_twice_is_refused() {
        let desired = [target(1, 1), target(2, 1), target(1, 2)];
        assert_eq!(changes(&BTreeMap::new(), desired), Err(DuplicateTarget(1)));
    }

    proptest! {
        #[test]
        fn applying_the_changes_gives_what_was_desired(
            current in prop::collection::btree_map(0u32..12, 0u16..3, 0..10),
            desired in prop::collection::btree_map(0u32..12, 0u16..3, 0..10),
        ) {
            let current = by_id(current.into_iter().map(|(id, port)| target(id, port)));
            let desired = by_id(desired.into_iter().map(|(id, port)| target(id, port)));
            let changes = changes(&current, desired.values().cloned()).unwrap();

            let mut applied = current.clone();
            for id in &changes.removed {
                prop_assert!(applied.remove(id).is_some());
            }
            for spec in &changes.added {
                prop_assert!(applied.insert(spec.id, spec.clone()).is_none());
            }
            for spec in &changes.replaced {
                let before = applied.insert(spec.id, spec.clone());
                prop_assert!(before.is_some_and(|before| before != *spec));
            }
            for id in &changes.unchanged {
                prop_assert_eq!(current.get(id), desired.get(id));
            }
            prop_assert_eq!(applied, desired);
        }
    }
}
