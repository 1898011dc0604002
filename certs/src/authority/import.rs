//! Lists of agencies: read leniently, judged row by row, and taken as a whole, or not at all.

use std::collections::BTreeMap;

use docaxis_protocol::directory::{DirectoryEntry, MAX_ALIASES, MAX_NAME_CHARS};
use docaxis_protocol::search::clean;
use docaxis_protocol::{AgencyCode, NodeId, Timestamp};

use super::directory::{Agency, DirectoryChangeError, day_or_instant, free, new_entry, sign_all, succeed};
use super::records::State;
use super::{Authority, Keys};

/// Largest list of agencies that is imported, in bytes; the largest known one has 111,339 rows and 10 MiB.
pub const MAX_IMPORT_BYTES: usize = 64 << 20;

/// A row by its line in the file, and what is said about it.
pub type RowNote = (u64, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImportOptions {
    /// Take the good rows although others are refused.
    pub partial: bool,
    /// Judge, and change nothing.
    pub dry_run: bool,
}

/// What an import did with each row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// Whether every row that was not refused stands in the directory, or would without `dry_run`. Rows of agencies that were
    /// there are counted as `unchanged`, whatever else they say.
    pub taken: bool,
    pub added: usize,
    /// Already there under the same code; left as they are.
    pub unchanged: usize,
    /// Taken otherwise than they are written, or said before.
    pub warnings: Vec<RowNote>,
    /// Not taken, why, and what to do.
    pub refused: Vec<RowNote>,
}

impl Authority {
    /// Takes a list with the columns `organ_id,name` and, where there are any, `in_charge`, `parent`, `node`, `aliases`,
    /// `valid_from`, `valid_until`, `merged_into`; others are not looked at. With a row that cannot be taken nothing is,
    /// unless the good ones alone are asked for. What is taken is one change.
    pub fn import_agencies(
        &mut self,
        list: &[u8],
        options: ImportOptions,
        now: Timestamp,
    ) -> Result<ImportReport, DirectoryChangeError> {
        if list.len() > MAX_IMPORT_BYTES {
            return Err(DirectoryChangeError::TooLarge { found: list.len() });
        }
        let (rows, report) = read_list(list)?;
        self.write(|keys, state| {
            let mut report = report;
            let rows = judge(state, rows, &mut report);
            report.added = rows.len();
            report.warnings.sort();
            report.refused.sort();
            report.taken = options.partial || report.refused.is_empty();
            if options.dry_run || !report.taken {
                return Ok((Vec::new(), report));
            }
            Ok((sign_all(keys, state, entries(keys, state, rows, now)?)?, report))
        })
    }
}

struct Row {
    line: u64,
    agency: Agency,
    merged_into: Option<AgencyCode>,
}

/// The rows that may be added, in the order of the list.
fn judge(state: &State, rows: Vec<Row>, report: &mut ImportReport) -> Vec<Row> {
    // The codes and other codes of the list, and whose they are.
    let mut claimed: BTreeMap<AgencyCode, AgencyCode> =
        rows.iter().map(|row| (row.agency.code.clone(), row.agency.code.clone())).collect();
    let mut good: BTreeMap<AgencyCode, Row> = BTreeMap::new();
    for row in rows {
        if let Some((known, _)) = state.entries.get(&row.agency.code) {
            report.unchanged += 1;
            let otherwise = otherwise(known, &row);
            if !otherwise.is_empty() {
                let text = format!(
                    "{} is in the directory already, and left as it is: {}",
                    known.agency,
                    otherwise.join("; ")
                );
                report.warnings.push((row.line, text));
            }
            continue;
        }
        let mut codes = row.agency.aliases.iter().chain(std::iter::once(&row.agency.code));
        let fault = codes.find_map(|code| taken(state, &mut claimed, &row, code));
        match fault {
            Some(why) => report.refused.push((row.line, why)),
            None => drop(good.insert(row.agency.code.clone(), row)),
        }
    }
    // A row that refers to a refused one is refused as well, and so on.
    loop {
        let known = |code: &AgencyCode| good.contains_key(code) || state.entries.contains_key(code);
        let fault = |row: &Row| {
            let missing = row.agency.parent.iter().chain(&row.merged_into).find(|code| !known(code));
            let missing = missing.map(|code| format!("{code} is neither in the directory nor a good row here; add it"));
            missing.or_else(|| circle(state, &good, row))
        };
        let faults: Vec<_> =
            good.values().filter_map(|row| Some((row.agency.code.clone(), row.line, fault(row)?))).collect();
        if faults.is_empty() {
            break;
        }
        for (code, line, why) in faults {
            good.remove(&code);
            report.refused.push((line, format!("{code}: {why}")));
        }
    }
    let mut good: Vec<Row> = good.into_values().collect();
    good.sort_by_key(|row| row.line);
    good
}

/// What a row says otherwise than the directory. What it leaves out, it does not say.
fn otherwise(known: &DirectoryEntry, row: &Row) -> Vec<String> {
    fn differs<T: PartialEq + ToString>(what: &str, there: Option<&T>, said: Option<&T>) -> Option<String> {
        let said = said.filter(|said| there != Some(*said))?;
        let there = there.map_or_else(|| "none".to_owned(), T::to_string);
        Some(format!("{what} is {there} there, and {} here", said.to_string()))
    }
    let agency = &row.agency;
    let alias = agency.aliases.iter().find(|alias| !known.aliases.contains(alias));
    [
        differs("the name", Some(&known.name), Some(&agency.name)),
        differs("the parent", known.parent.as_ref(), agency.parent.as_ref()),
        differs("the node", known.node.as_ref(), agency.node.as_ref()),
        differs("who is in charge", known.in_charge.as_ref(), agency.in_charge.as_ref()),
        differs("valid_from", known.valid_from.as_ref(), agency.valid_from.as_ref()),
        differs("valid_until", known.valid_until.as_ref(), agency.valid_until.as_ref()),
        differs("merged_into", known.successor.as_ref(), row.merged_into.as_ref()),
        alias.map(|alias| format!("the code {alias} is none of its codes there")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Why an agency may not have a code, if it may not.
fn taken(
    state: &State,
    claimed: &mut BTreeMap<AgencyCode, AgencyCode>,
    row: &Row,
    code: &AgencyCode,
) -> Option<String> {
    if let Err(error) = free(state, code) {
        return Some(format!("{error}; leave it out here, or give that agency another"));
    }
    let owner = claimed.entry(code.clone()).or_insert_with(|| row.agency.code.clone());
    (*owner != row.agency.code).then(|| format!("code {code} is that of {owner} in this list too; keep one of them"))
}

/// Who answers in the end for what is merged into `next`; none if that leads back to where it came from.
fn last_successor(state: &State, good: &BTreeMap<AgencyCode, Row>, row: &Row) -> Option<AgencyCode> {
    let mut next = row.merged_into.clone()?;
    // Only rows of the list can make a circle, and each is passed once.
    for _ in 0..=good.len() {
        let known = state.entries.get(&next).and_then(|(entry, _)| entry.successor.clone());
        match known.or_else(|| good.get(&next).and_then(|row| row.merged_into.clone())) {
            _ if next == row.agency.code => return None,
            Some(further) => next = further,
            None => return Some(next),
        }
    }
    None
}

fn circle(state: &State, good: &BTreeMap<AgencyCode, Row>, row: &Row) -> Option<String> {
    let into = row.merged_into.as_ref()?;
    let lost = last_successor(state, good, row).is_none();
    lost.then(|| format!("merging it into {into} leads in a circle; correct merged_into"))
}

fn entries(
    keys: &Keys,
    state: &State,
    rows: Vec<Row>,
    now: Timestamp,
) -> Result<Vec<DirectoryEntry>, DirectoryChangeError> {
    let rows: BTreeMap<AgencyCode, Row> = rows.into_iter().map(|row| (row.agency.code.clone(), row)).collect();
    let mut order: Vec<&Row> = rows.values().collect();
    order.sort_by_key(|row| row.line);
    let entry = |row: &Row| {
        let mut entry = new_entry(keys, &row.agency, now);
        if let Some(successor) = last_successor(state, &rows, row) {
            succeed(keys, &mut entry, &successor, now)?;
        }
        Ok(entry)
    };
    order.into_iter().map(entry).collect()
}

/// The cells of a row under the names of their columns.
struct Columns {
    names: Vec<String>,
}

impl Columns {
    fn of(headers: &csv::StringRecord) -> Result<Self, DirectoryChangeError> {
        let names: Vec<String> = headers.iter().map(|name| clean(name).to_ascii_lowercase()).collect();
        if ["organ_id", "name"].iter().all(|needed| names.iter().any(|name| name == needed)) {
            return Ok(Self { names });
        }
        let found = headers.iter().take(16).map(|text| text.chars().take(40).collect()).collect();
        Err(DirectoryChangeError::Columns { found })
    }

    /// None if the column is not there, or says nothing: empty or NULL, as databases export it.
    fn cell<'a>(&self, row: &'a csv::StringRecord, name: &str) -> Option<&'a str> {
        let at = self.names.iter().position(|found| found == name)?;
        row.get(at).filter(|text| !clean(text).is_empty() && !text.eq_ignore_ascii_case("null"))
    }
}

fn read_list(list: &[u8]) -> Result<(Vec<Row>, ImportReport), DirectoryChangeError> {
    let list = list.strip_prefix(b"\xef\xbb\xbf").unwrap_or(list);
    // The reader counts lines wrongly where they end in CR LF.
    let list = String::from_utf8(list.to_vec()).map_err(|_| DirectoryChangeError::NotUtf8)?.replace("\r\n", "\n");
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(list.as_bytes());
    let columns = Columns::of(reader.headers().map_err(DirectoryChangeError::Csv)?)?;
    let mut report = ImportReport::default();
    let (mut rows, mut seen) = (Vec::new(), BTreeMap::new());
    for row in reader.records() {
        let row = row.map_err(DirectoryChangeError::Csv)?;
        let line = row.position().map_or(0, csv::Position::line);
        let mut notes = Vec::new();
        match read_row(&columns, &row, &mut notes) {
            Err(why) => report.refused.push((line, why)),
            Ok((agency, merged_into)) => {
                report.warnings.extend(notes.into_iter().map(|note| (line, note)));
                if let Some(first) = seen.get(&agency.code) {
                    let code = &agency.code;
                    report.warnings.push((line, format!("{code} stands in line {first} already; that row counts")));
                    continue;
                }
                seen.insert(agency.code.clone(), line);
                rows.push(Row { line, agency, merged_into });
            }
        }
    }
    Ok((rows, report))
}

fn read_row(
    columns: &Columns,
    row: &csv::StringRecord,
    notes: &mut Vec<String>,
) -> Result<(Agency, Option<AgencyCode>), String> {
    let code = columns.cell(row, "organ_id").ok_or("no organ_id; write the agency's code, or leave the row out")?;
    let code = read_code("organ_id", code, notes)?;
    let of = |why: String| format!("{code}: {why}");
    let name = columns.cell(row, "name").ok_or_else(|| of("no name; write one".into()))?;
    let name = read_text("name", name, notes).map_err(of)?;
    let in_charge = columns.cell(row, "in_charge").map(|text| read_text("in_charge", text, notes)).transpose();
    let mut agency = Agency::new(code.clone(), name);
    agency.in_charge = in_charge.map_err(of)?;
    let mut other = |column: &str| {
        let cell = columns.cell(row, column);
        cell.map(|text| read_code(column, text, notes)).transpose().map_err(of)
    };
    agency.parent = other("parent")?;
    let merged_into = other("merged_into")?;
    let aliases = columns.cell(row, "aliases").unwrap_or_default();
    for text in aliases.split([' ', ';', ',', '|']).filter(|text| !text.is_empty()) {
        let alias = read_code("aliases", text, notes).map_err(of)?;
        if alias != code && !agency.aliases.contains(&alias) {
            agency.aliases.push(alias);
        }
    }
    if agency.aliases.len() > MAX_ALIASES {
        return Err(of(format!("{} aliases; the limit is {MAX_ALIASES}", agency.aliases.len())));
    }
    let node = columns.cell(row, "node").map(|text| text.to_lowercase().parse::<NodeId>()).transpose();
    agency.node = node.map_err(|error| of(format!("{error}; correct node, or leave it empty")))?;
    for (column, place) in [("valid_from", &mut agency.valid_from), ("valid_until", &mut agency.valid_until)] {
        *place = columns.cell(row, column).map(|text| read_day(column, text)).transpose().map_err(of)?;
    }
    if agency.valid_from.zip(agency.valid_until).is_some_and(|(from, until)| from >= until) {
        return Err(of("valid_until is not after valid_from; correct one of them".into()));
    }
    Ok((agency, merged_into))
}

fn read_code(column: &str, text: &str, notes: &mut Vec<String>) -> Result<AgencyCode, String> {
    let (code, _) = AgencyCode::lenient(&clean(text)).map_err(|error| format!("{error}; correct {column}"))?;
    if code.as_str() != text {
        let found: String = text.chars().take(60).collect();
        notes.push(format!("{column} {found:?} was taken as {code}"));
    }
    Ok(code)
}

/// A name in composed letters, without what nobody sees.
fn read_text(column: &str, text: &str, notes: &mut Vec<String>) -> Result<String, String> {
    let cleaned = clean(text);
    let count = cleaned.chars().count();
    if count > MAX_NAME_CHARS {
        return Err(format!("{column} has {count} characters; the limit is {MAX_NAME_CHARS}: shorten it"));
    }
    if cleaned.chars().any(char::is_control) {
        return Err(format!("{column} has control characters; remove them"));
    }
    if cleaned != text {
        notes.push(format!("{column} was taken as {cleaned:?}: letters composed, invisible characters left out"));
    }
    Ok(cleaned)
}

/// A day in Vietnam, from its first moment on, or an instant.
fn read_day(column: &str, text: &str) -> Result<Timestamp, String> {
    day_or_instant(text).ok_or_else(|| {
        let found: String = text.chars().take(40).collect();
        format!("{column} is {found:?}; expected a day such as 2026-07-01, or an instant such as 2026-07-01T00:00:00Z")
    })
}
