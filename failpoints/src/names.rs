//! Every failpoint by name, in the order of the way that it lies on. A test compares these lists with the code.

/// The broker's.
pub const BROKER: &[&str] = &[
    // A start: recovery itself must survive its own death.
    "broker.start.index-noted",
    "broker.rebuild.applied",
    "broker.rebuild.ids-written",
    "broker.rebuild.leaves-written",
    "broker.rebuild.rows-written",
    "broker.rebuild.whole",
    "broker.start.tail-rewritten",
    "broker.start.recovered",
    "broker.start.log-agreed",
    // A submission.
    "broker.submit.read",
    "broker.submit.admitted",
    "broker.submit.needed",
    "broker.submit.collected",
    "broker.partial.synced",
    "broker.partial.named",
    "broker.blob.written",
    "broker.blob.synced",
    "broker.blob.renamed",
    "broker.blob.named",
    "broker.accept.signed",
    "broker.accept.committed",
    "broker.reject.signed",
    "broker.reject.committed",
    "broker.submit.answering",
    "broker.submit.answered",
    // The commit of a group, whatever it holds.
    "broker.commit.taken",
    "broker.commit.written",
    "broker.commit.synced",
    "broker.commit.visible",
    "broker.commit.answered",
    // An offer and what the recipient says to it.
    "broker.offer.sending",
    "broker.offer.sent",
    "broker.handover.read",
    "broker.record.signed",
    "broker.record.committed",
    "broker.handover.answering",
    "broker.handover.answered",
    "broker.report.read",
    "broker.report.answering",
    "broker.report.answered",
    "broker.expire.due",
    "broker.expire.recorded",
    // What the sender's node follows.
    "broker.follow.sending",
    "broker.follow.sent",
    "broker.proofs.sent",
    // What the authority publishes.
    "broker.notices.read",
    "broker.notices.committed",
    "broker.notices.answering",
    "broker.notices.answered",
    // Segments: begun, settled into evidence, freed.
    "broker.segment.spare-written",
    "broker.segment.spare-synced",
    "broker.segment.headed",
    "broker.segment.head-synced",
    "broker.segment.renamed",
    "broker.segment.begun",
    "broker.evidence.file-synced",
    "broker.evidence.file-begun",
    "broker.evidence.written",
    "broker.evidence.synced",
    "broker.settle.copied",
    "broker.settle.pointed",
    "broker.settle.moved",
    "broker.settle.forwarded",
    "broker.prune.committed",
    "broker.blob.retired",
    "broker.blob.removed",
    "broker.segment.freeing",
    "broker.segment.spared",
    "broker.segment.freed",
    "broker.settle.freed",
    // The index, which is only a view.
    "broker.index.writing",
    "broker.index.ids-headed",
    "broker.index.ids-split",
    "broker.index.ids-paged",
    "broker.index.written",
    // The evidence log.
    "broker.log.file-synced",
    "broker.log.tiles-written",
    "broker.log.checkpoint-written",
    "broker.log.outgrown-removed",
];

/// The agent's.
pub const AGENT: &[&str] = &[
    "agent.start.opened",
    "agent.start.cleared",
    // A body, whichever way it goes.
    "agent.partial.synced",
    "agent.partial.named",
    "agent.part.written",
    "agent.part.synced",
    "agent.part.renamed",
    "agent.part.named",
    // The commit of what waits, whatever it is.
    "agent.mailbox.begun",
    "agent.mailbox.filled",
    "agent.mailbox.committed",
    "agent.mailbox.told",
    // An outgoing dispatch.
    "agent.compose.stored",
    "agent.compose.sealed",
    "agent.compose.queued",
    "agent.submit.sending",
    "agent.submit.sent",
    "agent.submit.needed",
    "agent.submit.answered",
    "agent.submit.settled",
    // An incoming one.
    "agent.offer.read",
    "agent.offer.fetched",
    "agent.offer.sealed",
    "agent.offer.taken",
    "agent.offer.stated",
    "agent.offer.recorded",
    "agent.offer.shown",
    // What an officer says of it.
    "agent.officer.sealed",
    "agent.officer.stated",
    "agent.report.sending",
    "agent.report.answered",
    "agent.report.stored",
    // Evidence about what was sent.
    "agent.follow.read",
    "agent.follow.stored",
    "agent.proofs.read",
    "agent.proofs.stored",
    // The directory.
    "agent.directory.read",
    "agent.directory.stored",
];

/// Defects that a test can plant.
pub const DEFECTS: &[&str] = &[
    // Answers leave before the group that they rest on is synced.
    "broker.defect.acknowledged-before-sync",
    // A recipient whose node did not take an offer is offered it no more.
    "broker.defect.dropped-on-retry",
    // A dispatch is handed over before the time that its sender appointed.
    "broker.defect.handed-over-early",
    // A handover does not wait for the earlier ones of its pair.
    "broker.defect.handed-over-out-of-turn",
    // A recall withdraws what was handed over already.
    "broker.defect.recall-and-handover",
    // A dispatch is shown before the exchange has recorded its handover.
    "agent.defect.shown-before-recorded",
];
