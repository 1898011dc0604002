//! Does what [`Continuity`] decides: closes and opens the exchange, takes up leaves, and keeps the mark on the folder.
//!
//! Closing is immediate: the store is frozen before anything else, so no leaf is committed after a node has shown a
//! checkpoint that our log does not have. Opening comes last: the root is compared, the mark is removed durably, and only
//! then the store takes something new.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::frame::{GivenLeaf, Holds};
use docaxis_protocol::key::PublicKey;
use docaxis_protocol::tlog::{Checkpoint, VerifierKey};
use docaxis_protocol::{Digest, NodeId, Reason, ReasonCode};
use tokio::sync::watch;

use super::pieces::{Checks, Piece, What, state_after};
use super::{Continuity, Mark, Present, Report, Step, Why, lost_entry};
use crate::dispatch::{Exchange, ExchangeError};
use crate::evidence::log::LogError;
use crate::store::{Earlier, Record, Store, StoreError};

/// Leaves of ours since the start that nodes are asked for as well, to see whether they are theirs.
const OVERLAP: u64 = 16;
/// Leaves that one commit takes up, and about how many bytes of them.
const IMPORT_AT_ONCE: usize = 256;
const IMPORT_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
enum DriveError {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the mark on the data folder: {0}")]
    Mark(#[from] std::io::Error),
}

impl From<StoreError> for DriveError {
    fn from(error: StoreError) -> Self {
        Self::Exchange(error.into())
    }
}

/// The exchange's continuity, shared by everything that would sign or accept.
pub struct Keeper {
    state: Mutex<Continuity>,
    /// Links of nodes that can give leaves back.
    linked: Mutex<BTreeMap<NodeId, usize>>,
    authority: AtomicBool,
    changed: watch::Sender<u64>,
    data: PathBuf,
    /// Leaves of the log at the start. What came after them may be a second history, and is compared.
    base: u64,
    log: VerifierKey,
    evidence_key: PublicKey,
}

impl Keeper {
    /// Closed from the start if the folder is marked.
    pub fn new(
        data: PathBuf,
        log: VerifierKey,
        evidence_key: PublicKey,
        mark: Option<Mark>,
        own: Option<&Checkpoint>,
        store: &dyn Store,
    ) -> Self {
        let mut state = Continuity::default();
        if let Some(own) = own {
            state.shown(own);
        }
        if let Some(mark) = mark {
            let why = Why::Restored { taken: mark.taken, leaves: mark.leaves };
            tracing::warn!(why = %why.text(), "the exchange is closed");
            store.freeze(Some(why.text()));
            state.close(why);
        }
        Self {
            state: Mutex::new(state),
            linked: Mutex::default(),
            authority: AtomicBool::new(false),
            changed: watch::Sender::new(0),
            data,
            base: store.counts().leaves,
            log,
            evidence_key,
        }
    }

    fn state(&self) -> MutexGuard<'_, Continuity> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes when there may be something to do or to ask.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn is_open(&self) -> bool {
        self.state().is_open()
    }

    /// What whoever wants something signed or accepted is told while the exchange is closed.
    pub fn refusal(&self) -> Option<Reason> {
        self.state().why().map(|why| ReasonCode::Busy.because(why.text()))
    }

    /// The authority has published its directory.
    pub fn heard_authority(&self) {
        if !self.authority.swap(true, Ordering::Relaxed) {
            self.notify();
        }
    }

    /// The operator says that whoever is not linked now is gone for good.
    pub fn waive(&self) {
        self.state().waive();
        self.notify();
    }

    pub fn up(&self, node: &NodeId) {
        *self.linked.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_insert(0) += 1;
        self.state().linked(node);
        self.notify();
    }

    pub fn down(&self, node: &NodeId) {
        let mut linked = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = linked.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                linked.remove(node);
            }
        }
        drop(linked);
        self.notify();
    }

    fn present(&self, exchange: &Exchange) -> Present {
        let linked: BTreeSet<NodeId> =
            self.linked.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let expected = exchange.with_directory(|directory| directory.nodes());
        Present { expected, linked, authority: self.authority.load(Ordering::Relaxed) }
    }

    pub fn report(&self, exchange: &Exchange) -> Report {
        let present = self.present(exchange);
        self.state().report(exchange.store.counts().leaves, &present)
    }

    /// From which leaf on this node should be asked now, and the leaf at which the page begins that its answer belongs to:
    /// the first page looks back a little.
    pub fn to_ask(&self, exchange: &Exchange, node: &NodeId) -> Option<(u64, u64)> {
        let own = exchange.store.counts().leaves;
        let page = self.state().to_ask(node, own)?;
        let overlap = if page > own { 0 } else { page.saturating_sub(self.base).min(OVERLAP) };
        Some((page - overlap, page))
    }

    /// Compares what a node holds with our log, before anything of that node is served. Blocks on the log's tiles.
    pub fn compare(&self, exchange: &Exchange, node: &NodeId, holds: &Holds) {
        let Some(note) = &holds.checkpoint else { return };
        let checkpoint = match Checkpoint::open(note, &self.log, &[], 0) {
            Ok(opened) => opened.checkpoint,
            Err(error) => return tracing::warn!(%node, %error, "the checkpoint that a node holds is none of ours"),
        };
        let (published, _) = exchange.log.checkpoint();
        let own = exchange.store.counts().leaves;
        self.state().shown(&checkpoint);
        if checkpoint.size > published {
            if self.is_open() {
                self.close(exchange, Why::Behind { node: node.clone(), size: checkpoint.size, own });
            }
            return self.notify();
        }
        match exchange.log.root_at(checkpoint.size) {
            Ok(root) if checkpoint.size == 0 || root == checkpoint.root => {}
            Ok(root) => self.fork(
                exchange,
                format!(
                    "node {node} holds our checkpoint over {} leaves with root {}; this log has root {root}",
                    checkpoint.size, checkpoint.root
                ),
            ),
            Err(error) => tracing::error!(%error, "a node's checkpoint cannot be compared with the log"),
        }
    }

    fn fork(&self, exchange: &Exchange, what: String) {
        self.close(exchange, Why::Forked(what));
    }

    /// Stops everything that signs or accepts. First the store, so that nothing more is committed; then the mark, so that
    /// a restart stays closed.
    fn close(&self, exchange: &Exchange, why: Why) {
        exchange.store.freeze(Some(why.text()));
        tracing::error!(why = %why.text(), "the exchange is closed");
        self.state().close(why);
        let leaves = exchange.store.counts().leaves;
        let mark = Mark { leaves, taken: None, since: exchange.now() };
        match Mark::read(&self.data, exchange.now()) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                if let Err(error) = mark.write(&self.data) {
                    tracing::error!(%error, "the data folder cannot be marked: do not restart the broker before it is open");
                }
            }
        }
        self.notify();
    }

    /// Checks and takes in what a node gave back when it was asked for the page from leaf `asked` on. Blocks while
    /// signatures are checked.
    pub fn given(&self, exchange: &Exchange, node: &NodeId, asked: u64, leaves: Vec<GivenLeaf>) {
        let checks = Checks {
            origin: &exchange.origin,
            evidence_key: &self.evidence_key,
            log: &self.log,
            seals: &exchange.seals,
        };
        let check = |given: GivenLeaf| {
            let leaf = given.leaf;
            checks.check(given).map_err(|why| (leaf, why))
        };
        let pieces: Vec<_> = leaves.into_iter().map(check).collect();
        let own = exchange.store.counts().leaves;
        for piece in pieces.iter().flatten().filter(|piece| piece.proven && piece.leaf < own) {
            match exchange.store.log_entries(piece.leaf, 1) {
                Ok(entries) if entries.first() != Some(&piece.entry) => {
                    let what =
                        format!("node {node} has proof of other evidence at leaf {} than this log has", piece.leaf);
                    return self.fork(exchange, what);
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "a leaf that was given back cannot be compared"),
            }
        }
        self.state().given(node, asked, pieces, own);
        self.notify();
    }

    /// Drives until told to stop.
    pub async fn run(exchange: Arc<Exchange>, mut stopped: watch::Receiver<bool>) {
        let keeper = &exchange.continuity;
        let mut changed = keeper.changed();
        loop {
            changed.mark_unchanged();
            loop {
                if *stopped.borrow() {
                    return;
                }
                match keeper.step(&exchange).await {
                    Ok(true) => keeper.notify(),
                    Ok(false) => break,
                    Err(error) => {
                        tracing::error!(%error, "the exchange stays closed: what was given back cannot be taken up");
                        break;
                    }
                }
            }
            tokio::select! {
                biased;
                _ = changed.changed() => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// One step; says whether there may be another at once.
    async fn step(&self, exchange: &Arc<Exchange>) -> Result<bool, DriveError> {
        let own = exchange.store.counts().leaves;
        let present = self.present(exchange);
        let step = self.state().next(own, &present);
        match step {
            Step::Wait => Ok(false),
            Step::Import(pieces) => self.import(exchange, own, pieces).await,
            Step::ImportIfRooted(pieces, checkpoint) => {
                let entries: Vec<Digest> = pieces.iter().map(|piece| piece.entry).collect();
                if exchange.log.root_with(&*exchange.store, own, &entries)? == checkpoint.root {
                    return self.import(exchange, own, pieces).await;
                }
                for piece in pieces.iter().filter(|piece| !piece.proven) {
                    let why = "no proof shows its place, and with it the log does not lead to the newest checkpoint";
                    self.state().refused(piece.leaf, why.to_owned());
                }
                Ok(true)
            }
            Step::FillLost { until } => {
                tracing::warn!(from = own, until, "nobody holds these leaves, and no checkpoint covers them");
                for leaf in own..until {
                    let entry = lost_entry(exchange.origin.as_str(), leaf);
                    exchange.store.import(leaf, vec![Earlier::Lost(entry)]).await?;
                }
                Ok(true)
            }
            Step::Open(newest) => self.open(exchange, own, newest),
        }
    }

    fn open(&self, exchange: &Exchange, own: u64, newest: Option<Checkpoint>) -> Result<bool, DriveError> {
        if let Some(newest) = newest {
            let root = exchange.log.root_with(&*exchange.store, newest.size, &[])?;
            if newest.size > 0 && root != newest.root {
                let Checkpoint { size, root: signed, .. } = newest;
                self.fork(
                    exchange,
                    format!("our checkpoint over {size} leaves has root {signed}; this log has {root}"),
                );
                return Ok(false);
            }
        }
        let mut state = self.state();
        // Somebody may have shown more since the step was chosen.
        if !matches!(state.next(own, &self.present(exchange)), Step::Open(_)) {
            return Ok(true);
        }
        Mark::remove(&self.data)?;
        state.open();
        exchange.store.freeze(None);
        drop(state);
        tracing::info!(leaves = own, "the log goes on where it was: the exchange is open");
        self.notify();
        exchange.ring_all();
        Ok(false)
    }

    async fn import(&self, exchange: &Arc<Exchange>, own: u64, pieces: Vec<Piece>) -> Result<bool, DriveError> {
        let mut next = own;
        let mut batch = Vec::new();
        let mut bytes = 0;
        for piece in pieces {
            let mut earlier = resolve(exchange, &piece)?;
            if earlier.is_err() && !batch.is_empty() {
                // What it follows may be in the batch that is not committed yet.
                if !self.commit(exchange, &mut next, std::mem::take(&mut batch)).await? {
                    return Ok(true);
                }
                bytes = 0;
                earlier = resolve(exchange, &piece)?;
            }
            match earlier {
                Ok(earlier) => {
                    bytes += size_of(&earlier);
                    batch.push(earlier);
                }
                Err(why) => {
                    self.state().refused(piece.leaf, why);
                    return Ok(true);
                }
            }
            if batch.len() >= IMPORT_AT_ONCE || bytes >= IMPORT_BYTES {
                bytes = 0;
                if !self.commit(exchange, &mut next, std::mem::take(&mut batch)).await? {
                    return Ok(true);
                }
            }
        }
        self.commit(exchange, &mut next, batch).await?;
        tracing::info!(from = own, to = next, "leaves were taken back");
        Ok(true)
    }

    /// Commits a batch from leaf `next` on; false if one of them did not fit.
    async fn commit(&self, exchange: &Exchange, next: &mut u64, batch: Vec<Earlier>) -> Result<bool, DriveError> {
        let wanted = batch.len() as u64;
        if wanted == 0 {
            return Ok(true);
        }
        let taken = exchange.store.import(*next, batch).await?;
        *next += taken;
        if taken < wanted {
            self.state().refused(*next, "it does not fit to what stands before it in this log".to_owned());
        }
        Ok(taken == wanted)
    }
}

fn size_of(earlier: &Earlier) -> usize {
    match earlier {
        Earlier::Accepted(acceptance) => acceptance.envelope.bytes.len() + acceptance.evidence.bytes.len() + 4096,
        Earlier::Rejected(rejection) => rejection.envelope.bytes.len() + rejection.evidence.bytes.len() + 4096,
        Earlier::Event(record) => record.evidence.bytes.len() + 4096,
        Earlier::Lost(_) => 64,
    }
}

/// The store's own form of a piece. The inner error: it does not follow what stands in the store.
fn resolve(exchange: &Exchange, piece: &Piece) -> Result<Result<Earlier, String>, DriveError> {
    let event = match &piece.what {
        What::Accepted(acceptance) => return Ok(Ok(Earlier::Accepted(acceptance.clone()))),
        What::Rejected(rejection) => return Ok(Ok(Earlier::Rejected(rejection.clone()))),
        What::Event(event) => event,
    };
    let evidence = &event.evidence;
    let Some(recipient) = &evidence.recipient else {
        return Ok(Err("it names no recipient".to_owned()));
    };
    let dispatch = exchange.dispatch_of(&evidence.dispatch, evidence.envelope_sha256, recipient)?;
    let Some(dispatch) = dispatch else {
        return Ok(Err(format!("dispatch {} to {recipient} is not in the store", evidence.dispatch)));
    };
    let Some(delivery) = exchange.store.delivery(dispatch.seq, recipient)? else {
        return Ok(Err(format!("dispatch {} has no delivery to {recipient}", evidence.dispatch)));
    };
    if evidence.previous != Some(delivery.head) {
        return Ok(Err("it follows other evidence than the newest of its delivery".to_owned()));
    }
    let record = Record {
        seq: dispatch.seq.0,
        recipient: recipient.clone(),
        event: evidence.event,
        time: evidence.time,
        previous: delivery.head,
        evidence: event.signed.clone(),
        statement: event.statement.clone(),
        state: state_after(delivery.state, evidence),
    };
    Ok(Ok(Earlier::Event(Box::new(record))))
}
