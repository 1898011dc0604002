//! When a party takes no new work because its disk is nearly full (`disk-full`), and what it keeps back so that what it
//! promised can still be carried out.
//!
//! Pure: what the file system says comes in; a level, a step and words for people come out. Bytes and inodes are judged
//! alike, and the scarcer of them decides. The driver beside each store looks, performs the step and looks again.

use serde::{Deserialize, Serialize};

/// Free bytes under which the disk counts as full, on a disk of a gibibyte and more: what a start and the next
/// checkpoints write at once.
const FULL_BELOW_BYTES: u64 = 16 << 20;
/// Free inodes under which the disk counts as full.
const FULL_BELOW_INODES: u64 = 64;
/// On a small disk, it counts as full under this part of it.
const FULL_PART: u64 = 64;
/// Free inodes with which percentages do not matter any more: a store needs one for each large body and little else.
const ENOUGH_FREE_INODES: u64 = 1_000_000;
/// A level is left only when this much more is free than where it began, so that it does not come and go.
const LEAVE_PERCENT: u64 = 1;
/// The ballast is at most this part of the disk.
const BALLAST_PART: u64 = 32;
/// Files of the ballast: removing one must give an inode back as well.
const BALLAST_FILES: u64 = 64;
/// Files that are removed at once.
const RELEASE_FILES: u64 = 4;

/// `[space]`: how much of the disk under the data folder is kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpaceConfig {
    /// From this use of the file system on, in percent of its bytes or of its inodes (as `df` counts them), new work is
    /// refused with `disk-full`; its senders keep it and try again by themselves.
    pub refuse_new_percent: u8,
    /// From this use on, work under way is not finished either: only what was promised is carried out, and what is
    /// needed to control the exchange.
    pub drain_only_percent: u8,
    /// With this much free, in GiB, new work is taken whatever the percentage; with half of it, work under way is
    /// finished. A tenth of a large disk is more than is needed; on one of less than ten times this, percentages decide.
    pub enough_free_gib: u64,
    /// Room kept filled for the day when nothing else is left, in MiB; at most a 32nd of the disk. A change counts when it
    /// is made the next time. 0 turns it off: then a full disk may need a person before the program starts again.
    pub ballast_mib: u64,
}

impl Default for SpaceConfig {
    fn default() -> Self {
        Self { refuse_new_percent: 90, drain_only_percent: 95, enough_free_gib: 64, ballast_mib: 64 }
    }
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}; expected {expected}")]
pub struct SpaceConfigError {
    pub key: &'static str,
    pub found: u64,
    pub expected: &'static str,
}

impl SpaceConfig {
    pub fn check(&self) -> Result<(), SpaceConfigError> {
        let wrong = |key, found, expected| Err(SpaceConfigError { key, found, expected });
        if !(1..=99).contains(&self.drain_only_percent) {
            return wrong("space.drain_only_percent", self.drain_only_percent.into(), "1 to 99");
        }
        if !(1..=self.drain_only_percent).contains(&self.refuse_new_percent) {
            return wrong("space.refuse_new_percent", self.refuse_new_percent.into(), "1 to space.drain_only_percent");
        }
        if self.enough_free_gib > 1 << 20 {
            return wrong("space.enough_free_gib", self.enough_free_gib, "at most 1048576");
        }
        if self.ballast_mib > 1 << 20 {
            return wrong("space.ballast_mib", self.ballast_mib, "at most 1048576");
        }
        Ok(())
    }

    /// Free units at and below which a level begins.
    fn threshold(&self, level: Level, of: Amount, unit: Unit) -> u64 {
        let (small, enough) = match unit {
            Unit::Bytes => (FULL_BELOW_BYTES, self.enough_free_gib.saturating_mul(1 << 30)),
            Unit::Inodes => (FULL_BELOW_INODES, ENOUGH_FREE_INODES),
        };
        match level {
            Level::Open => u64::MAX,
            Level::RefuseNew => of.percent(100 - u64::from(self.refuse_new_percent)).min(enough),
            Level::DrainOnly => of.percent(100 - u64::from(self.drain_only_percent)).min(enough / 2),
            Level::Full => small.min(of.total() / FULL_PART),
        }
    }

    /// The level by one unit, with `more` free units asked for at each threshold.
    fn level_by(&self, of: Amount, unit: Unit, more: u64) -> Level {
        // A file system without a number of inodes has no bound on them.
        if of.total() == 0 {
            return Level::Open;
        }
        let begun = |level: &Level| of.free <= self.threshold(*level, of, unit).saturating_add(more);
        [Level::Full, Level::DrainOnly, Level::RefuseNew].into_iter().find(begun).unwrap_or(Level::Open)
    }

    fn level(&self, usage: Usage, before: Level) -> Level {
        let by = |of: Amount, unit| {
            let now = self.level_by(of, unit, 0);
            now.max(self.level_by(of, unit, of.percent(LEAVE_PERCENT)).min(before))
        };
        by(usage.bytes, Unit::Bytes).max(by(usage.inodes, Unit::Inodes))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Inodes,
}

/// Used and free, as `df` shows them to a user without privileges. Both 0: there is no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Amount {
    pub used: u64,
    pub free: u64,
}

impl Amount {
    pub const fn total(&self) -> u64 {
        self.used.saturating_add(self.free)
    }

    fn percent(&self, percent: u64) -> u64 {
        let part = u128::from(self.total()) * u128::from(percent) / 100;
        u64::try_from(part).unwrap_or(u64::MAX)
    }

    /// How much is used, in whole percent, rounded up as `df` does.
    fn used_percent(&self) -> u64 {
        let part = (u128::from(self.used) * 100).div_ceil(u128::from(self.total().max(1)));
        u64::try_from(part).unwrap_or(100)
    }

    const fn after(&self, taken: u64) -> Self {
        let taken = if taken < self.free { taken } else { self.free };
        Self { used: self.used.saturating_add(taken), free: self.free - taken }
    }
}

/// What a file system says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: Amount,
    pub inodes: Amount,
}

/// How much is still done. In order: each level allows less than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    #[default]
    Open,
    /// Nothing new is begun.
    RefuseNew,
    /// What is under way is not finished either; deliveries, outcomes and control go on.
    DrainOnly,
    /// The same, out of the ballast.
    Full,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Open, Self::RefuseNew, Self::DrainOnly, Self::Full];

    const fn words(self) -> &'static str {
        match self {
            Self::Open => "ok: new work is taken",
            Self::RefuseNew => "new work is refused",
            Self::DrainOnly => "only draining: deliveries, outcomes and control go on",
            Self::Full => "full: deliveries, outcomes and control go on out of the ballast",
        }
    }
}

/// Files of equal size that fill the room which is kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballast {
    pub files: u64,
    pub file_bytes: u64,
}

/// What the driver does next; then it looks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Remove so many of the ballast's files: what was promised needs their room now.
    Release(u64),
    /// Make the ballast anew, whole.
    Make(Ballast),
}

/// Watches one file system.
#[derive(Debug, Clone)]
pub struct Watch {
    config: SpaceConfig,
    usage: Usage,
    level: Level,
    /// Files of the ballast that are there.
    left: u64,
    /// Some of it was released in need; the disk counts as full until it is whole again.
    spent: bool,
}

impl Watch {
    /// `left` is how many files of the ballast an earlier run has left.
    pub fn new(config: SpaceConfig, left: u64) -> Self {
        Self { config, usage: Usage::default(), level: Level::Open, left, spent: false }
    }

    pub const fn level(&self) -> Level {
        self.level
    }

    /// Takes in what the file system says now; `needed` says that somebody has found no room since the last look.
    pub fn look(&mut self, usage: Usage, needed: bool) -> Step {
        self.usage = usage;
        let ballast = self.ballast();
        let level = self.config.level(usage, self.level);
        let whole = self.left >= ballast.files;
        self.level = match (whole, self.spent) {
            (true, _) => level,
            (false, true) => Level::Full,
            (false, false) => level.max(Level::DrainOnly),
        };
        // Little by little: another program that goes on filling the disk would take all of it at once.
        let short = |of: Amount, step: u64| of.total() > 0 && of.free < step;
        let none = short(usage.bytes, RELEASE_FILES * ballast.file_bytes) || short(usage.inodes, RELEASE_FILES);
        if self.left > 0 && (needed && level >= Level::DrainOnly || none && level == Level::Full) {
            return Step::Release(self.left.min(RELEASE_FILES));
        }
        let missing = ballast.files.saturating_sub(self.left);
        let after =
            Usage { bytes: usage.bytes.after(missing * ballast.file_bytes), inodes: usage.inodes.after(missing) };
        // Made only where that leaves room enough not to be released again at once.
        let fits = self.config.level(after, Level::Full) < Level::DrainOnly;
        if !whole && fits { Step::Make(ballast) } else { Step::Nothing }
    }

    /// So many files of the ballast have been removed.
    pub fn released(&mut self, files: u64) {
        self.left = self.left.saturating_sub(files);
        self.spent = true;
    }

    /// The ballast is there, whole; or nothing of it, if it could not be made.
    pub fn made(&mut self, ballast: Option<Ballast>) {
        self.left = ballast.map_or(0, |ballast| ballast.files);
        if ballast.is_some() && std::mem::take(&mut self.spent) {
            // The need is over: from here on the numbers decide alone.
            self.level = Level::RefuseNew;
        }
    }

    fn ballast(&self) -> Ballast {
        let Usage { bytes, inodes } = self.usage;
        let wanted = self.config.ballast_mib.saturating_mul(1 << 20);
        let most = if bytes.total() == 0 { wanted } else { wanted.min(bytes.total() / BALLAST_PART) };
        let files =
            if inodes.total() == 0 { BALLAST_FILES } else { BALLAST_FILES.min(inodes.total() / BALLAST_PART).max(1) };
        if wanted == 0 { Ballast { files: 0, file_bytes: 0 } } else { Ballast { files, file_bytes: most / files } }
    }

    /// Whether something new of so many bytes may be begun; `coming` are bytes that others still have to write. Why not,
    /// if not.
    pub fn may_begin(&self, bytes: u64, coming: u64) -> Result<(), String> {
        if self.level >= Level::RefuseNew {
            return Err(self.why());
        }
        // What is begun must be able to end: without this, one large body would fill a small disk.
        let room = self.usage.bytes.after(bytes.saturating_add(coming));
        if self.config.level_by(room, Unit::Bytes, 0) < Level::DrainOnly {
            return Ok(());
        }
        Err(format!("{} more would leave too little room: {}", binary(bytes), self.why()))
    }

    /// The state in words, and why.
    pub fn why(&self) -> String {
        let Usage { bytes, inodes } = self.usage;
        let of_inodes = self.config.level_by(inodes, Unit::Inodes, 0) > self.config.level_by(bytes, Unit::Bytes, 0);
        let (what, of, free, total) = if of_inodes {
            ("inodes", inodes, inodes.free.to_string(), inodes.total().to_string())
        } else {
            ("bytes", bytes, binary(bytes.free), binary(bytes.total()))
        };
        format!("{}% of the file system's {what} are used, {free} of {total} are free", of.used_percent())
    }

    /// What happens next, and what a person can do.
    fn next(&self) -> String {
        let again = |of: Amount, unit, show: &dyn Fn(u64) -> String| {
            (of.total() > 0).then(|| {
                let free = self.config.threshold(Level::RefuseNew, of, unit).saturating_add(of.percent(LEAVE_PERCENT));
                show(free)
            })
        };
        if self.level == Level::Open {
            return "nothing is to be done".into();
        }
        let bytes = again(self.usage.bytes, Unit::Bytes, &binary);
        let inodes = again(self.usage.inodes, Unit::Inodes, &|count| format!("{count} inodes"));
        let both: Vec<String> = [bytes, inodes].into_iter().flatten().collect();
        format!("make room; new work is taken again by itself when more than {} are free", both.join(" and "))
    }

    /// For people and programs.
    pub fn report(&self) -> Report {
        let Usage { bytes, inodes } = self.usage;
        Report {
            state: self.level,
            words: format!("{}; {}; {}", self.level.words(), self.why(), self.next()),
            free_bytes: bytes.free,
            total_bytes: bytes.total(),
            free_inodes: inodes.free,
            total_inodes: inodes.total(),
            ballast_files: self.left,
        }
    }
}

/// How a disk is, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub state: Level,
    /// The state, why, and what comes next.
    pub words: String,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub free_inodes: u64,
    /// 0 if the file system does not count them.
    pub total_inodes: u64,
    /// Files that are left of the room which is kept back.
    pub ballast_files: u64,
}

/// A number of bytes for people.
pub fn binary(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut shown = (bytes, "bytes");
    let mut tenths = 0;
    for unit in UNITS {
        if shown.0 < 1024 {
            break;
        }
        tenths = shown.0 % 1024 * 10 / 1024;
        shown = (shown.0 / 1024, unit);
    }
    if shown.1 == "bytes" { format!("{bytes} bytes") } else { format!("{}.{tenths} {}", shown.0, shown.1) }
}

#[cfg(test)]
mod tests;
