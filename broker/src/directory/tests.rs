use docaxis_protocol::directory::TYPE;
use docaxis_protocol::key::SecretKey;
use docaxis_protocol::succession::Succession;

use super::*;

const NOW: Timestamp = Timestamp::from_unix_ms(1_795_318_200_000);

fn key() -> SecretKey {
    SecretKey::from_seed(&[9; 32])
}

fn origin() -> Origin {
    "docaxis.example/vn".parse().unwrap()
}

fn code(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

fn entry(agency: &str, version: u64, node: Option<&str>) -> DirectoryEntry {
    DirectoryEntry {
        kind: TYPE.into(),
        exchange: origin(),
        version,
        agency: code(agency),
        name: format!("Cơ quan {agency}"),
        node: node.map(|text| text.parse().unwrap()),
        since: NOW,
        aliases: vec![],
        locked: false,
        successor: None,
        parent: None,
        in_charge: None,
        valid_from: None,
        valid_until: None,
        successions: vec![],
    }
}

/// The entry of an agency that these succeeded one after the other.
fn merged(agency: &str, version: u64, node: &str, successors: &[&str]) -> DirectoryEntry {
    let sign = |to: &&str| Succession::new(origin(), code(agency), code(to), NOW).sign(&key()).unwrap();
    DirectoryEntry {
        successor: successors.last().map(|to| code(to)),
        successions: successors.iter().map(sign).collect(),
        ..entry(agency, version, Some(node))
    }
}

fn take(directory: &mut Directory, entries: impl IntoIterator<Item = DirectoryEntry>) {
    let signed = entries.into_iter().map(|entry| entry.sign(&key()).unwrap()).collect();
    let verified = directory.check().verify(signed).unwrap();
    let newer = directory.newer(verified);
    directory.take(newer);
}

fn directory(entries: impl IntoIterator<Item = DirectoryEntry>) -> Directory {
    let mut directory = Directory::new(origin(), key().public());
    take(&mut directory, entries);
    directory
}

fn codes(found: Vec<AgencyCode>) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_for_a_merged_agency_goes_to_its_successors_node_and_back_to_none_of_its_own() {
    let mut directory = directory([
        entry("AAA", 1, Some("old")),
        entry("BBB", 2, Some("new")),
        entry("CCC", 3, Some("last")),
        merged("AAA", 4, "old", &["BBB"]),
    ]);
    assert_eq!(directory.serving_node(&code("AAA")), Some(&node("new")));
    assert_eq!(
        (codes(directory.served_by(&node("old"))), codes(directory.served_by(&node("new")))),
        (vec![], vec!["BBB".to_owned(), "AAA".to_owned()])
    );
    assert_eq!(directory.standing(&code("AAA"), NOW), Standing::Open);
    assert!(directory.may_not_send(&code("AAA"), NOW).unwrap().contains("BBB"));
    // It may still say what became of what it took before.
    assert!(directory.hosts(&node("old"), &code("AAA")));

    take(&mut directory, [merged("AAA", 5, "old", &["BBB", "CCC"]), merged("BBB", 6, "new", &["CCC"])]);
    assert_eq!(codes(directory.served_by(&node("new"))), [] as [String; 0]);
    assert_eq!(codes(directory.served_by(&node("last"))), ["CCC", "AAA", "BBB"]);
    // Who answered before still may, about what it took.
    for acting in ["BBB", "CCC"] {
        assert_eq!(directory.succession(&code("AAA"), &code(acting)).unwrap().said().successor, code(acting));
    }
    assert!(directory.succession(&code("BBB"), &code("AAA")).is_none());
}

#[test]
fn a_merged_agency_stands_as_its_successor_does() {
    let standing = |successor: DirectoryEntry| {
        directory([successor, merged("AAA", 2, "old", &["BBB"])]).standing(&code("AAA"), NOW)
    };
    let day = std::time::Duration::from_secs(86_400);
    assert_eq!(standing(entry("BBB", 1, Some("new"))), Standing::Open);
    assert_eq!(standing(entry("BBB", 1, None)), Standing::Unknown);
    assert_eq!(standing(DirectoryEntry { locked: true, ..entry("BBB", 1, Some("new")) }), Standing::Locked);
    let ended = DirectoryEntry { valid_until: Some(NOW), ..entry("BBB", 1, Some("new")) };
    assert_eq!(standing(ended), Standing::NotValid);
    let begins = DirectoryEntry { valid_from: Some(NOW.plus(day)), ..entry("BBB", 1, Some("new")) };
    assert_eq!(standing(begins), Standing::NotValid);
    let itself = DirectoryEntry { locked: true, ..merged("AAA", 2, "old", &["BBB"]) };
    assert_eq!(directory([entry("BBB", 1, Some("new")), itself]).standing(&code("AAA"), NOW), Standing::Locked);
}

#[test]
fn deltas_hold_the_newest_entry_of_each_agency_that_changed_and_end_at_their_bound() {
    let directory = directory([
        entry("AAA", 1, None),
        entry("BBB", 2, None),
        DirectoryEntry { locked: true, ..entry("AAA", 3, None) },
    ]);
    let versions =
        |since, bytes| directory.since(since, bytes).into_iter().map(|(version, _)| version).collect::<Vec<_>>();
    assert_eq!(versions(0, usize::MAX), [2, 3]);
    assert_eq!(versions(2, usize::MAX), [3]);
    assert_eq!(versions(3, usize::MAX), [] as [u64; 0]);
    assert_eq!(versions(0, directory.since(0, usize::MAX)[0].1.bytes.len() + 128), [2]);
}
