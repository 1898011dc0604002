//! Claims about whole exchanges: an authority, a broker, nodes, and handshakes between them in memory.

mod authority;
mod enrolment;
mod handshake;
mod openssl;

use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::{AgencyCode, NodeId, Timestamp};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use tempfile::TempDir;

use crate::authority::{Agency, JoinReply};
use crate::{Authority, AuthorityConfig, BrokerIdentity, NodeIdentity, PendingJoin};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const NOW: Timestamp = Timestamp::from_unix_ms(1_795_318_200_000);

pub(crate) fn node(text: &str) -> NodeId {
    text.parse().unwrap()
}

pub(crate) fn code(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

/// A clock that stands still.
#[derive(Debug)]
pub(crate) struct Still(pub Timestamp);

impl TimeProvider for Still {
    fn current_time(&self) -> Option<UnixTime> {
        Some(crate::chain::unix_time(self.0))
    }
}

pub(crate) fn still(at: Timestamp) -> crate::tls::Clock {
    Arc::new(Still(at))
}

/// An exchange with its broker's files.
pub(crate) struct Exchange {
    pub folder: TempDir,
    pub authority: Authority,
}

impl Exchange {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(edit: impl FnOnce(&mut AuthorityConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let origin = "docaxis.example/vn".parse().unwrap();
        let mut config = AuthorityConfig::new(origin, node("b1"), "broker.example:7400", NOW);
        edit(&mut config);
        let mut authority = Authority::init(&folder.path().join("authority"), &config).unwrap();
        authority.issue_broker(&folder.path().join("broker"), NOW).unwrap();
        for (agency, name) in [("000.00.00.G22", "Văn phòng Chính phủ"), ("H37.DN.001", "Sở Nội vụ")] {
            authority.add_agency(&Agency::new(code(agency), name), NOW).unwrap();
        }
        Self { folder, authority }
    }

    pub fn broker(&self) -> BrokerIdentity {
        BrokerIdentity::load(&self.folder.path().join("broker")).unwrap()
    }

    /// A node that has joined with these agencies.
    pub fn join(&mut self, name: &str, agencies: &[&str]) -> NodeIdentity {
        let agencies: Vec<AgencyCode> = agencies.iter().map(|text| code(text)).collect();
        let token = self.authority.invite(&node(name), &agencies, DAY, NOW).unwrap();
        let pending = PendingJoin::new(token, "docaxis 0.1.0").unwrap();
        match self.authority.join(pending.request(), &pending.mac(), NOW).unwrap() {
            JoinReply::Granted(answer) => pending.accept(&answer, NOW).unwrap(),
            kept => panic!("{kept:?}"),
        }
    }
}
