//! Who takes part: identities and directory of one small exchange, made once and kept in `identities.json`.
//!
//! Keys and certificates that were drawn anew for each run would differ in length, and so would datagrams and all that
//! follows from them. They are good for nothing but simulations. Node keys are Ed25519, whose signatures are always of one
//! length; the broker's are what an authority gives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use docaxis_certs::authority::{Agency, JoinReply};
use docaxis_certs::keys::KeyAlgorithm;
use docaxis_certs::{Authority, AuthorityConfig, NodeIdentity, PendingJoin};
use docaxis_protocol::digest::{hex, unhex};
use docaxis_protocol::frame::{Frame, Notices};
use docaxis_protocol::{AgencyCode, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

/// The nodes and their agencies.
pub const NODES: [(&str, &[&str]); 3] =
    [("g22", &["000.00.00.G22"]), ("h37", &["H37.DN.001", "H37.DN.002"]), ("a53", &["000.00.01.A53"])];
/// The broker is the first host of the simulated network.
pub const BROKER: &str = "192.168.0.1:4433";
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/sim/identities.json");

#[derive(Serialize, Deserialize)]
pub struct Identities {
    /// When they were made: simulated time begins an hour later.
    made: Timestamp,
    /// The authority's root certificate.
    root: String,
    /// What the authority published: a frame, in hexadecimal digits.
    notices: String,
    /// Contents of the identity folders, by path.
    files: BTreeMap<String, String>,
}

impl Identities {
    pub fn load() -> Self {
        let text = std::fs::read_to_string(FILE).expect("the identities are part of the tests");
        serde_json::from_str(&text).expect("the identities read")
    }

    pub fn begin(&self) -> Timestamp {
        self.made.plus(Duration::from_secs(3600))
    }

    /// The authority's root certificate, DER.
    pub fn root(&self) -> Vec<u8> {
        unhex(&self.root).unwrap()
    }

    pub fn notices(&self) -> Notices {
        match Frame::decode(&unhex(&self.notices).unwrap()) {
            Ok(Frame::Notices(notices)) => notices,
            other => panic!("no notices: {other:?}"),
        }
    }

    /// Writes the identity folders below this one.
    pub fn write(&self, folder: &Path) {
        for (path, text) in &self.files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }
}

fn read_all(folder: &Path, name: &str, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let (path, name) = {
            let entry = entry.unwrap();
            (entry.path(), format!("{name}/{}", entry.file_name().to_str().unwrap()))
        };
        if path.is_dir() {
            read_all(&path, &name, files);
        } else {
            files.insert(name, std::fs::read_to_string(path).unwrap());
        }
    }
}

/// `DOCAXIS_WRITE_SIM_IDENTITIES=1` makes `identities.json` anew; every seed then leads to other runs than before. Otherwise
/// what is there must name the same hosts and agencies as this file does.
#[test]
fn the_identities_are_those_of_the_hosts() {
    if std::env::var_os("DOCAXIS_WRITE_SIM_IDENTITIES").is_some() {
        make_anew();
    }
    let identities = Identities::load();
    let folder = tempfile::tempdir().unwrap();
    identities.write(folder.path());
    for (name, agencies) in NODES {
        let identity = NodeIdentity::load(&folder.path().join(name)).unwrap();
        assert_eq!(identity.link.node.as_str(), name);
        let sealed: Vec<&str> = identity.seals.keys().map(AgencyCode::as_str).collect();
        let mut expected = agencies.to_vec();
        expected.sort_unstable();
        assert_eq!(sealed, expected, "{name}");
    }
}

fn make_anew() {
    let made: Timestamp = "2026-11-02T00:00:00Z".parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut config = AuthorityConfig::new("docaxis.example/sim".parse().unwrap(), "b1".parse().unwrap(), BROKER, made);
    config.node_key = KeyAlgorithm::Ed25519;
    let mut authority = Authority::init(&folder.path().join("authority"), &config).unwrap();
    let mut files = BTreeMap::new();
    authority.issue_broker(&folder.path().join("broker"), made).unwrap();
    read_all(&folder.path().join("broker"), "broker", &mut files);
    for (name, agencies) in NODES {
        let agencies: Vec<AgencyCode> = agencies.iter().map(|code| code.parse().unwrap()).collect();
        for agency in &agencies {
            authority.add_agency(&Agency::new(agency.clone(), format!("Cơ quan {agency}")), made).unwrap();
        }
        let node: NodeId = name.parse().unwrap();
        let token = authority.invite(&node, &agencies, Duration::from_secs(60), made).unwrap();
        let pending = PendingJoin::new(token, "docaxis simulation").unwrap();
        let JoinReply::Granted(answer) = authority.join(pending.request(), &pending.mac(), made).unwrap() else {
            panic!("{name} asked for no more than it was invited for");
        };
        pending.accept(&answer, made).unwrap().save(&folder.path().join(name)).unwrap();
        read_all(&folder.path().join(name), name, &mut files);
    }
    let notices = authority.notices_since(0, made).unwrap();
    let notices = hex(&Frame::Notices(notices).encode().unwrap()[4..]);
    let made = Identities { made, root: hex(authority.root()), notices, files };
    std::fs::write(FILE, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
}
