//! The files of the identity folders: who writes them and who reads them agree here.

/// The exchange's root certificate (every folder).
pub const ROOT: &str = "root.pem";
/// The nodes' CA, which issued the certificates of links (every folder).
pub const NODES_CHAIN: &str = "nodes-chain.pem";
/// The seals' CA, which issued the certificates that sign (every folder).
pub const SEALS_CHAIN: &str = "seals-chain.pem";
/// The certificate of the authority's directory key (every folder).
pub const DIRECTORY: &str = "directory.pem";
/// Revocation list of the nodes' CA (every folder).
pub const NODES_CRL: &str = "nodes.crl";
/// Revocation list of the seals' CA (every folder).
pub const SEALS_CRL: &str = "seals.crl";

/// The broker's link certificate, followed by the nodes' CA.
pub const BROKER: &str = "broker.pem";
pub const BROKER_KEY: &str = "broker.key";
/// Signs evidence (broker), or is checked against (node).
pub const EVIDENCE: &str = "evidence.pem";
pub const EVIDENCE_KEY: &str = "evidence.key";
/// Signs checkpoints (broker), or is checked against (node).
pub const LOG: &str = "log.pem";
pub const LOG_KEY: &str = "log.key";

/// A node's link certificate, followed by the nodes' CA.
pub const NODE: &str = "node.pem";
pub const NODE_KEY: &str = "node.key";
pub const WITNESS: &str = "witness.pem";
pub const WITNESS_KEY: &str = "witness.key";
/// One `<agency>.pem` and `<agency>.key` per hosted agency.
pub const SEALS: &str = "seals";
/// Where the broker is and what it is called.
pub const LINK_JSON: &str = "link.json";
/// A join that was begun and not yet answered.
pub const PENDING_JOIN: &str = "pending-join.json";

/// The authority's own link certificate, followed by the nodes' CA.
pub const AUTHORITY_LINK: &str = "link.pem";
pub const AUTHORITY_LINK_KEY: &str = "link.key";
