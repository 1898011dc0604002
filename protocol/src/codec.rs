//! The private binary encoding of link frames and store records: the only place that knows bincode.
//!
//! Pinned by golden bytes under `tests/golden/`. `bincode`'s own limit bounds decoding only and lets trailing bytes
//! pass, so both are checked here.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The most that any one value may take up while it is decoded. Without a bound in bincode itself, a false length in
/// front of a string would be allocated before the missing bytes are noticed.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

/// Why bytes were not a value, or a value did not become bytes.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("{found} bytes are over the limit of {limit}")]
    TooLarge { found: usize, limit: usize },
    #[error("{left} bytes are left over after the value")]
    Trailing { left: usize },
    #[error("bytes do not decode")]
    Decode(#[source] bincode::error::DecodeError),
    #[error("value does not encode")]
    Encode(#[source] bincode::error::EncodeError),
}

/// Encodes `value`; refuses a result over `limit` bytes.
pub fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, bincode::config::legacy()).map_err(CodecError::Encode)?;
    if bytes.len() > limit {
        return Err(CodecError::TooLarge { found: bytes.len(), limit });
    }
    Ok(bytes)
}

/// Encodes `value` at the beginning of `to`, and returns its length; refuses what does not fit.
pub fn encode_into<T: Serialize>(value: &T, to: &mut [u8]) -> Result<usize, CodecError> {
    bincode::serde::encode_into_slice(value, to, bincode::config::legacy()).map_err(CodecError::Encode)
}

/// Decodes all of `bytes`, which may be at most `limit` long.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CodecError> {
    decode_borrowed(bytes, limit)
}

/// The same for a value that borrows texts and byte strings from `bytes` instead of copying them.
pub fn decode_borrowed<'a, T: Deserialize<'a>>(bytes: &'a [u8], limit: usize) -> Result<T, CodecError> {
    if bytes.len() > limit {
        return Err(CodecError::TooLarge { found: bytes.len(), limit });
    }
    let config = bincode::config::legacy().with_limit::<MAX_VALUE_BYTES>();
    let (value, read) = bincode::serde::borrow_decode_from_slice(bytes, config).map_err(CodecError::Decode)?;
    match bytes.len() - read {
        0 => Ok(value),
        left => Err(CodecError::Trailing { left }),
    }
}

/// Byte strings as bincode byte strings (a length and the bytes, copied at once), not as sequences of numbers.
pub mod blob {
    use serde::{Deserializer, Serializer, de};
    use std::fmt;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Byte arrays whose length is a multiple of 8, word by word: the same bytes as the array's own encoding, in an eighth of the
/// steps.
pub mod words {
    use std::fmt;

    use serde::ser::SerializeTuple as _;
    use serde::{Deserializer, Serializer, de};

    const WORD: usize = 8;

    pub fn serialize<const N: usize, S: Serializer>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        const { assert!(N.is_multiple_of(WORD)) };
        let mut tuple = serializer.serialize_tuple(N / WORD)?;
        for word in bytes.as_chunks::<WORD>().0 {
            tuple.serialize_element(&u64::from_le_bytes(*word))?;
        }
        tuple.end()
    }

    pub fn deserialize<'de, const N: usize, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; N], D::Error> {
        struct Words<const N: usize>;
        impl<'de, const N: usize> de::Visitor<'de> for Words<N> {
            type Value = [u8; N];
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{N} bytes")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut words: A) -> Result<[u8; N], A::Error> {
                let mut bytes = [0; N];
                for (at, to) in (0..).zip(bytes.as_chunks_mut::<WORD>().0) {
                    let word: Option<u64> = words.next_element()?;
                    *to = word.ok_or_else(|| de::Error::invalid_length(at, &self))?.to_le_bytes();
                }
                Ok(bytes)
            }
        }
        const { assert!(N.is_multiple_of(WORD)) };
        deserializer.deserialize_tuple(N / WORD, Words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_bytes_of_the_array() {
        #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
        struct Row {
            before: u16,
            #[serde(with = "words")]
            digest: [u8; 32],
            after: u16,
        }
        let mut digest = [0; 32];
        digest.iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
        let row = Row { before: 1, digest, after: 2 };
        let encoded = encode(&row, 100).unwrap();
        assert_eq!(encoded, encode(&(1u16, digest, 2u16), 100).unwrap());
        assert_eq!(decode::<Row>(&encoded, 100).unwrap(), row);
        assert!(decode::<Row>(&encoded[..30], 100).is_err());
    }

    #[test]
    fn what_is_borrowed_and_what_is_encoded_into_a_place_are_the_same_as_copies() {
        let value = (7u32, "text".to_owned(), Some(9u64));
        let bytes = encode(&value, 64).unwrap();
        let (number, text, last): (u32, &str, Option<u64>) = decode_borrowed(&bytes, 64).unwrap();
        assert_eq!((number, text.to_owned(), last), value);
        assert!(decode_borrowed::<(u32, &str)>(&bytes, 64).is_err(), "bytes are left over");
        let mut place = [0xff; 64];
        let length = encode_into(&value, &mut place).unwrap();
        assert_eq!(place[..length], bytes);
        assert!(encode_into(&value, &mut place[..length - 1]).is_err());
    }

    #[test]
    fn all_bytes_must_be_used_and_the_limit_holds_both_ways() {
        let bytes = encode(&(7u32, "x"), 64).expect("encodes");
        assert_eq!(decode::<(u32, String)>(&bytes, 64).expect("decodes"), (7, "x".into()));
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(decode::<(u32, String)>(&longer, 64), Err(CodecError::Trailing { left: 1 })));
        assert!(matches!(decode::<(u32, String)>(&bytes, 3), Err(CodecError::TooLarge { .. })));
        assert!(matches!(encode(&"x".repeat(100), 64), Err(CodecError::TooLarge { found: 108, limit: 64 })));
    }

    #[test]
    fn an_announced_length_beyond_the_bytes_is_refused_before_it_is_allocated() {
        let lie = u64::MAX.to_le_bytes();
        assert!(decode::<Vec<u64>>(&lie, 64).is_err());
        assert!(decode::<String>(&(1u64 << 60).to_le_bytes(), 64).is_err());
    }
}
