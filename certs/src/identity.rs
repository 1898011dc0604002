//! Identity folders, read and written whole: a node's, a broker's, the authority's link.
//!
//! A certificate and its key are replaced together or not at all: `pair.rs` finishes what a crash interrupted.
//! Reading a folder checks that what belongs together is there and that keys fit their certificates; whether a
//! certificate still holds is for the handshake and the verifiers to say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use docaxis_protocol::key::{PublicKey, SecretKey};
use docaxis_protocol::{AgencyCode, NodeId, Origin};
use serde::{Deserialize, Serialize};

use crate::encoding::{PemError, certificate_from_pem, certificates_from_pem, crl_from_pem, pem, pem_certificates};
use crate::files::{self, FileError};
use crate::keys::{KeyError, PrivateKey};
use crate::layout;
use crate::name::{Facts, FactsError, Subject};
use crate::pair;
use crate::seal::{SealError, load_secret_key};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} does not read", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: PemError,
    },
    #[error("{} does not read", path.display())]
    Facts {
        path: PathBuf,
        #[source]
        source: FactsError,
    },
    #[error("{} does not read as JSON", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} names {found}; expected {expected}", path.display())]
    Name { path: PathBuf, expected: &'static str, found: Subject },
    #[error("{} is a certificate for another key than the one beside it", path.display())]
    KeyMismatch { path: PathBuf },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("an identity's key cannot be written")]
    Write(#[source] KeyError),
}

/// What every party holds; certificates and lists in DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    pub root: Vec<u8>,
    pub nodes_ca: Vec<u8>,
    pub seals_ca: Vec<u8>,
    pub directory: Vec<u8>,
    pub nodes_crl: Vec<u8>,
    pub seals_crl: Vec<u8>,
}

impl Common {
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        Ok(Self {
            root: certificate(&folder.join(layout::ROOT))?,
            nodes_ca: certificate(&folder.join(layout::NODES_CHAIN))?,
            seals_ca: certificate(&folder.join(layout::SEALS_CHAIN))?,
            directory: certificate(&folder.join(layout::DIRECTORY))?,
            nodes_crl: crl(&folder.join(layout::NODES_CRL))?,
            seals_crl: crl(&folder.join(layout::SEALS_CRL))?,
        })
    }

    fn save(&self, folder: &Path) -> Result<(), FileError> {
        for (name, der) in [
            (layout::ROOT, &self.root),
            (layout::NODES_CHAIN, &self.nodes_ca),
            (layout::SEALS_CHAIN, &self.seals_ca),
            (layout::DIRECTORY, &self.directory),
        ] {
            files::write(&folder.join(name), pem("CERTIFICATE", der).as_bytes())?;
        }
        self.save_crls(folder)
    }

    /// Writes only the revocation lists: after a new one came in and was checked.
    pub fn save_crls(&self, folder: &Path) -> Result<(), FileError> {
        files::write(&folder.join(layout::NODES_CRL), pem("X509 CRL", &self.nodes_crl).as_bytes())?;
        files::write(&folder.join(layout::SEALS_CRL), pem("X509 CRL", &self.seals_crl).as_bytes())
    }

    /// The key that directory entries are checked with.
    pub fn directory_key(&self) -> Result<PublicKey, SealError> {
        public_key(&self.directory)
    }
}

/// The Ed25519 key in a certificate. Whether the certificate holds is not checked here.
pub fn public_key(certificate: &[u8]) -> Result<PublicKey, SealError> {
    Ok(PublicKey::from_spki(&Facts::of(certificate)?.spki)?)
}

/// Where the broker is, and who this node is to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub node: NodeId,
    pub origin: Origin,
    /// `host:port`.
    pub broker_address: String,
    pub broker_dns_name: String,
}

/// An agency's seal.
#[derive(Debug, Clone)]
pub struct SealIdentity {
    pub agency: AgencyCode,
    pub certificate: Vec<u8>,
    pub key: SecretKey,
}

/// A node's whole identity.
#[derive(Debug)]
pub struct NodeIdentity {
    pub link: Link,
    pub common: Common,
    pub certificate: Vec<u8>,
    pub key: PrivateKey,
    pub witness_certificate: Vec<u8>,
    pub witness_key: SecretKey,
    /// The broker's evidence certificate at the time of joining.
    pub evidence: Vec<u8>,
    /// The certificate of the evidence log's key.
    pub log: Vec<u8>,
    pub seals: BTreeMap<AgencyCode, SealIdentity>,
}

impl NodeIdentity {
    /// Writes the folder. `link.json` comes last: a folder without it is not an identity. Then a pending join is
    /// removed.
    pub fn save(&self, folder: &Path) -> Result<(), IdentityError> {
        let seals = folder.join(layout::SEALS);
        files::create_folder(&seals)?;
        self.common.save(folder)?;
        let chain = pem_certificates([self.certificate.as_slice(), &self.common.nodes_ca]);
        pair::write(folder, layout::NODE, layout::NODE_KEY, &chain, &self.key)?;
        write_signing(folder, layout::WITNESS, layout::WITNESS_KEY, &self.witness_certificate, &self.witness_key)?;
        for (name, der) in [(layout::EVIDENCE, &self.evidence), (layout::LOG, &self.log)] {
            files::write(&folder.join(name), pem("CERTIFICATE", der).as_bytes())?;
        }
        for (code, seal) in &self.seals {
            write_signing(&seals, &format!("{code}.pem"), &format!("{code}.key"), &seal.certificate, &seal.key)?;
        }
        let path = folder.join(layout::LINK_JSON);
        let text = serde_json::to_vec_pretty(&self.link).map_err(|source| IdentityError::Json { path, source })?;
        files::write(&folder.join(layout::LINK_JSON), &text)?;
        let pending = folder.join(layout::PENDING_JOIN);
        match std::fs::remove_file(&pending) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(files::failed("remove", &pending)(error).into())
            }
            _ => Ok(()),
        }
    }

    /// Whether the folder holds an identity.
    pub fn exists(folder: &Path) -> bool {
        folder.join(layout::LINK_JSON).exists()
    }

    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join(layout::LINK_JSON);
        let link: Link =
            serde_json::from_slice(&files::read(&path)?).map_err(|source| IdentityError::Json { path, source })?;
        let (certificate, key) = link_pair(folder, layout::NODE, layout::NODE_KEY, "docaxis://node/...", |subject| {
            matches!(subject, Subject::Node(_))
        })?;
        let (witness_certificate, witness_key) =
            signing_pair(folder, layout::WITNESS, layout::WITNESS_KEY, "docaxis://witness/...", |subject| {
                matches!(subject, Subject::Witness(_))
            })?;
        Ok(Self {
            common: Common::load(folder)?,
            certificate,
            key,
            witness_certificate,
            witness_key,
            evidence: self::certificate(&folder.join(layout::EVIDENCE))?,
            log: self::certificate(&folder.join(layout::LOG))?,
            seals: load_seals(&folder.join(layout::SEALS))?,
            link,
        })
    }

    /// The link's certificate chain as TLS sends it.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.certificate.clone(), self.common.nodes_ca.clone()]
    }
}

fn load_seals(folder: &Path) -> Result<BTreeMap<AgencyCode, SealIdentity>, IdentityError> {
    let mut seals = BTreeMap::new();
    let listing = std::fs::read_dir(folder).map_err(files::failed("list", folder))?;
    for file in listing {
        let name = file.map_err(files::failed("list", folder))?.file_name();
        // A seal whose first writing was interrupted has no `.pem` yet.
        let name = name.to_str().map(|name| name.strip_suffix(pair::NEXT).unwrap_or(name));
        let Some(stem) = name.and_then(|name| name.strip_suffix(".pem")) else { continue };
        let Ok(code) = stem.parse::<AgencyCode>() else { continue };
        let expected = "docaxis://agency/ and the code that the file is named after";
        let (certificate, key) =
            signing_pair(folder, &format!("{code}.pem"), &format!("{code}.key"), expected, |subject| {
                *subject == Subject::Agency(code.clone())
            })?;
        seals.insert(code.clone(), SealIdentity { agency: code, certificate, key });
    }
    Ok(seals)
}

/// A broker's whole identity, as the authority wrote it.
#[derive(Debug)]
pub struct BrokerIdentity {
    pub origin: Origin,
    pub common: Common,
    pub certificate: Vec<u8>,
    pub key: PrivateKey,
    pub evidence: Vec<u8>,
    pub evidence_key: SecretKey,
    pub log: Vec<u8>,
    pub log_key: SecretKey,
}

impl BrokerIdentity {
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let (certificate, key) =
            link_pair(folder, layout::BROKER, layout::BROKER_KEY, "docaxis://broker/...", |subject| {
                matches!(subject, Subject::Broker(_))
            })?;
        let origin = match Facts::of(&certificate) {
            Ok(Facts { subject: Subject::Broker(origin), .. }) => origin,
            Ok(Facts { subject: found, .. }) => {
                let path = folder.join(layout::BROKER);
                return Err(IdentityError::Name { path, expected: "docaxis://broker/...", found });
            }
            Err(source) => return Err(IdentityError::Facts { path: folder.join(layout::BROKER), source }),
        };
        let (evidence, evidence_key) =
            signing_pair(folder, layout::EVIDENCE, layout::EVIDENCE_KEY, "docaxis://evidence/<origin>", |subject| {
                *subject == Subject::Evidence(origin.clone())
            })?;
        let (log, log_key) = signing_pair(folder, layout::LOG, layout::LOG_KEY, "docaxis://log/<origin>", |subject| {
            *subject == Subject::Log(origin.clone())
        })?;
        let common = Common::load(folder)?;
        Ok(Self { origin, common, certificate, key, evidence, evidence_key, log, log_key })
    }

    pub fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.certificate.clone(), self.common.nodes_ca.clone()]
    }
}

/// The authority's own link to the broker.
#[derive(Debug)]
pub struct AuthorityLink {
    pub origin: Origin,
    pub common: Common,
    pub certificate: Vec<u8>,
    pub key: PrivateKey,
}

impl AuthorityLink {
    pub fn load(folder: &Path) -> Result<Self, IdentityError> {
        let expected = "docaxis://authority/...";
        let (certificate, key) =
            link_pair(folder, layout::AUTHORITY_LINK, layout::AUTHORITY_LINK_KEY, expected, |subject| {
                matches!(subject, Subject::Authority(_))
            })?;
        let path = folder.join(layout::AUTHORITY_LINK);
        match Facts::of(&certificate).map_err(|source| IdentityError::Facts { path: path.clone(), source })?.subject {
            Subject::Authority(origin) => Ok(Self { origin, common: Common::load(folder)?, certificate, key }),
            found => Err(IdentityError::Name { path, expected, found }),
        }
    }

    pub fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.certificate.clone(), self.common.nodes_ca.clone()]
    }
}

fn certificate(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let found = certificate_from_pem(&files::read(path)?);
    found.map(|der| der.to_vec()).map_err(|source| IdentityError::Pem { path: path.to_owned(), source })
}

fn crl(path: &Path) -> Result<Vec<u8>, IdentityError> {
    crl_from_pem(&files::read(path)?).map_err(|source| IdentityError::Pem { path: path.to_owned(), source })
}

fn checked(
    path: &Path,
    der: &[u8],
    spki: &[u8],
    expected: &'static str,
    is_expected: impl Fn(&Subject) -> bool,
) -> Result<(), IdentityError> {
    let facts = Facts::of(der).map_err(|source| IdentityError::Facts { path: path.to_owned(), source })?;
    if !is_expected(&facts.subject) {
        return Err(IdentityError::Name { path: path.to_owned(), expected, found: facts.subject });
    }
    match facts.spki == spki {
        true => Ok(()),
        false => Err(IdentityError::KeyMismatch { path: path.to_owned() }),
    }
}

fn link_pair(
    folder: &Path,
    certificate: &str,
    key: &str,
    expected: &'static str,
    is_expected: impl Fn(&Subject) -> bool,
) -> Result<(Vec<u8>, PrivateKey), IdentityError> {
    pair::finish(folder, certificate, key)?;
    let path = folder.join(certificate);
    // The file holds the chain as TLS sends it; the first certificate is the party's own.
    let chain = certificates_from_pem(&files::read(&path)?)
        .map_err(|source| IdentityError::Pem { path: path.clone(), source })?;
    let der = chain.first().map(|der| der.to_vec()).unwrap_or_default();
    let text = zeroize::Zeroizing::new(files::read(&folder.join(key))?);
    let key = PrivateKey::from_pem(&text)?;
    checked(&path, &der, &key.spki(), expected, is_expected)?;
    Ok((der, key))
}

fn signing_pair(
    folder: &Path,
    certificate: &str,
    key: &str,
    expected: &'static str,
    is_expected: impl Fn(&Subject) -> bool,
) -> Result<(Vec<u8>, SecretKey), IdentityError> {
    pair::finish(folder, certificate, key)?;
    let path = folder.join(certificate);
    let der = self::certificate(&path)?;
    let key = load_secret_key(&folder.join(key))?;
    checked(&path, &der, &key.public().spki(), expected, is_expected)?;
    Ok((der, key))
}

fn write_signing(
    folder: &Path,
    certificate: &str,
    key: &str,
    der: &[u8],
    secret: &SecretKey,
) -> Result<(), IdentityError> {
    let private = PrivateKey::from_seed(&secret.seed()).map_err(IdentityError::Write)?;
    Ok(pair::write(folder, certificate, key, &pem("CERTIFICATE", der), &private)?)
}
