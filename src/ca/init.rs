//! `docaxis ca init`: makes the authority, and the broker's identity and configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use docaxis_broker::BrokerConfig;
use docaxis_certs::{Authority, AuthorityConfig, encoding, files};
use docaxis_protocol::{Digest, NodeId, Origin};
use serde_json::json;

use super::DirArg;
use super::folder::{authority_failure, exists};
use crate::clock;
use crate::out::{Failure, Out, chain};

/// The root certificate under the name that auditors are given.
const AUTHORITY_PEM: &str = "authority.pem";
const BROKER_TOML: &str = "broker.toml";
/// Both relative to `broker.toml`.
const BROKER_IDENTITY: &str = "identity";
const BROKER_DATA: &str = "data";

#[derive(Debug, Args)]
pub struct Init {
    #[command(flatten)]
    dir: DirArg,
    /// The exchange's name, such as `docaxis.example.vn`. It stands in every envelope and cannot be changed.
    #[arg(long)]
    origin: Origin,
    /// HOST:PORT where nodes and the authority reach the broker (UDP).
    #[arg(long, value_name = "HOST:PORT")]
    broker_address: String,
    /// Where to write broker.toml and the broker's certificates and keys.
    #[arg(long, value_name = "DIR")]
    broker_dir: PathBuf,
    /// The broker's own label, in its certificate.
    #[arg(long, value_name = "ID", default_value = "broker")]
    broker_id: NodeId,
    /// UDP address that the broker listens on [default: the port of --broker-address, on every address; on loopback
    /// only if that is where the broker is reached].
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub fn run(args: &Init, out: Out) -> Result<(), Failure> {
    let folder = &args.dir.dir;
    let listen = match args.listen {
        Some(listen) => listen,
        None => listen_for(&args.broker_address)?,
    };
    let config = args.broker_dir.join(BROKER_TOML);
    let identity = args.broker_dir.join(BROKER_IDENTITY);
    for path in [&config, &identity] {
        if path.exists() {
            return Err(exists(format!("{} is there already; nothing was changed", path.display()))
                .hint("Give --broker-dir another folder, or move that one away."));
        }
    }
    let now = clock::now();
    let settings = AuthorityConfig::new(args.origin.clone(), args.broker_id.clone(), args.broker_address.clone(), now);
    let failed = |error| authority_failure(&error);
    let mut authority = Authority::init(folder, &settings).map_err(failed)?;
    authority.issue_link(folder, now).map_err(failed)?;
    write(&folder.join(AUTHORITY_PEM), encoding::pem("CERTIFICATE", authority.root()).as_bytes())?;
    authority.issue_broker(&identity, now).map_err(failed)?;
    write(&config, broker_toml(listen)?.as_bytes())?;

    let root = Digest::of(authority.root());
    let value = json!({
        "origin": args.origin, "authority": folder, "root": folder.join(AUTHORITY_PEM), "root_sha256": root,
        "broker_config": config, "listen": listen,
    });
    let words = format!(
        "exchange {} is made\n  authority: {}\n  its root, for auditors: {} (SHA-256 {root})\n  broker: {}, listening on {listen}",
        args.origin,
        folder.display(),
        folder.join(AUTHORITY_PEM).display(),
        config.display(),
    );
    out.data(&value, words)?;
    out.talk(format_args!(
        "Next: docaxis broker run --config {}; docaxis ca serve --dir {}. Keep {} offline: it is not needed again for 5 years.",
        config.display(),
        folder.display(),
        folder.join("root.key").display(),
    ));
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write(path, bytes).map_err(|error| Failure::other(chain(&error)))
}

fn broker_toml(listen: SocketAddr) -> Result<String, Failure> {
    let mut config = BrokerConfig::new(BROKER_DATA.into(), BROKER_IDENTITY.into());
    config.broker.listen = listen;
    toml::to_string(&config).map_err(|error| Failure::other(format!("broker.toml cannot be written: {error}")))
}

/// Where a broker listens that is reached at this address.
fn listen_for(address: &str) -> Result<SocketAddr, Failure> {
    let wrong = || {
        Failure::usage(format!("broker address {address:?} is not HOST:PORT"))
            .hint("For example --broker-address exchange.example.vn:7400.")
    };
    let (host, port) = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host: IpAddr = match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(ip) => ip,
        Err(_) if host == "localhost" => Ipv4Addr::LOCALHOST.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    };
    let any: IpAddr = if host.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Ok(SocketAddr::new(if host.is_loopback() { host } else { any }, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_listens_everywhere_unless_it_is_reached_on_loopback() {
        let cases = [
            ("exchange.example.vn:7400", "0.0.0.0:7400"),
            ("203.0.113.7:443", "0.0.0.0:443"),
            ("[2001:db8::1]:7400", "[::]:7400"),
            ("127.0.0.1:7400", "127.0.0.1:7400"),
            ("localhost:7400", "127.0.0.1:7400"),
            ("[::1]:7400", "[::1]:7400"),
        ];
        for (address, listen) in cases {
            assert_eq!(listen_for(address), Ok(listen.parse().unwrap()), "{address}");
        }
        for address in ["", "host", ":7400", "host:70000"] {
            assert_eq!(listen_for(address).unwrap_err().exit, 2, "{address}");
        }
    }

    #[test]
    fn the_configuration_that_is_written_is_the_one_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(BROKER_TOML);
        std::fs::write(&path, broker_toml("127.0.0.1:7400".parse().unwrap()).unwrap()).unwrap();
        let mut expected = BrokerConfig::new(folder.path().join(BROKER_DATA), folder.path().join(BROKER_IDENTITY));
        expected.broker.listen = "127.0.0.1:7400".parse().unwrap();
        assert_eq!(BrokerConfig::load(&path).unwrap(), expected);
    }
}
