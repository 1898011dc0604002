//! A foreign program's opinion: OpenSSL takes every certificate, list and key that is made here.

use std::path::Path;
use std::process::Command;

use super::{Exchange, NOW};

fn openssl(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn is_there() -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os("DOCAXIS_REQUIRE_ALL").is_none(), "no openssl program");
        eprintln!("SKIPPED: no openssl program");
    }
    there
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn openssl_accepts_every_chain_strictly_and_reads_every_key_and_list() {
    if !is_there() {
        return;
    }
    let mut exchange = Exchange::new();
    let home = exchange.folder.path().to_owned();
    exchange.join("h37", &["H37.DN.001"]).save(&home.join("node")).unwrap();
    exchange.authority.issue_link(&home.join("link"), NOW).unwrap();
    let at = NOW.unix_s().to_string();
    for (chain, purpose, files) in [
        ("nodes-chain.pem", "sslclient", &["node/node.pem", "link/link.pem"][..]),
        ("nodes-chain.pem", "sslserver", &["broker/broker.pem"]),
        (
            "seals-chain.pem",
            "any",
            &[
                "node/seals/H37.DN.001.pem",
                "node/witness.pem",
                "broker/evidence.pem",
                "broker/log.pem",
                "broker/directory.pem",
            ],
        ),
    ] {
        for file in files {
            let (root, chain, file) = (home.join("node/root.pem"), home.join("node").join(chain), home.join(file));
            let (good, said) = openssl(&[
                "verify",
                "-x509_strict",
                "-check_ss_sig",
                "-attime",
                &at,
                "-purpose",
                purpose,
                "-CAfile",
                text(&root),
                "-untrusted",
                text(&chain),
                text(&file),
            ]);
            assert!(good, "{}: {said}", file.display());
        }
    }
    for (key, kind) in [
        ("node/node.key", "Private-Key: (256 bit"),
        ("broker/broker.key", "Private-Key: (256 bit"),
        ("authority/root.key", "Private-Key: (256 bit"),
        ("node/seals/H37.DN.001.key", "ED25519 Private-Key"),
        ("broker/log.key", "ED25519 Private-Key"),
        ("authority/directory.key", "ED25519 Private-Key"),
    ] {
        let (good, said) = openssl(&["pkey", "-in", text(&home.join(key)), "-noout", "-text"]);
        assert!(good && said.contains(kind), "{key}: {said}");
    }
    for (list, ca) in [("nodes.crl", "nodes-chain.pem"), ("seals.crl", "seals-chain.pem")] {
        let (list, ca) = (home.join("broker").join(list), home.join("broker").join(ca));
        let (good, said) = openssl(&["crl", "-in", text(&list), "-CAfile", text(&ca), "-noout"]);
        assert!(good && said.contains("verify OK"), "{}: {said}", list.display());
    }
}

#[test]
fn openssl_reads_exactly_the_names_and_uses_of_each_profile() {
    if !is_there() {
        return;
    }
    let mut exchange = Exchange::new();
    let home = exchange.folder.path().to_owned();
    exchange.join("h37", &["H37.DN.001"]).save(&home.join("node")).unwrap();
    for (file, names, extended) in [
        ("node/node.pem", "URI:docaxis://node/h37", Some("TLS Web Client Authentication")),
        (
            "broker/broker.pem",
            "DNS:b1.broker.docaxis.invalid, URI:docaxis://broker/docaxis.example/vn",
            Some("TLS Web Server Authentication"),
        ),
        ("node/seals/H37.DN.001.pem", "URI:docaxis://agency/H37.DN.001", None),
        ("broker/nodes-chain.pem", "URI:docaxis://ca/nodes", None),
        ("broker/seals-chain.pem", "URI:docaxis://ca/seals", None),
    ] {
        let path = home.join(file);
        let (good, said) = openssl(&["x509", "-in", text(&path), "-noout", "-ext", "subjectAltName,extendedKeyUsage"]);
        let lines: Vec<&str> =
            said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
        let mut expected: Vec<&str> = extended.into_iter().chain([names]).collect();
        let mut lines = lines;
        expected.sort_unstable();
        lines.sort_unstable();
        assert!(good, "{said}");
        assert_eq!(lines, expected, "{file}");
    }
}
