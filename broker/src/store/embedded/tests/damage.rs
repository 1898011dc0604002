//! Torn ends and damage, told apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::layout::{GroupHeader, PAGE, padded};
use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, SimDisk};
use crate::store::claims::{letter, wait};

fn journal_file(number: u64) -> PathBuf {
    Path::new(DATA).join("journal").join(segments::file_name(number, "segment"))
}

/// Offsets and lengths (without padding) of the groups in a segment.
fn groups(bytes: &[u8]) -> Vec<(usize, usize, u32)> {
    let mut found = vec![];
    let mut at = PAGE;
    while let Some(header) = bytes.get(at..).and_then(GroupHeader::peek) {
        let length = header.length as usize;
        found.push((at, length, header.records));
        at += padded(length);
    }
    found
}

/// Three letters in the first segment, then the process dies without a mark.
fn three_letters() -> (SimDisk, Vec<(usize, usize, u32)>) {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let config = EmbeddedConfig { idle: std::time::Duration::from_secs(3600), ..tiny(&index) };
    let store = EmbeddedStore::open(Path::new(DATA), config, Arc::new(disk.clone())).unwrap();
    for n in 0..3 {
        wait(store.accept(letter(n, &["H37.DN.001"]))).unwrap();
    }
    drop(store);
    let groups = groups(&disk.read(&journal_file(1)).unwrap());
    assert_eq!(groups.len(), 3);
    (disk, groups)
}

fn leaves(disk: &SimDisk) -> Result<u64, StoreError> {
    Ok(open(disk, &Arc::default())?.counts().leaves)
}

#[test]
fn a_last_group_torn_at_any_byte_is_cut_whole() {
    let (disk, groups) = three_letters();
    let (at, length, _) = groups[2];
    for torn in 0..length {
        let after = disk.after(Cut::Drop);
        after.tamper(&journal_file(1), |bytes| bytes[at + torn..at + padded(length)].fill(0)).unwrap();
        // A tail of zeros is what was written anyway where the group's own bytes are zero, or what one flipped bit leaves.
        let (found, written) = (after.read(&journal_file(1)).unwrap(), disk.read(&journal_file(1)).unwrap());
        let missing: u32 = found.iter().zip(&written).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(leaves(&after).unwrap(), if missing < 2 { 3 } else { 2 }, "torn after {torn} bytes of {length}");
    }
}

/// Bytes of a letter's group without which all of it still reads: the group's own CRC and what it says of the group
/// before, and the body, which is checked by its digest.
fn spare(byte: usize, length: usize) -> bool {
    (32..40).contains(&byte) || (44..56).contains(&byte) || byte >= length - BODY
}

/// The body of `claims::letter`.
const BODY: usize = 700;

#[test]
fn two_flipped_bits_in_a_record_before_the_last_group_are_damage_and_set_aside() {
    let (disk, groups) = three_letters();
    for (at, length, _) in &groups[..2] {
        for byte in (0..*length - BODY).step_by(13).filter(|byte| !spare(*byte, *length)) {
            let after = disk.after(Cut::Drop);
            after.tamper(&journal_file(1), |bytes| bytes[at + byte] ^= 3 << (byte % 7)).unwrap();
            let Err(StoreError::Damaged(what)) = leaves(&after) else { panic!("byte {} was not noticed", at + byte) };
            assert!(what.contains(&format!("offset {at}")), "{what}");
            let aside = Path::new(DATA).join("damaged").join(segments::file_name(1, "segment"));
            assert_eq!(after.read(&aside).unwrap(), after.read(&journal_file(1)).unwrap(), "set aside");
        }
    }
}

#[test]
fn a_flipped_bit_in_a_body_costs_that_body_alone() {
    let (disk, groups) = three_letters();
    for (n, (at, length, _)) in (0..2u64).zip(groups) {
        for byte in [length - BODY, length - 333, length - 1] {
            let after = disk.after(Cut::Drop);
            after.tamper(&journal_file(1), |bytes| bytes[at + byte] ^= 1).unwrap();
            let store = open(&after, &Arc::default()).unwrap();
            assert_eq!(store.counts().leaves, 3);
            let bodies: Vec<bool> =
                (0..3).map(|n| store.body(Seq(n), &letter(n, &[]).parts[0]).unwrap().is_some()).collect();
            let expected: Vec<bool> = (0..3u64).map(|other| other != n).collect();
            assert_eq!(bodies, expected, "byte {byte} of letter {n}");
        }
    }
}

#[test]
fn damage_in_the_last_group_is_noticed_once_the_store_was_idle_or_closed_and_one_flipped_bit_is_put_right() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    wait(store.accept(letter(0, &["H37.DN.001"]))).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let groups = groups(&disk.read(&journal_file(1)).unwrap());
    let (at, length, records) = *groups.iter().rfind(|(_, _, records)| *records > 0).unwrap();
    assert_eq!(records, 1);
    for byte in (0..length).step_by(7) {
        let after = disk.after(Cut::Drop);
        after.tamper(&journal_file(1), |bytes| bytes[at + byte] ^= 0x30).unwrap();
        match leaves(&after) {
            Err(StoreError::Damaged(_)) => assert!(!spare(byte, length), "byte {byte}"),
            found => assert!(spare(byte, length) && found.unwrap() == 1, "byte {byte} was not noticed"),
        }
        let after = disk.after(Cut::Drop);
        after.tamper(&journal_file(1), |bytes| bytes[at + byte] ^= 0x10).unwrap();
        assert_eq!(leaves(&after).unwrap(), 1, "byte {byte}");
        let (found, written) = (after.read(&journal_file(1)).unwrap(), disk.read(&journal_file(1)).unwrap());
        assert!(spare(byte, length) || found == written, "byte {byte} was not put right");
    }
}

#[test]
fn flipped_bits_in_headers_and_evidence_are_found() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 30).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let evidence = disk.list(&Path::new(DATA).join("evidence")).unwrap();
    assert!(evidence.len() > 1, "several files of evidence: {evidence:?}");
    let mut files: Vec<_> = evidence.iter().map(|name| Path::new(DATA).join("evidence").join(name)).collect();
    let newest_evidence = files.last().cloned();
    let journal = disk.list(&Path::new(DATA).join("journal")).unwrap();
    let newest = journal.iter().rfind(|name| name.ends_with("segment")).unwrap();
    files.push(Path::new(DATA).join("journal").join(newest));
    for file in files {
        let (kind, length) = match file.extension().unwrap().to_str() {
            Some("segment") => ("journal", 44),
            _ => ("evidence", disk.read(&file).unwrap().len()),
        };
        for byte in (0..length).step_by(if kind == "journal" { 3 } else { 97 }) {
            if kind == "evidence" && (12..16).contains(&byte) {
                continue;
            }
            let after = disk.after(Cut::Drop);
            after.tamper(&file, |bytes| bytes[byte] ^= 4).unwrap();
            let store = open(&after, &Arc::default());
            match store {
                Err(StoreError::Damaged(_)) => {}
                // The newest copy's journal segment may not be freed yet: then it is cut, and copied once more.
                Ok(store) if Some(&file) == newest_evidence.as_ref() => {
                    acknowledged.check(&store, &format!("{} byte {byte}", file.display()));
                }
                other => panic!("{} byte {byte}: {:?}", file.display(), other.err()),
            }
        }
    }
}

#[test]
fn a_journal_without_its_segments_is_damage() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    Acknowledged::default().work(&store, 0, 30).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let journal = Path::new(DATA).join("journal");
    for name in disk.list(&journal).unwrap().into_iter().filter(|name| name.ends_with("segment")) {
        disk.remove(&journal.join(name)).unwrap();
    }
    let Err(StoreError::Damaged(what)) = leaves(&disk) else { panic!("nothing was missed") };
    let missing = u64::from_str_radix(&what[what.find("000").unwrap()..][..16], 16).unwrap();
    // A spare of that number is no trace of the segment.
    let spare = disk.create(&journal.join(segments::file_name(missing, "spare"))).unwrap();
    spare.write_at(0, &[0; 64 << 10]).unwrap();
    assert!(matches!(leaves(&disk), Err(StoreError::Damaged(_))));
    assert_eq!(disk.list(&Path::new(DATA).join("damaged")).unwrap(), Vec::<String>::new());
}

#[test]
fn a_full_segment_that_ends_too_early_is_damage_and_not_its_end() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    // All of them wait, so that their segment is settled and stays.
    while store.shared.segments.get(2).is_none() {
        let n = store.counts().dispatches;
        wait(store.accept(big_letter(n))).unwrap();
    }
    let segment = store.shared.segments.get(1).unwrap();
    let count = || -> Result<u32, StoreError> {
        let mut groups = settle::Groups::of(&store.shared, &segment);
        let mut records = 0;
        while let Some(group) = groups.next()? {
            records += group.header.records;
        }
        Ok(records)
    };
    let whole = count().unwrap();
    assert!(whole > 3);
    let (at, ..) = *groups(&disk.read(&journal_file(1)).unwrap()).last().unwrap();
    // The sequence, as the last group may be a mark without records.
    disk.tamper(&journal_file(1), |bytes| bytes[at + 24] ^= 1).unwrap();
    let Err(StoreError::Damaged(what)) = count() else { panic!("{whole} records, and nothing was missed") };
    assert!(what.contains(&format!("offset {at}")), "{what}");
}
