//! A line on a terminal that says how far something is which takes more than a moment. Off a terminal, and with `--json`,
//! there is none.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use docaxis_protocol::space::binary;

use crate::out::Out;

/// Before this, nothing is shown: most things are done sooner.
const AFTER: Duration = Duration::from_secs(1);
/// How often it is looked at.
pub const EVERY: Duration = Duration::from_millis(250);
/// Of the whole line.
const COLUMNS: usize = 79;
/// Of the bar itself.
const BAR_COLUMNS: usize = 16;

/// A progress line on stderr, or nothing at all.
pub struct Progress {
    on: bool,
    what: &'static str,
    began: Instant,
    /// What was there at first: a transfer that goes on owes its speed to the rest.
    first: Option<u64>,
    shown: bool,
}

impl Progress {
    pub fn new(out: Out) -> Self {
        Self { on: !out.json && std::io::stderr().is_terminal(), ..Self::off() }
    }

    pub fn off() -> Self {
        Self { on: false, what: "", began: Instant::now(), first: None, shown: false }
    }

    /// Whether anybody looks.
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// So many bytes are done. Another `what` begins another line.
    pub fn at(&mut self, what: &'static str, done: u64, total: u64) {
        if !self.on {
            return;
        }
        if self.what != what || self.first.is_none_or(|first| done < first) {
            self.end();
            (self.what, self.began, self.first) = (what, Instant::now(), Some(done));
        }
        let elapsed = self.began.elapsed();
        if elapsed < AFTER {
            return;
        }
        self.show(&line(what, (self.first.unwrap_or(0), done, total), elapsed));
    }

    /// How it stands, where there are no bytes to count.
    pub fn say(&mut self, words: &str) {
        if !self.on {
            return;
        }
        if !self.what.is_empty() {
            self.end();
            (self.what, self.began) = ("", Instant::now());
        }
        if self.began.elapsed() >= AFTER {
            self.show(words);
        }
    }

    fn show(&mut self, text: &str) {
        // Where nobody can be told, nothing is lost.
        let mut stderr = std::io::stderr();
        let _unseen = write!(stderr, "\r{text:<COLUMNS$.COLUMNS$}").and_then(|()| stderr.flush());
        self.shown = true;
    }

    /// Takes the line away.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let mut stderr = std::io::stderr();
            let _unseen = write!(stderr, "\r{:COLUMNS$}\r", "").and_then(|()| stderr.flush());
        }
        self.first = None;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// How it stands, with the speed since the line began and the time that the rest will take at that speed. `first`, `done`
/// and `total` are bytes.
fn line(what: &str, (first, done, total): (u64, u64, u64), elapsed: Duration) -> String {
    let done = done.min(total);
    let part = |of: u64| {
        if total == 0 { of } else { u64::try_from(u128::from(done) * u128::from(of) / u128::from(total)).unwrap_or(of) }
    };
    let full = usize::try_from(part(BAR_COLUMNS as u64)).unwrap_or(BAR_COLUMNS);
    let bar = format!("{}{}", "#".repeat(full), "-".repeat(BAR_COLUMNS - full));
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = done.saturating_sub(first).saturating_mul(1000) / ms;
    let left = match (total - done).checked_div(rate) {
        Some(seconds) => format!("{} left", time(seconds)),
        None => "waiting".into(),
    };
    format!("{what} [{bar}] {:>3}% of {}  {}/s  {left}", part(100), binary(total), binary(rate))
}

fn time(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (100.., ..) => "over 99 d".into(),
        (days @ 1.., ..) => format!("{days} d {} h", seconds % 86_400 / 3600),
        (0, hours @ 1.., _) => format!("{hours} h {} min", seconds % 3600 / 60),
        (0, 0, minutes @ 1..) => format!("{minutes} min {} s", seconds % 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_line_says_how_far_it_is_how_fast_and_how_long_it_will_take() {
        let at = |first, done, total, seconds| line("sending", (first, done, total), Duration::from_secs(seconds));
        let checks = [
            (at(0, 0, 300 * MIB, 2), "sending [----------------]   0% of 300.0 MiB  0 bytes/s  waiting"),
            (at(0, 75 * MIB, 300 * MIB, 2), "sending [####------------]  25% of 300.0 MiB  37.5 MiB/s  6 s left"),
            // What was there before is no speed of now.
            (
                at(50 * MIB, 75 * MIB, 300 * MIB, 10),
                "sending [####------------]  25% of 300.0 MiB  2.5 MiB/s  1 min 30 s left",
            ),
            (at(0, 300 * MIB, 300 * MIB, 9), "sending [################] 100% of 300.0 MiB  33.3 MiB/s  0 s left"),
            (at(0, 1, 2, 0), "sending [########--------]  50% of 2 bytes  1000 bytes/s  0 s left"),
            (at(0, 0, 0, 3), "sending [################] 100% of 0 bytes  0 bytes/s  waiting"),
            (at(0, 5, 4, 1), "sending [################] 100% of 4 bytes  4 bytes/s  0 s left"),
            (at(0, 1, 16 << 30, 1), "sending [----------------]   0% of 16.0 GiB  1 bytes/s  over 99 d left"),
        ];
        for (found, expected) in checks {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_longest_line_fits_into_an_old_terminal() {
        // Ten columns each are the most that an amount takes, and a time eleven.
        for total in [1023, 1024 * 1024 - 1, 1024 * MIB - 1, 1024 * 1024 * MIB - 1] {
            for rate in [1, 1023, 1024 * 1023, 1024 * MIB - 1] {
                for seconds in [59, 3_599, 86_399, 86_400 * 99 + 86_399] {
                    let left = rate * seconds;
                    let total = total.max(left + rate);
                    let found = line("taking in", (0, total - left, total), Duration::from_secs((total - left) / rate));
                    assert!(found.len() <= COLUMNS, "{} columns: {found}", found.len());
                }
            }
        }
        let longest = line("taking in", (0, MIB - 1, 1024 * MIB - 1), Duration::from_secs(1));
        assert_eq!(longest.len(), 78, "{longest}");
    }

    #[test]
    fn off_a_terminal_nothing_is_shown() {
        let mut progress = Progress::off();
        progress.at("sending", 1, 2);
        assert!(!progress.is_on() && !progress.shown);
    }
}
