//! Dates and times as edXML writes them: `yyyy/MM/dd`, and `yyyy/MM/dd HH:mm:ss` in Vietnam's time without saying so.
//!
//! The text always stays; the parsed value stands beside it when there is one.

use docaxis_protocol::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::Offset;

/// Vietnam's offset from UTC, which has not changed since 1975.
const HOURS_EAST: i8 = 7;

/// A date as written, and as a date if it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated {
    pub text: String,
    pub date: Option<Date>,
}

/// A moment as written, and as a time if it is one. Read as +07:00.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    pub text: String,
    pub time: Option<Timestamp>,
}

/// How a date was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// `yyyy/MM/dd`
    Standard,
    /// `dd/MM/yyyy`, or hyphens instead of slashes
    Other,
}

pub(super) fn parse_date(text: &str) -> Option<(Date, Spelling)> {
    let (separator, spelling) = if text.contains('/') { ('/', Spelling::Standard) } else { ('-', Spelling::Other) };
    let mut groups = text.split(separator);
    let (a, b, c) = (groups.next()?, groups.next()?, groups.next()?);
    if groups.next().is_some() {
        return None;
    }
    let (year, month, day, spelling) = match (a.len(), c.len()) {
        (4, _) => (a, b, c, spelling),
        (_, 4) => (c, b, a, Spelling::Other),
        _ => return None,
    };
    let number = |group: &str, max_len: usize| -> Option<i16> {
        let digits = !group.is_empty() && group.len() <= max_len && group.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| group.parse().ok()).flatten()
    };
    let small = |group: &str| number(group, 2).and_then(|n| i8::try_from(n).ok());
    let padded = month.len() == 2 && day.len() == 2;
    let date = Date::new(number(year, 4)?, small(month)?, small(day)?).ok()?;
    Some((date, if padded { spelling } else { Spelling::Other }))
}

pub(super) fn parse_moment(text: &str) -> Option<(Timestamp, Spelling)> {
    let (date, time) = text.split_once(' ').or_else(|| text.split_once('T'))?;
    let (date, spelling) = parse_date(date)?;
    let mut groups = time.split(':');
    let mut number = || -> Option<i8> {
        let group = groups.next()?;
        (group.len() == 2 && group.bytes().all(|b| b.is_ascii_digit())).then(|| group.parse().ok()).flatten()
    };
    let (hour, minute, second) = (number()?, number()?, number()?);
    if groups.next().is_some() {
        return None;
    }
    let local = DateTime::from_parts(date, Time::new(hour, minute, second, 0).ok()?);
    let instant = Offset::constant(HOURS_EAST).to_timestamp(local).ok()?;
    let spelling = if text.contains('T') { Spelling::Other } else { spelling };
    Some((Timestamp::from_unix_ms(instant.as_millisecond()), spelling))
}

/// A moment as edXML writes it, in Vietnam's time.
pub(super) fn write_moment(time: Timestamp) -> Option<String> {
    let instant = jiff::Timestamp::from_millisecond(time.unix_ms()).ok()?;
    let local = Offset::constant(HOURS_EAST).to_datetime(instant);
    Some(format!(
        "{:04}/{:02}/{:02} {:02}:{:02}:{:02}",
        local.year(),
        local.month(),
        local.day(),
        local.hour(),
        local.minute(),
        local.second()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_in_each_order_and_impossible_ones_are_none() {
        let date = |y, m, d| Date::new(y, m, d).unwrap();
        assert_eq!(parse_date("2026/11/22"), Some((date(2026, 11, 22), Spelling::Standard)));
        assert_eq!(parse_date("22/11/2026"), Some((date(2026, 11, 22), Spelling::Other)));
        assert_eq!(parse_date("2026-11-22"), Some((date(2026, 11, 22), Spelling::Other)));
        assert_eq!(parse_date("2/1/2026"), Some((date(2026, 1, 2), Spelling::Other)));
        for text in ["", "2014/02/30", "2026/11", "2026/11/22/1", "hôm nay", "2026/+1/22", "99999/1/1", "-1/1/2026"] {
            assert_eq!(parse_date(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_time_without_zone_is_vietnams_and_is_written_back_the_same() {
        let (time, spelling) = parse_moment("2026/11/22 06:30:00").unwrap();
        assert_eq!((time.to_string().as_str(), spelling), ("2026-11-21T23:30:00.000Z", Spelling::Standard));
        assert_eq!(write_moment(time).as_deref(), Some("2026/11/22 06:30:00"));
        for text in ["2026/11/22", "2026/11/22 24:00:00", "2026/11/22 06:30", "2026/11/22 06:30:00:00"] {
            assert_eq!(parse_moment(text), None, "{text:?}");
        }
    }
}
