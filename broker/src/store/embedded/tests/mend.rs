//! One flipped bit is found and put right; what a power cut leaves is never taken for one.

use std::path::Path;
use std::sync::Arc;

use super::super::keys::Position;
use super::super::layout::{FileHeader, GROUP_HEADER_BYTES, GroupHeader, PAGE, padded};
use super::super::mend::find;
use super::super::segments::Segment;
use super::super::*;
use super::support::*;
use crate::disk::sim::SimDisk;
use crate::store::claims::{body_of, handover, letter};

const SECTOR: usize = 512;
const SEGMENT_BYTES: usize = 256 << 10;
const SEQUENCE: u64 = 9;

/// One group in a segment of its own.
struct Written {
    segment: Segment,
    at: Position,
    /// Header and records.
    group: Vec<u8>,
}

impl Written {
    fn of(records: &[Prepared]) -> Self {
        let file = SimDisk::new().create(Path::new(DATA)).unwrap();
        let segment = Segment {
            header: FileHeader { number: 3, salt: 0x5a17_0bad_cafe_f00d, first: SEQUENCE },
            file,
            bytes: SEGMENT_BYTES as u64,
        };
        let at = segment.start();
        let mut group = vec![0; GROUP_HEADER_BYTES];
        let mut leaf = 70;
        for record in records {
            record.write_frame(leaf, &mut group);
            leaf += record.entries.len() as u64;
        }
        let header = GroupHeader {
            epoch: segment.header.number,
            salt: segment.header.salt,
            sequence: SEQUENCE,
            durable: SEQUENCE - 1,
            length: u32::try_from(group.len()).unwrap(),
            records: u32::try_from(records.len()).unwrap(),
        };
        header.seal(&mut group);
        let written = Self { segment, at, group };
        written.put(&vec![0; SEGMENT_BYTES - PAGE]);
        written.put(&written.page());
        written
    }

    /// The group with its padding.
    fn page(&self) -> Vec<u8> {
        let mut page = self.group.clone();
        page.resize(padded(self.group.len()), 0);
        page
    }

    fn put(&self, bytes: &[u8]) {
        self.segment.file.write_at(self.at.offset, bytes).unwrap();
    }

    /// What becomes of the group when these bytes stand in its place.
    fn found(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.put(bytes);
        let mended = find(&self.segment, self.at).unwrap();
        mended.map(|mended| {
            assert_eq!(mended.found, bytes[..mended.found.len()], "what was found is kept");
            mended.group.bytes
        })
    }

    #[track_caller]
    fn mends(&self, bit: usize) {
        let mut bytes = self.page();
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.put(&bytes);
        let mended = find(&self.segment, self.at).unwrap();
        let mended = mended.unwrap_or_else(|| panic!("byte {} bit {} was not found", bit / 8, bit % 8));
        assert_eq!((mended.bit, &mended.group.bytes), (bit, &self.group));
    }
}

fn accepted(acceptance: Acceptance) -> Prepared {
    Prepared::accepted(acceptance).unwrap()
}

/// A letter with its body, a handover, notices, bodies by themselves: every kind of frame.
fn several() -> Vec<Prepared> {
    let sent = letter(1, &["H37.DN.001"]);
    let notice = record::NoticeV1 { name: "crl/nodes".into(), bytes: vec![3; 50] };
    vec![
        Prepared::event(handover(60, "H37.DN.001", &sent.evidence)).unwrap(),
        Prepared::new(record::RecordV1::Notices(vec![notice]), vec![]).unwrap(),
        Prepared::bodies(vec![(3, None, vec![body_of(7, 90)]), (4, Some(1), vec![body_of(8, 33)])]).unwrap(),
        accepted(sent),
    ]
}

/// Letters with bodies of 6,000 bytes: many sectors and pages.
fn large() -> Vec<Prepared> {
    (0..5).map(|n| accepted(big_letter(n))).collect()
}

#[test]
fn every_flipped_bit_of_a_group_is_found() {
    for records in [several(), vec![]] {
        let written = Written::of(&records);
        for bit in 0..8 * written.group.len() {
            written.mends(bit);
        }
    }
}

#[test]
fn flipped_bits_of_a_large_group_are_found() {
    let written = Written::of(&large());
    let bits = 8 * written.group.len();
    for bit in (0..8 * GROUP_HEADER_BYTES).step_by(5).chain((0..bits).step_by(1_009)).chain([bits - 1]) {
        written.mends(bit);
    }
}

#[test]
fn what_reads_needs_no_bit_and_two_flipped_bits_are_not_one() {
    let written = Written::of(&several());
    let bits = 8 * written.group.len();
    for (n, first) in (0..bits).step_by(37).enumerate() {
        let second = (first + 1 + 7_919 * n) % bits;
        let mut bytes = written.page();
        bytes[first / 8] ^= 1 << (first % 8);
        bytes[second / 8] ^= 1 << (second % 8);
        if first != second {
            assert_eq!(written.found(&bytes), None, "bits {first} and {second}");
        }
    }
    let mut padded = written.page();
    padded[written.group.len()] = 1;
    padded[GROUP_HEADER_BYTES] ^= 1;
    assert_eq!(written.found(&padded), None, "a flipped bit and something in the padding");
}

fn differing_bits(one: &[u8], other: &[u8]) -> u32 {
    one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum()
}

/// What may have stood where a group was to be written.
fn before(written: &Written) -> Vec<(&'static str, Vec<u8>)> {
    let length = written.page().len();
    // A group of the segment's earlier use, nearly the same: other epoch, salt, sequence and letters.
    let mut earlier = Written::of(&(20..25).map(|n| accepted(big_letter(n))).collect::<Vec<_>>()).page();
    earlier.resize(length, 0);
    earlier[8..32].iter_mut().for_each(|byte| *byte ^= 0x5a);
    // Nothing is drawn: any bytes without a pattern will do.
    let noise = (0..length as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[3]).collect();
    // The same sequence and letters under the same salt, but of another number of leaves: what only a test can write.
    let mut alike = written.page();
    alike.iter_mut().skip(60).step_by(97).for_each(|byte| *byte ^= 4);
    vec![("zeros", vec![0; length]), ("an earlier group", earlier), ("noise", noise), ("nearly the same", alike)]
}

/// Whatever is there of the group, it is put right into what was written or not at all; and only where one bit was missing.
fn never_invents(written: &Written, bytes: &[u8], context: &str) {
    let found = written.found(bytes);
    match differing_bits(bytes, &written.page()) {
        0 => {}
        1 => assert!(found.is_none_or(|found| found == written.group), "{context}"),
        differing => assert_eq!(found, None, "{context}: {differing} bits differ"),
    }
}

#[test]
fn a_group_torn_at_any_sector_or_without_any_one_sector_is_no_flipped_bit() {
    for records in [several(), large(), vec![]] {
        let written = Written::of(&records);
        let whole = written.page();
        for (name, before) in before(&written) {
            for unit in [SECTOR, PAGE] {
                for at in (0..whole.len()).step_by(unit) {
                    let end = at + unit;
                    let begun = [&whole[..at], &before[at..]].concat();
                    never_invents(&written, &begun, &format!("{name} from {at}"));
                    let ended = [&before[..at], &whole[at..]].concat();
                    never_invents(&written, &ended, &format!("{name} before {at}"));
                    let without = [&whole[..at], &before[at..end], &whole[end..]].concat();
                    never_invents(&written, &without, &format!("{name} at {at}..{end}"));
                    let alone = [&before[..at], &whole[at..end], &before[end..]].concat();
                    never_invents(&written, &alone, &format!("{name} but at {at}..{end}"));
                }
            }
        }
    }
}

#[test]
fn a_group_without_any_of_its_sectors_is_no_flipped_bit() {
    let mut records = several();
    records.push(accepted(letter(2, &["A53.01"])));
    let written = Written::of(&records);
    assert!(written.group.len() > 5 * SECTOR, "{} bytes", written.group.len());
    let whole = written.page();
    let sectors = whole.len() / SECTOR;
    assert_eq!(sectors, 8);
    for (name, before) in before(&written) {
        for kept in 0..1u32 << sectors {
            let mut bytes = whole.clone();
            for n in (0..sectors).filter(|n| kept >> n & 1 == 0) {
                bytes[n * SECTOR..][..SECTOR].copy_from_slice(&before[n * SECTOR..][..SECTOR]);
            }
            never_invents(&written, &bytes, &format!("{name} but {kept:b}"));
        }
    }
}

#[test]
fn a_group_torn_at_any_byte_is_no_flipped_bit() {
    let written = Written::of(&several());
    for (name, before) in before(&written) {
        for at in 0..written.group.len() {
            never_invents(&written, &[&written.page()[..at], &before[at..]].concat(), &format!("{name} from {at}"));
        }
    }
}

/// A torn group whose CRCs a single flipped bit happens to explain, the group's and the record's: what is torn is a multiple
/// of their polynomial.
#[test]
fn a_bit_that_only_the_crcs_agree_with_is_not_taken() {
    let written = Written::of(&large());
    let text = |group: &[u8]| group.windows(10).position(|window| window == b"envelope 0").unwrap();
    let mut torn = written.group.clone();
    let first = 8 * text(&torn);
    let polynomial = (1u64 | u64::from(0x82f6_3b78_u32) << 1) << 3;
    for bit in (0..64).filter(|bit| polynomial >> bit & 1 == 1) {
        torn[(first + bit) / 8] ^= 1 << ((first + bit) % 8);
    }
    assert!(torn != written.group && GroupHeader::holds(&torn), "it is a multiple of the polynomial");
    assert!(!GroupHeader::records_hold(&torn));
    for byte in [text(&written.group) + 9, text(&written.group) + 14] {
        let mut flipped = torn.clone();
        flipped[byte] ^= 4;
        flipped.resize(written.page().len(), 0);
        assert!(written.found(&flipped).is_none());
    }
}

#[test]
fn a_flipped_bit_of_the_last_group_costs_nothing_and_is_kept() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = EmbeddedStore::open(
        Path::new(DATA),
        EmbeddedConfig { idle: std::time::Duration::from_secs(3600), ..tiny(&index) },
        Arc::new(disk.clone()),
    )
    .unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 3).unwrap();
    drop(store);
    let journal = Path::new(DATA).join("journal");
    let newest = disk.list(&journal).unwrap().into_iter().rfind(|name| name.ends_with("segment")).unwrap();
    let file = journal.join(&newest);
    let whole = disk.read(&file).unwrap();
    let (mut at, mut next) = (PAGE, PAGE);
    let mut length = 0;
    while let Some(header) = whole.get(next..).and_then(GroupHeader::peek) {
        (at, length) = (next, header.length as usize);
        next += padded(length);
    }
    for (n, byte) in (0..length).step_by(11).enumerate() {
        let (after, bit) = (disk.after(crate::disk::sim::Cut::Drop), n % 8);
        after.tamper(&file, |bytes| bytes[at + byte] ^= 1 << bit).unwrap();
        let damaged = after.read(&file).unwrap();
        // As after a boot, and as after the death of the process alone, whose index had the group.
        let kept = if n % 2 == 0 { Arc::default() } else { copy(&index) };
        let store = open(&after, &kept).unwrap_or_else(|e| panic!("byte {byte} bit {bit}: {e}"));
        acknowledged.check(&store, &format!("byte {byte} bit {bit}"));
        drop(store);
        // It was durable before the first answer, and what was found is kept.
        let again = after.after(crate::disk::sim::Cut::Drop);
        let aside = Path::new(DATA).join("damaged");
        let copies = again.list(&aside).unwrap();
        let offset = at + byte;
        assert_eq!(copies, [format!("{newest}.{at:x}.{offset:x}-{bit}.group")]);
        let copied = again.read(&aside.join(&copies[0])).unwrap();
        assert_eq!(copied, damaged[at..at + copied.len()], "byte {byte} bit {bit}");
        assert_eq!(again.read(&file).unwrap()[at..at + length], whole[at..at + length], "byte {byte} bit {bit}");
    }
}
