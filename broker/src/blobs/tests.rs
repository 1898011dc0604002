use super::*;
use crate::disk::sim::{Cut, Failure, SimDisk};

fn open(disk: &SimDisk) -> BlobStore {
    BlobStore::open(Arc::new(disk.clone()), Path::new("/data/blobs"), Loops::Threads, PartialsConfig::default())
        .unwrap()
}

fn part(bytes: &[u8]) -> PartDigest {
    PartDigest { sha256: Digest::of(bytes), size: bytes.len() as u64 }
}

fn put(blobs: &BlobStore, bytes: &[u8], expected: PartDigest) -> Result<(), BlobError> {
    let mut writer = blobs.writer(&"H37.DN.001".parse().unwrap(), expected);
    for chunk in bytes.chunks(1000) {
        writer.write(chunk)?;
    }
    writer.finish()
}

fn files(disk: &SimDisk, blobs: &BlobStore) -> Vec<String> {
    let folders = disk.list(&blobs.dir).unwrap();
    folders.iter().flat_map(|folder| disk.list(&blobs.dir.join(folder)).unwrap()).collect()
}

#[test]
fn a_finished_body_survives_a_power_cut_at_any_operation_and_is_never_half_there() {
    let bytes: Vec<u8> = (0..9_999u32).map(|n| n.to_le_bytes()[0]).collect();
    let all = {
        let disk = SimDisk::new();
        put(&open(&disk), &bytes, part(&bytes)).unwrap();
        disk.operations()
    };
    for k in 1..=all + 1 {
        let disk = SimDisk::new();
        disk.fail_at(k, Failure::PowerLoss);
        let done = put(&open(&disk), &bytes, part(&bytes)).is_ok();
        assert_eq!(done, k > all, "operation {k}");
        for cut in [Cut::Drop, Cut::Keep, Cut::Tear(k)] {
            let after = disk.after(cut);
            let blobs = open(&after);
            let found = after.read(&blobs.path(&part(&bytes).sha256)).ok();
            assert!(!done || found.is_some(), "operation {k}, {cut:?}: lost");
            assert!(found.is_none_or(|found| found == bytes), "operation {k}, {cut:?}: half a body");
            assert_eq!(after.list(&blobs.dir.join(INCOMING)).unwrap(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_body_that_is_not_what_was_announced_leaves_nothing_behind() {
    let disk = SimDisk::new();
    let blobs = open(&disk);
    let other = PartDigest { sha256: Digest::of(b"other"), size: 5 };
    assert!(matches!(put(&blobs, b"bytes", other.clone()), Err(BlobError::DigestMismatch { .. })));
    assert!(matches!(put(&blobs, b"byte", other.clone()), Err(BlobError::TooShort { expected: 5, found: 4 })));
    assert!(matches!(put(&blobs, b"longer", other.clone()), Err(BlobError::TooLarge { expected: 5 })));
    drop(blobs.writer(&"H37.DN.001".parse().unwrap(), other));
    assert_eq!(files(&disk, &blobs), Vec::<String>::new());
}

#[test]
fn bodies_that_nothing_names_are_collected_and_others_stay() {
    let disk = SimDisk::new();
    let blobs = open(&disk);
    for bytes in [b"one", b"two"] {
        put(&blobs, bytes, part(bytes)).unwrap();
    }
    let named = part(b"one").sha256;
    assert_eq!(blobs.collect(|sha256| Ok::<_, io::Error>(*sha256 == named)).unwrap(), 1);
    assert!(blobs.exists(&part(b"one")).unwrap() && !blobs.exists(&part(b"two")).unwrap());
    blobs.retire(&named).unwrap();
    assert!(!blobs.exists(&part(b"one")).unwrap());
    blobs.remove_retired().unwrap();
    assert_eq!(files(&disk, &blobs), Vec::<String>::new());
}

#[test]
fn a_damaged_body_is_set_aside_as_it_was_found_and_a_whole_one_stays() {
    let disk = SimDisk::new();
    let blobs = open(&disk);
    put(&blobs, b"the words", part(b"the words")).unwrap();
    let sha256 = part(b"the words").sha256;
    assert_eq!(blobs.set_aside(&part(b"the words")).unwrap(), None);
    assert!(blobs.exists(&part(b"the words")).unwrap());
    for (damaged, len) in [(b"the wordz".as_slice(), 9), (b"the", 3)] {
        put(&blobs, b"the words", part(b"the words")).unwrap();
        disk.tamper(&blobs.path(&sha256), |bytes| *bytes = damaged.to_vec()).unwrap();
        let aside = blobs.set_aside(&part(b"the words")).unwrap().unwrap();
        assert_eq!(aside, Path::new("/data/damaged").join(format!("{sha256}.body")));
        assert_eq!((disk.read(&aside).unwrap(), damaged.len()), (damaged.to_vec(), len));
        assert!(!blobs.exists(&part(b"the words")).unwrap());
        assert_eq!(disk.after(Cut::Drop).read(&aside).unwrap(), damaged, "durably");
    }
    assert_eq!(blobs.set_aside(&part(b"the words")).unwrap(), None, "gone");
}

/// Of which a loss of power takes at most this much.
const EVERY: PartialsConfig = PartialsConfig { keep_days: 7, most_mib: 100, sync_every_mib: 1 };
const MIB: usize = 1 << 20;

fn bytes_of(len: usize) -> Vec<u8> {
    (0u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
}

fn agency(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

fn store(disk: &SimDisk) -> Arc<BlobStore> {
    Arc::new(BlobStore::open(Arc::new(disk.clone()), Path::new("/data/blobs"), Loops::Threads, EVERY).unwrap())
}

/// Begins an upload, or goes on with one; all that was kept is read.
fn begin(blobs: &Arc<BlobStore>, who: &str, part: PartDigest) -> Result<BlobWriter, BlobError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut writer =
        runtime.block_on(async { blobs.upload(&agency(who), part, BlobStore::earlier_end_by()).await }).unwrap()?;
    while writer.take_up()? {}
    Ok(writer)
}

/// Sends so much of the rest in pieces.
fn send(writer: &mut BlobWriter, bytes: &[u8], until: usize) -> Result<(), BlobError> {
    let from = usize::try_from(writer.written()).unwrap();
    bytes[from..until].chunks(256 << 10).try_for_each(|piece| writer.write(piece))
}

const WHO: &str = "H37.DN.001";

#[test]
fn an_upload_that_broke_off_goes_on_at_the_very_byte() {
    let bytes = bytes_of(3 * MIB);
    let disk = SimDisk::new();
    let blobs = store(&disk);
    let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
    send(&mut writer, &bytes, 1_500_001).unwrap();
    writer.break_off();
    // In the same process, and after an orderly end and a loss of power.
    for blobs in [blobs, store(&disk.after(Cut::Drop))] {
        let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
        assert_eq!(writer.written(), 1_500_001);
        send(&mut writer, &bytes, bytes.len()).unwrap();
        writer.finish().unwrap();
        assert!(blobs.exists(&part(&bytes)).unwrap() && blobs.partials().is_empty());
        let (file, len) = blobs.open_body(&part(&bytes).sha256).unwrap();
        assert!(holds(file.as_ref(), &part(&bytes).sha256) && len == bytes.len() as u64);
    }
}

#[test]
fn power_lost_at_any_operation_costs_no_more_than_what_was_not_synced_and_never_a_wrong_byte() {
    for held in [false, true] {
        power_lost_at_any_operation(held);
    }
}

fn power_lost_at_any_operation(held: bool) {
    let bytes = bytes_of(2 * MIB + 300_000);
    let upload = |blobs: &Arc<BlobStore>, durable: &mut u64| {
        let mut writer = begin(blobs, WHO, part(&bytes))?;
        for until in [700_000, MIB, 2 * MIB, bytes.len()] {
            send(&mut writer, &bytes, until)?;
            *durable = if until < bytes.len() { (until / MIB * MIB) as u64 } else { *durable };
        }
        if held {
            writer = writer.hold()?;
            *durable = bytes.len() as u64;
        }
        writer.finish()
    };
    let all = {
        let disk = SimDisk::new();
        upload(&store(&disk), &mut 0).unwrap();
        disk.operations()
    };
    assert!(all > 10, "{all}");
    for k in 1..=all {
        let disk = SimDisk::new();
        disk.fail_at(k, Failure::PowerLoss);
        let mut durable = 0;
        assert!(upload(&store(&disk), &mut durable).is_err());
        for cut in [Cut::Drop, Cut::Keep, Cut::Tear(k)] {
            let blobs = store(&disk.after(cut));
            let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
            let from = writer.written();
            // Whole under its name already, or the upload goes on.
            assert!(
                from >= durable || blobs.exists(&part(&bytes)).unwrap(),
                "operation {k}, {cut:?}: {from}, not {durable}"
            );
            send(&mut writer, &bytes, bytes.len()).unwrap();
            writer.finish().unwrap_or_else(|error| panic!("operation {k}, {cut:?}: {error}"));
            assert_eq!(blobs.partials(), []);
        }
    }
}

#[test]
fn a_writer_that_is_only_dropped_keeps_what_was_durable_and_little_is_not_kept() {
    let bytes = bytes_of(3 * MIB);
    let blobs = store(&SimDisk::new());
    for (sent, kept) in [(60_000, None), (MIB + 500, Some(MIB as u64))] {
        let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
        send(&mut writer, &bytes, sent).unwrap();
        if kept.is_none() {
            writer.break_off();
        } else {
            drop(writer);
        }
        let found = blobs.partials().first().map(|name| name.bytes);
        assert_eq!(found, kept);
    }
}

#[test]
fn a_body_that_waits_for_the_rest_of_its_dispatch_is_held_and_found_again_and_one_without_bytes_has_no_file() {
    let bytes = bytes_of(MIB + 5);
    let disk = SimDisk::new();
    let blobs = store(&disk);
    let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
    assert!(writer.file.is_none() && files(&disk, &blobs).is_empty());
    send(&mut writer, &bytes, bytes.len()).unwrap();
    let held = writer.hold().unwrap();
    assert!(held.file.is_none() && !blobs.exists(&part(&bytes)).unwrap());
    drop(held);
    let cut = store(&disk.after(Cut::Drop));
    let mut wrong = begin(&blobs, "H37.TC.002", part(&bytes)).unwrap();
    send(&mut wrong, &vec![7; bytes.len()], bytes.len()).unwrap();
    assert!(matches!(wrong.hold(), Err(BlobError::DigestMismatch { resumed: false, .. })));
    // After a loss of power too.
    for blobs in [cut, blobs] {
        let held = begin(&blobs, WHO, part(&bytes)).unwrap();
        assert!(held.written() == bytes.len() as u64 && held.file.is_none());
        held.hold().unwrap().finish().unwrap();
        assert_eq!((blobs.exists(&part(&bytes)).unwrap(), blobs.partials()), (true, vec![]));
    }
}

#[test]
fn a_damaged_partial_body_is_given_up_and_not_the_body() {
    let bytes = bytes_of(3 * MIB);
    let disk = SimDisk::new();
    let blobs = store(&disk);
    let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
    send(&mut writer, &bytes, 2 * MIB).unwrap();
    writer.break_off();
    let file = |blobs: &BlobStore| blobs.dir.join("partial").join(blobs.partials()[0].to_string());
    disk.tamper(&file(&blobs), |bytes| bytes[70_000] ^= 1).unwrap();
    let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
    send(&mut writer, &bytes, bytes.len()).unwrap();
    assert!(matches!(writer.finish(), Err(BlobError::DigestMismatch { resumed: true, .. })));
    assert_eq!((blobs.partials(), files(&disk, &blobs)), (vec![], vec![]));
    // The same of one that ends before its name's number: while the store is open, and when it is opened.
    for reopened in [false, true] {
        let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
        assert_eq!(writer.written(), 0);
        send(&mut writer, &bytes, 2 * MIB).unwrap();
        writer.break_off();
        disk.tamper(&file(&blobs), |bytes| bytes.truncate(MIB)).unwrap();
        let now = if reopened { store(&disk) } else { blobs.clone() };
        let mut writer = begin(&now, WHO, part(&bytes)).unwrap();
        assert_eq!(writer.written(), 0);
        send(&mut writer, &bytes, bytes.len()).unwrap();
        writer.finish().unwrap();
        disk.remove(&now.path(&part(&bytes).sha256)).unwrap();
    }
}

#[test]
fn two_uploads_never_write_into_one_file_and_another_agency_begins_anew() {
    let bytes = bytes_of(MIB);
    let blobs = store(&SimDisk::new());
    let mut first = begin(&blobs, WHO, part(&bytes)).unwrap();
    send(&mut first, &bytes, 600_000).unwrap();
    // The first one does not end.
    let mut second = begin(&blobs, WHO, part(&bytes)).unwrap();
    assert_eq!(second.written(), 0);
    send(&mut second, &bytes, 100_000).unwrap();
    second.break_off();
    assert_eq!(blobs.partials(), []);
    // It ends while the next one waits.
    let waiting = blobs.clone();
    let next = std::thread::spawn(move || begin(&waiting, WHO, part(&bytes_of(MIB))).unwrap().written());
    first.break_off();
    assert_eq!(next.join().unwrap(), 600_000);
    let foreign = begin(&blobs, "H37.TC.002", part(&bytes)).unwrap();
    assert_eq!(foreign.written(), 0);
    drop(foreign);
    assert_eq!(blobs.partials().len(), 1);
}

#[test]
fn partial_bodies_are_bounded_go_when_the_disk_fills_and_strangers_among_them_are_removed() {
    let at = |days: i64| Timestamp::from_unix_ms(days * 86_400_000);
    let disk = SimDisk::new();
    let blobs = store(&disk);
    let keep = |n: usize| {
        let bytes = bytes_of(3 * MIB + n);
        let mut writer = begin(&blobs, WHO, part(&bytes)).unwrap();
        send(&mut writer, &bytes, MIB).unwrap();
        writer.break_off();
    };
    for day in 1..=4 {
        assert_eq!(blobs.sweep_partials(at(day), false), 0);
        keep(usize::try_from(day).unwrap());
    }
    assert_eq!(blobs.sweep_partials(at(8), false), 1);
    let strange = blobs.dir.join("partial/strange");
    disk.create(&strange).unwrap();
    let blobs = store(&disk);
    assert!(!disk.exists(&strange).unwrap());
    assert_eq!(
        blobs.partials().iter().map(|name| name.at).collect::<std::collections::BTreeSet<_>>(),
        [at(2), at(3), at(4)].into()
    );
    assert_eq!(blobs.sweep_partials(at(8), true), 3);
    assert_eq!(disk.list(&blobs.dir.join("partial")).unwrap(), Vec::<String>::new());
}
