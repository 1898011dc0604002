//! The authority: the only holder of issuing keys and of the directory key.
//!
//! It knows no network: requests and answers are bytes that somebody carries. Its records are plain files in one
//! folder; every answer rests on records that are on disk. The root's key is a file of its own that may be taken
//! offline after the start: nothing here needs it again before the issuing certificates end.

mod broker_files;
mod directory;
mod enrol;
mod import;
mod ledger;
mod records;
mod revoke;

use std::path::{Path, PathBuf};
use std::time::Duration;

use docaxis_protocol::key::SecretKey;
use docaxis_protocol::{Digest, NodeId, Origin, Timestamp};
use rcgen::{Issuer, PublicKeyData};
use serde::{Deserialize, Serialize};

use crate::encoding::{PemError, certificate_from_pem, pem};
use crate::files::{self, FileError};
use crate::keys::{KeyAlgorithm, KeyError, PrivateKey};
use crate::name::{Facts, FactsError, Subject};
use crate::profile::{self, Ca, ProfileError, Validity};
use crate::seal::{SealError, load_secret_key};

pub use directory::{Agency, DirectoryChangeError, day_or_instant};
pub use enrol::{JoinError, JoinReply, Pending, RenewError};
pub use import::{ImportOptions, ImportReport, RowNote};
pub use ledger::LedgerError;
pub use records::{Issued, RevocationReason, StateError, Which};
pub use revoke::{RevokeError, Target};

use ledger::{Guard, Ledger};
use records::{Record, State};

const SETTINGS: &str = "authority.json";
const RECORDS: &str = "records.jsonl";
const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const DIRECTORY_KEY: &str = "directory.key";

/// What an exchange is called and where its broker is reached.
#[derive(Debug, Clone)]
pub struct AuthorityConfig {
    pub origin: Origin,
    /// The broker's own label: the first part of its DNS name.
    pub broker: NodeId,
    /// `host:port` where agents and the authority reach the broker.
    pub broker_address: String,
    pub validity: Validity,
    /// P-256; Ed25519 for simulation, where keys must come from a seed.
    pub node_key: KeyAlgorithm,
    pub now: Timestamp,
}

impl AuthorityConfig {
    /// The usual lives and keys.
    pub fn new(origin: Origin, broker: NodeId, broker_address: impl Into<String>, now: Timestamp) -> Self {
        let broker_address = broker_address.into();
        Self { origin, broker, broker_address, validity: Validity::default(), node_key: KeyAlgorithm::P256, now }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    origin: Origin,
    broker: NodeId,
    broker_address: String,
    validity: Validity,
    node_key: KeyAlgorithm,
}

/// What went wrong in the authority's own files or keys.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{} already holds an authority; nothing was changed", folder.display())]
    Exists { folder: PathBuf },
    #[error("{} holds no authority; make one with `docaxis ca init`", folder.display())]
    Missing { folder: PathBuf },
    #[error("broker address {found:?} is not HOST:PORT")]
    Address { found: String },
    #[error("{} does not read", path.display())]
    Settings {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the certificate {} does not read", path.display())]
    Facts {
        path: PathBuf,
        #[source]
        source: FactsError,
    },
    #[error("the key beside {} belongs to another certificate", path.display())]
    KeyMismatch { path: PathBuf },
    #[error("the broker has no certificates yet; run `docaxis ca init` with --broker-dir")]
    NoBroker,
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("the issuing certificate cannot be used")]
    Issuer(#[source] rcgen::Error),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Everything that issuing needs and that never changes while it runs.
pub(crate) struct Keys {
    settings: Settings,
    root: Vec<u8>,
    nodes: Ca,
    seals: Ca,
    directory: SecretKey,
    folder: PathBuf,
}

/// An open authority.
pub struct Authority {
    keys: Keys,
    ledger: Ledger,
    state: State,
}

impl Authority {
    /// Makes an authority in an empty or absent folder.
    ///
    /// The settings are written last: a folder without them is not an authority, and may be filled again.
    pub fn init(folder: &Path, config: &AuthorityConfig) -> Result<Self, AuthorityError> {
        if folder.join(SETTINGS).exists() {
            return Err(AuthorityError::Exists { folder: folder.to_owned() });
        }
        check_address(&config.broker_address)?;
        files::create_folder(folder)?;
        let root_key = PrivateKey::generate(KeyAlgorithm::P256)?;
        files::write(&folder.join(ROOT_KEY), root_key.pem().as_bytes())?;
        let root = profile::root(&config.origin, root_key.into_pair(), config.now, config.validity.root())?;
        files::write(&folder.join(ROOT), pem("CERTIFICATE", &root.certificate).as_bytes())?;
        for which in [Which::Nodes, Which::Seals] {
            let key = PrivateKey::generate(KeyAlgorithm::P256)?;
            let subject = which.subject();
            let life = config.validity.of(&subject);
            let der = profile::issue(&root, &subject, None, key.pair(), config.now, life)?;
            files::write(&folder.join(ca_file(which, "key")), key.pem().as_bytes())?;
            files::write(&folder.join(ca_file(which, "pem")), pem("CERTIFICATE", &der).as_bytes())?;
        }
        let directory = PrivateKey::generate(KeyAlgorithm::Ed25519)?;
        files::write(&folder.join(DIRECTORY_KEY), directory.pem().as_bytes())?;
        let settings = Settings {
            origin: config.origin.clone(),
            broker: config.broker.clone(),
            broker_address: config.broker_address.clone(),
            validity: config.validity.clone(),
            node_key: config.node_key,
        };
        let ledger = Ledger::create(&folder.join(RECORDS))?;
        let keys = Keys::load(folder, settings.clone())?;
        let mut authority = Self { keys, ledger, state: State::default() };
        let subject = Subject::Directory(config.origin.clone());
        authority.write(|keys, _| -> Result<_, AuthorityError> {
            let der = keys.issue(&subject, directory.pair(), config.now)?;
            Ok((vec![Record::Issued { der }], ()))
        })?;
        write_settings(folder, &settings)?;
        Ok(authority)
    }

    /// Takes a new `host:port` of the broker; invitations from now on name it.
    pub fn set_broker_address(&mut self, address: &str) -> Result<(), AuthorityError> {
        check_address(address)?;
        let settings = Settings { broker_address: address.to_owned(), ..self.keys.settings.clone() };
        write_settings(&self.keys.folder, &settings)?;
        self.keys.settings = settings;
        Ok(())
    }

    /// Opens an authority and reads all its records.
    pub fn open(folder: &Path) -> Result<Self, AuthorityError> {
        let path = folder.join(SETTINGS);
        let text = files::read(&path).map_err(|error| match error.is_not_found() {
            true => AuthorityError::Missing { folder: folder.to_owned() },
            false => error.into(),
        })?;
        let settings = serde_json::from_slice(&text).map_err(|source| AuthorityError::Settings { path, source })?;
        let keys = Keys::load(folder, settings)?;
        let ledger = Ledger::open(&folder.join(RECORDS))?;
        let mut authority = Self { keys, ledger, state: State::default() };
        authority.refresh()?;
        Ok(authority)
    }

    /// Takes in what other processes (the command line) have recorded since.
    pub fn refresh(&mut self) -> Result<(), AuthorityError> {
        let held = self.ledger.lock()?;
        self.catch_up(&held)
    }

    fn catch_up(&mut self, held: &Guard) -> Result<(), AuthorityError> {
        for record in self.ledger.read_new(held)? {
            self.state.apply(record)?;
        }
        Ok(())
    }

    /// Every change of the authority passes here: read what others wrote, decide, persist, apply, and only then answer.
    fn write<R, E: From<AuthorityError>>(
        &mut self,
        decide: impl FnOnce(&Keys, &State) -> Result<(Vec<Record>, R), E>,
    ) -> Result<R, E> {
        let held = self.ledger.lock().map_err(AuthorityError::from)?;
        self.catch_up(&held)?;
        let (records, answer) = decide(&self.keys, &self.state)?;
        if !records.is_empty() {
            self.ledger.append(&records, &held).map_err(AuthorityError::from)?;
            for record in records {
                self.state.apply(record).map_err(AuthorityError::from)?;
            }
        }
        Ok(answer)
    }

    pub fn origin(&self) -> &Origin {
        &self.keys.settings.origin
    }

    /// `host:port` of the broker.
    pub fn broker_address(&self) -> &str {
        &self.keys.settings.broker_address
    }

    pub fn broker_dns_name(&self) -> String {
        profile::broker_dns_name(&self.keys.settings.broker)
    }

    /// The root certificate in DER.
    pub fn root(&self) -> &[u8] {
        &self.keys.root
    }

    /// An issuing certificate in DER.
    pub fn ca_certificate(&self, which: Which) -> &[u8] {
        &self.keys.ca(which).certificate
    }

    /// The public half of the key that signs the directory.
    pub fn directory_key(&self) -> docaxis_protocol::key::PublicKey {
        self.keys.directory.public()
    }

    /// Every certificate that was issued, in the order of serial numbers.
    pub fn list(&self) -> impl Iterator<Item = &Issued> {
        self.state.certificates.values()
    }
}

#[cfg(test)]
impl Authority {
    pub(crate) fn keys_for_tests(&self) -> &Keys {
        &self.keys
    }
}

#[cfg(test)]
impl Keys {
    pub(crate) fn ca_for_tests(&self, which: Which) -> &Ca {
        self.ca(which)
    }
}

impl Keys {
    fn load(folder: &Path, settings: Settings) -> Result<Self, AuthorityError> {
        let root = certificate_from_pem(&files::read(&folder.join(ROOT))?)?.to_vec();
        Ok(Self {
            settings,
            root,
            nodes: load_ca(folder, Which::Nodes)?,
            seals: load_ca(folder, Which::Seals)?,
            directory: load_secret_key(&folder.join(DIRECTORY_KEY))?,
            folder: folder.to_owned(),
        })
    }

    fn ca(&self, which: Which) -> &Ca {
        match which {
            Which::Nodes => &self.nodes,
            Which::Seals => &self.seals,
        }
    }

    fn issue(&self, subject: &Subject, key: &impl PublicKeyData, now: Timestamp) -> Result<Vec<u8>, ProfileError> {
        let dns_name = match subject {
            Subject::Broker(_) => Some(profile::broker_dns_name(&self.settings.broker)),
            _ => None,
        };
        let ca = self.ca(Which::issuer_of(subject));
        profile::issue(ca, subject, dns_name.as_deref(), key, now, self.settings.validity.of(subject))
    }

    fn root_id(&self) -> Digest {
        Digest::of(&self.root)
    }
}

fn check_address(address: &str) -> Result<(), AuthorityError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(()),
        _ => Err(AuthorityError::Address { found: address.chars().take(120).collect() }),
    }
}

fn write_settings(folder: &Path, settings: &Settings) -> Result<(), AuthorityError> {
    let path = folder.join(SETTINGS);
    let text = serde_json::to_vec_pretty(settings)
        .map_err(|source| AuthorityError::Settings { path: path.clone(), source })?;
    Ok(files::write(&path, &text)?)
}

fn ca_file(which: Which, ending: &str) -> String {
    match which {
        Which::Nodes => format!("nodes-ca.{ending}"),
        Which::Seals => format!("seals-ca.{ending}"),
    }
}

fn load_ca(folder: &Path, which: Which) -> Result<Ca, AuthorityError> {
    let path = folder.join(ca_file(which, "pem"));
    let der = certificate_from_pem(&files::read(&path)?)?;
    let facts = Facts::of(&der).map_err(|source| AuthorityError::Facts { path: path.clone(), source })?;
    let text = zeroize::Zeroizing::new(files::read(&folder.join(ca_file(which, "key")))?);
    let key = PrivateKey::from_pem(&text)?;
    if key.spki() != facts.spki {
        return Err(AuthorityError::KeyMismatch { path });
    }
    let issuer = Issuer::from_ca_cert_der(&der, key.into_pair()).map_err(AuthorityError::Issuer)?;
    Ok(Ca { certificate: der.to_vec(), not_after: facts.not_after, issuer })
}

/// How long before its end a certificate should be replaced: a third of its life.
pub fn renewal_is_due(facts: &Facts, now: Timestamp) -> bool {
    let life: Duration = facts.not_after.since(facts.not_before);
    now >= facts.not_after.minus(life / 3)
}
