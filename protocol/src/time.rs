//! Points in time: milliseconds since 1970 in UTC, written as RFC 3339 with `Z`. The clock itself is outside.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// A point in time, in milliseconds since 1970-01-01T00:00:00Z.
///
/// As text always `2026-11-22T03:30:00.123Z`: UTC, upper-case `T` and `Z`, milliseconds. On the way in any number of
/// fractional digits is taken and cut to milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

/// A time that is not RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time {found:?} is not valid: expected RFC 3339 in UTC, such as 2026-11-22T03:30:00.123Z")]
pub struct InvalidTime {
    pub found: String,
}

impl Timestamp {
    pub const fn from_unix_ms(ms: i64) -> Self {
        Self(ms)
    }

    pub const fn unix_ms(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    pub const fn unix_s(self) -> i64 {
        self.0.div_euclid(1000)
    }

    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The same instant as people in Vietnam read it: `2026-11-22 10:30:00 +07:00`.
    pub fn to_vietnam(self) -> String {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => {
                let zone = TimeZone::fixed(jiff::tz::offset(7));
                at.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
            }
            Err(_) => format!("{} ms", self.0),
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{} ms since 1970", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTime;
    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let wrong = || InvalidTime { found: text.chars().take(60).collect() };
        let bytes = text.as_bytes();
        let shaped = bytes.len() >= 20
            && bytes.iter().enumerate().all(|(i, b)| match i {
                4 | 7 => *b == b'-',
                10 => *b == b'T',
                13 | 16 => *b == b':',
                _ if i == bytes.len() - 1 => *b == b'Z',
                19 => *b == b'.',
                _ => b.is_ascii_digit(),
            })
            && bytes.len() != 21;
        if !shaped {
            return Err(wrong());
        }
        let whole: jiff::Timestamp = format!("{}Z", &text[..19]).parse().map_err(|_| wrong())?;
        let digits: Vec<i64> = bytes[19..bytes.len() - 1].iter().skip(1).take(3).map(|b| i64::from(b - b'0')).collect();
        let fraction = digits.iter().zip([100, 10, 1]).map(|(digit, weight)| digit * weight).sum::<i64>();
        Ok(Self(whole.as_millisecond() + fraction))
    }
}

impl TryFrom<String> for Timestamp {
    type Error = InvalidTime;
    fn try_from(text: String) -> Result<Self, InvalidTime> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(at: Timestamp) -> String {
        at.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_milliseconds_and_read_back() {
        for (text, ms) in [
            ("2026-11-22T03:30:00.123Z", 1_795_318_200_123),
            ("1970-01-01T00:00:00.000Z", 0),
            ("1969-12-31T23:59:59.999Z", -1),
        ] {
            assert_eq!(text.parse(), Ok(Timestamp::from_unix_ms(ms)), "{text}");
            assert_eq!(Timestamp::from_unix_ms(ms).to_string(), text);
        }
        assert_eq!(
            "2026-12-22T03:30:00Z".parse::<Timestamp>().map(|t| t.to_string()),
            Ok("2026-12-22T03:30:00.000Z".into())
        );
        assert_eq!(
            "2026-12-22T03:30:00.5Z".parse::<Timestamp>().map(|t| t.to_string()),
            Ok("2026-12-22T03:30:00.500Z".into())
        );
        assert_eq!(
            "2026-12-22T03:30:00.1239Z".parse::<Timestamp>().map(|t| t.to_string()),
            Ok("2026-12-22T03:30:00.123Z".into())
        );
    }

    #[test]
    fn other_shapes_of_time_are_refused() {
        for text in [
            "",
            "2026-11-22",
            "2026-11-22 03:30:00Z",
            "2026-11-22T03:30:00+07:00",
            "2026-11-22t03:30:00z",
            "2026-02-30T00:00:00Z",
            "2026-11-22T03:30:00.Z",
            "2026-11-22T03:30Z",
            "2026-11-22T25:30:00Z",
            "2026-11-22T03:30:00,1Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn people_in_vietnam_read_local_time() {
        assert_eq!(Timestamp::from_unix_ms(1_795_318_200_123).to_vietnam(), "2026-11-22 10:30:00 +07:00");
    }
}
