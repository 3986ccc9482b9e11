//! The shared tables: open addressing, two buckets of four slots a key, no locks.
//!
//! A key of three words may lie in any of [`WAYS`] slots. There are no tombstones: a look-up reads all
//! of them, but for those of buckets whose [tags](crate::tags) say that it is not there. Expiry is decided by whoever reads a slot or wants it, so nothing depends on a collector.
//!
//! # Inserting a key once
//! Two writers may insert one key at the same moment, on two cores. Each claims a vacancy, fills it,
//! publishes it as *pending*, and only then looks at the key's other slots:
//!
//! - another slot holds the key *live*: that one has won, the writer withdraws its own;
//! - another slot earlier in the key's order holds it *pending*: the writer withdraws and looks again;
//! - another slot later in the order holds it *pending*: the writer frees that one by compare-exchange
//!   (its owner finds out when it confirms, and looks again). If that one was confirmed first, the writer withdraws and looks again.
//!   A writer that has waited long enough does so with earlier ones, too.
//!
//! Then it confirms its own slot, pending to live, by compare-exchange. A key is therefore never live
//! twice: of two pending slots, one must be freed, or seen live by the other, before either confirms.
//! `table_loom.rs` explores the interleavings.
//!
//! Only the program and a daemon with all its writes in single exchanges touch a slot, so there is
//! nothing to leave locked when a process is killed; a daemon killed between claim and publish leaves one
//! slot claimed, which [`repair`] frees at the next start.

use crate::clock::Ticks;
use crate::life::{Life, SlotState};
use crate::tags::Tag;
use crate::word::Word;

/// Slots in a bucket.
pub const BUCKET: u32 = 4;
/// Slots a key may lie in: two buckets.
pub const WAYS: u32 = 2 * BUCKET;
/// How often an insertion that lost a race tries again.
const ATTEMPTS: u32 = 3;

/// One slot: its life, and `N` words of which the first three are the key.
#[cfg_attr(not(target_arch = "bpf"), derive(Debug))]
#[repr(C)]
pub struct Slot<const N: usize> {
    /// A [`Life`].
    pub life: Word,
    /// The key, then what the table keeps with it.
    pub words: [Word; N],
}

impl<const N: usize> Slot<N> {
    /// The life word as it is now.
    #[inline(always)]
    #[must_use]
    pub fn life(&self) -> Life {
        Life::from_word(self.life.load())
    }

    /// Replaces the life word if it is still `from`. Says whether it did.
    #[inline(always)]
    #[must_use]
    pub fn exchange(&self, from: Life, to: Life) -> bool {
        self.life.compare_exchange(from.word(), to.word()).is_ok()
    }

    /// All words, one after the other: only consistent if the life is the same before and after.
    #[inline(always)]
    #[must_use]
    pub fn read(&self) -> [u64; N] {
        let mut out = [0; N];
        let mut i = 0;
        while i < N {
            out[i] = self.words[i].load();
            i += 1;
        }
        out
    }

    /// Copies the words of another slot, that nobody else changes.
    #[inline(always)]
    pub fn copy(&self, from: &Self) {
        let mut i = 0;
        while i < N {
            self.words[i].store(from.words[i].load());
            i += 1;
        }
    }

    #[inline(always)]
    fn write(&self, words: &[u64; N]) {
        let mut i = 0;
        while i < N {
            self.words[i].store(words[i]);
            i += 1;
        }
    }
}

/// The slots of one bucket, side by side: one value of a map.
pub type Bucket<const N: usize> = [Slot<N>; BUCKET as usize];

/// Where a table's slots are: a map in the program, a mapping of it in user space, a vector in tests.
pub trait Slots<const N: usize> {
    /// The bucket with this number, if the table is that large.
    fn bucket(&self, number: u32) -> Option<&Bucket<N>>;
    /// Buckets in the table, less one; the number of buckets is a power of two.
    fn bucket_mask(&self) -> u32;

    /// The slot at `index`, if the table is that large.
    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Slot<N>> {
        let bucket = self.bucket(index / BUCKET)?;
        Some(&bucket[(index % BUCKET) as usize])
    }

    /// The [tags](crate::tags) of a bucket's keys, in a table that has them.
    #[inline(always)]
    fn tags(&self, _number: u32) -> Option<&Word> {
        None
    }

    /// Whether a bucket may hold a key with this tag.
    #[inline(always)]
    fn may_hold(&self, number: u32, tag: Tag) -> bool {
        match self.tags(number) {
            Some(tags) => tag.may_be_in(tags.load()),
            None => true,
        }
    }
}

/// Notes the key with this hash as that of the slot at `index`, which the caller has claimed.
#[inline(always)]
pub fn tag<const N: usize, S: Slots<N>>(slots: &S, index: u32, hash: u64) {
    if let Some(tags) = slots.tags(index / BUCKET) {
        Tag::of(hash).put(tags, index % BUCKET);
    }
}

/// What the words of a table mean to the algorithm.
pub trait Kind<const N: usize> {
    /// The bits of the first three words that are the key.
    const KEY_MASK: [u64; 3];
    /// Whether a live slot may be taken by another key.
    fn expired(life: Life, now: Ticks) -> bool;
    /// Whether [`claim_any`] must leave a live slot alone, for the moment.
    #[inline(always)]
    fn pinned(_: Life) -> bool {
        false
    }
}

/// A live slot that was found.
#[derive(Clone, Copy)]
pub struct Found<'a, const N: usize> {
    /// Where it is.
    pub index: u32,
    /// The slot.
    pub slot: &'a Slot<N>,
    /// Its life when it was found.
    pub life: Life,
}

impl<const N: usize> Found<'_, N> {
    /// Whether what was read of the slot since it was found belongs to the same life.
    #[inline(always)]
    #[must_use]
    pub fn still(&self) -> bool {
        self.slot.life().same_life(self.life)
    }
}

/// How an insertion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// The key is in the table since now, in this slot.
    Inserted(u32),
    /// The key was there already, in this slot.
    Present(u32),
    /// All of the key's slots hold others that may not be evicted.
    Full,
    /// Others took, or were filling, the key's slots at every attempt; perhaps with the same key.
    Contended,
}

/// Where a key may lie.
#[derive(Clone, Copy)]
struct Places {
    /// The numbers of its two buckets.
    first: u32,
    second: u32,
    /// Where in both it begins. Each slot is a cache line: most keys are found in the first that is looked at.
    home: u32,
}

/// The bits of a hash that say where in its buckets a key begins; no table has so many buckets that they say more.
const HOME_SHIFT: u32 = 29;

impl Places {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the hash is cut into its two halves")]
    const fn of(hash: u64, bucket_mask: u32) -> Self {
        let first = hash as u32 & bucket_mask;
        let second = (hash >> 32) as u32 & bucket_mask;
        // A key with one bucket only would be the first to run out of slots.
        let second = if second == first { first ^ (1 & bucket_mask) } else { second };
        Self { first, second, home: (hash >> HOME_SHIFT) as u32 }
    }

    /// Where in its bucket the `way`-th slot lies.
    #[inline(always)]
    const fn place(self, way: u32) -> u32 {
        self.home.wrapping_add(way >> 1) & (BUCKET - 1)
    }

    /// The index of the `way`-th slot.
    #[inline(always)]
    const fn index(self, way: u32) -> u32 {
        let bucket = if in_first(way) { self.first } else { self.second };
        (bucket * BUCKET) | self.place(way)
    }
}

/// The index of a key's `way`-th slot, in the order in which they are looked at.
#[inline(always)]
#[must_use]
pub const fn candidate(hash: u64, bucket_mask: u32, way: u32) -> u32 {
    Places::of(hash, bucket_mask).index(way)
}

/// Whether a way leads into the key's first bucket.
const fn in_first(way: u32) -> bool {
    way & 1 == 0
}

/// The slots in which a key may lie.
#[derive(Clone, Copy)]
struct Ways<'a, const N: usize> {
    places: Places,
    first: &'a Bucket<N>,
    second: &'a Bucket<N>,
}

impl<'a, const N: usize> Ways<'a, N> {
    #[inline(always)]
    fn of<S: Slots<N>>(slots: &'a S, hash: u64) -> Option<Self> {
        let places = Places::of(hash, slots.bucket_mask());
        let first = slots.bucket(places.first)?;
        let second = slots.bucket(places.second)?;
        Some(Self { places, first, second })
    }

    /// The `way`-th slot.
    #[inline(always)]
    fn slot(&self, way: u32) -> &'a Slot<N> {
        let bucket = if in_first(way) { self.first } else { self.second };
        &bucket[self.places.place(way) as usize]
    }

    /// Its index.
    #[inline(always)]
    const fn index(&self, way: u32) -> u32 {
        self.places.index(way)
    }
}

#[inline(always)]
fn matches_key<const N: usize, K: Kind<N>>(slot: &Slot<N>, key: [u64; 3]) -> bool {
    (slot.words[0].load() ^ key[0]) & K::KEY_MASK[0]
        | (slot.words[1].load() ^ key[1]) & K::KEY_MASK[1]
        | (slot.words[2].load() ^ key[2]) & K::KEY_MASK[2]
        == 0
}

/// Whether the slot held `key` when its life was `seen`. Words of two lives can look like a key that neither had;
/// the version, read again after them, tells. The state may have moved on within that life.
#[inline(always)]
fn held<const N: usize, K: Kind<N>>(slot: &Slot<N>, seen: Life, key: [u64; 3]) -> bool {
    matches_key::<N, K>(slot, key) && slot.life().same_version(seen)
}

/// Finds the live, unexpired slot that holds `key`.
///
/// If the slot is given to another key in this very moment, words of both may look like `key`: whoever uses what was
/// found asks [`Found::still`] after the last word was read, or exchanges the life that was found.
#[inline(always)]
pub fn find<const N: usize, K: Kind<N>, S: Slots<N>>(
    slots: &S,
    hash: u64,
    key: [u64; 3],
    now: Ticks,
) -> Option<Found<'_, N>> {
    const { assert!(K::KEY_MASK[1] == u64::MAX) };
    let Places { first, second, .. } = Places::of(hash, slots.bucket_mask());
    let mut which = 0;
    while which < 2 {
        let number = if which == 0 { first } else { second };
        which += 1;
        if !slots.may_hold(number, Tag::of(hash)) {
            continue;
        }
        let bucket = slots.bucket(number)?;
        let mut at = 0;
        while at < BUCKET {
            let slot = &bucket[at as usize];
            // Nearly all others differ here, whatever state they are in: a branch that is always guessed right.
            if slot.words[1].load() == key[1] {
                let life = slot.life();
                if holds::<N, K>(slot, life, key, now) {
                    return Some(Found { index: number * BUCKET + at, slot, life });
                }
            }
            at += 1;
        }
    }
    None
}

/// Whether a slot with this life holds `key`, live and not expired.
#[inline(always)]
fn holds<const N: usize, K: Kind<N>>(slot: &Slot<N>, life: Life, key: [u64; 3], now: Ticks) -> bool {
    matches!(life.state(), SlotState::Live) && matches_key::<N, K>(slot, key) && !K::expired(life, now)
}

/// As [`find`], in the slot alone where the key begins: most are there.
#[inline(always)]
pub fn find_at_home<const N: usize, K: Kind<N>, S: Slots<N>>(
    slots: &S,
    hash: u64,
    key: [u64; 3],
    now: Ticks,
) -> Option<Found<'_, N>> {
    let places = Places::of(hash, slots.bucket_mask());
    let slot = &slots.bucket(places.first)?[places.place(0) as usize];
    let life = slot.life();
    let index = places.index(0);
    if holds::<N, K>(slot, life, key, now) { Some(Found { index, slot, life }) } else { None }
}

/// Inserts `words` under their key unless it is there, live for `note` and `deadline`.
///
/// `evicted` is given the words and life of an expired slot whose place was taken, before it is overwritten.
#[inline(always)]
pub fn insert_if_absent<const N: usize, K: Kind<N>, S: Slots<N>>(
    slots: &S,
    hash: u64,
    words: &[u64; N],
    note: u32,
    deadline: Ticks,
    now: Ticks,
    mut evicted: impl FnMut(u32, &[u64; N], Life),
) -> Insert {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        let inserted = try_insert::<N, K, S>(
            slots,
            hash,
            [words[0], words[1], words[2]],
            |slot| slot.write(words),
            note,
            deadline,
            now,
            |index, slot, life| evicted(index, &slot.read(), life),
            attempt == ATTEMPTS,
        );
        if !matches!(inserted, Insert::Contended) {
            return inserted;
        }
    }
    Insert::Contended
}

/// One attempt of [`insert_if_absent`]; it ends as contended where that would look again. `fill` writes the slot's words,
/// key included, and `evicted` reads those that it needs: the program's stack has no room for copies.
///
/// Who is `impatient` frees a pending slot of the key wherever it lies in the order, instead of waiting for its owner, who may
/// have been stopped in the middle: by an interrupt, or by a hypervisor. The order only decides who goes on; that a pending slot
/// is freed before another is confirmed is what keeps a key from being live twice.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "the table, the key, what to store, and what to do with the old"
)]
pub fn try_insert<const N: usize, K: Kind<N>, S: Slots<N>>(
    slots: &S,
    hash: u64,
    key: [u64; 3],
    fill: impl Fn(&Slot<N>),
    note: u32,
    deadline: Ticks,
    now: Ticks,
    mut evicted: impl FnMut(u32, &Slot<N>, Life),
    impatient: bool,
) -> Insert {
    let Some(ways) = Ways::of(slots, hash) else { return Insert::Full };
    let (way, seen) = match vacancy::<N, K>(&ways, key, now) {
        Vacancy::At(way, seen) => (way, seen),
        Vacancy::Present(index) => return Insert::Present(index),
        Vacancy::Soon => return Insert::Contended,
        Vacancy::None => return Insert::Full,
    };
    let index = ways.index(way);
    let Some(slot) = slots.slot(index) else { return Insert::Full };
    let claimed = seen.claimed();
    if !slot.exchange(seen, claimed) {
        return Insert::Contended;
    }
    if matches!(seen.state(), SlotState::Live) {
        evicted(index, slot, seen);
    }
    tag(slots, index, hash);
    fill(slot);
    let pending = claimed.with_state(SlotState::Pending).with_note(note).with_deadline(deadline);
    // Nobody else changes a claimed slot; the exchange is for its full barrier.
    if !slot.exchange(claimed, pending) {
        return Insert::Contended;
    }
    match settle::<N, K>(&ways, key, index, if impatient { 0 } else { way }, now) {
        Settled::Alone => {
            if slot.exchange(pending, pending.with_state(SlotState::Live)) {
                return Insert::Inserted(index);
            }
        }
        Settled::Lost(winner) => {
            let _freed_by_the_winner = !slot.exchange(pending, pending.with_state(SlotState::Free));
            if let Some(winner) = winner {
                return Insert::Present(winner);
            }
        }
    }
    Insert::Contended
}

enum Vacancy {
    /// This way, and the life it was seen with.
    At(u32, Life),
    /// The key is live in the slot of this index.
    Present(u32),
    /// There is none, but others are filling slots at this moment, perhaps with this key.
    Soon,
    /// All slots hold other keys.
    None,
}

/// The vacancies of one bucket.
#[derive(Clone, Copy)]
struct Vacancies {
    count: u32,
    way: u32,
    life: Life,
}

impl Vacancies {
    const NONE: Self = Self { count: 0, way: 0, life: Life::from_word(0) };

    #[inline(always)]
    const fn and(self, way: u32, life: Life) -> Self {
        let first = if self.count == 0 { (way, life) } else { (self.way, self.life) };
        Self { count: self.count + 1, way: first.0, life: first.1 }
    }
}

/// Vacancies in its first bucket with which a key goes where it begins, though its second bucket has more. In a quarter-full
/// table five keys of six are found at the first look, instead of seven of ten, and at half load two keys more
/// in 100,000 find no room; with two vacancies it would be eleven.
const ROOMY: u32 = 3;

/// Chooses a slot for `key`: its own expired one, or the first free or expired one of the bucket with more of them,
/// which leaves room in both for longer than filling one after the other does.
#[inline(always)]
fn vacancy<const N: usize, K: Kind<N>>(ways: &Ways<'_, N>, key: [u64; 3], now: Ticks) -> Vacancy {
    let mut first = Vacancies::NONE;
    let mut second = Vacancies::NONE;
    let mut soon = false;
    let mut way = 0;
    while way < WAYS {
        let slot = ways.slot(way);
        let life = slot.life();
        let vacant = match life.state() {
            SlotState::Free => true,
            SlotState::Live => {
                let expired = K::expired(life, now);
                if held::<N, K>(slot, life, key) {
                    // A key is live once, so an expired slot of its own is the only one that could come
                    // back to life: taking it and refreshing it exclude each other.
                    return if expired { Vacancy::At(way, life) } else { Vacancy::Present(ways.index(way)) };
                }
                expired
            }
            SlotState::Claimed | SlotState::Pending => {
                soon = true;
                false
            }
        };
        if vacant && in_first(way) {
            first = first.and(way, life);
        } else if vacant {
            second = second.and(way, life);
        }
        way += 1;
    }
    let at_home = first.way == 0 && first.count >= ROOMY;
    let best = if second.count > first.count && !at_home { second } else { first };
    if best.count > 0 {
        Vacancy::At(best.way, best.life)
    } else if soon {
        Vacancy::Soon
    } else {
        Vacancy::None
    }
}

enum Settled {
    /// No other slot holds the key.
    Alone,
    /// The slot of this index holds it, or one that is still pending does.
    Lost(Option<u32>),
}

/// Sees that no other slot holds the key. Pending ones before `yields_to` in the key's order win, others are freed.
#[inline(always)]
fn settle<const N: usize, K: Kind<N>>(
    ways: &Ways<'_, N>,
    key: [u64; 3],
    own_index: u32,
    yields_to: u32,
    now: Ticks,
) -> Settled {
    let mut way = 0;
    while way < WAYS {
        let (index, slot) = (ways.index(way), ways.slot(way));
        let life = slot.life();
        // By index: in a table of one bucket each slot is two of the ways.
        if index != own_index
            && matches!(life.state(), SlotState::Pending | SlotState::Live)
            // Whoever claims the slot after it was looked at here goes pending later, and sees ours.
            && held::<N, K>(slot, life, key)
        {
            if matches!(life.state(), SlotState::Live) {
                if !K::expired(life, now) {
                    return Settled::Lost(Some(index));
                }
            } else if way < yields_to {
                return Settled::Lost(None);
            } else if !slot.exchange(life, life.with_state(SlotState::Free))
                && matches!(slot.life().state(), SlotState::Pending | SlotState::Live)
            {
                // It was confirmed in this moment, or is another's: whoever looks again will know.
                return Settled::Lost(None);
            }
        }
        way += 1;
    }
    Settled::Alone
}

/// Takes one of a hash's slots whatever it holds, preferring a free one, then an expired one, then the one with the
/// earliest deadline: for tables whose slots may always be overwritten. It does not look for the key: whoever may
/// have it there already asks [`find`] first, and two who ask at the same moment get a slot each.
///
/// The slot is left claimed: fill it, then [`publish`] it. `None` if all of them are being filled by others.
#[inline(always)]
pub fn claim_any<const N: usize, K: Kind<N>, S: Slots<N>>(
    slots: &S,
    hash: u64,
    now: Ticks,
) -> Option<(u32, Life)> {
    let ways = Ways::of(slots, hash)?;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        // No `Option`: its empty half is undefined, and the verifier sees it copied about.
        let (mut best, mut best_life) = (0, Life::from_word(0));
        let mut best_age = 0;
        let mut way = 0;
        while way < WAYS && best_age < u32::MAX {
            let life = ways.slot(way).life();
            let age = match life.state() {
                SlotState::Free => u32::MAX,
                SlotState::Live if K::pinned(life) => 0,
                SlotState::Live if K::expired(life, now) => u32::MAX - 1,
                // Deadlines lie less than 2^30 ticks ahead.
                SlotState::Live => (u32::MAX >> 1) - life.deadline().since(now).0,
                SlotState::Claimed | SlotState::Pending => 0,
            };
            if age > best_age {
                best_age = age;
                (best, best_life) = (ways.index(way), life);
            }
            way += 1;
        }
        if best_age == 0 {
            return None;
        }
        let claimed = best_life.claimed();
        if slots.slot(best)?.exchange(best_life, claimed) {
            tag(slots, best, hash);
            return Some((best, claimed));
        }
    }
    None
}

/// How weak a live slot is that has this deadline: the earlier, the weaker, and an expired one is weakest; never zero.
#[inline(always)]
#[must_use]
pub const fn weakness(life: Life, now: Ticks) -> u32 {
    if life.deadline().is_past(now) {
        u32::MAX
    } else {
        // Deadlines lie less than 2^30 ticks ahead.
        (u32::MAX >> 1) - life.deadline().since(now).0
    }
}

/// The weakest slot among those of a hash's that are live, if at least `least` of them are `weak` at all: more than zero.
#[inline(always)]
pub fn weakest<const N: usize, S: Slots<N>>(
    slots: &S,
    hash: u64,
    weak: impl Fn(&Slot<N>, Life) -> u32,
    least: u32,
) -> Option<Found<'_, N>> {
    let ways = Ways::of(slots, hash)?;
    let (mut count, mut first, mut first_life) = (0, 0, Life::from_word(0));
    let mut longest = 0;
    let mut way = 0;
    while way < WAYS {
        let slot = ways.slot(way);
        let life = slot.life();
        let age = if matches!(life.state(), SlotState::Live) { weak(slot, life) } else { 0 };
        count += u32::from(age > 0);
        if age > longest {
            (longest, first, first_life) = (age, ways.index(way), life);
        }
        way += 1;
    }
    if count == 0 || count < least {
        return None;
    }
    Some(Found { index: first, slot: slots.slot(first)?, life: first_life })
}

/// Fills a slot taken by [`claim_any`] and puts it in force.
#[inline(always)]
pub fn publish<const N: usize>(slot: &Slot<N>, claimed: Life, words: &[u64; N], note: u32, deadline: Ticks) {
    slot.write(words);
    publish_filled(slot, claimed, note, deadline);
}

/// Puts a slot in force that was taken by [`claim_any`] and filled word by word.
#[inline(always)]
pub fn publish_filled<const N: usize>(slot: &Slot<N>, claimed: Life, note: u32, deadline: Ticks) {
    let live = claimed.with_state(SlotState::Live).with_note(note).with_deadline(deadline);
    slot.life.store(live.word());
}

/// Frees a slot taken by [`claim_any`] or owned by the caller in that state.
#[inline(always)]
pub fn release<const N: usize>(slot: &Slot<N>, owned: Life) {
    slot.life.store(owned.with_state(SlotState::Free).word());
}

/// Frees slots that a process left claimed or pending when it was killed.
///
/// `suspects` are the indices and lives seen in an earlier pass, long enough ago that no program run that was
/// under way then can still be (a run takes microseconds). Returns how many were freed.
#[cfg(not(target_arch = "bpf"))]
pub fn repair<const N: usize, S: Slots<N>>(
    slots: &S,
    suspects: impl IntoIterator<Item = (u32, Life)>,
) -> usize {
    suspects
        .into_iter()
        .filter(|(index, life)| {
            matches!(life.state(), SlotState::Claimed | SlotState::Pending)
                && slots
                    .slot(*index)
                    .is_some_and(|slot| slot.exchange(*life, life.with_state(SlotState::Free)))
        })
        .count()
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "table_tests.rs"]
mod tests;

#[cfg(test)]
#[cfg(not(loom))]
#[path = "table_thread_tests.rs"]
mod thread_tests;

#[cfg(test)]
#[cfg(loom)]
#[path = "table_loom.rs"]
mod loom_tests;
