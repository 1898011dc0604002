//! Certificate chains of seals, judged at given instants: root, seals' issuing authority, leaf; exact URI; revocation.
//!
//! Path building and every signature on a certificate are `rustls-webpki`'s work. Added here is what it leaves out: the
//! root's own validity, key usages and identifiers, exact names, and revocation *at a time* (a seal that was revoked
//! later was good before). Knows no clock: the caller says at which instants a chain must hold.

use std::collections::BTreeMap;
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use webpki::EndEntityCert;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use crate::key::{KeyError, PublicKey};
use crate::time::Timestamp;

/// The name of an authority that may issue seals.
pub const SEALS_CA_URI: &str = "docaxis://ca/seals";

/// Why a certificate, a chain or a revocation list was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("{what}: expected exactly one certificate, found {found}")]
    Count { what: String, found: usize },
    #[error("{what} does not parse: {why}")]
    Malformed { what: String, why: String },
    #[error("{what} breaks the profile of certificates: {rule}")]
    Profile { what: String, rule: &'static str },
    #[error("there is no issuing authority with the name {SEALS_CA_URI} that the root certified")]
    NoSealsCa,
    #[error("no revocation list verifies under the authority")]
    NoCrl,
    #[error("certificate for {uri} does not chain to the authority at {at}: {why}")]
    NoPath { uri: String, at: Timestamp, why: String },
    #[error("certificate names {found:?}; expected {expected}")]
    Uri { expected: String, found: Vec<String> },
    #[error("certificate for {uri} was revoked at {revoked}, not after {at}")]
    Revoked { uri: String, revoked: Timestamp, at: Timestamp },
    #[error("certificate for {uri} is good from {from} until {until}, not at {at}")]
    Outside { uri: String, from: Timestamp, until: Timestamp, at: Timestamp },
    #[error("certificate for {uri}: {source}")]
    Key {
        uri: String,
        #[source]
        source: KeyError,
    },
    #[error("certificate for {uri} was to be judged at no instant")]
    NoInstant { uri: String },
}

/// The one root that whoever checks brought along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRoot {
    der: CertificateDer<'static>,
    window: Window,
}

impl TrustRoot {
    /// Takes exactly one self-issued CA certificate, in PEM or DER.
    pub fn new(pem_or_der: &[u8]) -> Result<Self, ChainError> {
        let der = one_certificate("the authority's root", pem_or_der)?;
        let parsed = parse("the authority's root", &der)?;
        let rule = |rule| ChainError::Profile { what: "the authority's root".into(), rule };
        ca_profile(&parsed).map_err(rule)?;
        if parsed.subject().as_raw() != parsed.issuer().as_raw() || !signed_by(&der, &der) {
            return Err(rule("a root is issued and signed by itself"));
        }
        let window = Window::of(&parsed);
        Ok(Self { der, window })
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

/// The root, the seals' issuing authorities that it certified, and what they revoked.
#[derive(Debug, Clone)]
pub struct SealChains {
    root: TrustRoot,
    cas: Vec<CertificateDer<'static>>,
    /// When a certificate stopped being good, by the DER of its issuer's name and its serial without leading zeros.
    revoked: BTreeMap<CertificateName, Timestamp>,
    crls: usize,
    refused_crls: usize,
}

/// A certificate as a revocation list names it: issuer (DER), serial.
type CertificateName = (Vec<u8>, Vec<u8>);

impl SealChains {
    /// Takes the seals' authorities out of `chain` (PEM or one DER; others in it are left aside), and what the lists
    /// that verify under the root or one of them revoke. Lists that verify under neither are only counted.
    pub fn new<C: AsRef<[u8]>>(
        root: TrustRoot,
        chain: &[u8],
        crls: impl IntoIterator<Item = C>,
    ) -> Result<Self, ChainError> {
        let cas: Vec<_> = certificates("the chain of authorities", chain)?
            .into_iter()
            .filter(|der| is_seals_ca(der) && signed_by(der, &root.der))
            .collect();
        if cas.is_empty() {
            return Err(ChainError::NoSealsCa);
        }
        let mut chains = Self { root, cas, revoked: BTreeMap::new(), crls: 0, refused_crls: 0 };
        for crl in crls {
            match chains.take_crl(crl.as_ref()) {
                Some(()) => chains.crls += 1,
                None => chains.refused_crls += 1,
            }
        }
        Ok(chains)
    }

    /// Insists that at least one revocation list verified.
    pub fn with_crl_required(self) -> Result<Self, ChainError> {
        if self.crls == 0 { Err(ChainError::NoCrl) } else { Ok(self) }
    }

    /// How many of the given revocation lists did not parse, or verify under no authority.
    pub fn refused_crls(&self) -> usize {
        self.refused_crls
    }

    pub fn root(&self) -> &TrustRoot {
        &self.root
    }

    /// The key in a certificate for exactly `uri` that chains at each of the instants and was not revoked at or before
    /// the last of them.
    pub fn certified(&self, pem_or_der: &[u8], uri: &str, instants: &[Timestamp]) -> Result<CertifiedKey, ChainError> {
        let what = format!("the certificate for {uri}");
        let der = one_certificate(&what, pem_or_der)?;
        let parsed = parse(&what, &der)?;
        leaf_profile(&parsed).map_err(|rule| ChainError::Profile { what: what.clone(), rule })?;
        let found = san_uris(&what, &parsed)?;
        if found != [uri] {
            return Err(ChainError::Uri { expected: uri.to_owned(), found });
        }
        let spki = parsed.public_key().raw.to_vec();
        let key = PublicKey::from_spki(&spki).map_err(|source| ChainError::Key { uri: uri.to_owned(), source })?;
        let Some((first, rest)) = instants.split_first() else {
            return Err(ChainError::NoInstant { uri: uri.to_owned() });
        };
        let mut certified = CertifiedKey {
            key,
            spki,
            uri: uri.to_owned(),
            leaf: Window::of(&parsed),
            chain: Window::of(&parsed).and(self.root.window),
            names: vec![name_of(&parsed)],
        };
        self.path_at(&der, &mut certified, *first)?;
        for at in rest {
            // Inside the window of the path that was found, the same path holds: nothing else in it depends on time.
            if !certified.chain.holds(*at) {
                self.path_at(&der, &mut certified.clone(), *at)?;
            }
        }
        let last = instants.iter().copied().max().unwrap_or(*first);
        self.not_revoked(&certified, last)?;
        Ok(certified)
    }

    /// Whether a key that was certified before is good at `at`, without checking any signature again: inside its
    /// chain's validity, and not revoked by the lists known now.
    pub fn still_good(&self, key: &CertifiedKey, at: Timestamp) -> Result<(), ChainError> {
        if !key.chain.holds(at) {
            let Window { from, until } = key.chain;
            return Err(ChainError::Outside { uri: key.uri.clone(), from, until, at });
        }
        self.not_revoked(key, at)
    }

    /// Finds the path at one instant; adds its certificates and their validity to `certified`.
    fn path_at(&self, der: &CertificateDer<'_>, certified: &mut CertifiedKey, at: Timestamp) -> Result<(), ChainError> {
        let no_path = |why: String| ChainError::NoPath { uri: certified.uri.clone(), at, why };
        if !self.root.window.holds(at) {
            return Err(no_path("the root itself is not valid then".into()));
        }
        let seconds = u64::try_from(at.unix_s()).map_err(|_| no_path("that is before 1970".into()))?;
        let anchors = [self.anchor().map_err(|e| no_path(e.to_string()))?];
        let leaf = EndEntityCert::try_from(der).map_err(|e| no_path(e.to_string()))?;
        let path = leaf
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &self.cas,
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                AnyUse,
                None,
                None,
            )
            .map_err(|e| no_path(e.to_string()))?;
        for ca in path.intermediate_certificates() {
            let ca_der = ca.der();
            let parsed = parse("the seals' authority", &ca_der)?;
            certified.chain = certified.chain.and(Window::of(&parsed));
            certified.names.push(name_of(&parsed));
        }
        Ok(())
    }

    fn anchor(&self) -> Result<TrustAnchor<'_>, webpki::Error> {
        webpki::anchor_from_trusted_cert(&self.root.der)
    }

    fn not_revoked(&self, key: &CertifiedKey, at: Timestamp) -> Result<(), ChainError> {
        let revoked = key.names.iter().filter_map(|name| self.revoked.get(name)).min();
        match revoked {
            Some(revoked) if *revoked <= at => Err(ChainError::Revoked { uri: key.uri.clone(), revoked: *revoked, at }),
            _ => Ok(()),
        }
    }

    /// Takes in a revocation list; `None` if it does not parse or verifies under no authority.
    fn take_crl(&mut self, pem_or_der: &[u8]) -> Option<()> {
        let der = match pem_or_der.first() {
            Some(0x30) => pem_or_der.to_vec(),
            _ => CertificateRevocationListDer::pem_slice_iter(pem_or_der).next()?.ok()?.to_vec(),
        };
        let (rest, crl) = CertificateRevocationList::from_der(&der).ok()?;
        let issued = |ca: &&CertificateDer<'_>| {
            parse("an authority", ca).is_ok_and(|ca| ca.subject().as_raw() == crl.issuer().as_raw())
                && signature_holds(ca, crl.tbs_cert_list.as_ref(), &crl.signature_value.data)
        };
        let verified = std::iter::once(&self.root.der).chain(&self.cas).any(|ca| issued(&ca));
        if !rest.is_empty() || !verified || !is_plain(&der, crl.tbs_cert_list.as_ref(), &crl.signature_value.data) {
            return None;
        }
        for entry in crl.iter_revoked_certificates() {
            let name = (crl.issuer().as_raw().to_vec(), trim_serial(entry.raw_serial()));
            let at = Timestamp::from_unix_ms(entry.revocation_date.timestamp().saturating_mul(1000));
            let earliest = self.revoked.get(&name).map_or(at, |known| at.min(*known));
            self.revoked.insert(name, earliest);
        }
        Some(())
    }
}

/// A key that a chain certified, with all that a later look needs. Exists only for chains that were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedKey {
    key: PublicKey,
    spki: Vec<u8>,
    uri: String,
    leaf: Window,
    chain: Window,
    /// The certificates of the path that a revocation list could name, the leaf first.
    names: Vec<CertificateName>,
}

impl CertifiedKey {
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The SubjectPublicKeyInfo as it stands in the certificate.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The leaf's own validity.
    pub fn not_before(&self) -> Timestamp {
        self.leaf.from
    }

    pub fn not_after(&self) -> Timestamp {
        self.leaf.until
    }

    /// When the whole chain, root to leaf, is valid: first and last instant.
    pub fn chain_validity(&self) -> (Timestamp, Timestamp) {
        (self.chain.from, self.chain.until)
    }

    /// The leaf's serial without leading zeros.
    pub fn serial(&self) -> &[u8] {
        self.names.first().map_or(&[], |(_, serial)| serial)
    }
}

/// First and last instant of a validity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    from: Timestamp,
    until: Timestamp,
}

impl Window {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_unix_ms(time.timestamp().saturating_mul(1000));
        let validity = certificate.validity();
        // notAfter is a whole second that still counts, to its end.
        Self { from: at(validity.not_before), until: at(validity.not_after).plus(Duration::from_millis(999)) }
    }

    fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), until: self.until.min(other.until) }
    }

    fn holds(&self, at: Timestamp) -> bool {
        self.from <= at && at <= self.until
    }
}

/// Seals carry no extended key usage; what a certificate is for stands in its URI.
struct AnyUse;

impl webpki::ExtendedKeyUsageValidator for AnyUse {
    fn validate(&self, _: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// The certificates in PEM, in order, or the one in DER. Text around PEM blocks and blocks of other kinds are let pass.
pub fn certificates(what: &str, pem_or_der: &[u8]) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    if pem_or_der.first() == Some(&0x30) {
        return Ok(vec![CertificateDer::from(pem_or_der.to_vec())]);
    }
    CertificateDer::pem_slice_iter(pem_or_der)
        .collect::<Result<_, _>>()
        .map_err(|e| ChainError::Malformed { what: what.to_owned(), why: pem_fault(&e) })
}

/// The library prints labels as lists of numbers; people get words.
fn pem_fault(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { .. } => "a PEM block has no end line".into(),
        Error::IllegalSectionStart { .. } => "a PEM block has a malformed first line".into(),
        Error::Base64Decode(_) => "a PEM block is not base64".into(),
        other => other.to_string(),
    }
}

/// The one certificate in PEM or DER.
pub fn one_certificate(what: &str, pem_or_der: &[u8]) -> Result<CertificateDer<'static>, ChainError> {
    let mut all = certificates(what, pem_or_der)?;
    match (all.len(), all.pop()) {
        (1, Some(one)) => Ok(one),
        (found, _) => Err(ChainError::Count { what: what.to_owned(), found }),
    }
}

/// The SubjectPublicKeyInfo in a certificate in DER, whatever chain it has or has not.
pub fn spki(what: &str, der: &[u8]) -> Result<Vec<u8>, ChainError> {
    Ok(parse(what, der)?.public_key().raw.to_vec())
}

/// DER as PEM with lines of 64 characters; `label` is such as `CERTIFICATE`.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = crate::tlog::base64(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for (n, c) in body.chars().enumerate() {
        if n > 0 && n % 64 == 0 {
            out.push('\n');
        }
        out.push(c);
    }
    out.push_str(&format!("\n-----END {label}-----\n"));
    out
}

fn parse<'a>(what: &str, der: &'a [u8]) -> Result<X509Certificate<'a>, ChainError> {
    match X509Certificate::from_der(der) {
        Ok((b"", certificate)) => Ok(certificate),
        Ok(_) => Err(ChainError::Malformed { what: what.to_owned(), why: "bytes are left over".into() }),
        Err(e) => Err(ChainError::Malformed { what: what.to_owned(), why: e.to_string() }),
    }
}

fn san_uris(what: &str, certificate: &X509Certificate<'_>) -> Result<Vec<String>, ChainError> {
    let san = certificate
        .subject_alternative_name()
        .map_err(|e| ChainError::Malformed { what: what.to_owned(), why: e.to_string() })?;
    let names = san.iter().flat_map(|san| &san.value.general_names);
    Ok(names.filter_map(|name| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None }).collect())
}

fn is_seals_ca(der: &CertificateDer<'_>) -> bool {
    parse("an authority", der).is_ok_and(|parsed| {
        ca_profile(&parsed).is_ok()
            && has_extension(&parsed, |e| matches!(e, ParsedExtension::AuthorityKeyIdentifier(_)))
            && san_uris("an authority", &parsed).is_ok_and(|uris| uris == [SEALS_CA_URI])
    })
}

/// What RFC 5280 asks of a CA and `openssl verify -x509_strict` insists on, where webpki does not look.
fn ca_profile(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    match certificate.basic_constraints() {
        Ok(Some(basic)) if basic.critical && basic.value.ca => {}
        _ => return Err("an authority has critical basic constraints with CA:TRUE"),
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if usage.value.key_cert_sign() => {}
        _ => return Err("an authority's key usage allows signing certificates"),
    }
    if has_extension(certificate, |e| matches!(e, ParsedExtension::SubjectKeyIdentifier(_))) {
        Ok(())
    } else {
        Err("an authority has a subject key identifier")
    }
}

fn leaf_profile(certificate: &X509Certificate<'_>) -> Result<(), &'static str> {
    match certificate.key_usage() {
        Ok(usage) if !usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign()) => {}
        _ => return Err("a seal's key usage does not allow signing certificates"),
    }
    if has_extension(certificate, |e| matches!(e, ParsedExtension::AuthorityKeyIdentifier(_))) {
        Ok(())
    } else {
        Err("a certificate has an authority key identifier")
    }
}

fn has_extension(certificate: &X509Certificate<'_>, is: impl Fn(&ParsedExtension<'_>) -> bool) -> bool {
    certificate.extensions().iter().any(|extension| is(extension.parsed_extension()))
}

/// Whether `issuer`'s key signed the certificate. This is no chain check: it only keeps strangers out of the pool from
/// which webpki builds paths, and out of the pool that may revoke.
fn signed_by(der: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    parse("a certificate", der).is_ok_and(|certificate| {
        signature_holds(issuer, certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
    })
}

fn signature_holds(signer: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    EndEntityCert::try_from(signer).is_ok_and(|signer| {
        webpki::ALL_VERIFICATION_ALGS
            .iter()
            .any(|algorithm| signer.verify_signature(*algorithm, message, signature).is_ok())
    })
}

/// Whether what surrounds the signed bytes of a list is the one DER encoding: the algorithm as it stands inside, then
/// the signature. The parser takes more than that, and nothing signs it.
fn is_plain(der: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    let Ok(length) = u8::try_from(signature.len() + 1) else { return true };
    let bits = match length {
        0..128 => [&[0x03, length, 0][..], signature].concat(),
        _ => [&[0x03, 0x81, length, 0][..], signature].concat(),
    };
    let algorithm = der.strip_suffix(&bits[..]).and_then(|rest| {
        let start = rest.windows(signed.len()).position(|window| window == signed)?;
        rest.get(start + signed.len()..)
    });
    algorithm.is_some_and(|algorithm| {
        !algorithm.is_empty() && signed.windows(algorithm.len()).any(|window| window == algorithm)
    })
}

fn name_of(certificate: &X509Certificate<'_>) -> CertificateName {
    (certificate.issuer().as_raw().to_vec(), trim_serial(certificate.raw_serial()))
}

fn trim_serial(serial: &[u8]) -> Vec<u8> {
    serial.iter().copied().skip_while(|b| *b == 0).collect()
}
