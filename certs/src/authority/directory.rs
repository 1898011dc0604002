//! The directory's changes: who decides them is the authority's administrator, and each becomes a signed entry.

use std::time::Duration;

use docaxis_protocol::directory::{DirectoryEntry, DirectoryError, SignedEntry, TYPE};
use docaxis_protocol::frame::Notices;
use docaxis_protocol::search::{clean, fold};
use docaxis_protocol::succession::{MAX_SUCCESSIONS, Succession};
use docaxis_protocol::{AgencyCode, NodeId, Timestamp};

use super::import::MAX_IMPORT_BYTES;
use super::records::{Record, State};
use super::{Authority, AuthorityError, Keys, Which};
use crate::encoding::pem;

/// An agency to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agency {
    pub code: AgencyCode,
    pub name: String,
    pub parent: Option<AgencyCode>,
    pub aliases: Vec<AgencyCode>,
    pub in_charge: Option<String>,
    /// The node that shall host it; an invitation gives it one as well.
    pub node: Option<NodeId>,
    pub valid_from: Option<Timestamp>,
    pub valid_until: Option<Timestamp>,
}

impl Agency {
    pub fn new(code: AgencyCode, name: impl Into<String>) -> Self {
        Self {
            code,
            name: name.into(),
            parent: None,
            aliases: Vec::new(),
            in_charge: None,
            node: None,
            valid_from: None,
            valid_until: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DirectoryChangeError {
    #[error("agency {code} is not in the directory; add it first")]
    Unknown { code: AgencyCode },
    #[error("agency {code} is already in the directory")]
    Exists { code: AgencyCode },
    #[error("code {code} already belongs to agency {agency}")]
    Taken { code: AgencyCode, agency: AgencyCode },
    #[error("agency {code} is merged into {successor}; it cannot also succeed it")]
    Circle { code: AgencyCode, successor: AgencyCode },
    #[error("agency {code} has had {MAX_SUCCESSIONS} successors; the limit is {MAX_SUCCESSIONS}")]
    TooManySuccessors { code: AgencyCode },
    #[error("the list's columns are {found:?}; expected organ_id and name among them")]
    Columns { found: Vec<String> },
    #[error("the list is {found} bytes; the limit is {MAX_IMPORT_BYTES}")]
    TooLarge { found: usize },
    #[error("the list is not UTF-8; save it as UTF-8 and import it again")]
    NotUtf8,
    #[error("the list does not read as CSV")]
    Csv(#[source] csv::Error),
    #[error(transparent)]
    Entry(#[from] DirectoryError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Authority {
    /// Adds one agency, hosted by nobody yet.
    pub fn add_agency(&mut self, agency: &Agency, now: Timestamp) -> Result<(), DirectoryChangeError> {
        self.write(|keys, state| {
            if state.entries.contains_key(&agency.code) {
                return Err(DirectoryChangeError::Exists { code: agency.code.clone() });
            }
            for code in agency.aliases.iter().chain([&agency.code]) {
                free(state, code)?;
            }
            if let Some(parent) = agency.parent.as_ref().filter(|parent| !state.entries.contains_key(*parent)) {
                return Err(DirectoryChangeError::Unknown { code: parent.clone() });
            }
            let entry = new_entry(keys, agency, now);
            Ok((sign_all(keys, state, [entry])?, ()))
        })
    }

    /// A locked agency neither sends nor receives.
    pub fn lock_agency(&mut self, code: &AgencyCode, locked: bool, now: Timestamp) -> Result<(), DirectoryChangeError> {
        self.change(code, now, |_, entry| {
            entry.locked = locked;
            Ok(())
        })
    }

    /// Moves an agency to a node, or away from every node.
    pub fn host_agency(
        &mut self,
        code: &AgencyCode,
        node: Option<&NodeId>,
        now: Timestamp,
    ) -> Result<(), DirectoryChangeError> {
        self.change(code, now, |_, entry| {
            entry.node = node.cloned();
            Ok(())
        })
    }

    /// Gives an agency one more code.
    pub fn add_alias(
        &mut self,
        code: &AgencyCode,
        alias: &AgencyCode,
        now: Timestamp,
    ) -> Result<(), DirectoryChangeError> {
        self.change(code, now, |state, entry| {
            free(state, alias)?;
            entry.aliases.push(alias.clone());
            Ok(())
        })
    }

    /// Merges an agency into another: what is addressed to it goes there from now on. If that one was merged itself, to
    /// where it went; and whatever was merged into the agency before goes along.
    pub fn merge_agency(
        &mut self,
        code: &AgencyCode,
        successor: &AgencyCode,
        now: Timestamp,
    ) -> Result<(), DirectoryChangeError> {
        self.write(|keys, state| {
            let entry = |code: &AgencyCode| {
                let found = state.entries.get(code).map(|(entry, _)| entry);
                found.ok_or_else(|| DirectoryChangeError::Unknown { code: code.clone() })
            };
            let before = entry(code)?;
            let mut last = entry(successor)?;
            while last.agency != *code
                && let Some(next) = &last.successor
            {
                last = entry(next)?;
            }
            if last.agency == *code {
                let (code, successor) = (code.clone(), successor.clone());
                return Err(DirectoryChangeError::Circle { code: successor, successor: code });
            }
            // What it answered for goes on to the same place, and comes first: nobody is ever sent to a closed agency.
            let followers = state.entries.values().map(|(entry, _)| entry);
            let followers = followers.filter(|entry| entry.successor.as_ref() == Some(code));
            let mut changed = Vec::new();
            for before in followers.chain([before]) {
                let mut entry = before.clone();
                succeed(keys, &mut entry, &last.agency, now)?;
                if entry != *before {
                    changed.push(DirectoryEntry { since: now, ..entry });
                }
            }
            Ok((sign_all(keys, state, changed)?, ()))
        })
    }

    /// Writes a changed entry; one that stays the same is not written again.
    fn change(
        &mut self,
        code: &AgencyCode,
        now: Timestamp,
        edit: impl FnOnce(&State, &mut DirectoryEntry) -> Result<(), DirectoryChangeError>,
    ) -> Result<(), DirectoryChangeError> {
        self.write(|keys, state| {
            let (before, _) =
                state.entries.get(code).ok_or_else(|| DirectoryChangeError::Unknown { code: code.clone() })?;
            let mut entry = before.clone();
            edit(state, &mut entry)?;
            if entry == *before {
                return Ok((Vec::new(), ()));
            }
            entry.since = now;
            Ok((sign_all(keys, state, [entry])?, ()))
        })
    }

    /// All agencies in the order of their codes.
    pub fn agencies(&self) -> impl Iterator<Item = &DirectoryEntry> {
        self.state.entries.values().map(|(entry, _)| entry)
    }

    /// An agency by its code or one of its aliases.
    pub fn agency(&self, code: &AgencyCode) -> Option<&DirectoryEntry> {
        let code = self.state.aliases.get(code).unwrap_or(code);
        self.state.entries.get(code).map(|(entry, _)| entry)
    }

    /// Agencies by one of their codes, or by a name that contains `text`, accents and case aside; in the order of their
    /// codes. A code or a whole name finds its agency alone.
    pub fn find_agencies(&self, text: &str) -> Vec<&DirectoryEntry> {
        if let Ok((code, _)) = AgencyCode::lenient(&clean(text))
            && let Some(found) = self.agency(&code)
        {
            return vec![found];
        }
        let (wanted, code) = (fold(text), clean(text).to_uppercase());
        let named: Vec<(String, &DirectoryEntry)> = self.agencies().map(|entry| (fold(&entry.name), entry)).collect();
        let whole: Vec<_> = named.iter().filter(|(name, _)| *name == wanted).map(|(_, entry)| *entry).collect();
        if !whole.is_empty() {
            return whole;
        }
        let has = |entry: &DirectoryEntry, name: &str| {
            let codes = entry.aliases.iter().chain([&entry.agency]);
            name.contains(&wanted)
                || codes.into_iter().any(|known| known.as_str().contains(&code))
                || entry.in_charge.as_deref().is_some_and(|text| fold(text).contains(&wanted))
        };
        named.iter().filter(|(name, entry)| has(entry, name)).map(|(_, entry)| *entry).collect()
    }

    /// The version of the newest entry; zero for an empty directory.
    pub fn directory_version(&self) -> u64 {
        self.state.version
    }

    /// The newest entry of every agency that changed after `version`, oldest change first.
    pub fn entries_since(&self, version: u64) -> impl Iterator<Item = &SignedEntry> {
        let from = version.saturating_add(1);
        let codes = self.state.entries_by_version.range(from..).map(|(_, code)| code);
        codes.filter_map(|code| self.state.entries.get(code)).map(|(_, signed)| signed)
    }
}

/// Entries' bytes in one frame of notices: with the lists beside them a frame stays under its limit.
const NOTICE_BYTES: usize = 256 * 1024;

impl Authority {
    /// What the broker is to be told after `version`: the next changed entries, as many as a frame takes, and the
    /// revocation lists in force. Ask again from the answer's version until it holds no entries.
    pub fn notices_since(&mut self, version: u64, now: Timestamp) -> Result<Notices, AuthorityError> {
        self.refresh()?;
        let mut crls = Vec::new();
        for (name, which) in [("nodes", Which::Nodes), ("seals", Which::Seals)] {
            crls.push((name.to_owned(), pem("X509 CRL", &self.crl(which, now)?)));
        }
        let from = version.saturating_add(1);
        let mut notices = Notices { version: 0, entries: Vec::new(), crls };
        let mut bytes = 0;
        for (at, code) in self.state.entries_by_version.range(from..) {
            let Some((_, signed)) = self.state.entries.get(code) else { continue };
            bytes += signed.bytes.len() + 128;
            if bytes > NOTICE_BYTES && !notices.entries.is_empty() {
                break;
            }
            notices.entries.push(signed.clone());
            notices.version = *at;
        }
        Ok(notices)
    }
}

/// A day in Vietnam (its first moment), or an instant in UTC.
pub fn day_or_instant(text: &str) -> Option<Timestamp> {
    if text.len() != 10 {
        return text.parse().ok();
    }
    let in_utc: Timestamp = format!("{text}T00:00:00Z").parse().ok()?;
    Some(in_utc.minus(Duration::from_secs(7 * 3600)))
}

/// Makes `successor` answer for the agency from now on, unless it does already.
pub(super) fn succeed(
    keys: &Keys,
    entry: &mut DirectoryEntry,
    successor: &AgencyCode,
    now: Timestamp,
) -> Result<(), DirectoryChangeError> {
    entry.successor = Some(successor.clone());
    if entry.successions.last().is_some_and(|last| last.said().successor == *successor) {
        return Ok(());
    }
    if entry.successions.len() >= MAX_SUCCESSIONS {
        return Err(DirectoryChangeError::TooManySuccessors { code: entry.agency.clone() });
    }
    let said = Succession::new(entry.exchange.clone(), entry.agency.clone(), successor.clone(), now);
    entry.successions.push(said.sign(&keys.directory)?);
    Ok(())
}

pub(super) fn free(state: &State, code: &AgencyCode) -> Result<(), DirectoryChangeError> {
    let owner = state.aliases.get(code).or_else(|| state.entries.contains_key(code).then_some(code));
    match owner {
        Some(agency) => Err(DirectoryChangeError::Taken { code: code.clone(), agency: agency.clone() }),
        None => Ok(()),
    }
}

pub(super) fn new_entry(keys: &Keys, agency: &Agency, now: Timestamp) -> DirectoryEntry {
    DirectoryEntry {
        kind: TYPE.into(),
        exchange: keys.settings.origin.clone(),
        version: 0,
        agency: agency.code.clone(),
        name: clean(&agency.name),
        node: agency.node.clone(),
        since: now,
        aliases: agency.aliases.clone(),
        locked: false,
        successor: None,
        parent: agency.parent.clone(),
        in_charge: agency.in_charge.clone(),
        valid_from: agency.valid_from,
        valid_until: agency.valid_until,
        successions: Vec::new(),
    }
}

/// Entries from which on more than one thread signs them.
const MANY_ENTRIES: usize = 2_000;

/// Numbers and signs entries as the directory's next versions.
pub(super) fn sign_all(
    keys: &Keys,
    state: &State,
    entries: impl IntoIterator<Item = DirectoryEntry>,
) -> Result<Vec<Record>, DirectoryError> {
    let numbered: Vec<DirectoryEntry> = entries
        .into_iter()
        .zip(state.version + 1..)
        .map(|(entry, version)| DirectoryEntry { version, ..entry })
        .collect();
    let sign = |entries: &[DirectoryEntry]| -> Result<Vec<Record>, DirectoryError> {
        let sign = |entry: &DirectoryEntry| {
            let signed = entry.sign(&keys.directory)?;
            Ok(Record::Entry { bytes: signed.bytes, signature: signed.signature.0.to_vec() })
        };
        entries.iter().map(sign).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if numbered.len() < MANY_ENTRIES || threads < 2 {
        return sign(&numbered);
    }
    std::thread::scope(|scope| {
        let chunks = numbered.chunks(numbered.len().div_ceil(threads));
        let signing: Vec<_> = chunks.map(|chunk| scope.spawn(move || sign(chunk))).collect();
        let mut records = Vec::with_capacity(numbered.len());
        for signed in signing {
            records.extend(signed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(records)
    })
}
