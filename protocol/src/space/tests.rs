//! Levels, ballast and words, from what a file system says.

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn disk(total: u64, free: u64) -> Usage {
    Usage { bytes: Amount { used: total - free, free }, inodes: Amount { used: 10, free: 1_000_000 } }
}

/// The level of a disk of so many bytes with so many free, coming from an open one.
fn level(total: u64, free: u64) -> Level {
    SpaceConfig::default().level(disk(total, free), Level::Open)
}

#[test]
fn levels_begin_at_90_and_95_percent_and_a_large_disk_counts_what_is_free() {
    assert_eq!(level(100 * GIB, 10 * GIB + 1), Level::Open);
    assert_eq!(level(100 * GIB, 10 * GIB), Level::RefuseNew);
    assert_eq!(level(100 * GIB, 5 * GIB + 1), Level::RefuseNew);
    assert_eq!(level(100 * GIB, 5 * GIB), Level::DrainOnly);
    assert_eq!(level(100 * GIB, 16 * MIB + 1), Level::DrainOnly);
    assert_eq!(level(100 * GIB, 16 * MIB), Level::Full);
    // Of 20 TiB, a tenth would be 2 TiB.
    assert_eq!(level(20_480 * GIB, 64 * GIB + 1), Level::Open);
    assert_eq!(level(20_480 * GIB, 64 * GIB), Level::RefuseNew);
    assert_eq!(level(20_480 * GIB, 32 * GIB), Level::DrainOnly);
    // Of 64 MiB, 16 MiB would be a quarter.
    assert_eq!(level(64 * MIB, 7 * MIB), Level::Open);
    assert_eq!(level(64 * MIB, MIB + 1), Level::DrainOnly);
    assert_eq!(level(64 * MIB, MIB), Level::Full);
}

#[test]
fn inodes_count_as_bytes_do_and_a_file_system_without_them_has_enough() {
    let with = |used, free| {
        let usage = Usage { inodes: Amount { used, free }, ..disk(100 * GIB, 50 * GIB) };
        SpaceConfig::default().level(usage, Level::Open)
    };
    assert_eq!(with(890, 110), Level::Open);
    assert_eq!(with(900, 100), Level::RefuseNew);
    assert_eq!(with(950, 50), Level::DrainOnly);
    assert_eq!(with(1000, 0), Level::Full);
    assert_eq!(with(99_000_000, 1_000_001), Level::Open);
    assert_eq!(with(0, 0), Level::Open);
}

#[test]
fn a_level_is_left_only_with_a_percent_more_free_than_where_it_began() {
    let config = SpaceConfig::default();
    for (before, free, expected) in [
        (Level::RefuseNew, 10 * GIB + 1, Level::RefuseNew),
        (Level::RefuseNew, 11 * GIB, Level::RefuseNew),
        (Level::RefuseNew, 11 * GIB + 1, Level::Open),
        (Level::DrainOnly, 6 * GIB, Level::DrainOnly),
        (Level::DrainOnly, 6 * GIB + 1, Level::RefuseNew),
        (Level::Full, 90 * GIB, Level::Open),
    ] {
        assert_eq!(config.level(disk(100 * GIB, free), before), expected, "{before:?} with {free} free");
    }
}

/// What one look at a disk of 100 GiB with so many bytes free leads to, and the level.
fn look(watch: &mut Watch, free: u64, needed: bool) -> (Step, Level) {
    (watch.look(disk(100 * GIB, free), needed), watch.level())
}

#[test]
fn the_ballast_is_released_bit_by_bit_in_need_and_made_anew_when_room_returns() {
    let mut watch = Watch::new(SpaceConfig::default(), 0);
    let ballast = Ballast { files: 64, file_bytes: MIB };
    assert_eq!(look(&mut watch, 50 * GIB, false), (Step::Make(ballast), Level::DrainOnly));
    watch.made(Some(ballast));
    assert_eq!(look(&mut watch, 50 * GIB, false), (Step::Nothing, Level::Open));
    assert_eq!(look(&mut watch, 9 * GIB, true), (Step::Nothing, Level::RefuseNew));
    assert_eq!(look(&mut watch, 5 * GIB, false), (Step::Nothing, Level::DrainOnly));
    assert_eq!(look(&mut watch, 5 * GIB, true), (Step::Release(4), Level::DrainOnly));
    assert_eq!(look(&mut watch, 8 * MIB, false), (Step::Nothing, Level::Full));
    assert_eq!(look(&mut watch, 8 * MIB, true), (Step::Release(4), Level::Full));
    assert_eq!(look(&mut watch, MIB, false), (Step::Release(4), Level::Full));
    watch.released(4);
    assert_eq!(watch.report().ballast_files, 60);
    assert_eq!(look(&mut watch, 5 * MIB, false), (Step::Nothing, Level::Full));
    assert_eq!(look(&mut watch, 6 * GIB, false), (Step::Nothing, Level::Full));
    assert_eq!(look(&mut watch, 8 * GIB, false), (Step::Make(ballast), Level::Full));
    watch.made(Some(ballast));
    assert_eq!(look(&mut watch, 8 * GIB, false), (Step::Nothing, Level::RefuseNew));
    assert_eq!(look(&mut watch, 12 * GIB, false), (Step::Nothing, Level::Open));
}

#[test]
fn a_start_takes_what_an_earlier_run_left_of_the_ballast_and_does_without_when_it_is_gone() {
    let mut watch = Watch::new(SpaceConfig::default(), 6);
    assert_eq!(look(&mut watch, 0, true), (Step::Release(4), Level::Full));
    watch.released(4);
    assert_eq!(look(&mut watch, 0, true), (Step::Release(2), Level::Full));
    watch.released(2);
    assert_eq!(look(&mut watch, 0, true), (Step::Nothing, Level::Full));
}

#[test]
fn without_a_ballast_the_numbers_alone_decide() {
    let mut watch = Watch::new(SpaceConfig { ballast_mib: 0, ..SpaceConfig::default() }, 0);
    for (free, level) in [(50 * GIB, Level::Open), (0, Level::Full), (50 * GIB, Level::Open)] {
        assert_eq!(look(&mut watch, free, true), (Step::Nothing, level));
    }
}

#[test]
fn a_small_disk_has_a_small_ballast_of_few_files() {
    let mut watch = Watch::new(SpaceConfig::default(), 0);
    let usage = Usage { inodes: Amount { used: 20, free: 300 }, ..disk(96 * MIB, 90 * MIB) };
    assert_eq!(watch.look(usage, false), Step::Make(Ballast { files: 10, file_bytes: 3 * MIB / 10 }));
}

#[test]
fn what_could_not_end_is_not_begun() {
    let mut watch = Watch::new(SpaceConfig::default(), 64);
    look(&mut watch, 20 * GIB, false);
    assert_eq!(watch.may_begin(14 * GIB, 0), Ok(()));
    assert_eq!(watch.may_begin(7 * GIB, 7 * GIB), Ok(()));
    let expected = "15.0 GiB more would leave too little room: 80% of the file system's bytes are used, 20.0 GiB \
                    of 100.0 GiB are free";
    assert_eq!(watch.may_begin(15 * GIB, 0), Err(expected.into()));
    assert!(watch.may_begin(7 * GIB, 8 * GIB).is_err());
    look(&mut watch, 9 * GIB, false);
    assert!(watch.may_begin(1, 0).is_err());
}

#[test]
fn the_report_says_state_why_and_what_next_in_words() {
    let mut watch = Watch::new(SpaceConfig::default(), 64);
    look(&mut watch, 9 * GIB + 200 * MIB, false);
    let words = "new work is refused; 91% of the file system's bytes are used, 9.1 GiB of 100.0 GiB are free; make room; \
                 new work is taken again by itself when more than 11.0 GiB and 110001 inodes are free";
    let expected = Report {
        state: Level::RefuseNew,
        words: words.into(),
        free_bytes: 9 * GIB + 200 * MIB,
        total_bytes: 100 * GIB,
        free_inodes: 1_000_000,
        total_inodes: 1_000_010,
        ballast_files: 64,
    };
    assert_eq!(watch.report(), expected);
    watch.look(Usage { inodes: Amount { used: 96, free: 4 }, ..disk(100 * GIB, 50 * GIB) }, false);
    let words = watch.report().words;
    assert!(
        words.starts_with("only draining: deliveries, outcomes and control go on; 96% of the file system's inodes")
    );
}

#[test]
fn percentages_that_contradict_each_other_are_refused_by_name() {
    let config = SpaceConfig { refuse_new_percent: 96, ..SpaceConfig::default() };
    let error = config.check().unwrap_err().to_string();
    assert_eq!(error, "space.refuse_new_percent is 96; expected 1 to space.drain_only_percent");
    assert_eq!(SpaceConfig::default().check(), Ok(()));
}
