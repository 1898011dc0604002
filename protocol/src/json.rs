//! Strict JSON: UTF-8 without a byte order mark, and no object that names a key twice (at any depth).
//!
//! Unknown keys are kept and ignored by the readers of envelopes, statements and evidence.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Why bytes are not strict JSON of the expected shape.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("JSON starts with a byte order mark; expected plain UTF-8")]
    ByteOrderMark,
    #[error("JSON does not parse, or names a key twice: {0}")]
    Syntax(#[source] serde_json::Error),
    #[error("JSON has another shape than expected: {0}")]
    Shape(#[source] serde_json::Error),
}

/// Reads strict JSON into a `T`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    serde_json::from_value(parse_value(bytes)?).map_err(JsonError::Shape)
}

/// Reads strict JSON as a tree.
pub fn parse_value(bytes: &[u8]) -> Result<Value, JsonError> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(JsonError::ByteOrderMark);
    }
    let Strict(value) = serde_json::from_slice(bytes).map_err(JsonError::Syntax)?;
    Ok(value)
}

struct Strict(Value);

impl<'de> de::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format_args!("an object names the key {key:?} twice")));
            }
            let Strict(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_named_twice_is_refused_at_any_depth() {
        for bytes in [r#"{"a":1,"a":1}"#, r#"{"a":[{"b":{"c":1,"d":2,"c":3}}]}"#, "{\"a\":1,\"\\u0061\":2}"] {
            let error = parse_value(bytes.as_bytes()).expect_err(bytes).to_string();
            assert!(error.contains("twice"), "{bytes}: {error}");
        }
    }

    #[test]
    fn byte_order_marks_trailing_bytes_and_bad_utf_8_are_refused() {
        assert!(matches!(parse_value(b"\xef\xbb\xbf{}"), Err(JsonError::ByteOrderMark)));
        for bytes in [&b"{} {}"[..], b"{\"a\":\"\xff\"}", b"", b"{", b"[1,]", b"NaN"] {
            assert!(matches!(parse_value(bytes), Err(JsonError::Syntax(_))), "{bytes:?} was taken");
        }
    }

    #[test]
    fn a_plain_tree_reads_the_same_as_with_any_other_reader() {
        let text = r#"{"a":[1,-2,3.5,"x",null,true],"b":{"c":{}}}"#;
        assert_eq!(parse_value(text.as_bytes()).expect("parses"), serde_json::from_str::<Value>(text).expect("parses"));
    }
}
