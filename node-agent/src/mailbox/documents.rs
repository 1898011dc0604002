//! Under which names documents were sent and received before: the law asks for a warning where a DocumentId, or number, notation and
//! issuing organ within one year, come again (Decision 28/2018, domain.md section 2).

use docaxis_protocol::{AgencyCode, DispatchId, Envelope, Kind};
use rusqlite::{Connection, params};
use serde_json::Value;

use super::rows;
use super::{Mailbox, MailboxError};

/// What a document is told from others by: at most two keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DocumentKeys(Vec<String>);

impl DocumentKeys {
    /// Of a document of its own; an update or a replacement bears the names of another on purpose.
    pub fn of(envelope: &Envelope) -> Self {
        if envelope.kind != Kind::New {
            return Self::default();
        }
        let document = &envelope.document;
        let within = |group: &str, name: &str| text_in(document.get(group).and_then(|group| group.get(name)));
        let mut keys: Vec<String> =
            text_in(document.get("DocumentId")).map(|id| format!("id {id}")).into_iter().collect();
        if let (Some(number), Some(notation)) = (within("Code", "CodeNumber"), within("Code", "CodeNotation")) {
            let issuer = within("From", "OrganId").unwrap_or(envelope.sender.agency.as_str());
            let date = within("PromulgationInfo", "PromulgationDate").unwrap_or_default();
            // yyyy/MM/dd, and dd/MM/yyyy where somebody wrote it so.
            let year = date.split('/').find(|part| part.len() == 4 && part.bytes().all(|b| b.is_ascii_digit()));
            let made = envelope.created.to_vietnam();
            let year = year.or_else(|| made.get(..4)).unwrap_or_default();
            keys.push(format!(
                "no {} {} {} {year}",
                number.to_uppercase(),
                notation.to_uppercase(),
                issuer.to_uppercase()
            ));
        }
        Self(keys)
    }
}

fn text_in(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

impl Mailbox {
    /// Other documents that this agency sent (or received) under a name of this one.
    pub async fn same_documents(
        &self,
        envelope: &Envelope,
        agency: AgencyCode,
        incoming: bool,
    ) -> Result<Vec<DispatchId>, MailboxError> {
        let (keys, id) = (DocumentKeys::of(envelope), envelope.id);
        self.read(move |connection| same(connection, &keys, &agency, incoming, id)).await
    }
}

/// Dispatches of this agency under one of these keys, but for `id` itself.
pub(super) fn same(
    connection: &Connection,
    keys: &DocumentKeys,
    agency: &AgencyCode,
    incoming: bool,
    id: DispatchId,
) -> Result<Vec<DispatchId>, MailboxError> {
    let mut found = Vec::new();
    for key in &keys.0 {
        let mut query = connection.prepare_cached(
            // What nobody was sent, or was taken back from all before they had it, was not sent.
            "SELECT d.dispatch FROM documents d LEFT JOIN outgoing o ON d.incoming = 0 AND o.id = d.dispatch \
             WHERE d.agency = ?1 AND d.incoming = ?2 AND d.key = ?3 AND d.dispatch <> ?4 AND coalesce(o.state, '') <> 'rejected' \
             AND (d.incoming = 1 OR EXISTS (SELECT 1 FROM deliveries w WHERE w.dispatch = d.dispatch \
             AND w.state NOT IN ('withdrawn', 'failed'))) LIMIT 20",
        )?;
        let rows = query.query_map(params![agency.as_str(), incoming, key, id.as_bytes()], |row| row.get(0))?;
        for dispatch in rows {
            let dispatch = rows::dispatch(dispatch?)?;
            if !found.contains(&dispatch) {
                found.push(dispatch);
            }
        }
    }
    Ok(found)
}

pub(super) fn insert(
    connection: &Connection,
    keys: &DocumentKeys,
    agency: &AgencyCode,
    incoming: bool,
    id: DispatchId,
) -> Result<(), MailboxError> {
    for key in &keys.0 {
        connection.prepare_cached("INSERT OR IGNORE INTO documents VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            agency.as_str(),
            incoming,
            key,
            id.as_bytes()
        ])?;
    }
    Ok(())
}

/// Fills the table from what is there: once, when a mailbox of an earlier version is opened.
pub(super) fn fill(connection: &Connection) -> Result<(), MailboxError> {
    for (sql, incoming) in
        [("SELECT sender, envelope FROM outgoing", false), ("SELECT recipient, envelope FROM incoming", true)]
    {
        let mut query = connection.prepare(sql)?;
        let mut found = query.query([])?;
        while let Some(row) = found.next()? {
            let agency = rows::name("agency code", &row.get::<_, String>(0)?)?;
            // One that does not read has no name; the check of the mailbox tells of it.
            if let Ok(envelope) = Envelope::parse(&row.get::<_, Vec<u8>>(1)?) {
                insert(connection, &DocumentKeys::of(&envelope), &agency, incoming, envelope.id)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(document: Value) -> Vec<String> {
        let mut envelope = crate::link::testing::envelope("000.00.00.G22", &["H37.DN.001"]);
        envelope.document = document.as_object().cloned().unwrap();
        DocumentKeys::of(&envelope).0
    }

    #[test]
    fn a_document_is_told_by_its_id_and_by_number_notation_issuer_and_year() {
        use serde_json::json;
        let code = json!({"CodeNumber": "12", "CodeNotation": "vpcp-TH"});
        assert_eq!(keys(json!({"Code": code, "DocumentId": " X1 "})).len(), 2);
        let dated = |date: &str| keys(json!({"Code": code, "PromulgationInfo": {"PromulgationDate": date}}));
        assert_eq!(dated("2025/12/31"), ["no 12 VPCP-TH 000.00.00.G22 2025"]);
        assert_eq!(dated("31/12/2025"), dated("2025/01/01"));
        assert_ne!(dated("2025/12/31"), dated("2026/01/01"), "numbers begin anew each year");
        let other = keys(
            json!({"Code": code, "From": {"OrganId": "000.00.00.h37"}, "PromulgationInfo": {"PromulgationDate": "2025/01/01"}}),
        );
        assert_eq!(other, ["no 12 VPCP-TH 000.00.00.H37 2025"]);
        assert_eq!(keys(json!({"Code": {"CodeNumber": "12"}, "DocumentId": ""})), [""; 0]);
    }
}
