//! Claims about certificate chains, judged at given instants.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be built ends the test")]

mod authority;

use authority::{Ca, START, Seal, Wish, YEAR, at};
use docaxis_protocol::Timestamp;
use docaxis_protocol::chain::{ChainError, SEALS_CA_URI, SealChains, TrustRoot};

const AGENCY: &str = "docaxis://agency/H37.DN.001";

struct Fixture {
    root: Ca,
    seals: Ca,
    seal: Seal,
}

fn fixture() -> Fixture {
    let root = Ca::root("root");
    let seals = root.issue_ca("seals", &Wish { until: at(5 * YEAR), ..Wish::named(SEALS_CA_URI) });
    let seal = seals.issue(9, &Wish::named(AGENCY));
    Fixture { root, seals, seal }
}

impl Fixture {
    fn chains(&self, crls: &[String]) -> SealChains {
        let root = TrustRoot::new(self.root.pem.as_bytes()).unwrap();
        SealChains::new(root, self.seals.pem.as_bytes(), crls).unwrap()
    }

    fn judge(&self, crls: &[String], instants: &[Timestamp]) -> Result<(), ChainError> {
        self.chains(crls).certified(self.seal.pem.as_bytes(), AGENCY, instants).map(|_| ())
    }
}

#[test]
fn a_seal_chains_inside_its_validity_and_at_no_other_time() {
    let f = fixture();
    let chains = f.chains(&[]);
    let key = chains.certified(f.seal.pem.as_bytes(), AGENCY, &[at(5), at(YEAR)]).unwrap();
    assert_eq!(key.key(), &f.seal.secret.public());
    assert_eq!(key.spki(), f.seal.secret.public().spki());
    assert_eq!((key.uri(), key.serial()), (AGENCY, &[9u8][..]));
    assert_eq!(key.not_before(), START);
    for instants in [&[at(-1)][..], &[at(YEAR + 1)], &[at(5), at(YEAR + 1)], &[at(YEAR + 1), at(5)]] {
        assert!(matches!(f.judge(&[], instants), Err(ChainError::NoPath { .. })), "{instants:?}");
    }
    assert_eq!(f.judge(&[], &[]), Err(ChainError::NoInstant { uri: AGENCY.into() }));
    assert_eq!(chains.still_good(&key, at(YEAR)), Ok(()));
    assert!(matches!(chains.still_good(&key, at(YEAR + 1)), Err(ChainError::Outside { .. })));
}

#[test]
fn a_root_that_is_not_valid_at_the_time_carries_nothing() {
    let root = Ca::root_as("root", &Wish { uris: vec![], until: at(100), ..Wish::named("") });
    let seals = root.issue_ca("seals", &Wish::named(SEALS_CA_URI));
    let seal = seals.issue(9, &Wish::named(AGENCY));
    let f = Fixture { root, seals, seal };
    assert_eq!(f.judge(&[], &[at(100)]), Ok(()));
    assert!(matches!(f.judge(&[], &[at(101)]), Err(ChainError::NoPath { .. })));
}

#[test]
fn only_exactly_the_expected_uri_is_taken() {
    let f = fixture();
    let other = "docaxis://agency/000.00.00.G22";
    for uris in [vec![], vec![other.to_owned()], vec![AGENCY.to_owned(), other.to_owned()]] {
        let seal = f.seals.issue(10, &Wish { uris: uris.clone(), ..Wish::named(AGENCY) });
        let found = f.chains(&[]).certified(seal.pem.as_bytes(), AGENCY, &[at(5)]).map(|_| ());
        assert_eq!(found, Err(ChainError::Uri { expected: AGENCY.into(), found: uris }));
    }
}

#[test]
fn a_revocation_counts_from_its_date_on_and_only_for_its_issuers_serial() {
    let f = fixture();
    let judged = |crls: &[String]| f.judge(crls, &[at(50), at(100)]);
    assert_eq!(judged(&[f.seals.crl(&[(9, at(101))])]), Ok(()));
    for day in [at(100), at(60), at(-5)] {
        let crl = f.seals.crl(&[(8, at(0)), (9, day)]);
        assert_eq!(judged(&[crl]), Err(ChainError::Revoked { uri: AGENCY.into(), revoked: day, at: at(100) }));
    }
    // The root did not issue this serial; a stranger's list is no list.
    assert_eq!(judged(&[f.root.crl(&[(9, at(0))])]), Ok(()));
    let stranger = Ca::root("seals").crl(&[(9, at(0))]);
    let chains = f.chains(&[stranger, "no list".into()]);
    assert_eq!(chains.refused_crls(), 2);
    assert!(matches!(chains.with_crl_required(), Err(ChainError::NoCrl)));
    // The earliest date of several lists counts.
    let lists = [f.seals.crl(&[(9, at(70))]), f.seals.crl(&[(9, at(200))])];
    assert!(matches!(judged(&lists), Err(ChainError::Revoked { revoked, .. }) if revoked == at(70)));
}

#[test]
fn a_key_that_was_certified_is_refused_again_once_it_is_revoked() {
    let f = fixture();
    let key = f.chains(&[]).certified(f.seal.pem.as_bytes(), AGENCY, &[at(5)]).unwrap();
    let later = f.chains(&[f.seals.crl(&[(9, at(50))])]);
    assert_eq!(later.still_good(&key, at(49)), Ok(()));
    assert!(matches!(later.still_good(&key, at(50)), Err(ChainError::Revoked { .. })));
}

#[test]
fn seals_come_only_from_the_authority_for_seals_under_this_root() {
    let f = fixture();
    let nodes = f.root.issue_ca("nodes", &Wish::named("docaxis://ca/nodes"));
    let by_nodes = nodes.issue(11, &Wish::named(AGENCY));
    let root = || TrustRoot::new(f.root.pem.as_bytes()).unwrap();
    let both = [f.seals.pem.clone(), nodes.pem.clone()].concat();
    let chains = SealChains::new(root(), both.as_bytes(), [""; 0]).unwrap();
    assert!(matches!(chains.certified(by_nodes.pem.as_bytes(), AGENCY, &[at(5)]), Err(ChainError::NoPath { .. })));
    let direct = f.root.issue(12, &Wish::named(AGENCY));
    assert_eq!(
        chains.certified(direct.pem.as_bytes(), AGENCY, &[at(5)]).map(|key| key.serial().to_vec()),
        Ok(vec![12]),
        "the root may certify a seal itself"
    );
    let elsewhere = Ca::root("root").issue_ca("seals", &Wish::named(SEALS_CA_URI));
    for chain in [&nodes.pem, &elsewhere.pem, ""] {
        assert!(matches!(SealChains::new(root(), chain.as_bytes(), [""; 0]), Err(ChainError::NoSealsCa)));
    }
    let forged = elsewhere.issue(13, &Wish::named(AGENCY));
    assert!(f.chains(&[]).certified(forged.pem.as_bytes(), AGENCY, &[at(5)]).is_err());
}

#[test]
fn what_breaks_the_profile_is_refused() {
    let f = fixture();
    let plain = f.seals.issue(14, &Wish { with_identifier: false, ..Wish::named(AGENCY) });
    assert!(matches!(f.chains(&[]).certified(plain.pem.as_bytes(), AGENCY, &[at(5)]), Err(ChainError::Profile { .. })));
    assert!(TrustRoot::new(f.seals.pem.as_bytes()).is_err(), "an issued certificate is no root");
    assert!(TrustRoot::new(f.seal.pem.as_bytes()).is_err(), "a seal is no root");
    let twice = f.seal.pem.repeat(2);
    assert!(matches!(
        f.chains(&[]).certified(twice.as_bytes(), AGENCY, &[at(5)]),
        Err(ChainError::Count { found: 2, .. })
    ));
}

#[test]
fn no_byte_of_a_certificate_can_be_altered() {
    let f = fixture();
    let chains = f.chains(&[]);
    let der = docaxis_protocol::chain::one_certificate("the seal", f.seal.pem.as_bytes()).unwrap().to_vec();
    assert!(chains.certified(&der, AGENCY, &[at(5)]).is_ok());
    for n in 0..der.len() {
        let mut altered = der.clone();
        altered[n] ^= 1;
        assert!(chains.certified(&altered, AGENCY, &[at(5)]).is_err(), "byte {n} was altered unnoticed");
    }
}

#[test]
fn no_byte_of_a_revocation_list_can_be_altered() {
    use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject as _};
    let f = fixture();
    let der = CertificateRevocationListDer::from_pem_slice(f.seals.crl(&[(9, at(0))]).as_bytes()).unwrap().to_vec();
    let refused = |der: &[u8]| {
        let root = TrustRoot::new(f.root.pem.as_bytes()).unwrap();
        SealChains::new(root, f.seals.pem.as_bytes(), [der]).unwrap().refused_crls()
    };
    assert_eq!(refused(&der), 0);
    for n in 0..der.len() {
        for bit in [1, 4, 128] {
            let mut altered = der.clone();
            altered[n] ^= bit;
            assert_eq!(refused(&altered), 1, "byte {n} was altered unnoticed");
        }
    }
}
