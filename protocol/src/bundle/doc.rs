//! Reading fields out of the JSON of a bundle, with errors that name file and field.
//!
//! A verifier must judge what stands there, also where it is no envelope that we would write: so ids and codes stay text.

use serde_json::Value;

use super::verify::Failure;
use crate::json;
use crate::time::Timestamp;

/// One JSON object of a bundle.
#[derive(Debug, Clone)]
pub(super) struct Doc {
    what: String,
    value: Value,
}

impl Doc {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, Failure> {
        let value = json::parse_value(bytes).map_err(|source| Failure::Json { what: what.to_owned(), source })?;
        if value.is_object() {
            Ok(Self { what: what.to_owned(), value })
        } else {
            Err(Failure::Field { what: what.to_owned(), field: String::new(), expected: "an object" })
        }
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field)
    }

    /// The field, unless it is absent, null, false, zero or empty.
    pub(super) fn given(&self, field: &str) -> Option<&Value> {
        self.get(field).filter(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::Bool(true) => true,
        })
    }

    /// A field, or a field in an object (`sender.agency`), that must be text.
    pub(super) fn text(&self, path: &str) -> Result<&str, Failure> {
        let value = path.split('.').try_fold(&self.value, |value, field| value.get(field));
        value.and_then(Value::as_str).ok_or_else(|| self.wrong(path, "text"))
    }

    /// A field that may be absent or null, and else must be text.
    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&str>, Failure> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "text")),
        }
    }

    pub(super) fn time(&self, field: &str) -> Result<Timestamp, Failure> {
        self.text(field)?.parse().map_err(|_| self.wrong(field, "a time, RFC 3339 in UTC"))
    }

    pub(super) fn list(&self, field: &str) -> Result<&[Value], Failure> {
        let list = self.get(field).and_then(Value::as_array);
        list.map(Vec::as_slice).ok_or_else(|| self.wrong(field, "a list"))
    }

    pub(super) fn texts(&self, field: &str) -> Result<Vec<&str>, Failure> {
        let texts: Option<Vec<_>> = self.list(field)?.iter().map(Value::as_str).collect();
        texts.ok_or_else(|| self.wrong(field, "a list of texts"))
    }

    /// The digests and sizes of `parts`.
    pub(super) fn parts(&self) -> Result<std::collections::BTreeSet<(&str, u64)>, Failure> {
        self.list("parts")?
            .iter()
            .map(|part| Some((part.get("sha256")?.as_str()?, part.get("size")?.as_u64()?)))
            .collect::<Option<_>>()
            .ok_or_else(|| self.wrong("parts", "a list of parts, each with sha256 and size"))
    }

    /// The codes of `reasons`; none if there are none.
    pub(super) fn reason_codes(&self) -> Result<Vec<&str>, Failure> {
        let Some(reasons) = self.given("reasons") else { return Ok(Vec::new()) };
        let codes = reasons.as_array().and_then(|list| {
            list.iter().map(|reason| reason.get("code").and_then(Value::as_str)).collect::<Option<Vec<_>>>()
        });
        codes.ok_or_else(|| self.wrong("reasons", "a list of reasons, each with a code"))
    }

    fn wrong(&self, field: &str, expected: &'static str) -> Failure {
        Failure::Field { what: self.what.clone(), field: field.to_owned(), expected }
    }
}
