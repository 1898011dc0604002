//! By when a recipient answers a dispatch that it has: pure calendar (Decree 30/2020: the same or the next working day). Days are
//! Vietnam's, UTC+7 all year.

use std::collections::BTreeSet;
use std::time::Duration;

use docaxis_protocol::Timestamp;
use serde::{Deserialize, Serialize};

const DAY_MS: i64 = 86_400_000;
const VIETNAM_MS: i64 = 7 * 3_600_000;
/// More would be no time to answer.
const MOST_DAYS: u32 = 60;
/// As many holidays as a configuration may name.
const MOST_HOLIDAYS: usize = 400;

/// How long a recipient has to register or refuse what was handed over to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AnswerTime {
    /// Nobody is reminded.
    Off,
    /// Until the same time of day so many working days later.
    WorkingDays(u32),
    /// So long by the clock.
    Clock(Duration),
}

impl TryFrom<String> for AnswerTime {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no time to answer; expected such as \"1 working day\", \"36h\" or \"off\" (at most {MOST_DAYS} days)"
            )
        };
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(days) = text.strip_suffix(" working days").or_else(|| text.strip_suffix(" working day")) {
            let days = days.trim().parse().ok().filter(|days| (1..=MOST_DAYS).contains(days));
            return days.map(Self::WorkingDays).ok_or_else(wrong);
        }
        let clock = humantime_serde::re::humantime::parse_duration(&text).map_err(|_| wrong())?;
        let most = Duration::from_secs(u64::from(MOST_DAYS) * 86_400);
        if clock.is_zero() || clock > most { Err(wrong()) } else { Ok(Self::Clock(clock)) }
    }
}

impl From<AnswerTime> for String {
    fn from(time: AnswerTime) -> Self {
        match time {
            AnswerTime::Off => "off".into(),
            AnswerTime::WorkingDays(1) => "1 working day".into(),
            AnswerTime::WorkingDays(days) => format!("{days} working days"),
            AnswerTime::Clock(clock) => humantime_serde::re::humantime::format_duration(clock).to_string(),
        }
    }
}

/// Section `[acceptance]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcceptanceSection {
    /// Within which a recipient answers; then NoAnswer is recorded, and an answer still counts.
    pub time: AnswerTime,
    /// Days on which nobody works beside Saturdays and Sundays, such as `2027-02-06`.
    pub holidays: Vec<Date>,
}

impl Default for AcceptanceSection {
    fn default() -> Self {
        Self { time: AnswerTime::WorkingDays(1), holidays: vec![] }
    }
}

/// A day by its number since 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Date(i64);

impl TryFrom<String> for Date {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let midnight = format!("{text}T00:00:00Z").parse::<Timestamp>();
        let midnight = midnight.map_err(|_| format!("{text:?} is no date; expected YYYY-MM-DD"))?;
        Ok(Self(midnight.unix_ms().div_euclid(DAY_MS)))
    }
}

impl From<Date> for String {
    fn from(date: Date) -> Self {
        let text = Timestamp::from_unix_ms(date.0 * DAY_MS).to_string();
        text.split('T').next().unwrap_or_default().to_owned()
    }
}

/// Tells when an answer is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    time: AnswerTime,
    holidays: BTreeSet<i64>,
}

impl Calendar {
    pub fn new(section: &AcceptanceSection) -> Self {
        let holidays = section.holidays.iter().take(MOST_HOLIDAYS).map(|date| date.0).collect();
        Self { time: section.time, holidays }
    }

    /// Monday is day 0 of a week; 1970-01-01 was a Thursday.
    fn is_working(&self, day: i64) -> bool {
        (day + 3).rem_euclid(7) < 5 && !self.holidays.contains(&day)
    }

    fn next_working(&self, day: i64) -> i64 {
        (day + 1..).find(|day| self.is_working(*day)).unwrap_or(day)
    }

    /// When the answer to what was handed over then is due; none if nobody waits for one. Never earlier for what was handed
    /// over later.
    pub fn due(&self, handed_over: Timestamp) -> Option<Timestamp> {
        match self.time {
            AnswerTime::Off => None,
            AnswerTime::Clock(clock) => Some(handed_over.plus(clock)),
            AnswerTime::WorkingDays(days) => {
                let local = handed_over.unix_ms() + VIETNAM_MS;
                let (mut day, mut of_day) = (local.div_euclid(DAY_MS), local.rem_euclid(DAY_MS));
                if !self.is_working(day) {
                    // As if it had come when people are back.
                    (day, of_day) = (self.next_working(day), 0);
                }
                for _ in 0..days {
                    day = self.next_working(day);
                }
                Some(Timestamp::from_unix_ms(day * DAY_MS + of_day - VIETNAM_MS))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calendar(time: &str, holidays: &[&str]) -> Calendar {
        let holidays = holidays.iter().map(|date| Date::try_from((*date).to_owned()).unwrap()).collect();
        Calendar::new(&AcceptanceSection { time: AnswerTime::try_from(time.to_owned()).unwrap(), holidays })
    }

    fn due(calendar: &Calendar, at: &str) -> String {
        calendar.due(at.parse().unwrap()).map_or_else(|| "never".into(), |due| due.to_vietnam())
    }

    #[test]
    fn a_working_day_skips_weekends_and_holidays_in_vietnams_time() {
        let one = calendar("1 working day", &["2027-01-01"]);
        let expected = |at: &str, vietnam: &str| assert!(due(&one, at).starts_with(vietnam), "{at}: {}", due(&one, at));
        // Thursday, Friday, Saturday; and 23:30 UTC on a Thursday is Friday morning in Hanoi.
        expected("2026-11-26T03:00:00Z", "2026-11-27 10:00");
        expected("2026-11-27T09:00:00Z", "2026-11-30 16:00");
        expected("2026-11-28T03:00:00Z", "2026-12-01 00:00");
        expected("2026-11-26T23:30:00Z", "2026-11-30 06:30");
        // New Year's Eve is a Thursday; the day after is a holiday, then comes the weekend.
        expected("2026-12-31T03:00:00Z", "2027-01-04 10:00");
        assert!(due(&calendar("3 working days", &[]), "2026-11-26T03:00:00Z").starts_with("2026-12-01 10:00"));
        assert!(due(&calendar("36h", &[]), "2026-11-27T09:00:00Z").starts_with("2026-11-29 04:00"));
        assert_eq!(due(&calendar("off", &[]), "2026-11-27T09:00:00Z"), "never");
    }

    #[test]
    fn what_was_handed_over_later_is_never_due_earlier() {
        let calendar = calendar("2 working days", &["2026-12-02", "2026-12-03"]);
        let begin = "2026-11-23T00:00:00Z".parse::<Timestamp>().unwrap();
        let dues: Vec<_> =
            (0..24 * 21).map(|hours| calendar.due(begin.plus(Duration::from_secs(hours * 3600))).unwrap()).collect();
        assert!(dues.is_sorted());
    }

    #[test]
    fn a_time_is_written_as_it_is_read_and_nonsense_is_refused_with_what_is_expected() {
        for text in ["off", "1 working day", "5 working days", "1day 12h"] {
            assert_eq!(String::from(AnswerTime::try_from(text.to_owned()).unwrap()), text);
        }
        for text in ["", "0 working days", "61 working days", "soon", "0s", "61d"] {
            assert!(AnswerTime::try_from(text.to_owned()).unwrap_err().contains("1 working day"), "{text}");
        }
        assert_eq!(String::from(Date::try_from("2027-02-06".to_owned()).unwrap()), "2027-02-06");
        assert!(Date::try_from("06/02/2027".to_owned()).unwrap_err().contains("YYYY-MM-DD"));
    }
}
