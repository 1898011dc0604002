//! The one thread that changes anything. It takes what waits, decides it, commits it as one group, and only then
//! answers: order of the queue is order of the log.
//!
//! Persist before promise: in [`Committer::commit`] the group is durable before a row is visible, a row is visible
//! before an answer leaves, and after a failed write nothing is acknowledged any more.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use docaxis_protocol::Digest;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::space::Level;
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::apply::{Placed, answers, apply, delivery, head_row, is_large, remembered};
use super::config::EmbeddedConfig;
use super::journal::Journal;
use super::keys::{self, Area, Intake, LeafRow, Location, NoticeRow, Stage, Totals, read_row, row};
use super::outline::Outline;
use super::record::{AcceptedV1, EventV1, Prepared, RecordV1};
use super::rows::Rows as _;
use super::segments::Work;
use super::shared::Shared;
use super::view::{Lookup, Staged};
use crate::store::{Accepted, Recorded, Rejected, Seq, StoreError};

pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the committer is asked to do.
pub enum Request {
    /// A submission, and what is withdrawn with it.
    Accept(Box<Prepared>, Vec<Prepared>, Answer<Accepted>),
    Reject(Box<Prepared>, Answer<Rejected>),
    Record(Box<Prepared>, Answer<Recorded>),
    /// A record that no decision stands before: notices, bodies copied forward, pruned dispatches.
    Plain(Box<Prepared>, Answer<()>),
    /// Small bodies of this dispatch, brought once more.
    Restore(Box<Prepared>, u64, Answer<()>),
    /// Leaves that were signed before the data was put back, and the place of the first.
    Import(Vec<Prepared>, u64, Answer<u64>),
    /// Records of this journal segment stand in evidence now.
    Moved(u64, Vec<Moved>, Answer<()>),
    /// This journal segment is in use no more.
    Freed(u64, Answer<()>),
    /// Nothing has come for a while.
    Idle,
    Close(Answer<()>),
}

/// A record's new place.
pub struct Moved {
    pub to: Location,
    pub leaf: u64,
    pub leaves: u64,
    /// The record's notices by place and name; of one name, only the segment's last.
    pub notices: Vec<(u32, String)>,
}

/// An answer that may leave when the group is durable.
enum Reply {
    Accepted(Answer<Accepted>, Accepted),
    Again(Answer<Accepted>, Seq),
    Leaf(Answer<u64>, u64),
    Rejected(Answer<Rejected>, u64),
    RejectedAgain(Answer<Rejected>, Seq),
    Recorded(Answer<Recorded>, Recorded),
    Done(Answer<()>),
}

impl Reply {
    fn refuse(self, error: StoreError) {
        match self {
            Self::Accepted(to, _) | Self::Again(to, _) => drop(to.send(Err(error))),
            Self::Leaf(to, _) => drop(to.send(Err(error))),
            Self::Rejected(to, _) | Self::RejectedAgain(to, _) => drop(to.send(Err(error))),
            Self::Recorded(to, _) => drop(to.send(Err(error))),
            Self::Done(to) => drop(to.send(Err(error))),
        }
    }
}

impl Request {
    fn refuse(self, error: StoreError) {
        match self {
            Self::Accept(_, _, to) => drop(to.send(Err(error))),
            Self::Reject(_, to) => drop(to.send(Err(error))),
            Self::Record(_, to) => drop(to.send(Err(error))),
            Self::Import(_, _, to) => drop(to.send(Err(error))),
            Self::Plain(_, to)
            | Self::Restore(_, _, to)
            | Self::Moved(_, _, to)
            | Self::Freed(_, to)
            | Self::Close(to) => drop(to.send(Err(error))),
            Self::Idle => {}
        }
    }

    const fn work(&self) -> Work {
        match self {
            Self::Accept(..) | Self::Reject(..) => Work::New,
            _ => Work::Draining,
        }
    }

    fn frame_bytes(&self) -> usize {
        match self {
            Self::Accept(prepared, with, _) => {
                prepared.frame_bytes() + with.iter().map(Prepared::frame_bytes).sum::<usize>()
            }
            Self::Reject(prepared, _)
            | Self::Record(prepared, _)
            | Self::Restore(prepared, _, _)
            | Self::Plain(prepared, _) => prepared.frame_bytes(),
            Self::Import(all, _, _) => all.iter().map(Prepared::frame_bytes).sum(),
            _ => 0,
        }
    }
}

pub struct Committer {
    pub shared: Arc<Shared>,
    pub config: EmbeddedConfig,
    pub journal: Journal,
    pub totals: Totals,
    pub requests: Receiver<Request>,
    /// In a task: what was taken from the queue and is not begun.
    pub first: Option<Request>,
    /// Bodies that the group in the making may leave without a name.
    pub pruned: Vec<[u8; 32]>,
    /// Dispatches and rejections of the group in the making, with the digests of their envelopes.
    pub new: Vec<(u64, Digest)>,
    /// Restores in the group in the making.
    pub restored: u64,
    /// Segments that are full, for the settler.
    pub full: std::sync::mpsc::Sender<u64>,
}

impl Committer {
    /// Until closed, or until nobody is left to ask.
    pub fn run(mut self) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| self.requests.blocking_recv()) {
            match self.turn(first) {
                Ok(left) => next = left,
                Err(answer) => return self.close(answer),
            }
        }
    }

    /// The same as a task, in which a group takes so long.
    pub async fn run_as_task(committer: Arc<Mutex<Self>>, disk: Duration) {
        let held = || committer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let comes = std::future::poll_fn(|context| {
                let mut committer = held();
                if committer.first.is_none() {
                    committer.first = std::task::ready!(committer.requests.poll_recv(context));
                }
                Poll::Ready(committer.first.is_some())
            });
            if !comes.await {
                return;
            }
            tokio::time::sleep(disk).await;
            let mut committer = held();
            let Some(first) = committer.first.take() else { continue };
            match committer.turn(first) {
                Ok(left) => committer.first = left,
                Err(answer) => return drop(answer.send(Err(StoreError::Closed))),
            }
        }
    }

    /// One request that does not come through the queue; what the task holds in its hand goes before it, as a group takes
    /// what stands behind that.
    pub fn at_once(&mut self, request: Request) {
        let held = self.first.take_if(|first| !matches!(first, Request::Close(_)));
        for request in held.into_iter().chain([request]) {
            let mut next = Some(request);
            while let Some(first) = next.take_if(|first| !matches!(first, Request::Close(_))) {
                // A close comes through the queue only.
                next = self.turn(first).unwrap_or(None);
            }
            self.first = next.or_else(|| self.first.take());
        }
    }

    /// One group. Returns what did not fit into it, or whom to tell of the close.
    fn turn(&mut self, first: Request) -> Result<Option<Request>, Answer<()>> {
        let shared = self.shared.clone();
        if let Some(error) = shared.poison() {
            first.refuse(error);
            return Ok(None);
        }
        if let Request::Close(answer) = first {
            return Err(answer);
        }
        Ok(self.group(first, &shared).unwrap_or_else(|error| {
            shared.stop_for(&error);
            None
        }))
    }

    /// Commits `first` and what waits behind it. Returns a request that did not fit. An error is final.
    fn group(&mut self, first: Request, shared: &Shared) -> Result<Option<Request>, StoreError> {
        // Refused before anything is written: once it is in the journal, it must become visible.
        if let Err(error) = shared.view.has_room() {
            first.refuse(error);
            return Ok(None);
        }
        let Some(first) = self.make_room(first)? else { return Ok(None) };
        let began = Instant::now();
        self.new.clear();
        self.restored = 0;
        let mut staged = Staged::new(&shared.view);
        let mut replies = Vec::new();
        let mut totals = self.totals;
        let mut left = None;
        let mut done = self.take(first, &mut staged, &mut totals, &mut replies);
        while done.is_ok()
            && replies.len() < self.config.group_records
            && self.journal.bytes() < self.config.group_bytes
            && began.elapsed() < self.config.collect
        {
            let Ok(request) = self.requests.try_recv() else { break };
            if matches!(request, Request::Close(_)) || !self.journal.fits(request.frame_bytes()) {
                left = Some(request);
                break;
            }
            done = self.take(request, &mut staged, &mut totals, &mut replies);
        }
        docaxis_failpoints::failpoint!("broker.commit.taken");
        if done.is_ok() && docaxis_failpoints::defect!("broker.defect.acknowledged-before-sync") {
            replies.drain(..).for_each(|reply| self.answer(reply));
        }
        let done = done.and_then(|()| self.commit(&mut staged, &mut totals));
        if let Err(error) = &done {
            // Set before the first refusal leaves: who is refused must find the store refusing.
            shared.poison_with(error);
            let error = shared.poison().unwrap_or(StoreError::Closed);
            replies.into_iter().for_each(|reply| reply.refuse(error.clone()));
            if let Some(request) = left {
                request.refuse(error);
            }
            return Ok(None);
        }
        self.totals = totals;
        shared.set_totals(&totals);
        // Only now: who looks again must find them.
        shared.restored.fetch_add(self.restored, Ordering::Relaxed);
        docaxis_failpoints::failpoint!("broker.commit.visible");
        replies.into_iter().for_each(|reply| self.answer(reply));
        docaxis_failpoints::failpoint!("broker.commit.answered");
        shared.publish(&totals);
        Ok(left)
    }

    /// Makes sure that the next group's segment has room for `first`, or refuses it.
    fn make_room(&mut self, first: Request) -> Result<Option<Request>, StoreError> {
        let bytes = first.frame_bytes();
        if bytes as u64 > self.journal.max_frame_bytes() {
            let (found, max) = (bytes, self.journal.max_frame_bytes());
            let found = format!("it takes {found} bytes; a journal segment holds {max}");
            first.refuse(StoreError::Io { operation: "storing a record", found });
            return Ok(None);
        }
        if bytes > 0 && !self.journal.fits(bytes) {
            let may_roll = if first.work() == Work::New { self.may_take_new() } else { self.may_drain() };
            if let Err(error) = may_roll {
                first.refuse(error);
                return Ok(None);
            }
            match self.journal.roll(first.work()) {
                Ok(full) => drop(self.full.send(full)),
                // Nothing has been written to the journal itself: there may be room again.
                Err(error @ StoreError::DiskFull(_)) => {
                    self.shared.space.ran_out();
                    first.refuse(error);
                    return Ok(None);
                }
                Err(error) => {
                    self.shared.poison_with(&error);
                    first.refuse(self.shared.poison().unwrap_or(error));
                    return Ok(None);
                }
            }
        }
        Ok(Some(first))
    }

    /// Decides one request and stages what follows from it.
    fn take(
        &mut self,
        request: Request,
        staged: &mut Staged<'_>,
        totals: &mut Totals,
        replies: &mut Vec<Reply>,
    ) -> Result<(), StoreError> {
        if matches!(request, Request::Accept(..) | Request::Reject(..) | Request::Record(..))
            && let Some(frozen) = self.shared.frozen()
        {
            request.refuse(frozen);
            return Ok(());
        }
        match request {
            Request::Accept(prepared, withdrawals, to) => match self.decide_accept(&prepared, staged, totals) {
                Ok(None) => {
                    let seq = Seq(self.add(&prepared, staged, totals)?);
                    self.withdraw(&withdrawals, staged, totals)?;
                    replies.push(Reply::Accepted(to, Accepted::New(seq)));
                }
                Ok(Some(Accepted::New(seq))) => replies.push(Reply::Again(to, seq)),
                Ok(Some(decided)) => replies.push(Reply::Accepted(to, decided)),
                Err(error) => return refused(error, to),
            },
            Request::Reject(prepared, to) => match self.decide_reject(&prepared, staged) {
                Ok(None) => {
                    let leaf = self.add(&prepared, staged, totals)?;
                    replies.push(Reply::Rejected(to, leaf));
                }
                Ok(Some(known)) => replies.push(Reply::RejectedAgain(to, Seq(known))),
                Err(error) => return refused(error, to),
            },
            Request::Record(prepared, to) => match decide_record(&prepared, staged) {
                Ok(None) => {
                    let leaf = self.add(&prepared, staged, totals)?;
                    replies.push(Reply::Recorded(to, Recorded::New(leaf)));
                }
                Ok(Some(stale)) => replies.push(Reply::Recorded(to, stale)),
                Err(error) => return refused(error, to),
            },
            Request::Plain(prepared, to) => {
                self.add(&prepared, staged, totals)?;
                replies.push(Reply::Done(to));
            }
            Request::Restore(prepared, seq, to) => match head_row(seq, staged)?.map(|head| head.stage) {
                // It has come to its end meanwhile: nobody waits for them.
                Some(Stage::Pruned) => replies.push(Reply::Done(to)),
                Some(_) => {
                    self.add(&prepared, staged, totals)?;
                    self.restored += 1;
                    replies.push(Reply::Done(to));
                }
                None => {
                    let found = format!("there is no dispatch {seq}");
                    drop(to.send(Err(StoreError::Io { operation: "restoring bodies", found })));
                }
            },
            Request::Import(all, first, to) => {
                let mut taken = 0;
                for (prepared, leaf) in all.iter().zip(first..) {
                    if !fits_in_place(prepared, leaf, staged, totals)? {
                        break;
                    }
                    self.add(prepared, staged, totals)?;
                    taken += 1;
                }
                replies.push(Reply::Leaf(to, taken));
            }
            Request::Moved(segment, moved, to) => {
                point_to_evidence(segment, &moved, staged)?;
                replies.push(Reply::Done(to));
            }
            Request::Freed(segment, to) => {
                staged.remove(keys::moved(segment));
                staged.remove(keys::live(segment));
                replies.push(Reply::Done(to));
            }
            Request::Idle => self.journal.mark()?,
            Request::Close(to) => drop(to.send(Err(StoreError::Closed))),
        }
        Ok(())
    }

    /// Records what a recall withdraws in the group of its acceptance: one is not durable without the other. What has been
    /// handed over meanwhile, or has ended otherwise, stays as it is.
    fn withdraw(
        &mut self,
        withdrawals: &[Prepared],
        staged: &mut Staged<'_>,
        totals: &mut Totals,
    ) -> Result<(), StoreError> {
        for withdrawal in withdrawals {
            match decide_record(withdrawal, staged) {
                Ok(None) => drop(self.add(withdrawal, staged, totals)?),
                Ok(Some(_)) => {}
                Err(error @ (StoreError::Damaged(_) | StoreError::Poisoned(_))) => return Err(error),
                Err(error) => tracing::error!(%error, "a withdrawal names what is not there"),
            }
        }
        Ok(())
    }

    /// Puts a record into the group. Returns its leaf index.
    fn add(&mut self, prepared: &Prepared, staged: &mut Staged<'_>, totals: &mut Totals) -> Result<u64, StoreError> {
        let leaf = totals.leaves;
        let placed = Placed { outline: &Outline::of(prepared), leaf, at: self.journal.place(), again: false };
        if let RecordV1::Pruned(pruned) = &prepared.record {
            self.pruned.extend(pruned.iter().flat_map(|dispatch| &dispatch.parts));
        }
        if let RecordV1::Accepted(accepted) = &prepared.record {
            self.new.push((leaf, Digest(accepted.envelope_sha256)));
        }
        if let RecordV1::Rejected(rejected) = &prepared.record {
            self.new.push((leaf, rejected.envelope.digest()));
        }
        apply(&placed, staged, totals)?;
        self.journal.add(prepared, leaf);
        Ok(leaf)
    }

    /// `None` if it is new; `New(seq)` stands for "the answer of then".
    fn decide_accept(
        &self,
        prepared: &Prepared,
        staged: &Staged<'_>,
        totals: &Totals,
    ) -> Result<Option<Accepted>, StoreError> {
        let RecordV1::Accepted(accepted) = &prepared.record else { return Ok(None) };
        // Two tries may be under way at once, and the answer to the first may have overtaken this look at the second.
        if let Some(known) = self.answered((&accepted.id, Digest(accepted.envelope_sha256)), staged)? {
            return Ok(Some(Accepted::New(Seq(known))));
        }
        if let Some(known) = remembered(&accepted.id, &accepted.sender, totals.newest_ms, staged)? {
            return Ok(Some(Accepted::Conflict { envelope_sha256: self.envelope_of(known)? }));
        }
        self.may_take_new()?;
        self.check_bodies(accepted)?;
        Ok(None)
    }

    /// `None` if it is new, else the leaf under which the same envelope was answered.
    fn decide_reject(&self, prepared: &Prepared, staged: &Staged<'_>) -> Result<Option<u64>, StoreError> {
        let RecordV1::Rejected(rejected) = &prepared.record else { return Ok(None) };
        let known = self.answered((&rejected.id, rejected.envelope.digest()), staged)?;
        if known.is_none() {
            self.may_take_new()?;
        }
        Ok(known)
    }

    /// The leaf under which exactly this envelope was accepted or rejected, however long ago.
    fn answered(
        &self,
        (id, envelope_sha256): (&[u8; 16], Digest),
        staged: &Staged<'_>,
    ) -> Result<Option<u64>, StoreError> {
        for kind in [Intake::Accepted, Intake::Rejected] {
            for leaf in answers((id, &envelope_sha256), kind, staged)? {
                if self.envelope_of(leaf)? == envelope_sha256 {
                    return Ok(Some(leaf));
                }
            }
        }
        Ok(None)
    }

    /// The digest of the envelope that was answered under this leaf. One of the group in the making stands in no file yet.
    fn envelope_of(&self, seq: u64) -> Result<Digest, StoreError> {
        if let Some((_, envelope_sha256)) = self.new.iter().find(|(new, _)| *new == seq) {
            return Ok(*envelope_sha256);
        }
        match self.shared.leaf(seq)?.map(|(_, found)| found.prepared.record) {
            Some(RecordV1::Accepted(accepted)) => Ok(Digest(accepted.envelope_sha256)),
            Some(RecordV1::Rejected(rejected)) => Ok(rejected.envelope.digest()),
            _ => Err(StoreError::Damaged(format!("the answer to submission {seq} is not where the index says"))),
        }
    }

    /// Whether there is room for what was not promised yet. What was begun may end until only draining is left.
    fn may_take_new(&self) -> Result<(), StoreError> {
        self.shared.space.may_finish().map_err(|reason| StoreError::DiskFull(reason.text))?;
        let (waiting, max) = (self.unsettled(), self.config.max_unsettled_segments);
        if waiting > max {
            return Err(StoreError::Behind(format!(
                "{waiting} full journal segments wait to be settled; new submissions are taken with at most {max}"
            )));
        }
        Ok(())
    }

    /// On a nearly full disk, the room that is left is evidence's: while the settler still has segments to empty, the next one
    /// comes from there and not from the ballast.
    fn may_drain(&self) -> Result<(), StoreError> {
        let scarce = self.shared.space.level() >= Level::DrainOnly;
        if scarce && self.unsettled() > 0 && !self.shared.segments.has_spare() {
            return Err(StoreError::DiskFull("the journal's next segment is being emptied".into()));
        }
        Ok(())
    }

    /// Full segments that are not in evidence yet.
    fn unsettled(&self) -> u64 {
        self.journal.position().segment.saturating_sub(self.shared.evidence.settled() + 1)
    }

    /// A promise to deliver bodies that are not there would be no promise.
    fn check_bodies(&self, accepted: &AcceptedV1) -> Result<(), StoreError> {
        for part in &accepted.parts {
            if accepted.bodies.iter().any(|body| body.sha256 == part.sha256) {
                continue;
            }
            let digest = PartDigest { sha256: Digest(part.sha256), size: part.size };
            // It was there when the dispatch was admitted, or has come since: a look that fails is no sign that it went.
            if !is_large(part.size) || !self.shared.blobs.exists(&digest).unwrap_or(true) {
                let found = format!("the body {} of {} bytes is not stored", digest.sha256, digest.size);
                return Err(StoreError::Io { operation: "accepting a dispatch", found });
            }
        }
        Ok(())
    }

    fn commit(&mut self, staged: &mut Staged<'_>, totals: &mut Totals) -> Result<(), StoreError> {
        if self.journal.records() > 0 {
            self.journal.commit()?;
            self.retire_pruned(staged)?;
        }
        totals.applied = self.journal.position();
        staged.put(keys::totals(), row(totals)?);
        staged.merge()
    }

    /// Takes blobs away that nothing names any more, which is durable now. Here and not elsewhere, so that no acceptance
    /// can name one in between.
    fn retire_pruned(&mut self, staged: &Staged<'_>) -> Result<(), StoreError> {
        for sha256 in std::mem::take(&mut self.pruned) {
            if Lookup::get(staged, &keys::body(&sha256))?.is_none()
                && let Err(e) = self.shared.blobs.retire(&Digest(sha256))
            {
                tracing::warn!(body = %Digest(sha256), error = %e, "a body that nothing names stays until the next start");
            }
        }
        Ok(())
    }

    fn answer(&self, reply: Reply) {
        // Who has stopped waiting finds the same answer when he asks again.
        match reply {
            Reply::Accepted(to, answer) => drop(to.send(Ok(answer))),
            Reply::Again(to, seq) => {
                let receipt = self.shared.reads().receipt(seq);
                drop(to.send(receipt.map(|evidence| Accepted::Already(seq, evidence))));
            }
            Reply::Leaf(to, leaf) => drop(to.send(Ok(leaf))),
            Reply::Rejected(to, leaf) => drop(to.send(Ok(Rejected::New(leaf)))),
            Reply::RejectedAgain(to, seq) => {
                let answer = self.shared.reads().receipt(seq);
                drop(to.send(answer.map(|evidence| Rejected::Already(seq, evidence))));
            }
            Reply::Recorded(to, answer) => drop(to.send(Ok(answer))),
            Reply::Done(to) => drop(to.send(Ok(()))),
        }
    }

    fn close(mut self, answer: Answer<()>) {
        self.requests.close();
        while let Ok(late) = self.requests.try_recv() {
            late.refuse(StoreError::Closed);
        }
        let mut staged = Staged::new(&self.shared.view);
        let done = self.journal.mark().and_then(|()| {
            self.totals.applied = self.journal.position();
            staged.put(keys::totals(), row(&self.totals)?);
            staged.merge()
        });
        if let Err(error) = &done {
            self.shared.poison_with(error);
        }
        drop(answer.send(done));
    }
}

/// A request that cannot be done is answered; damage or a failing disk is final.
fn refused<T>(error: StoreError, to: Answer<T>) -> Result<(), StoreError> {
    let last = matches!(error, StoreError::Damaged(_) | StoreError::Poisoned(_));
    drop(to.send(Err(error.clone())));
    if last { Err(error) } else { Ok(()) }
}

/// `None` if the record may be committed.
fn decide_record(prepared: &Prepared, staged: &Staged<'_>) -> Result<Option<Recorded>, StoreError> {
    let RecordV1::Event(event) = &prepared.record else { return Ok(None) };
    let EventV1 { seq, recipient, previous, state, .. } = event.as_ref();
    let refuse = |found: String| StoreError::Io { operation: "recording an event", found };
    let Some(now) = delivery(*seq, recipient, staged)? else {
        return Err(refuse(format!("dispatch {seq} has no delivery to {recipient}")));
    };
    if now.head.0 != *previous {
        return Ok(Some(Recorded::Stale(now)));
    }
    if state.is_waiting() && !now.state.is_waiting() {
        return Err(refuse(format!("the delivery of {seq} to {recipient} has ended and cannot wait again")));
    }
    Ok(None)
}

/// Whether a leaf of before may stand at this place: it is the log's next one, and follows what stands before it.
fn fits_in_place(prepared: &Prepared, leaf: u64, staged: &Staged<'_>, totals: &Totals) -> Result<bool, StoreError> {
    if leaf != totals.leaves {
        return Ok(false);
    }
    match &prepared.record {
        RecordV1::Accepted(accepted) => {
            Ok(remembered(&accepted.id, &accepted.sender, totals.newest_ms, staged)?.is_none())
        }
        RecordV1::Event(_) => match decide_record(prepared, staged) {
            Ok(stale) => Ok(stale.is_none()),
            Err(StoreError::Io { .. }) => Ok(false),
            Err(error) => Err(error),
        },
        _ => Ok(true),
    }
}

/// Points rows that still point into the journal segment to the records' copies.
fn point_to_evidence(segment: u64, moved: &[Moved], staged: &mut Staged<'_>) -> Result<(), StoreError> {
    let here = |at: &Location| at.area == Area::Journal && at.segment == segment;
    for record in moved {
        for leaf in record.leaf..record.leaf.saturating_add(record.leaves) {
            let key = keys::leaf(leaf);
            if let Some(bytes) = Lookup::get(staged, &key)? {
                let mut leaf: LeafRow = read_row(&bytes)?;
                if here(&leaf.at) {
                    leaf.at = record.to;
                    staged.put(key, row(&leaf)?);
                }
            }
        }
        for (item, name) in &record.notices {
            let key = keys::notice(name);
            if let Some(bytes) = Lookup::get(staged, &key)?
                && here(&read_row::<NoticeRow>(&bytes)?.at)
            {
                staged.put(key, row(&NoticeRow { at: record.to, item: *item })?);
            }
        }
    }
    if moved.is_empty() {
        staged.put(keys::moved(segment), vec![]);
    }
    Ok(())
}
