//! Where a body is: a small one in the mailbox, where it becomes durable with the dispatch that names it, any other a file.
//! Whoever stores or reads a body asks here.

use docaxis_protocol::Digest;

use crate::agent::Shared;
use crate::mailbox::{BodyRow, MailboxError, SmallBodies};
use crate::parts::{PartReader, PartsError, Pin};

/// Bodies of a dispatch that the mailbox does not name yet.
#[derive(Default)]
pub(crate) struct Kept {
    pub small: SmallBodies,
    /// Of those that are files, durable already.
    pub pins: Vec<Pin>,
}

impl Kept {
    /// Looks at a small body that is here already. Where it is not whole in the mailbox, it becomes a file.
    pub async fn look_at(&mut self, shared: &Shared, sha256: Digest) -> Result<Result<(), PartsError>, MailboxError> {
        if let BodyRow::Whole(_) = shared.mailbox.body(sha256).await? {
            self.small.found_whole(sha256);
        } else if let Some(bytes) = self.small.remove(sha256) {
            match shared.blocking(move |parts| parts.store(&bytes)).await {
                Ok(stored) => self.pins.push(stored.pin),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

impl Shared {
    /// Opens a body wherever it is. Of one that is damaged in the mailbox, a file is looked for: there it is put when it came
    /// once more.
    pub async fn open_body(&self, sha256: Digest) -> Result<Result<PartReader, PartsError>, MailboxError> {
        let row = self.mailbox.body(sha256).await?;
        if let BodyRow::Whole(bytes) = row {
            return Ok(Ok(PartReader::of(bytes, sha256)));
        }
        let file = self.blocking(move |parts| parts.read(sha256)).await;
        Ok(match (file, row) {
            // Its reader says of it what it says of a damaged file.
            (Err(PartsError::Missing(_)), BodyRow::Damaged(bytes)) => Ok(PartReader::of(bytes, sha256)),
            (Err(PartsError::Missing(_)), BodyRow::Unreadable(why)) => Err(PartsError::Unreadable { sha256, why }),
            (file, _) => file,
        })
    }

    /// All of a body that is small.
    pub async fn read_small_body(&self, sha256: Digest) -> Result<Result<Vec<u8>, PartsError>, MailboxError> {
        if let BodyRow::Whole(bytes) = self.mailbox.body(sha256).await? {
            return Ok(Ok(bytes));
        }
        let reader = self.open_body(sha256).await?;
        Ok(self.blocking(move |_| reader.and_then(PartReader::read_all)).await)
    }

    /// Reads a body to its end: nobody signs for what the disk may have lost meanwhile.
    pub async fn check_body(&self, sha256: Digest) -> Result<Result<(), PartsError>, MailboxError> {
        if let BodyRow::Whole(_) = self.mailbox.body(sha256).await? {
            return Ok(Ok(()));
        }
        let reader = self.open_body(sha256).await?;
        let read = move || {
            let mut reader = reader?;
            while reader.next_chunk()?.is_some() {}
            Ok(())
        };
        Ok(self.blocking(move |_| read()).await)
    }
}
