//! The directory's changes: who decides them is the authority's administrator, and each becomes a signed entry.

use std::collections::BTreeSet;

use docaxis_protocol::directory::{DirectoryEntry, DirectoryError, MAX_NAME_CHARS, SignedEntry, TYPE};
use docaxis_protocol::frame::Notices;
use docaxis_protocol::id::InvalidName;
use docaxis_protocol::{AgencyCode, NodeId, Timestamp};

use super::records::{Record, State};
use super::{Authority, AuthorityError, Keys, Which};
use crate::encoding::pem;

/// Largest list of agencies that is imported, in bytes; the largest known one has 111,339 rows and 10 MiB.
pub const MAX_IMPORT_BYTES: usize = 64 << 20;

/// An agency to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agency {
    pub code: AgencyCode,
    pub name: String,
    pub parent: Option<AgencyCode>,
    pub aliases: Vec<AgencyCode>,
    pub in_charge: Option<String>,
}

impl Agency {
    pub fn new(code: AgencyCode, name: impl Into<String>) -> Self {
        Self { code, name: name.into(), parent: None, aliases: Vec::new(), in_charge: None }
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

/// What an import did with each row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    pub added: usize,
    /// Already there under the same code; left as they are.
    pub unchanged: usize,
    /// Added under the canonical spelling: line and what the list says.
    pub respelled: Vec<(u64, String)>,
    /// Not taken: line, and why.
    pub refused: Vec<(u64, String)>,
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
            let entry = new_entry(keys, agency, now);
            Ok((sign_all(keys, state, [entry])?, ()))
        })
    }

    /// Takes a list with the columns `organ_id,name,in_charge,type,version`. Rows that cannot be taken are reported
    /// and do no harm to the others; the rows that can are one change.
    pub fn import_agencies(&mut self, list: &[u8], now: Timestamp) -> Result<ImportReport, DirectoryChangeError> {
        if list.len() > MAX_IMPORT_BYTES {
            return Err(DirectoryChangeError::TooLarge { found: list.len() });
        }
        let (agencies, report) = read_list(list)?;
        self.write(|keys, state| {
            let mut report = report;
            let mut entries = Vec::new();
            for (line, agency) in &agencies {
                if state.entries.contains_key(&agency.code) {
                    report.unchanged += 1;
                } else if let Err(error) = free(state, &agency.code) {
                    report.refused.push((*line, error.to_string()));
                } else {
                    entries.push(new_entry(keys, agency, now));
                }
            }
            report.added = entries.len();
            report.refused.sort();
            Ok((sign_all(keys, state, entries)?, report))
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

    /// Merges an agency into another: what is addressed to it goes there from now on.
    pub fn merge_agency(
        &mut self,
        code: &AgencyCode,
        successor: &AgencyCode,
        now: Timestamp,
    ) -> Result<(), DirectoryChangeError> {
        self.change(code, now, |state, entry| {
            let mut next = Some(successor.clone());
            while let Some(at) = next {
                if at == *code {
                    let (code, successor) = (code.clone(), successor.clone());
                    return Err(DirectoryChangeError::Circle { code: successor, successor: code });
                }
                let (found, _) =
                    state.entries.get(&at).ok_or_else(|| DirectoryChangeError::Unknown { code: at.clone() })?;
                next = found.successor.clone();
            }
            entry.successor = Some(successor.clone());
            Ok(())
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

fn free(state: &State, code: &AgencyCode) -> Result<(), DirectoryChangeError> {
    let owner = state.aliases.get(code).or_else(|| state.entries.contains_key(code).then_some(code));
    match owner {
        Some(agency) => Err(DirectoryChangeError::Taken { code: code.clone(), agency: agency.clone() }),
        None => Ok(()),
    }
}

fn new_entry(keys: &Keys, agency: &Agency, now: Timestamp) -> DirectoryEntry {
    DirectoryEntry {
        kind: TYPE.into(),
        exchange: keys.settings.origin.clone(),
        version: 0,
        agency: agency.code.clone(),
        name: agency.name.clone(),
        node: None,
        since: now,
        aliases: agency.aliases.clone(),
        locked: false,
        successor: None,
        parent: agency.parent.clone(),
        in_charge: agency.in_charge.clone(),
    }
}

/// Numbers and signs entries as the directory's next versions.
pub(super) fn sign_all(
    keys: &Keys,
    state: &State,
    entries: impl IntoIterator<Item = DirectoryEntry>,
) -> Result<Vec<Record>, DirectoryError> {
    let mut version = state.version;
    entries
        .into_iter()
        .map(|entry| {
            version += 1;
            let signed = DirectoryEntry { version, ..entry }.sign(&keys.directory)?;
            Ok(Record::Entry { bytes: signed.bytes, signature: signed.signature.0.to_vec() })
        })
        .collect()
}

fn read_list(list: &[u8]) -> Result<(Vec<(u64, Agency)>, ImportReport), DirectoryChangeError> {
    let list = list.strip_prefix(b"\xef\xbb\xbf").unwrap_or(list);
    // The reader counts lines wrongly where they end in CR LF.
    let list = String::from_utf8(list.to_vec()).map_err(|_| DirectoryChangeError::NotUtf8)?.replace("\r\n", "\n");
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(list.as_bytes());
    let columns = reader.headers().map_err(DirectoryChangeError::Csv)?.clone();
    let column = |name: &str| columns.iter().position(|found| found.eq_ignore_ascii_case(name));
    let (Some(code_at), Some(name_at)) = (column("organ_id"), column("name")) else {
        let found = columns.iter().take(16).map(|text| text.chars().take(40).collect()).collect();
        return Err(DirectoryChangeError::Columns { found });
    };
    let charge_at = column("in_charge");
    let mut report = ImportReport::default();
    let mut agencies = Vec::new();
    let mut seen = BTreeSet::new();
    for row in reader.records() {
        let row = row.map_err(DirectoryChangeError::Csv)?;
        let line = row.position().map_or(0, csv::Position::line);
        let text = |at: Option<usize>| at.and_then(|at| row.get(at)).unwrap_or("");
        let found = text(Some(code_at));
        let (code, changed) = match AgencyCode::lenient(found) {
            Ok(code) => code,
            Err(error @ InvalidName { .. }) => {
                report.refused.push((line, error.to_string()));
                continue;
            }
        };
        if let Some(why) = unusable_name(text(Some(name_at))) {
            report.refused.push((line, format!("name of {code}: {why}")));
            continue;
        }
        if !seen.insert(code.clone()) {
            report.refused.push((line, format!("agency {code} stands in the list twice; the first row was taken")));
            continue;
        }
        if changed {
            report.respelled.push((line, found.chars().take(80).collect()));
        }
        let in_charge = Some(text(charge_at)).filter(|text| unusable_name(text).is_none()).map(str::to_owned);
        agencies.push((line, Agency { in_charge, ..Agency::new(code, text(Some(name_at))) }));
    }
    Ok((agencies, report))
}

fn unusable_name(text: &str) -> Option<&'static str> {
    match text.chars().count() {
        0 => Some("empty"),
        count if count > MAX_NAME_CHARS => Some("over 200 characters"),
        _ if text.chars().any(char::is_control) => Some("has control characters"),
        _ => None,
    }
}
