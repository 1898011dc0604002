//! The authority's records, directory and lists.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use docaxis_protocol::directory::DirectoryEntry;

use super::{DAY, Exchange, NOW, code, node};
use crate::authority::{
    Agency, Authority, AuthorityError, DirectoryChangeError, ImportOptions, ImportReport, RevocationReason,
    RevokeError, RowNote, Target, Which,
};
use crate::crl::RevocationList;
use crate::{AuthorityConfig, BrokerIdentity};

fn folder(exchange: &Exchange) -> std::path::PathBuf {
    exchange.folder.path().join("authority")
}

fn entries(authority: &Authority) -> Vec<DirectoryEntry> {
    let key = authority.directory_key();
    let verify = |signed: &docaxis_protocol::directory::SignedEntry| {
        signed.clone().verify(&key, authority.origin()).unwrap().entry().clone()
    };
    authority.entries_since(0).map(verify).collect()
}

#[test]
fn a_reopened_authority_knows_everything_and_needs_no_root_key() {
    let mut exchange = Exchange::new();
    exchange.join("h37", &["H37.DN.001"]);
    fs::remove_file(folder(&exchange).join("root.key")).unwrap();
    let reopened = Authority::open(&folder(&exchange)).unwrap();
    assert_eq!(reopened.list().collect::<Vec<_>>(), exchange.authority.list().collect::<Vec<_>>());
    assert_eq!(entries(&reopened), entries(&exchange.authority));
    assert_eq!(reopened.directory_key(), exchange.authority.directory_key());
}

#[test]
fn an_authority_is_not_made_over_another_one_and_an_empty_folder_holds_none() {
    let exchange = Exchange::new();
    let origin = "docaxis.example/vn".parse().unwrap();
    let config = AuthorityConfig::new(origin, node("b1"), "broker.example:7400", NOW);
    assert!(matches!(Authority::init(&folder(&exchange), &config), Err(AuthorityError::Exists { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Authority::open(empty.path()), Err(AuthorityError::Missing { .. })));
    for broker_address in ["broker", ":7400", "broker:", "broker:99999"] {
        let config = AuthorityConfig { broker_address: broker_address.into(), ..config.clone() };
        assert!(matches!(Authority::init(empty.path(), &config), Err(AuthorityError::Address { .. })));
    }
}

#[test]
fn all_files_with_keys_are_the_owners_alone() {
    let mut exchange = Exchange::new();
    exchange.join("h37", &["H37.DN.001"]).save(&exchange.folder.path().join("node")).unwrap();
    let mut folders = vec![exchange.folder.path().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for file in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let metadata = file.metadata().unwrap();
            match metadata.is_dir() {
                true => folders.push(file.path()),
                false => {
                    files += 1;
                    assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{:?}", file.path());
                }
            }
        }
    }
    assert!(files > 30, "{files}");
}

#[test]
fn a_change_cut_at_any_byte_is_absent_and_set_aside_and_the_records_go_on() {
    let mut exchange = Exchange::new();
    let path = folder(&exchange).join("records.jsonl");
    let before = fs::read(&path).unwrap();
    let known = entries(&exchange.authority);
    exchange.authority.add_agency(&Agency::new(code("ABC"), "một"), NOW).unwrap();
    let after = fs::read(&path).unwrap();
    for cut in [before.len() + 1, before.len() + 40, after.len() - 1] {
        fs::write(&path, &after[..cut]).unwrap();
        let mut reopened = Authority::open(&folder(&exchange)).unwrap();
        assert_eq!(entries(&reopened), known);
        let aside = folder(&exchange).join(format!("records.torn-{}", before.len()));
        assert_eq!(fs::read(&aside).unwrap(), after[before.len()..cut]);
        reopened.add_agency(&Agency::new(code("DEF"), "hai"), NOW).unwrap();
        assert_eq!(entries(&Authority::open(&folder(&exchange)).unwrap()), entries(&reopened));
        assert_eq!(entries(&reopened).len(), known.len() + 1);
    }
}

#[test]
fn damage_in_the_middle_is_reported_and_nothing_is_cut() {
    let exchange = Exchange::new();
    let path = folder(&exchange).join("records.jsonl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[1] = b'!';
    fs::write(&path, &bytes).unwrap();
    let error = Authority::open(&folder(&exchange)).err().unwrap();
    assert!(error.to_string().contains("is damaged in the line at byte 0"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn two_processes_with_the_authority_open_do_not_overwrite_each_other() {
    let mut exchange = Exchange::new();
    let mut other = Authority::open(&folder(&exchange)).unwrap();
    other.add_agency(&Agency::new(code("ABC"), "một"), NOW).unwrap();
    exchange.authority.add_agency(&Agency::new(code("DEF"), "hai"), NOW).unwrap();
    other.refresh().unwrap();
    assert_eq!(entries(&other), entries(&exchange.authority));
    assert_eq!(other.directory_version(), 4);
}

#[test]
fn every_change_of_an_agency_is_the_next_version_and_deltas_hold_only_the_newest() {
    let mut exchange = Exchange::new();
    let authority = &mut exchange.authority;
    let (g22, h37) = (code("000.00.00.G22"), code("H37.DN.001"));
    authority.lock_agency(&g22, true, NOW).unwrap();
    authority.lock_agency(&g22, true, NOW.plus(DAY)).unwrap();
    authority.add_alias(&h37, &code("000.12.31.H37"), NOW).unwrap();
    authority.host_agency(&h37, Some(&node("h37")), NOW.plus(DAY)).unwrap();
    let found = entries(authority);
    let summary: Vec<_> = found.iter().map(|entry| (entry.version, entry.agency.clone(), entry.locked)).collect();
    assert_eq!(summary, [(3, g22.clone(), true), (5, h37.clone(), false)]);
    assert_eq!((found[1].node.clone(), found[1].since), (Some(node("h37")), NOW.plus(DAY)));
    assert_eq!(authority.entries_since(3).count(), 1);
    assert_eq!(authority.entries_since(5).count(), 0);
    assert_eq!(authority.agency(&code("000.12.31.H37")).unwrap().agency, h37);
    assert!(matches!(
        authority.add_agency(&Agency::new(code("000.12.31.H37"), "x"), NOW),
        Err(DirectoryChangeError::Taken { .. })
    ));
    assert!(matches!(authority.lock_agency(&code("H99.NONE"), true, NOW), Err(DirectoryChangeError::Unknown { .. })));
}

#[test]
fn agencies_are_not_merged_in_a_circle() {
    let mut exchange = Exchange::new();
    let (g22, h37) = (code("000.00.00.G22"), code("H37.DN.001"));
    exchange.authority.add_agency(&Agency::new(code("H37.DN.002"), "hai"), NOW).unwrap();
    exchange.authority.merge_agency(&g22, &h37, NOW).unwrap();
    let back = exchange.authority.merge_agency(&h37, &g22, NOW).unwrap_err();
    assert!(matches!(back, DirectoryChangeError::Circle { .. }), "{back}");
    exchange.authority.merge_agency(&h37, &code("H37.DN.002"), NOW).unwrap();
    let before = exchange.authority.directory_version();
    for (from, to) in [(&h37, &h37), (&code("H37.DN.002"), &g22), (&code("H37.DN.002"), &h37)] {
        let circle = exchange.authority.merge_agency(from, to, NOW).unwrap_err();
        assert!(matches!(circle, DirectoryChangeError::Circle { .. }), "{from} into {to}: {circle}");
    }
    assert_eq!(exchange.authority.directory_version(), before);
}

/// Who answers for an agency, one after the other, as the authority signed it for that agency.
fn successors(authority: &Authority, agency: &str) -> Vec<String> {
    let (key, origin) = (authority.directory_key(), authority.origin().clone());
    let entry = authority.agency(&code(agency)).unwrap();
    for sealed in &entry.successions {
        sealed.verify(&key, &origin, &entry.agency).unwrap();
    }
    assert_eq!(entry.successor.as_ref(), entry.successions.last().map(|last| &last.said().successor));
    entry.successions.iter().map(|sealed| sealed.said().successor.to_string()).collect()
}

#[test]
fn a_chain_of_merges_ends_at_its_last_agency_whichever_merge_came_first() {
    let mut exchange = Exchange::new();
    let authority = &mut exchange.authority;
    for text in ["AAA", "BBB", "CCC", "DDD"] {
        authority.add_agency(&Agency::new(code(text), text), NOW).unwrap();
    }
    authority.merge_agency(&code("AAA"), &code("BBB"), NOW).unwrap();
    authority.merge_agency(&code("BBB"), &code("CCC"), NOW.plus(DAY)).unwrap();
    assert_eq!(successors(authority, "AAA"), ["BBB", "CCC"]);
    assert_eq!(successors(authority, "BBB"), ["CCC"]);
    // Into one that was merged already: to where that one went.
    authority.merge_agency(&code("DDD"), &code("AAA"), NOW.plus(DAY)).unwrap();
    assert_eq!(successors(authority, "DDD"), ["CCC"]);
    let since = |agency: &str| authority.agency(&code(agency)).unwrap().successions.last().unwrap().said().since;
    assert_eq!((since("AAA"), since("DDD")), (NOW.plus(DAY), NOW.plus(DAY)));
    // Said again, it changes nothing.
    let before = authority.directory_version();
    authority.merge_agency(&code("DDD"), &code("AAA"), NOW.plus(DAY)).unwrap();
    assert_eq!(authority.directory_version(), before);
}

fn import(exchange: &mut Exchange, list: &str, options: ImportOptions) -> ImportReport {
    exchange.authority.import_agencies(list.as_bytes(), options, NOW).unwrap()
}

fn lines(notes: &[RowNote]) -> Vec<u64> {
    notes.iter().map(|(line, _)| *line).collect()
}

const WHOLE: ImportOptions = ImportOptions { partial: false, dry_run: false };
const PARTIAL: ImportOptions = ImportOptions { partial: true, dry_run: false };

#[test]
fn a_list_is_judged_row_by_row_and_says_what_it_did_with_each() {
    let mut exchange = Exchange::new();
    let list = "\u{feff}organ_id,name,in_charge,type,version\r\n\
                000.00.00.H53,UBND Tỉnh Tây Ninh,Tây Ninh,,\r\n\
                vxp.saas.03,\"Trung tâm, một\",NULL,,\r\n\
                null,Không,,,\r\n\
                000.00.00.H53,Hai lần,,,\r\n\
                000.00.00.G22,Văn phòng Chính phủ,,,\r\n\
                000.00.01.H53,NULL,,,\r\n\
                không mã,Tên,,,\r\n";
    let report = import(&mut exchange, list, PARTIAL);
    assert_eq!((lines(&report.refused), lines(&report.warnings)), (vec![4, 7, 8], vec![3, 5]), "{report:#?}");
    assert!(report.refused.iter().all(|(_, why)| why.contains("write") || why.contains("correct")), "{report:#?}");
    assert_eq!((report.taken, report.added, report.unchanged), (true, 2, 1));
    assert_eq!(exchange.authority.agency(&code("VXP.SAAS.03")).unwrap().name, "Trung tâm, một");
    let entry = exchange.authority.agency(&code("000.00.00.H53")).unwrap();
    assert_eq!((entry.version, entry.in_charge.as_deref()), (3, Some("Tây Ninh")));
    assert!(matches!(
        exchange.authority.import_agencies(b"a,b\n1,2\n", WHOLE, NOW),
        Err(DirectoryChangeError::Columns { .. })
    ));
}

#[test]
fn what_a_list_says_otherwise_of_an_agency_that_is_there_is_told_field_by_field_and_changes_nothing() {
    let mut exchange = Exchange::new();
    import(&mut exchange, "organ_id,name,parent,node,aliases\nAAA,Một,,n1,A.01\nBBB,Hai,AAA,,\n", WHOLE);
    let version = exchange.authority.directory_version();
    let list = "organ_id,name,parent,node,aliases,merged_into\nAAA,Một,BBB,n2,A.01 A.02,BBB\nBBB,Hai,AAA,,,\n";
    let report = import(&mut exchange, list, WHOLE);
    assert_eq!((report.unchanged, lines(&report.warnings)), (2, vec![2]), "{report:#?}");
    let said = &report.warnings[0].1;
    for part in [
        "the parent is none there, and BBB here",
        "the node is n1 there, and n2 here",
        "merged_into is none there, and BBB here",
        "the code A.02 is none of its codes there",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("A.01") && !said.contains("the name"), "{said}");
    assert_eq!(exchange.authority.directory_version(), version);
}

#[test]
fn a_list_with_a_bad_row_changes_nothing_and_neither_does_a_dry_run() {
    let mut exchange = Exchange::new();
    let before = exchange.authority.directory_version();
    let bad = import(&mut exchange, "organ_id,name\nAAA,Một\nnull,Hai\n", WHOLE);
    assert_eq!((bad.taken, bad.added, lines(&bad.refused)), (false, 1, vec![3]));
    let dry = import(&mut exchange, "organ_id,name\nAAA,Một\n", ImportOptions { dry_run: true, ..WHOLE });
    assert_eq!((dry.taken, dry.added), (true, 1));
    assert_eq!(exchange.authority.directory_version(), before);
    assert_eq!(import(&mut exchange, "organ_id,name\nAAA,Một\n", WHOLE), dry);
    assert_eq!(exchange.authority.directory_version(), before + 1);
}

#[test]
fn a_list_may_name_parents_nodes_other_codes_days_and_successors() {
    let mut exchange = Exchange::new();
    let list = "organ_id,name,parent,node,aliases,valid_from,valid_until,merged_into\n\
                H37.DN.010,Sở Một,000.00.00.G22,H37,000.12.31.H37; 000.12.32.h37,2026-07-01,2027-07-01,\n\
                H37.DN.011,Sở Hai,H37.DN.010,,,,,H37.DN.012\n\
                H37.DN.012,Sở Ba,,,,,,H37.DN.010\n";
    let report = import(&mut exchange, list, WHOLE);
    assert_eq!((report.added, lines(&report.refused), lines(&report.warnings)), (3, vec![], vec![2]), "{report:#?}");
    let authority = &exchange.authority;
    let first = authority.agency(&code("000.12.32.H37")).unwrap();
    let at = |text: &str| text.parse().ok();
    assert_eq!((first.agency.as_str(), first.node.clone()), ("H37.DN.010", Some(node("h37"))));
    assert_eq!((first.valid_from, first.valid_until), (at("2026-06-30T17:00:00Z"), at("2027-06-30T17:00:00Z")));
    assert_eq!(authority.agency(&code("H37.DN.011")).unwrap().parent, Some(code("H37.DN.010")));
    // Whom the list merged into one that it merged as well goes to the last.
    assert_eq!(successors(authority, "H37.DN.011"), ["H37.DN.010"]);
    assert_eq!(successors(authority, "H37.DN.012"), ["H37.DN.010"]);
}

#[test]
fn rows_that_contradict_the_directory_or_each_other_are_refused() {
    let mut exchange = Exchange::new();
    exchange.authority.add_alias(&code("H37.DN.001"), &code("OLD.001"), NOW).unwrap();
    let list = "organ_id,name,parent,aliases,valid_from,valid_until,merged_into\n\
                OLD.001,another's other code,,,,,\n\
                AAA,parent that is nowhere,NOWHERE,,,,\n\
                BBB,parent that is refused,AAA,,,,\n\
                CCC,its other code is another's,,DDD,,,\n\
                DDD,good,,,,,\n\
                EEE,circle of two,,,,,FFF\n\
                FFF,circle of two,,,,,EEE\n\
                GGG,no such day,,,2026-13-01,,\n\
                HHH,ends before it begins,,,2027-01-01,2026-01-01,\n\
                III,into itself,,,,,III\n";
    let report = import(&mut exchange, list, PARTIAL);
    assert_eq!((report.added, lines(&report.refused)), (1, vec![2, 3, 4, 5, 7, 8, 9, 10, 11]), "{report:#?}");
    assert!(exchange.authority.agency(&code("DDD")).is_some());
}

#[test]
fn complaint_14_an_agency_is_found_by_old_code_new_code_and_its_name_without_accents_or_in_nfd() {
    let mut exchange = Exchange::new();
    // As exported from a word processor: letters apart from their accents, a zero-width space, two spaces.
    let name = "So\u{31b}\u{309} Nội vụ\u{200b}  tỉnh Đồng Nai";
    let list = format!("organ_id,name,aliases\nH19.DN.010,{name},000.12.31.H19\nH19.DN.011,Sở Nội vụ tỉnh Đắk Lắk,\n");
    let report = import(&mut exchange, &list, WHOLE);
    assert_eq!(lines(&report.warnings), [2], "{report:?}");
    let authority = &exchange.authority;
    assert_eq!(authority.agency(&code("H19.DN.010")).unwrap().name, "Sở Nội vụ tỉnh Đồng Nai");
    for asked in
        ["H19.DN.010", "h19.dn.010", "000.12.31.H19", name, "so noi vu tinh dong nai", "SỞ NỘI VỤ TỈNH ĐỒNG NAI"]
    {
        let found: Vec<_> = authority.find_agencies(asked).into_iter().map(|entry| entry.agency.as_str()).collect();
        assert_eq!(found, ["H19.DN.010"], "{asked:?}");
    }
    assert_eq!(authority.find_agencies("noi vu tinh").len(), 2);
    assert_eq!(authority.find_agencies("không có").len(), 0);
}

#[test]
fn a_real_list_is_imported_whole() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples/organ_directory.csv");
    let Ok(list) = fs::read(&path) else {
        assert!(std::env::var_os("DOCAXIS_REQUIRE_ALL").is_none(), "no {}", path.display());
        eprintln!("SKIPPED: no {}", path.display());
        return;
    };
    let mut exchange = Exchange::new();
    let report = exchange.authority.import_agencies(&list, WHOLE, NOW).unwrap();
    let text = String::from_utf8(list).unwrap();
    // The real list names a few agencies twice: each code is taken once, and every other row is reported as a repetition.
    let codes: std::collections::BTreeSet<&str> =
        text.lines().skip(1).filter_map(|row| row.split(',').next()).collect();
    assert_eq!(report.added + report.unchanged, codes.len(), "{report:?}");
    assert_eq!((report.taken, &report.refused), (true, &vec![]));
    let rows = text.lines().count() - 1;
    let repeated = report.warnings.iter().filter(|(_, why)| why.contains("stands in line")).count();
    assert_eq!(report.added + report.unchanged + repeated, rows, "{:?}", report.warnings);
    assert_eq!(entries(&Authority::open(&folder(&exchange)).unwrap()).len(), report.added + 2);
}

#[test]
fn list_numbers_grow_with_each_revocation_and_once_a_day_and_never_repeat() {
    let mut exchange = Exchange::new();
    exchange.join("h37", &["H37.DN.001"]);
    let ca = exchange.authority.ca_certificate(Which::Seals).to_vec();
    let authority = &mut exchange.authority;
    let list =
        |authority: &mut Authority, at| RevocationList::verify(&authority.crl(Which::Seals, at).unwrap(), &ca).unwrap();
    let first = list(authority, NOW);
    assert_eq!((first.number, first.len()), (1, 0));
    let revoked = authority.revoke(&Target::Agency(code("H37.DN.001")), NOW, RevocationReason::KeyCompromise).unwrap();
    let second = list(authority, NOW);
    assert_eq!((second.number, second.revoked_at(&revoked[0])), (2, Some(NOW)));
    assert_eq!(list(authority, NOW.plus(DAY / 2)), second);
    assert_eq!(list(authority, NOW.plus(DAY)).number, 3);
    // As after a crash between taking the number and writing the list.
    fs::remove_file(exchange.folder.path().join("authority/seals.crl")).unwrap();
    assert_eq!(list(authority, NOW.plus(DAY)).number, 4);
    assert!(matches!(
        authority.revoke(&Target::Agency(code("H37.DN.001")), NOW, RevocationReason::Unspecified),
        Err(RevokeError::Nothing { .. })
    ));
}

#[test]
fn a_broker_issued_again_keeps_the_keys_that_name_its_evidence_and_log() {
    let mut exchange = Exchange::new();
    let before = exchange.broker();
    let path = exchange.folder.path().join("broker");
    exchange.authority.issue_broker(&path, NOW.plus(DAY * 60)).unwrap();
    let after = BrokerIdentity::load(&path).unwrap();
    assert_eq!((&after.log, &after.evidence), (&before.log, &before.evidence));
    assert_ne!(after.certificate, before.certificate);
}

#[test]
fn no_certificate_outlives_its_issuer() {
    let exchange = Exchange::with(|config| config.validity.ca_days = 30);
    let ends: Vec<_> = exchange.authority.list().map(|issued| issued.facts.not_after).collect();
    assert!(ends.iter().all(|end| *end == NOW.plus(DAY * 30)), "{ends:?}");
}

#[test]
fn notices_hand_over_every_agency_once_in_pieces_that_fit_a_frame() {
    let mut exchange = Exchange::new();
    let rows: String = (0..3000).map(|i| format!("H{i:04},{}\n", "tên cơ quan ".repeat(8))).collect();
    import(&mut exchange, &format!("organ_id,name\n{rows}"), WHOLE);
    let (mut at, mut pieces, mut found) = (0, 0, Vec::new());
    loop {
        let notices = exchange.authority.notices_since(at, NOW).unwrap();
        let lists: Vec<_> = notices.crls.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(lists, ["nodes", "seals"]);
        if notices.entries.is_empty() {
            break;
        }
        let frame = docaxis_protocol::frame::Frame::Notices(notices.clone());
        assert!(docaxis_protocol::codec::encode(&frame, docaxis_protocol::limits::MAX_LARGE_FRAME_BYTES).is_ok());
        at = notices.version;
        pieces += 1;
        found.extend(notices.entries);
    }
    let whole: Vec<_> = exchange.authority.entries_since(0).cloned().collect();
    assert_eq!((found, at, pieces > 2), (whole, 3002, true));
}

#[test]
fn the_directorys_certificate_is_replaced_before_it_ends_for_the_same_key() {
    let mut exchange = Exchange::new();
    let path = exchange.folder.path().join("broker");
    let before = exchange.broker().common;
    exchange.authority.issue_broker(&path, NOW.plus(DAY * 600)).unwrap();
    let after = exchange.broker().common;
    assert_ne!(before.directory, after.directory);
    assert_eq!(before.directory_key().unwrap(), after.directory_key().unwrap());
}
