//! The local copy of the directory: entries whose signature was checked, kept with it.

use docaxis_protocol::directory::DirectoryEntry;
use docaxis_protocol::frame::SignedBytes;
use docaxis_protocol::search::{clean, fold};
use docaxis_protocol::{AgencyCode, NodeId};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::rows;
use super::{Mailbox, MailboxError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgencyRow {
    pub code: AgencyCode,
    /// The directory's version in which this entry was made.
    pub version: u64,
    pub signed: SignedBytes,
    pub name: String,
    pub node: Option<NodeId>,
    pub locked: bool,
    pub successor: Option<AgencyCode>,
    /// Other codes; filled in on the way in, and left empty on the way out.
    pub aliases: Vec<AgencyCode>,
}

impl AgencyRow {
    /// The entry as the authority signed it; its signature was checked before it was stored.
    pub fn entry(&self) -> Result<DirectoryEntry, MailboxError> {
        docaxis_protocol::json::parse(&self.signed.bytes).map_err(|e| rows::damaged("directory entry")(e.to_string()))
    }
}

/// Whom a code stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    Agency(AgencyRow),
    /// Two agencies claim this alias.
    Ambiguous(Vec<AgencyCode>),
    Unknown,
    /// There is no directory here yet, so nobody can say.
    NoDirectory,
}

const COLUMNS: &str = "code, version, bytes, signature, name, node, locked, successor";

fn agency(row: &Row<'_>) -> rusqlite::Result<Result<AgencyRow, MailboxError>> {
    let (code, name): (String, String) = (row.get("code")?, row.get("name")?);
    let (node, successor): (Option<String>, Option<String>) = (row.get("node")?, row.get("successor")?);
    let (bytes, signature): (Vec<u8>, Vec<u8>) = (row.get("bytes")?, row.get("signature")?);
    let (version, locked): (i64, bool) = (row.get("version")?, row.get("locked")?);
    Ok((|| {
        Ok(AgencyRow {
            code: rows::name("agency code", &code)?,
            version: rows::uint(version),
            signed: SignedBytes { bytes, signature: rows::signature(&signature)? },
            name,
            node: node.map(|node| rows::name("node id", &node)).transpose()?,
            locked,
            successor: successor.map(|code| rows::name("agency code", &code)).transpose()?,
            aliases: vec![],
        })
    })())
}

impl Mailbox {
    /// Stores entries that are newer than what is here, and the directory's version after them.
    pub async fn store_agencies(&self, version: u64, mut entries: Vec<AgencyRow>) -> Result<(), MailboxError> {
        // Of one agency the order stays.
        entries.sort_by(|left, right| left.code.cmp(&right.code));
        self.write(move |connection| {
            for entry in &entries {
                store(connection, entry)?;
            }
            connection
                .prepare_cached(
                    "UPDATE meta SET value = CAST(?1 AS BLOB) WHERE key = 'directory_version' \
                     AND CAST(CAST(value AS TEXT) AS INTEGER) < ?2",
                )?
                .execute(params![version.to_string(), rows::int(version)])?;
            Ok(())
        })
        .await
    }

    pub async fn directory_version(&self) -> Result<u64, MailboxError> {
        self.read(|connection| {
            let text: Vec<u8> =
                connection.query_row("SELECT value FROM meta WHERE key = 'directory_version'", [], |row| row.get(0))?;
            rows::name("directory version", &String::from_utf8_lossy(&text))
        })
        .await
    }

    /// The agencies that the directory lets this node act for.
    pub async fn hosted_by(&self, node: NodeId) -> Result<Vec<AgencyCode>, MailboxError> {
        self.read(move |connection| {
            let codes: Vec<String> = connection
                .prepare_cached("SELECT code FROM agencies WHERE node = ?1 ORDER BY code")?
                .query_map([node.as_str()], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            codes.iter().map(|code| rows::name("agency code", code)).collect()
        })
        .await
    }

    pub async fn resolve(&self, code: AgencyCode) -> Result<Resolved, MailboxError> {
        self.read(move |connection| {
            if let Some(found) = by_code(connection, &code)? {
                return Ok(Resolved::Agency(found));
            }
            let named: Vec<String> = connection
                .prepare_cached("SELECT agency FROM aliases WHERE alias = ?1")?
                .query_map([code.as_str()], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            let mut named: Vec<AgencyCode> =
                named.iter().map(|code| rows::name("agency code", code)).collect::<Result<_, _>>()?;
            match (named.len(), named.pop()) {
                (1, Some(one)) => Ok(by_code(connection, &one)?.map_or(Resolved::Unknown, Resolved::Agency)),
                (0, _) | (_, None) => {
                    let any = connection.prepare_cached("SELECT 1 FROM agencies LIMIT 1")?.exists([])?;
                    Ok(if any { Resolved::Unknown } else { Resolved::NoDirectory })
                }
                (_, Some(last)) => {
                    named.push(last);
                    Ok(Resolved::Ambiguous(named))
                }
            }
        })
        .await
    }

    /// The agency with exactly this code.
    pub async fn agency(&self, code: AgencyCode) -> Result<Option<AgencyRow>, MailboxError> {
        self.read(move |connection| by_code(connection, &code)).await
    }

    /// Agencies by one of their codes, or by a name that contains `query`, accents and case aside. A code or a whole name
    /// finds its agency alone.
    pub async fn find_agencies(&self, query: &str, limit: u32) -> Result<Vec<AgencyRow>, MailboxError> {
        let query = clean(query);
        if let Ok((code, _)) = AgencyCode::lenient(&query)
            && let Resolved::Agency(found) = self.resolve(code).await?
        {
            return Ok(vec![found]);
        }
        let (whole, code) = (fold(&query), escape_like(&query.to_uppercase()) + "%");
        let part = format!("%{}%", escape_like(&whole));
        self.read(move |connection| {
            // Only the narrow tables are searched; the entries that are meant are looked up one by one.
            let found = |sql: &str, text: &[&str]| -> Result<Vec<AgencyRow>, MailboxError> {
                let codes: Vec<String> = connection
                    .prepare_cached(sql)?
                    .query_map(rusqlite::params_from_iter(text), |row| row.get(0))?
                    .collect::<Result<_, _>>()?;
                let row = |code: &String| by_code(connection, &rows::name("agency code", code)?);
                codes.iter().filter_map(|code| row(code).transpose()).collect()
            };
            let named = format!("SELECT code FROM agencies WHERE folded = ?1 ORDER BY code LIMIT {limit}");
            let named = found(&named, &[&whole])?;
            if !named.is_empty() {
                return Ok(named);
            }
            let containing = format!(
                "SELECT code FROM agencies WHERE code LIKE ?1 ESCAPE '\\' \
                 UNION SELECT agency FROM aliases WHERE alias LIKE ?1 ESCAPE '\\' \
                 UNION SELECT code FROM agencies INDEXED BY agencies_folded WHERE folded LIKE ?2 ESCAPE '\\' \
                 ORDER BY 1 LIMIT {limit}"
            );
            found(&containing, &[&code, &part])
        })
        .await
    }
}

fn by_code(connection: &Connection, code: &AgencyCode) -> Result<Option<AgencyRow>, MailboxError> {
    let sql = format!("SELECT {COLUMNS} FROM agencies WHERE code = ?1");
    connection.prepare_cached(&sql)?.query_row([code.as_str()], agency).optional()?.transpose()
}

fn store(connection: &Connection, entry: &AgencyRow) -> Result<(), MailboxError> {
    let newer = connection
        .prepare_cached(
            "INSERT INTO agencies VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (code) DO UPDATE SET \
             version = excluded.version, bytes = excluded.bytes, signature = excluded.signature, \
             name = excluded.name, folded = excluded.folded, node = excluded.node, locked = excluded.locked, \
             successor = excluded.successor WHERE excluded.version > agencies.version",
        )?
        .execute(params![
            entry.code.as_str(),
            rows::int(entry.version),
            entry.signed.bytes,
            entry.signed.signature.0,
            entry.name,
            fold(&entry.name),
            entry.node.as_ref().map(NodeId::as_str),
            entry.locked,
            entry.successor.as_ref().map(AgencyCode::as_str)
        ])?;
    if newer == 1 {
        connection.prepare_cached("DELETE FROM aliases WHERE agency = ?1")?.execute([entry.code.as_str()])?;
        for alias in &entry.aliases {
            connection
                .prepare_cached("INSERT OR IGNORE INTO aliases VALUES (?1, ?2)")?
                .execute(params![alias.as_str(), entry.code.as_str()])?;
        }
    }
    Ok(())
}

fn escape_like(text: &str) -> String {
    text.chars().flat_map(|c| matches!(c, '%' | '_' | '\\').then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_takes_the_characters_of_patterns_as_they_are() {
        assert_eq!(escape_like("50%_a\\"), "50\\%\\_a\\\\");
    }
}
