//! The index on a real disk, damaged in every file and every way: what can be seen of the store stays the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::support::*;
use crate::disk::RealDisk;
use crate::store::claims::wait;

const LETTERS: u64 = 24;

fn open_sled(dir: &Path) -> Arc<EmbeddedStore> {
    let config = EmbeddedConfig {
        segment_bytes: 256 << 10,
        spare_segments: 1,
        idle: Duration::from_millis(20),
        index_every: Duration::from_millis(5),
        ..EmbeddedConfig::default()
    };
    EmbeddedStore::open(dir, config, Arc::new(RealDisk)).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// What is done to a file, and its name for the failure's message.
type Damage = (String, Box<dyn Fn(&Path)>);

/// Ways to damage a file. Bits are flipped all over it, in one copy each.
fn damages(length: usize) -> Vec<Damage> {
    let mut ways: Vec<Damage> = vec![
        ("deleted".into(), Box::new(|path: &Path| fs::remove_file(path).unwrap())),
        ("emptied".into(), Box::new(|path: &Path| fs::write(path, b"").unwrap())),
        ("overwritten".into(), Box::new(move |path: &Path| fs::write(path, vec![0xa5; length]).unwrap())),
        (
            "cut in half".into(),
            Box::new(move |path: &Path| {
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_len(length as u64 / 2).unwrap();
            }),
        ),
    ];
    let positions: std::collections::BTreeSet<usize> =
        (0..8).map(|n| (length * n / 8 + n * 37).min(length - 1)).collect();
    for at in positions {
        let flip = move |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[at] ^= 1 << (at % 8);
            fs::write(path, bytes).unwrap();
        };
        ways.push((format!("flipped at byte {at} of {length}"), Box::new(flip)));
    }
    ways
}

#[test]
fn whatever_happens_to_the_index_the_visible_state_is_the_same() {
    let data = tempfile::tempdir().unwrap();
    let store = open_sled(data.path());
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, LETTERS).unwrap();
    let expected = visible(&store, LETTERS);
    wait(store.close()).unwrap();
    drop(store);
    let state = fs::read_to_string(data.path().join("index.state")).unwrap();
    let mut damaged: Vec<PathBuf> = files(&data.path().join("index"));
    assert!(damaged.len() >= 2, "sled's files: {damaged:?}");
    damaged.push(data.path().join("index.state"));
    let check = |way: &str, damage: &dyn Fn(&Path)| {
        let copied = tempfile::tempdir().unwrap();
        copy_folder(data.path(), copied.path());
        damage(copied.path());
        let store = open_sled(copied.path());
        for (found, expected) in visible(&store, LETTERS).iter().zip(&expected) {
            assert_eq!(found, expected, "{way}");
        }
        acknowledged.check(&store, way);
        wait(store.close()).unwrap();
    };
    check("unharmed", &|_| {});
    for file in damaged.iter().filter(|file| fs::metadata(file).unwrap().len() > 0) {
        let name = file.strip_prefix(data.path()).unwrap();
        for (way, damage) in damages(usize::try_from(fs::metadata(file).unwrap().len()).unwrap()) {
            check(&format!("{} {way}", name.display()), &|copy| damage(&copy.join(name)));
        }
    }
    check("all deleted", &|copy| fs::remove_dir_all(copy.join("index")).unwrap());
    check("a file in place of the folder", &|copy| {
        fs::remove_dir_all(copy.join("index")).unwrap();
        fs::write(copy.join("index"), b"x").unwrap();
    });
    check("another boot's", &|copy| fs::write(copy.join("index.state"), b"another boot").unwrap());
    check("an older one, with the newer state", &|copy| {
        let older = tempfile::tempdir().unwrap();
        let store = open_sled(older.path());
        wait(store.close()).unwrap();
        drop(store);
        fs::remove_dir_all(copy.join("index")).unwrap();
        copy_folder(&older.path().join("index"), &copy.join("index"));
    });
    assert!(state.starts_with("4 closed "), "{state}");
}

#[test]
fn an_index_that_was_closed_is_taken_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let store = open_sled(data.path());
    Acknowledged::default().work(&store, 0, 3).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let config = EmbeddedConfig::default();
    assert!(state::believed(&RealDisk, data.path(), &config), "nothing was written after the close");
    fs::write(data.path().join("index").join("more"), b"x").unwrap();
    assert!(!state::believed(&RealDisk, data.path(), &config));
}

#[test]
fn an_index_that_turned_out_unreadable_is_not_believed_within_the_same_boot() {
    use crate::disk::Disk as _;
    let data = tempfile::tempdir().unwrap();
    let store = open_sled(data.path());
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 3).unwrap();
    let config = EmbeddedConfig::default();
    assert!(state::believed(&RealDisk, data.path(), &config), "as long as nothing went wrong");
    store.shared.view.tell(&StoreError::Io { operation: "the index", found: "a page does not read".into() });
    assert!(store.poisoned().is_some(), "the process must end, as nothing can be read");
    drop(store);
    let text = fs::read(data.path().join("index.state")).unwrap();
    assert!(!text.ends_with(RealDisk.boot_id().as_bytes()));
    assert!(!state::believed(&RealDisk, data.path(), &config));
    let store = open_sled(data.path());
    acknowledged.check(&store, "after the index was built anew");
}

#[test]
fn a_file_of_the_index_that_is_gone_or_cut_is_noticed_within_the_same_boot() {
    let data = tempfile::tempdir().unwrap();
    let store = open_sled(data.path());
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, LETTERS).unwrap();
    let expected = visible(&store, LETTERS);
    // Not closed: as far as the disk is concerned, the process died.
    drop(store);
    for name in ["leaves", "ids", "rows/db"] {
        for cut in [None, Some(0), Some(5_000)] {
            let copied = tempfile::tempdir().unwrap();
            copy_folder(data.path(), copied.path());
            let path = copied.path().join("index").join(name);
            match cut {
                None => fs::remove_file(&path).unwrap(),
                Some(length) => fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap(),
            }
            let store = open_sled(copied.path());
            let way = format!("{name} cut to {cut:?}");
            for (found, expected) in visible(&store, LETTERS).iter().zip(&expected) {
                assert_eq!(found, expected, "{way}");
            }
            acknowledged.check(&store, &way);
            wait(store.close()).unwrap();
        }
    }
}
