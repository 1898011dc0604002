//! The agent's configuration file. Every key is documented here; an unknown one is refused with its line.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use docaxis_protocol::limits;
use docaxis_protocol::partial::{PartialsConfig, PartialsConfigError};
use docaxis_protocol::space::{SpaceConfig, SpaceConfigError};
use serde::Deserialize;

/// The largest part that may be configured, in bytes.
pub const MAX_CONFIGURABLE_PART_BYTES: u64 = 16 << 30;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration does not read: {0}")]
    Syntax(#[source] Box<toml::de::Error>),
    #[error("{key} is {found}; expected {expected}")]
    Value { key: &'static str, found: String, expected: &'static str },
    #[error(transparent)]
    Space(#[from] SpaceConfigError),
    #[error(transparent)]
    Partials(#[from] PartialsConfigError),
}

/// The file `agent.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    #[serde(default)]
    pub agent: AgentSection,
    #[serde(default)]
    pub link: LinkConfig,
    #[serde(default)]
    pub outbox: OutboxConfig,
    #[serde(default)]
    pub inbox: InboxConfig,
    /// `[space]`: how much of the disk under the data folder is kept back.
    #[serde(default)]
    pub space: SpaceConfig,
    /// `[partials]`: what is kept of a body whose delivery broke off.
    #[serde(default)]
    pub partials: PartialsConfig,
}

/// `[agent]`: where things lie.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSection {
    /// Mailbox, parts and control socket. One agent at a time opens it. Relative to this file.
    pub data: PathBuf,
    /// The node's certificate and key, its agencies' seals, the authority: what `agent join` wrote. Relative to this
    /// file.
    pub identity: PathBuf,
    /// `HOST:PORT` of the broker, in place of the one in the identity folder.
    pub broker: Option<String>,
}

impl Default for AgentSection {
    fn default() -> Self {
        Self { data: "/var/lib/docaxis/agent".into(), identity: "/var/lib/docaxis/agent/identity".into(), broker: None }
    }
}

/// `[link]`: the connection to the broker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkConfig {
    /// How often an idle connection says that it lives. Costs one packet each way.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// Silence after which the connection counts as lost.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long a handshake and the first answer may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long the broker may take over one answer, and a body's stream may stand still.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// First pause after a lost connection. It doubles with each failure, and a random part of it is taken off.
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// Longest pause between two attempts to connect.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// Bytes in flight that the broker may send before the agent has read them: memory per connection.
    pub receive_window_bytes: NonZeroU32,
    /// Exchanges that the broker may have open at once: more than the 80 dispatches that it offers at a time at most.
    pub streams: NonZeroU32,
    /// Each of the UDP socket's two buffers, in bytes.
    pub socket_buffer_bytes: NonZeroUsize,
    /// How often the inclusion proofs that are still missing are asked for.
    #[serde(with = "humantime_serde")]
    pub proofs_every: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(45),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(60),
            retry_min: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            receive_window_bytes: NonZeroU32::new(4 << 20).unwrap_or(NonZeroU32::MIN),
            streams: NonZeroU32::new(128).unwrap_or(NonZeroU32::MIN),
            socket_buffer_bytes: NonZeroUsize::new(4 << 20).unwrap_or(NonZeroUsize::MIN),
            proofs_every: Duration::from_secs(2),
        }
    }
}

/// `[outbox]`: what waits to be sent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboxConfig {
    /// Dispatches under way at once as long as all are normal; with each step in priority one may be begun beside four more. More
    /// than 64 gain nothing: the broker commits in groups of about that size.
    pub concurrent: NonZeroUsize,
    /// First pause after a try that the broker could not take.
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// Longest pause between two tries of one dispatch.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// How long a new dispatch may wait for its recipients, when its sender does not say.
    #[serde(with = "humantime_serde")]
    pub expires_after: Duration,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            concurrent: NonZeroUsize::new(64).unwrap_or(NonZeroUsize::MIN),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(300),
            expires_after: Duration::from_secs(30 * 86_400),
        }
    }
}

/// `[inbox]`: what this node takes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InboxConfig {
    /// Largest part that is sent or taken, in bytes.
    pub max_part_bytes: u64,
}

impl Default for InboxConfig {
    fn default() -> Self {
        Self { max_part_bytes: limits::MAX_PART_BYTES }
    }
}

impl AgentConfig {
    /// A configuration with these two folders and defaults for the rest.
    pub fn at(data: impl Into<PathBuf>, identity: impl Into<PathBuf>) -> Self {
        Self {
            agent: AgentSection { data: data.into(), identity: identity.into(), broker: None },
            link: LinkConfig::default(),
            outbox: OutboxConfig::default(),
            inbox: InboxConfig::default(),
            space: SpaceConfig::default(),
            partials: PartialsConfig::default(),
        }
    }

    /// Reads and checks a file. Relative folders in it are taken from the folder that it lies in.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let mut config = Self::from_toml(&text)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        config.agent.data = folder.join(&config.agent.data);
        config.agent.identity = folder.join(&config.agent.identity);
        Ok(config)
    }

    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Syntax(Box::new(e)))?;
        config.check()?;
        Ok(config)
    }

    /// What must hold between and within values.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, found: String, expected| Err(ConfigError::Value { key, found, expected });
        let (link, outbox) = (&self.link, &self.outbox);
        if link.keep_alive.is_zero() || link.keep_alive >= link.idle_timeout {
            return wrong(
                "link.keep_alive",
                format!("{:?}", link.keep_alive),
                "more than 0 and less than idle_timeout",
            );
        }
        if link.retry_min.is_zero() || link.retry_min > link.retry_max {
            return wrong("link.retry_min", format!("{:?}", link.retry_min), "more than 0 and at most retry_max");
        }
        if outbox.retry_min.is_zero() || outbox.retry_min > outbox.retry_max {
            return wrong("outbox.retry_min", format!("{:?}", outbox.retry_min), "more than 0 and at most retry_max");
        }
        if outbox.expires_after.is_zero() || outbox.expires_after > limits::MAX_LIFE {
            return wrong("outbox.expires_after", format!("{:?}", outbox.expires_after), "at most 90 days");
        }
        if self.inbox.max_part_bytes > MAX_CONFIGURABLE_PART_BYTES {
            return wrong("inbox.max_part_bytes", self.inbox.max_part_bytes.to_string(), "at most 16 GiB");
        }
        self.partials.check()?;
        Ok(self.space.check()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_defaults_and_a_full_one_is_taken() {
        assert_eq!(
            AgentConfig::from_toml("").unwrap(),
            AgentConfig::at("/var/lib/docaxis/agent", "/var/lib/docaxis/agent/identity")
        );
        let text = "[agent]\ndata = 'd'\nidentity = 'i'\nbroker = 'b:7400'\n[link]\nretry_max = '5s'\n[outbox]\nconcurrent = 8\n";
        let mut expected = AgentConfig::at("d", "i");
        expected.agent.broker = Some("b:7400".into());
        expected.link.retry_max = Duration::from_secs(5);
        expected.outbox.concurrent = NonZeroUsize::new(8).unwrap();
        assert_eq!(AgentConfig::from_toml(text).unwrap(), expected);
    }

    #[test]
    fn relative_folders_are_taken_from_the_files_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, "[agent]\ndata = 'data'\nidentity = '/elsewhere'\n").unwrap();
        assert_eq!(AgentConfig::load(&path).unwrap(), AgentConfig::at(folder.path().join("data"), "/elsewhere"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = AgentConfig::from_toml("[agent]\ndata = 'd'\nbrokr = 'x'\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("brokr"), "{error}");
    }

    #[test]
    fn values_that_contradict_each_other_are_refused_by_name() {
        let error = AgentConfig::from_toml("[link]\nretry_min = '1m'\n").unwrap_err();
        assert!(matches!(error, ConfigError::Value { key: "link.retry_min", .. }), "{error}");
    }
}
