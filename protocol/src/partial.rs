//! Bodies whose transfer broke off: what is kept of them so that the next try goes on where the last one stopped, for how
//! long, and which of them go first when there are too many.
//!
//! Pure, and the same for uploads at the broker and for deliveries at an agent. A partial body belongs to one agency: who
//! knows a digest alone can neither take one up nor learn that there is one. The store beside it keeps the files.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_CLOCK_SKEW;
use crate::{AgencyCode, Digest, Timestamp};

/// Partial bodies that are kept at most, whatever their sizes: each is a file of its own.
pub const MAX_PARTIALS: usize = 4096;
/// What a receiver hashes per second at least, with several at once on a slow disk. Before it says from which byte on it
/// wants a body, it reads what it has of it; whoever waits for that word gives it so much time more.
const REHASHED_BYTES_PER_S: u64 = 8 << 20;

/// How much longer than usual to wait for a receiver that may have kept this many bytes.
pub const fn rehash_time(bytes: u64) -> Duration {
    Duration::from_secs(bytes / REHASHED_BYTES_PER_S)
}

/// `[partials]`: what is kept of a body whose transfer broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialsConfig {
    /// How long it waits for its transfer to go on, in days.
    pub keep_days: u64,
    /// Room for all that wait, in MiB; what is too much goes, of those who have most and the oldest first. With 0 nothing waits
    /// for longer than a second: in effect every transfer begins anew.
    pub most_mib: u64,
    /// How much of a body may have to come again after a loss of power, in MiB. Less means more syncs.
    pub sync_every_mib: u64,
}

impl Default for PartialsConfig {
    fn default() -> Self {
        Self { keep_days: 7, most_mib: 32 << 10, sync_every_mib: 16 }
    }
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}; expected {expected}")]
pub struct PartialsConfigError {
    pub key: &'static str,
    pub found: u64,
    pub expected: &'static str,
}

impl PartialsConfig {
    pub fn check(&self) -> Result<(), PartialsConfigError> {
        let wrong = |key, found, expected| Err(PartialsConfigError { key, found, expected });
        if !(1..=365).contains(&self.keep_days) {
            return wrong("partials.keep_days", self.keep_days, "1 to 365");
        }
        if self.most_mib > 1 << 30 {
            return wrong("partials.most_mib", self.most_mib, "at most 1073741824");
        }
        if !(1..=1024).contains(&self.sync_every_mib) {
            return wrong("partials.sync_every_mib", self.sync_every_mib, "1 to 1024");
        }
        Ok(())
    }

    /// After so many bytes a body's file is synced.
    pub const fn sync_every_bytes(&self) -> u64 {
        self.sync_every_mib << 20
    }
}

/// Whose transfer of which body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartialKey {
    pub agency: AgencyCode,
    pub sha256: Digest,
    /// Of the whole body, in bytes.
    pub size: u64,
}

/// The name of a partial body's file, `AGENCY_SHA256_SIZE_BYTES_MILLISECONDS`. It never promises more bytes than are
/// durable: contents are synced first, then the file is renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialName {
    pub key: PartialKey,
    /// So many bytes of the file, from its beginning, are durable.
    pub bytes: u64,
    /// When the transfer last came this far.
    pub at: Timestamp,
}

impl fmt::Display for PartialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartialKey { agency, sha256, size } = &self.key;
        write!(f, "{agency}_{sha256}_{size}_{}_{}", self.bytes, self.at.unix_ms())
    }
}

/// A file that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no partial body's name: expected AGENCY_SHA256_SIZE_BYTES_MILLISECONDS")]
pub struct InvalidPartialName {
    pub found: String,
}

impl FromStr for PartialName {
    type Err = InvalidPartialName;

    fn from_str(text: &str) -> Result<Self, InvalidPartialName> {
        let read = || {
            let fields: Vec<&str> = text.split('_').collect();
            let [agency, sha256, size, bytes, at] = fields[..] else { return None };
            let key =
                PartialKey { agency: agency.parse().ok()?, sha256: sha256.parse().ok()?, size: size.parse().ok()? };
            Some(Self { key, bytes: bytes.parse().ok()?, at: Timestamp::from_unix_ms(at.parse().ok()?) })
        };
        // Only the one spelling: "+1" and "01" are numbers too.
        let name = read().filter(|name| name.bytes <= name.key.size && name.to_string() == text);
        name.ok_or_else(|| InvalidPartialName { found: text.to_owned() })
    }
}

/// What taking up a body gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Nothing is kept of it. Whoever asked has it to itself until it is released.
    Nothing,
    /// This is kept of it; the same holds.
    Kept(PartialName),
    /// Another transfer of the same body for the same agency has it.
    Busy,
}

#[derive(Debug)]
enum Slot {
    Kept(PartialName),
    Busy,
}

/// All partial bodies of a store.
#[derive(Debug)]
pub struct Book {
    config: PartialsConfig,
    slots: BTreeMap<PartialKey, Slot>,
}

impl Book {
    pub const fn new(config: PartialsConfig) -> Self {
        Self { config, slots: BTreeMap::new() }
    }

    /// Notes what an earlier run left. Of two files for one body the shorter has to go.
    pub fn found(&mut self, name: PartialName) -> Option<PartialName> {
        match self.slots.get_mut(&name.key) {
            Some(Slot::Kept(known)) if known.bytes < name.bytes => Some(std::mem::replace(known, name)),
            Some(_) => Some(name),
            None => {
                self.slots.insert(name.key.clone(), Slot::Kept(name));
                None
            }
        }
    }

    /// Takes a body up for one transfer: never two in one file.
    pub fn take(&mut self, key: &PartialKey) -> Taken {
        match self.slots.insert(key.clone(), Slot::Busy) {
            None => Taken::Nothing,
            Some(Slot::Kept(name)) => Taken::Kept(name),
            Some(Slot::Busy) => Taken::Busy,
        }
    }

    /// The transfer that took it has ended, and this is kept of it.
    pub fn release(&mut self, key: PartialKey, kept: Option<PartialName>) {
        match kept {
            Some(name) => self.slots.insert(key, Slot::Kept(name)),
            None => self.slots.remove(&key),
        };
    }

    /// Takes out what must go now: what waited too long, what is over the bounds, or all that waits where there is no room
    /// for new work. What a transfer has taken stays.
    pub fn due(&mut self, now: Timestamp, no_room: bool) -> Vec<PartialName> {
        let keep = Duration::from_secs(self.config.keep_days.saturating_mul(86_400));
        let most = self.config.most_mib << 20;
        let mut waiting: Vec<&PartialName> = self.waiting().collect();
        // A time that cannot be, of a clock that was put right since, must not outlast all others.
        let latest = now.plus(MAX_CLOCK_SKEW);
        let when = |name: &PartialName| (name.at <= latest).then_some(name.at);
        waiting.sort_by(|a, b| when(b).cmp(&when(a)).then_with(|| a.key.cmp(&b.key)));
        // The newest of each agency first, then those behind which it has little: whatever no longer fits goes, so that none can
        // push out others' with many of its own. Each counts for its share of the room at least, as their number is bounded too.
        let least = most / MAX_PARTIALS as u64;
        let mut held: BTreeMap<&AgencyCode, u64> = BTreeMap::new();
        let mut in_turn: Vec<(bool, u64, &PartialName)> = Vec::with_capacity(waiting.len());
        for name in waiting {
            let of_agency = held.entry(&name.key.agency).or_default();
            *of_agency = of_agency.saturating_add(name.bytes.max(least));
            in_turn.push((when(name).is_none(), *of_agency, name));
        }
        in_turn.sort_by_key(|(impossible, of_agency, _)| (*impossible, *of_agency));
        let (mut count, mut bytes) = (0, 0u64);
        let mut due = Vec::new();
        for (_, _, name) in in_turn {
            let fits = count < MAX_PARTIALS && bytes.saturating_add(name.bytes) <= most;
            if no_room || !fits || now.since(name.at) >= keep {
                due.push(name.clone());
            } else {
                count += 1;
                bytes += name.bytes;
            }
        }
        for name in &due {
            self.slots.remove(&name.key);
        }
        due
    }

    /// Everything that waits for its transfer to go on.
    pub fn waiting(&self) -> impl Iterator<Item = &PartialName> {
        self.slots.values().filter_map(|slot| match slot {
            Slot::Kept(name) => Some(name),
            Slot::Busy => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(days: u32) -> Timestamp {
        Timestamp::from_unix_ms(0).plus(DAY * days)
    }

    fn name(agency: &str, mib: u64, days: u32) -> PartialName {
        let key = PartialKey { agency: agency.parse().unwrap(), sha256: Digest::of(b"body"), size: 900 << 20 };
        PartialName { key, bytes: mib << 20, at: at(days) }
    }

    fn book(names: &[PartialName], most_mib: u64) -> Book {
        let mut book = Book::new(PartialsConfig { most_mib, ..PartialsConfig::default() });
        names.iter().for_each(|name| assert_eq!(book.found(name.clone()), None));
        book
    }

    #[test]
    fn a_name_reads_as_it_was_written_and_in_no_other_way() {
        let good = name("H37.DN.001", 3, 2);
        let text = good.to_string();
        assert_eq!(text.parse(), Ok(good));
        let sha256 = Digest::of(b"body").to_string();
        let wrong = [
            String::new(),
            "0".into(),
            format!("h37.dn.001_{sha256}_9_3_0"),
            format!("H37.DN.001_{sha256}_9_3"),
            format!("H37.DN.001_{sha256}_9_3_0_0"),
            format!("H37.DN.001_{sha256}_09_3_0"),
            format!("H37.DN.001_{sha256}_9_+3_0"),
            format!("H37.DN.001_{sha256}_9_10_0"),
            format!("H37.DN.001_{}_9_3_0", sha256.to_uppercase()),
            format!("../H37_{sha256}_9_3_0"),
            format!("{text}~"),
        ];
        for text in wrong {
            assert_eq!(text.parse::<PartialName>(), Err(InvalidPartialName { found: text.clone() }));
        }
    }

    #[test]
    fn one_transfer_has_a_body_to_itself_and_another_agency_has_nothing_of_it() {
        let (own, foreign) = (name("H37.DN.001", 3, 0), name("H37.TC.002", 0, 0));
        let mut book = book(std::slice::from_ref(&own), 1000);
        assert_eq!(book.take(&foreign.key), Taken::Nothing);
        assert_eq!(book.take(&own.key), Taken::Kept(own.clone()));
        assert_eq!(book.take(&own.key), Taken::Busy);
        assert_eq!(book.due(at(400), true), [], "a transfer under way stays");
        book.release(own.key.clone(), Some(name("H37.DN.001", 5, 1)));
        assert_eq!(book.take(&own.key), Taken::Kept(name("H37.DN.001", 5, 1)));
        book.release(own.key.clone(), None);
        assert_eq!(book.take(&own.key), Taken::Nothing);
    }

    #[test]
    fn what_waited_too_long_or_is_over_the_bound_goes_and_the_oldest_first() {
        let names = [name("H37.A", 40, 3), name("H37.B", 40, 1), name("H37.C", 40, 2)];
        assert_eq!(book(&names, 120).due(at(3), false), []);
        assert_eq!(book(&names, 119).due(at(3), false), [names[1].clone()]);
        assert_eq!(book(&names, 0).due(at(3), false).len(), 3);
        // A clock that was ahead does not make one the newest.
        assert_eq!(book(&names, 119).due(at(2), false), [names[0].clone()]);
        let small = [name("H37.A", 1, 900), name("H37.B", 40, 1), name("H37.C", 40, 2)];
        assert_eq!(book(&small, 80).due(at(3), false), [small[0].clone()], "nor because its agency has little");
        let mut aging = book(&names, 120);
        assert_eq!(aging.due(at(8), false), [names[1].clone()]);
        assert_eq!(aging.due(at(8), false), [], "each once");
        assert_eq!(aging.due(at(8), true), [names[0].clone(), names[2].clone()]);
        let many: Vec<_> = (0..=MAX_PARTIALS).map(|n| name(&format!("H37.{n}"), 0, 0)).collect();
        assert_eq!(book(&many, 120).due(at(0), false).len(), 1);
    }

    #[test]
    fn an_agency_with_many_or_large_ones_pushes_out_its_own_and_nobody_else_s() {
        let of_hog = |n: u32, mib| {
            let mut one = name("H37.HOG", mib, 1 + n);
            one.key.size = u64::from(n) + (900 << 20);
            one
        };
        let old = name("H37.DN.001", 30, 0);
        let large: Vec<_> = (0..4).map(|n| of_hog(n, 30)).chain([old.clone()]).collect();
        assert_eq!(book(&large, 120).due(at(5), false), [of_hog(0, 30)], "its oldest");
        let mut many: Vec<_> = (0..u32::try_from(MAX_PARTIALS).unwrap()).map(|n| of_hog(n, 0)).collect();
        many.iter_mut().for_each(|one| one.at = at(1));
        many.push(old.clone());
        let due = book(&many, 32 << 10).due(at(5), false);
        assert_eq!((due.len(), due.contains(&old)), (1, false));
    }

    #[test]
    fn of_two_files_for_one_body_the_shorter_goes() {
        let mut book = book(&[name("H37.DN.001", 3, 0)], 1000);
        assert_eq!(book.found(name("H37.DN.001", 5, 0)), Some(name("H37.DN.001", 3, 0)));
        assert_eq!(book.found(name("H37.DN.001", 4, 1)), Some(name("H37.DN.001", 4, 1)));
        assert_eq!(book.take(&name("H37.DN.001", 0, 0).key), Taken::Kept(name("H37.DN.001", 5, 0)));
    }

    #[test]
    fn a_receiver_of_much_gets_more_time() {
        assert_eq!(rehash_time(1 << 20), Duration::ZERO);
        assert_eq!(rehash_time(16 << 30), Duration::from_secs(2048));
    }
}
