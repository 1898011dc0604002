//! What the authority hands to a broker, and to its own link.

use std::path::Path;

use docaxis_protocol::Timestamp;
use rcgen::SubjectPublicKeyInfo;

use super::records::Record;
use super::{Authority, AuthorityError, Which, renewal_is_due};
use crate::encoding::{pem, pem_certificates};
use crate::files;
use crate::keys::{KeyAlgorithm, PrivateKey};
use crate::layout;
use crate::name::Subject;
use crate::pair;

impl Authority {
    /// Writes a broker's whole identity into its folder, by the names of [`layout`].
    ///
    /// The link's key is always new. Evidence and log keep their keys where the folder already holds good ones: the
    /// log's key is the log's name, and must not change under it.
    pub fn issue_broker(&mut self, folder: &Path, now: Timestamp) -> Result<(), AuthorityError> {
        files::create_folder(folder)?;
        let origin = self.origin().clone();
        self.issue_into(folder, &Subject::Broker(origin.clone()), layout::BROKER, layout::BROKER_KEY, now)?;
        for (subject, certificate, key) in [
            (Subject::Evidence(origin.clone()), layout::EVIDENCE, layout::EVIDENCE_KEY),
            (Subject::Log(origin), layout::LOG, layout::LOG_KEY),
        ] {
            if !self.holds_good(folder, &subject, certificate, key, now) {
                self.issue_into(folder, &subject, certificate, key, now)?;
            }
        }
        self.write_common(folder, now)
    }

    /// Writes the authority's own client identity, with which it connects to the broker.
    pub fn issue_link(&mut self, folder: &Path, now: Timestamp) -> Result<(), AuthorityError> {
        files::create_folder(folder)?;
        let subject = Subject::Authority(self.origin().clone());
        self.issue_into(folder, &subject, layout::AUTHORITY_LINK, layout::AUTHORITY_LINK_KEY, now)?;
        self.write_common(folder, now)
    }

    fn holds_good(&self, folder: &Path, subject: &Subject, certificate: &str, key: &str, now: Timestamp) -> bool {
        let Some(issued) = self.state.current(subject, now) else { return false };
        if pair::finish(folder, certificate, key).is_err() {
            return false;
        }
        let written = files::read(&folder.join(certificate));
        let same = written.is_ok_and(|text| text == pem("CERTIFICATE", &issued.der).into_bytes());
        same && files::read(&folder.join(key))
            .map(zeroize::Zeroizing::new)
            .is_ok_and(|text| PrivateKey::from_pem(&text).is_ok_and(|key| key.spki() == issued.facts.spki))
    }

    /// The record comes first: no certificate exists that the authority does not know.
    fn issue_into(
        &mut self,
        folder: &Path,
        subject: &Subject,
        certificate: &str,
        key: &str,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let which = Which::issuer_of(subject);
        let algorithm = match which {
            Which::Nodes => self.keys.settings.node_key,
            Which::Seals => KeyAlgorithm::Ed25519,
        };
        let private = PrivateKey::generate(algorithm)?;
        let der = self.write(|keys, _| -> Result<_, AuthorityError> {
            let der = keys.issue(subject, private.pair(), now)?;
            Ok((vec![Record::Issued { der: der.clone() }], der))
        })?;
        let text = match which {
            Which::Nodes => pem_certificates([der.as_slice(), self.ca_certificate(which)]),
            Which::Seals => pem("CERTIFICATE", &der),
        };
        Ok(pair::write(folder, certificate, key, &text, &private)?)
    }

    /// The directory's certificate, replaced for the same key when it nears its end.
    fn directory_certificate(&mut self, now: Timestamp) -> Result<Vec<u8>, AuthorityError> {
        let subject = Subject::Directory(self.origin().clone());
        self.write(|keys, state| {
            if let Some(held) = state.current(&subject, now).filter(|held| !renewal_is_due(&held.facts, now)) {
                return Ok((Vec::new(), held.der.clone()));
            }
            let key =
                SubjectPublicKeyInfo::from_der(&keys.directory.public().spki()).map_err(AuthorityError::Issuer)?;
            let der = keys.issue(&subject, &key, now)?;
            Ok((vec![Record::Issued { der: der.clone() }], der))
        })
    }

    /// What every party gets: root, issuing certificates, the directory's certificate, revocation lists.
    fn write_common(&mut self, folder: &Path, now: Timestamp) -> Result<(), AuthorityError> {
        let directory = self.directory_certificate(now)?;
        for (name, der) in [
            (layout::ROOT, self.root()),
            (layout::NODES_CHAIN, self.ca_certificate(Which::Nodes)),
            (layout::SEALS_CHAIN, self.ca_certificate(Which::Seals)),
            (layout::DIRECTORY, &directory),
        ] {
            files::write(&folder.join(name), pem("CERTIFICATE", der).as_bytes())?;
        }
        for (name, which) in [(layout::NODES_CRL, Which::Nodes), (layout::SEALS_CRL, Which::Seals)] {
            let crl = self.crl(which, now)?;
            files::write(&folder.join(name), pem("X509 CRL", &crl).as_bytes())?;
        }
        Ok(())
    }
}
