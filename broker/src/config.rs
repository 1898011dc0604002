//! The broker's configuration file (TOML). Unknown keys are refused with their line; every key has a default but the
//! two folders.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use docaxis_protocol::limits::MAX_PART_BYTES;
use docaxis_protocol::partial::{PartialsConfig, PartialsConfigError};
use docaxis_protocol::space::{SpaceConfig, SpaceConfigError};
use serde::{Deserialize, Serialize};

use crate::answer::AcceptanceSection;
use crate::quota::QuotaSection;
use crate::store::embedded::MIN_SEGMENT_BYTES;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a broker's configuration: {source}", path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("{key} is {found}; expected {expected}")]
    Value { key: &'static str, found: String, expected: &'static str },
    #[error(transparent)]
    Space(#[from] SpaceConfigError),
    #[error(transparent)]
    Partials(#[from] PartialsConfigError),
}

/// `broker.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    pub broker: BrokerSection,
    #[serde(default)]
    pub store: StoreSection,
    #[serde(default)]
    pub space: SpaceConfig,
    #[serde(default)]
    pub partials: PartialsConfig,
    #[serde(default)]
    pub console: ConsoleSection,
    #[serde(default)]
    pub acceptance: AcceptanceSection,
    #[serde(default)]
    pub quota: QuotaSection,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSection {
    /// Where everything is kept: journal, evidence, index, blobs, log, control.sock. Relative to this file.
    pub data: PathBuf,
    /// The folder with the broker's certificates and keys, as `docaxis ca init` wrote it. Relative to this file.
    pub identity: PathBuf,
    /// UDP address of the link.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The largest part that is accepted, in bytes: at most 16 GiB.
    #[serde(default = "default_max_part_bytes")]
    pub max_part_bytes: u64,
    /// Streams that one node may have open at once: how many of its dispatches may be in flight.
    #[serde(default = "default_streams")]
    pub streams_per_node: u32,
    /// Links at most; an idle one costs about 45 KiB.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// Threads for signatures and digests.
    #[serde(default = "default_workers")]
    pub workers: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// Size of one journal segment, in MiB: 8 at least, which the largest submission takes. Segments are written once in
    /// full and recycled; one in use and three spare ones are there from the start.
    pub segment_mib: u64,
    /// Memory for the index's cache, in MiB.
    pub index_cache_mib: u64,
    /// How long bodies of finished dispatches are kept, such as `30d`. Envelopes and evidence stay for good.
    #[serde(with = "humantime_serde")]
    pub keep_bodies: std::time::Duration,
}

impl Default for StoreSection {
    fn default() -> Self {
        Self { segment_mib: 64, index_cache_mib: 64, keep_bodies: std::time::Duration::from_secs(30 * 86_400) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleSection {
    /// TCP address of `/livez` and `/readyz`, or `off`. What is said there is no secret, but is for administrators: another
    /// address than one of this machine needs a firewall before it.
    pub listen: ConsoleListen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleListen {
    Off,
    At(SocketAddr),
}

impl Default for ConsoleListen {
    fn default() -> Self {
        Self::At((Ipv4Addr::LOCALHOST, 7402).into())
    }
}

impl TryFrom<String> for ConsoleListen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match (text.as_str(), text.parse()) {
            ("off", _) => Ok(Self::Off),
            (_, Ok(address)) => Ok(Self::At(address)),
            (_, Err(_)) => Err(format!("{text:?} is no address; expected IP:PORT, such as 127.0.0.1:7402, or \"off\"")),
        }
    }
}

impl std::fmt::Display for ConsoleListen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl From<ConsoleListen> for String {
    fn from(listen: ConsoleListen) -> Self {
        listen.to_string()
    }
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 7400).into()
}

fn default_max_part_bytes() -> u64 {
    MAX_PART_BYTES
}

fn default_streams() -> u32 {
    256
}

fn default_connections() -> usize {
    20_000
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2))
}

impl BrokerConfig {
    /// A configuration with defaults for everything but the two folders.
    pub fn new(data: PathBuf, identity: PathBuf) -> Self {
        let broker = BrokerSection {
            data,
            identity,
            listen: default_listen(),
            max_part_bytes: default_max_part_bytes(),
            streams_per_node: default_streams(),
            max_connections: default_connections(),
            workers: default_workers(),
        };
        Self {
            broker,
            store: StoreSection::default(),
            space: SpaceConfig::default(),
            partials: PartialsConfig::default(),
            console: ConsoleSection::default(),
            acceptance: AcceptanceSection::default(),
            quota: QuotaSection::default(),
        }
    }

    /// Reads and checks a file. Relative folders in it are taken from the folder that it lies in.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config: Self =
            toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        config.broker.data = folder.join(&config.broker.data);
        config.broker.identity = folder.join(&config.broker.identity);
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let within = |key, found: u64, low: u64, high: u64, expected| {
            if (low..=high).contains(&found) {
                Ok(())
            } else {
                Err(ConfigError::Value { key, found: found.to_string(), expected })
            }
        };
        within("broker.max_part_bytes", self.broker.max_part_bytes, 1, 16 << 30, "1 to 17179869184 (16 GiB)")?;
        within("broker.streams_per_node", self.broker.streams_per_node.into(), 4, 4096, "4 to 4096")?;
        within("broker.max_connections", self.broker.max_connections as u64, 1, 1_000_000, "1 to 1000000")?;
        within("broker.workers", self.broker.workers as u64, 1, 256, "1 to 256")?;
        within(
            "store.segment_mib",
            self.store.segment_mib,
            MIN_SEGMENT_BYTES >> 20,
            4096,
            "8 to 4096: the largest submission must fit into one segment",
        )?;
        within("store.index_cache_mib", self.store.index_cache_mib, 8, 65_536, "8 to 65536")?;
        self.partials.check()?;
        Ok(self.space.check()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<BrokerConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.toml");
        std::fs::write(&path, text).unwrap();
        let shown = |config: BrokerConfig| {
            assert_eq!(config.broker.data, folder.path().join("data"));
            config
        };
        BrokerConfig::load(&path).map(shown).map_err(|e| e.to_string())
    }

    #[test]
    fn two_folders_are_enough() {
        let config = load("[broker]\ndata = 'data'\nidentity = 'identity'\n").unwrap();
        assert_eq!(config.store, StoreSection::default());
        assert_eq!(config.broker.listen.port(), 7400);
        assert_eq!(config.console.listen.to_string(), "127.0.0.1:7402");
        let text = toml::to_string(&BrokerConfig::new("data".into(), "identity".into())).unwrap();
        assert_eq!(load(&text).unwrap().store, StoreSection::default());
    }

    #[test]
    fn the_console_has_an_address_or_is_off_and_nothing_else() {
        let with =
            |listen: &str| load(&format!("[broker]\ndata = 'data'\nidentity = 'i'\n[console]\nlisten = '{listen}'\n"));
        for listen in ["off", "127.0.0.1:0", "[::1]:7402"] {
            let config = with(listen).unwrap();
            assert_eq!(config.console.listen.to_string(), listen);
            assert!(toml::to_string(&config).unwrap().contains(&format!("listen = \"{listen}\"")));
        }
        for listen in ["", "Off", "none", "7402", "localhost:7402"] {
            let error = with(listen).unwrap_err();
            assert!(error.contains("line 5") && error.contains("is no address; expected IP:PORT"), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_a_value_with_its_range() {
        let error = load("[broker]\ndata = 'data'\nidentity = 'i'\nlissten = 1\n").unwrap_err();
        assert!(error.contains("line 4") && error.contains("lissten"), "{error}");
        let error = load("[broker]\ndata = 'data'\nidentity = 'i'\nworkers = 0\n").unwrap_err();
        assert_eq!(error, "broker.workers is 0; expected 1 to 256");
        let error = load("[broker]\ndata = 'data'\nidentity = 'i'\n[partials]\nsync_every_mib = 0\n").unwrap_err();
        assert_eq!(error, "partials.sync_every_mib is 0; expected 1 to 1024");
    }
}
