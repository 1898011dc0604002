//! Making an exchange, keeping its directory, and joining it, with the program itself.

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use docaxis_broker::BrokerConfig;
use docaxis_certs::{NodeIdentity, Token};
use serde_json::{Value, json};

use crate::testnet::HANG;

const ORIGIN: &str = "docaxis.example.vn";

/// Folders of an authority and a broker that are reached at a free port.
struct Exchange {
    folder: tempfile::TempDir,
    address: String,
}

impl Exchange {
    /// Made by `ca init`, with these agencies in its directory.
    fn with(agencies: &[&str]) -> Self {
        let exchange = Self { folder: tempfile::tempdir().unwrap(), address: free_address() };
        exchange.init().done();
        for code in agencies {
            exchange.agency(&["add", code, "--name", "Sở Nội vụ"]).done();
        }
        exchange
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn init(&self) -> Ran {
        let (ca, broker) = (self.path("ca"), self.path("broker"));
        docaxis(&["ca", "init", "--origin", ORIGIN, "--broker-address", &self.address])
            .with("--dir", &ca)
            .with("--broker-dir", &broker)
            .run()
    }

    fn ca(&self, args: &[&str]) -> Ran {
        docaxis(&["ca"]).and(args).with("--dir", &self.path("ca")).run()
    }

    fn agency(&self, args: &[&str]) -> Ran {
        docaxis(&["agency"]).and(args).with("--authority", &self.path("ca")).run()
    }

    fn invite(&self, node: &str, agency: &str) -> String {
        self.ca(&["invite", node, "--agency", agency]).done()["token"].as_str().unwrap().to_owned()
    }

    fn join(&self, token: &str, node: &str) -> Ran {
        docaxis(&["agent", "join", token]).with("--dir", &self.path(node)).run()
    }

    /// Both print a line when they have started.
    fn start_broker(&self) -> Running {
        // Another test's broker may have the usual port.
        let (config, usual) = (self.path("broker/broker.toml"), "listen = \"127.0.0.1:7402\"");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(usual), "{text}");
        std::fs::write(&config, text.replace(usual, "listen = \"127.0.0.1:0\"")).unwrap();
        docaxis(&["broker", "run"]).with("--config", &self.path("broker/broker.toml")).start()
    }

    fn start_authority(&self) -> Running {
        docaxis(&["ca", "serve"]).with("--dir", &self.path("ca")).start()
    }
}

/// A free UDP port now; a join token names it before the broker has it.
fn free_address() -> String {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

struct Line(Command);

/// The program, asked for JSON.
fn docaxis(args: &[&str]) -> Line {
    let mut command = Command::new(env!("CARGO_BIN_EXE_docaxis"));
    command.arg("--json").args(args).env("RUST_LOG", "warn").env_remove("DOCAXIS_AUTHORITY").stdin(Stdio::null());
    Line(command)
}

impl Line {
    fn and(mut self, args: &[&str]) -> Self {
        self.0.args(args);
        self
    }

    fn with(mut self, flag: &str, path: &Path) -> Self {
        self.0.arg(flag).arg(path);
        self
    }

    fn run(mut self) -> Ran {
        Ran(self.0.output().unwrap())
    }

    fn start(mut self) -> Running {
        let mut child = self.0.stdout(Stdio::piped()).spawn().unwrap();
        // JSON over several lines; the closing brace ends it.
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let printed: Vec<String> = stdout.lines().map(Result::unwrap).take_while(|line| line != "}").collect();
        let running = Running(child);
        assert!(printed.first().is_some_and(|line| line == "{"), "it did not start: {printed:?}");
        running
    }
}

struct Ran(Output);

impl Ran {
    /// What a command that succeeded printed.
    #[track_caller]
    fn done(self) -> Value {
        let (code, value) = self.outcome();
        assert_eq!(code, 0, "{value:#}");
        value
    }

    /// Exit code and reason code of a command that failed.
    #[track_caller]
    fn refused(self) -> (i32, String) {
        let (code, value) = self.outcome();
        let error = &value["error"];
        assert!(!error["hint"].as_str().unwrap().is_empty(), "no hint: {value:#}");
        (code, error["code"].as_str().unwrap_or_else(|| panic!("{value:#}")).to_owned())
    }

    #[track_caller]
    fn outcome(self) -> (i32, Value) {
        let value = serde_json::from_slice(&self.0.stdout)
            .unwrap_or_else(|e| panic!("{e}: {self:?}", self = String::from_utf8_lossy(&self.0.stdout)));
        (self.0.status.code().unwrap(), value)
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn an_exchange_is_made_whole_and_never_made_twice() {
    let exchange = Exchange::with(&[]);
    let config = BrokerConfig::load(&exchange.path("broker/broker.toml")).unwrap();
    assert_eq!(config.broker.listen.to_string(), exchange.address);
    let checked = docaxis(&["broker", "check"]).with("--config", &exchange.path("broker/broker.toml")).run().done();
    assert_eq!(checked, json!({"ok": true, "origin": ORIGIN, "listen": exchange.address, "console": "127.0.0.1:7402"}));
    assert_eq!(
        std::fs::read(exchange.path("ca/authority.pem")).unwrap(),
        std::fs::read(exchange.path("broker/identity/root.pem")).unwrap()
    );

    let before = std::fs::read(exchange.path("ca/root.key")).unwrap();
    assert_eq!(exchange.init().refused(), (5, "exists".into()));
    std::fs::remove_dir_all(exchange.path("broker")).unwrap();
    assert_eq!(exchange.init().refused(), (5, "exists".into()));
    assert_eq!(std::fs::read(exchange.path("ca/root.key")).unwrap(), before);
    assert!(!exchange.path("broker").exists());
}

#[test]
fn an_invitation_names_agencies_of_the_directory_only() {
    let exchange = Exchange::with(&["H37.DN.001"]);
    assert_eq!(exchange.ca(&["invite", "h37", "--agency", "H37.DN.002"]).refused(), (3, "not-found".into()));
    assert_eq!(exchange.ca(&["invite", "H 37", "--agency", "H37.DN.001"]).refused(), (2, "usage".into()));
    let token: Token = exchange.invite("h37", "H37.DN.001").parse().unwrap();
    let named = (token.node.as_str(), token.broker_address.as_str(), token.origin.as_str());
    assert_eq!(named, ("h37", exchange.address.as_str(), ORIGIN));
}

#[test]
fn without_json_the_token_is_all_that_an_invitation_prints() {
    let exchange = Exchange::with(&["H37.DN.001"]);
    let output = Command::new(env!("CARGO_BIN_EXE_docaxis"))
        .args(["ca", "invite", "h37", "--agency", "H37.DN.001", "--dir"])
        .arg(exchange.path("ca"))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.parse::<Token>().unwrap().to_string(), stdout.trim_end());
}

#[test]
fn the_directory_is_changed_by_commands_and_says_what_it_refuses() {
    let exchange = Exchange::with(&["H37.DN.001", "H37.DN.002"]);
    assert_eq!(exchange.agency(&["add", "H37.DN.001", "--name", "x"]).refused(), (5, "exists".into()));
    assert_eq!(exchange.agency(&["lock", "H37.DN.001"]).refused(), (2, "usage".into()));
    let shown = |value: &Value| json!([value["agency"], value["locked"], value["successor"], value["aliases"]]);
    let locked = exchange.agency(&["lock", "H37.DN.001", "--yes"]).done();
    assert_eq!(shown(&locked), json!(["H37.DN.001", true, null, []]));
    exchange.agency(&["unlock", "H37.DN.001"]).done();
    exchange.agency(&["alias", "H37.DN.001", "H37.OLD"]).done();
    let merge = ["merge", "H37.DN.001", "--into", "H37.DN.002", "--yes"];
    assert_eq!(shown(&exchange.agency(&merge).done()), json!(["H37.DN.001", false, "H37.DN.002", ["H37.OLD"]]));
    let back = ["merge", "H37.DN.002", "--into", "H37.DN.001", "--yes"];
    assert_eq!(exchange.agency(&back).refused(), (5, "circle".into()));
    let by_alias = exchange.agency(&["show", "H37.OLD"]).done();
    assert_eq!(by_alias["agency"], "H37.DN.001");
    assert_eq!(exchange.agency(&["show", "H37.NONE"]).refused(), (3, "not-found".into()));
    let found = exchange.agency(&["list", "--q", "dn.002"]).done();
    let codes: Vec<&Value> = found["agencies"].as_array().unwrap().iter().map(|entry| &entry["agency"]).collect();
    assert_eq!(codes, ["H37.DN.002"]);
}

#[test]
fn a_list_is_imported_whole_or_its_good_rows_alone() {
    let exchange = Exchange::with(&["H37.DN.001"]);
    let list = exchange.path("list.csv");
    let import = |more: &[&str]| exchange.agency(&[&["import", list.to_str().unwrap()], more].concat());
    std::fs::write(&list, "organ_id,name\nH37.DN.001,A\nh37.dn.002,Sở Đắk\nnot a code,C\nH37.DN.003,\n").unwrap();
    let (exit, report) = import(&[]).outcome();
    let refused: Vec<&Value> = report["refused"].as_array().unwrap().iter().map(|row| &row["line"]).collect();
    assert_eq!((exit, &report["taken"], refused), (5, &json!(false), vec![&json!(4), &json!(5)]));
    assert_eq!(exchange.agency(&["show", "H37.DN.002"]).refused(), (3, "not-found".into()));
    let dry = import(&["--partial", "--dry-run"]).done();
    assert_eq!((&dry["taken"], &dry["added"], &dry["unchanged"]), (&json!(false), &json!(1), &json!(1)));
    assert_eq!(exchange.agency(&["show", "H37.DN.002"]).refused(), (3, "not-found".into()));
    let taken = import(&["--partial"]).done();
    assert_eq!((&taken["taken"], &taken["added"], &taken["unchanged"]), (&json!(true), &json!(1), &json!(1)));
    assert_eq!(exchange.agency(&["show", "so dak"]).done()["agency"], "H37.DN.002");
    std::fs::write(&list, "organ_id,name\nnot a code,C\nnull,D\n").unwrap();
    assert_eq!(import(&["--partial"]).outcome().0, 5);
    let absent = exchange.path("absent.csv");
    assert_eq!(exchange.agency(&["import", absent.to_str().unwrap()]).refused(), (3, "not-found".into()));
}

/// How many agencies a made list has.
const MANY: u32 = 3_000;

#[test]
fn old_code_new_code_and_unaccented_name_find_the_same_agency_of_thousands_at_the_authority_and_at_an_agent() {
    let exchange = Exchange::with(&["H37.DN.001"]);
    let (new, old) = (|n: u32| format!("H19.{n:04}"), |n: u32| format!("000.{:02}.{:02}.H19", n % 100, n / 100));
    // Many names contain others: number 1 stands in number 12 as well.
    let row = |n: u32| format!("{},Ủy ban nhân dân xã Đắk Ơ số {n},{}\n", new(n), old(n));
    let list = exchange.path("list.csv");
    std::fs::write(&list, "organ_id,name,aliases\n".to_owned() + &(0..MANY).map(row).collect::<String>()).unwrap();
    assert_eq!(exchange.agency(&["import", list.to_str().unwrap()]).done()["added"], MANY);

    let _broker = exchange.start_broker();
    let _authority = exchange.start_authority();
    let token = exchange.invite("h37", "H37.DN.001");
    while exchange.join(&token, "h37").outcome().0 == 4 {
        // Until the authority is linked.
    }
    let config = exchange.path("h37/agent.toml");
    let _agent = docaxis(&["agent", "run"]).with("--config", &config).start();
    let at_agent = |what: &str| docaxis(&["agency", "show", what]).with("--agent", &config).run();
    let since = Instant::now();
    while at_agent(&new(MANY - 1)).outcome().0 != 0 {
        assert!(since.elapsed() < HANG, "the agent has not the whole directory");
    }
    for n in [0, 1, 12, 777, MANY - 1] {
        let unaccented = format!("uy ban nhan dan xa dak o so {n}");
        for what in [new(n), old(n), unaccented] {
            let at_authority = exchange.agency(&["show", &what]).done()["agency"].clone();
            assert_eq!(
                (at_authority, at_agent(&what).done()["agency"].clone()),
                (json!(new(n)), json!(new(n))),
                "{what}"
            );
        }
    }
}

#[test]
fn the_nations_list_is_imported() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/samples/organ_directory.csv");
    if !list.exists() {
        assert!(std::env::var_os("DOCAXIS_REQUIRE_ALL").is_none(), "{} is not there", list.display());
        eprintln!("SKIPPED: {} is not there", list.display());
        return;
    }
    let exchange = Exchange::with(&[]);
    let report = exchange.agency(&["import", list.to_str().unwrap()]).done();
    let listed = exchange.agency(&["list"]).done()["agencies"].as_array().unwrap().len();
    assert_eq!(report["added"], listed);
    assert!(listed > 400, "{listed}");
    assert_eq!(exchange.agency(&["import", list.to_str().unwrap()]).done()["unchanged"], listed);
    for what in ["000.24.32.H53", "UBND Xã Đồng Khởi huyện Châu Thành", "ubnd xa dong khoi huyen chau thanh"]
    {
        assert_eq!(exchange.agency(&["show", what]).done()["agency"], "000.24.32.H53", "{what}");
    }
}

#[test]
fn a_revocation_is_asked_for_twice_and_told_once() {
    let exchange = Exchange::with(&["H37.DN.001"]);
    let serial = exchange.ca(&["list"]).done()["certificates"][0]["serial"].as_str().unwrap().to_owned();
    let revoke = |more: &[&str]| exchange.ca(&[&["revoke", "--serial", &serial], more].concat());
    assert_eq!(revoke(&[]).refused(), (2, "usage".into()));
    assert_eq!(revoke(&["--dry-run"]).done(), json!({"would_revoke": [serial]}));
    let lists = exchange.ca(&["crl"]).done();
    assert_eq!(revoke(&["--yes", "--reason", "superseded"]).done(), json!({"revoked": [serial]}));
    assert_ne!(exchange.ca(&["crl"]).done(), lists);
    assert_eq!(revoke(&["--yes"]).refused(), (3, "not-found".into()));
    assert_eq!(exchange.ca(&["revoke", "--node", "h37", "--yes"]).refused(), (3, "not-found".into()));
}

#[test]
fn a_node_joins_with_its_token_once() {
    let exchange = Exchange::with(&["H37.DN.001"]);
    let token = exchange.invite("h37", "H37.DN.001");
    let _broker = exchange.start_broker();

    // The join is begun, and kept for when the authority is there.
    assert_eq!(exchange.join(&token, "h37").refused(), (4, "busy".into()));
    let pending = exchange.path("h37/identity/pending-join.json");
    let begun = std::fs::read(&pending).unwrap();
    assert!(!NodeIdentity::exists(&exchange.path("h37/identity")));

    let _authority = exchange.start_authority();
    let joined = loop {
        // Until the authority is linked, the answer is that of before, and changes nothing.
        let (code, value) = exchange.join(&token, "h37").outcome();
        if code == 4 {
            assert_eq!(std::fs::read(&pending).unwrap(), begun);
            continue;
        }
        assert_eq!(code, 0, "{value:#}");
        break value;
    };
    assert_eq!(joined["node"], "h37");
    let identity = NodeIdentity::load(&exchange.path("h37/identity")).unwrap();
    let seals: Vec<&str> = identity.seals.keys().map(|code| code.as_str()).collect();
    assert_eq!((identity.link.node.as_str(), seals), ("h37", vec!["H37.DN.001"]));
    assert!(!pending.exists());
    assert_eq!(exchange.agency(&["show", "H37.DN.001"]).done()["node"], "h37");

    // The broker knew whom the node acts for before the node had its certificates.
    let status = docaxis(&["broker", "status"]).with("--config", &exchange.path("broker/broker.toml")).run().done();
    assert_eq!(status["directory_version"], exchange.agency(&["show", "H37.DN.001"]).done()["version"]);

    // As if the answer had been lost on the way: the same request gets the same certificates.
    std::fs::create_dir_all(exchange.path("again/identity")).unwrap();
    std::fs::write(exchange.path("again/identity/pending-join.json"), begun).unwrap();
    exchange.join(&token, "again").done();
    let again = NodeIdentity::load(&exchange.path("again/identity")).unwrap();
    assert_eq!(again.certificate, identity.certificate);

    let config = exchange.path("h37/agent.toml");
    let checked = docaxis(&["agent", "check"]).with("--config", &config).run().done();
    assert_eq!((&checked["node"], &checked["agencies"]), (&json!("h37"), &json!(["H37.DN.001"])));

    assert_eq!(exchange.join(&token, "h37").refused(), (5, "exists".into()));
    assert_eq!(exchange.join(&token, "other").refused(), (7, "token-used".into()));
    // A refused join does not stand in the way of the next token.
    exchange.agency(&["add", "H37.DN.002", "--name", "x"]).done();
    let second = exchange.invite("other", "H37.DN.002");
    assert_eq!(exchange.join(&second, "other").done()["agencies"], json!(["H37.DN.002"]));
}

#[test]
fn a_node_that_asks_for_more_waits_for_approval() {
    let exchange = Exchange::with(&["H37.DN.001", "H37.DN.002"]);
    let token = exchange.invite("h37", "H37.DN.001");
    let ask = || {
        docaxis(&["agent", "join", &token, "--agency", "H37.DN.001,H37.DN.002"])
            .with("--dir", &exchange.path("h37"))
            .run()
    };
    let waiting = || exchange.ca(&["approve"]).done()["pending"].as_array().unwrap().clone();
    let _broker = exchange.start_broker();
    let _authority = exchange.start_authority();
    while waiting().is_empty() {
        assert_eq!(ask().refused(), (4, "busy".into()));
    }
    let [request] = waiting().try_into().unwrap();
    let (invited, asked) = (json!(["H37.DN.001"]), json!(["H37.DN.001", "H37.DN.002"]));
    assert_eq!((&request["node"], &request["invited"], &request["asked"]), (&json!("h37"), &invited, &asked));

    assert_eq!(exchange.ca(&["approve", "unknown"]).refused(), (3, "not-found".into()));
    exchange.ca(&["approve", request["invitation"].as_str().unwrap()]).done();
    assert_eq!(ask().done()["agencies"], asked);
    assert_eq!(waiting(), [] as [Value; 0]);
}

#[test]
fn a_token_that_is_none_is_refused_before_anything_is_written() {
    let exchange = Exchange { folder: tempfile::tempdir().unwrap(), address: free_address() };
    assert_eq!(exchange.join("AAAA", "h37").refused(), (2, "malformed".into()));
    assert!(!exchange.path("h37").exists());
}
