//! The layout that ARCHITECTURE.md promises: which way imports point, and what is absent from each room.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The triple that this test was built on.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

/// Direct normal dependencies by package, and the names behind package ids.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        // Packages for other systems stand in the lock file, but nobody has fetched them.
        .args(["--filter-platform", &host(), "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let names: BTreeMap<String, String> =
        metadata["packages"].as_array().unwrap().iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let normal =
        |dep: &serde_json::Value| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
    metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let deps = node["deps"].as_array().unwrap();
            let deps = deps.iter().filter(|d| normal(d)).map(|d| names[&text(&d["pkg"])].clone()).collect();
            (names[&text(&node["id"])].clone(), deps)
        })
        .collect()
}

/// Everything that `package` is built from.
fn closure(all: &BTreeMap<String, BTreeSet<String>>, package: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![package.to_owned()];
    while let Some(next) = open.pop() {
        for dependency in all.get(&next).into_iter().flatten() {
            if found.insert(dependency.clone()) {
                open.push(dependency.clone());
            }
        }
    }
    found
}

/// Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// Whether code (not a comment) in `text` uses a path that begins with `word`.
fn uses(text: &str, word: &str) -> bool {
    text.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(word).any(|(at, _)| {
            let before = code[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '"');
            let after = code[at + word.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '_');
            before && after
        })
    })
}

/// Files under `folders` that use `word`, without those below `rooms`.
fn strays(folders: &[&str], word: &str, rooms: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for file in folders.iter().flat_map(|folder| sources(folder)) {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        if !rooms.iter().any(|room| name.starts_with(room)) && uses(&fs::read_to_string(&file).unwrap(), word) {
            found.push(name);
        }
    }
    found
}

#[test]
fn imports_point_one_way() {
    let all = dependencies();
    let ours = |package: &str| -> BTreeSet<String> {
        closure(&all, package).into_iter().filter(|name| name.starts_with("docaxis-")).collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|&name| name.to_owned()).collect() };
    assert_eq!(ours("docaxis-protocol"), set(&[]));
    assert_eq!(ours("docaxis-certs"), set(&["docaxis-protocol"]));
    assert_eq!(ours("docaxis-backup"), set(&["docaxis-protocol"]));
    assert_eq!(ours("docaxis-failpoints"), set(&[]));
    let below = set(&["docaxis-backup", "docaxis-certs", "docaxis-failpoints", "docaxis-protocol"]);
    assert_eq!([ours("docaxis-broker"), ours("docaxis-node-agent")], [below.clone(), below]);
}

#[test]
fn the_protocol_has_no_runtime_no_store_no_files_and_no_clock() {
    let found = closure(&dependencies(), "docaxis-protocol");
    for absent in ["tokio", "quinn", "sled", "rusqlite", "axum", "mio", "socket2"] {
        assert!(!found.contains(absent), "docaxis-protocol is built with {absent}");
    }
    for word in ["std::fs", "std::net", "SystemTime", "Instant", "getrandom", "tokio", "quinn"] {
        assert_eq!(strays(&["protocol/src"], word, &[]), Vec::<String>::new(), "{word} in the protocol");
    }
    let certs = closure(&dependencies(), "docaxis-certs");
    for absent in ["tokio", "quinn", "sled", "rusqlite", "axum"] {
        assert!(!certs.contains(absent), "docaxis-certs is built with {absent}");
    }
}

#[test]
fn each_library_stays_in_its_room() {
    let libraries = ["protocol/src", "certs/src", "backup/src", "broker/src", "node-agent/src", "src"];
    let check = |word: &str, rooms: &[&str]| {
        assert_eq!(strays(&libraries, word, rooms), Vec::<String>::new(), "{word} outside {rooms:?}");
    };
    check("quinn", &["broker/src/link/", "node-agent/src/link/"]);
    check("sled", &["broker/src/store/"]);
    check("rusqlite", &["node-agent/src/mailbox/"]);
    check("axum", &["broker/src/control", "broker/src/console/", "node-agent/src/desk/", "node-agent/src/gateway/"]);
    check("hyper", &["broker/src/console/", "node-agent/src/desk/", "src/control.rs"]);
    check("bincode", &["protocol/src/codec.rs"]);
    check("verify_batch", &[]);
}

#[test]
fn the_search_for_strays_finds_what_it_looks_for() {
    assert!(uses("use sled::Db;", "sled"));
    assert!(uses("    let x: sled::Tree = y;", "sled"));
    assert!(!uses("// sled is slow", "sled"));
    assert!(!uses("let assembled = 1;", "sled"));
    assert!(!strays(&["broker/src"], "quinn", &[]).is_empty(), "quinn is used by the link, so the search must find it");
}
