//! Many directory entries at once: their signatures are checked by as many threads as the machine has.

use docaxis_protocol::Origin;
use docaxis_protocol::directory::{DirectoryError, SignedEntry, VerifiedEntry};
use docaxis_protocol::key::PublicKey;

/// Entries from which on more than one thread checks them.
const MANY_ENTRIES: usize = 128;

/// Checks every signature, in order; the first that does not hold refuses all. Takes its time: not for a thread that
/// others wait for.
pub fn verify_all(
    entries: Vec<SignedEntry>,
    key: &PublicKey,
    exchange: &Origin,
) -> Result<Vec<VerifiedEntry>, DirectoryError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let check = |entries: Vec<SignedEntry>| -> Result<Vec<VerifiedEntry>, DirectoryError> {
        entries.into_iter().map(|entry| entry.verify(key, exchange)).collect()
    };
    if entries.len() < MANY_ENTRIES || threads < 2 {
        return check(entries);
    }
    let share = entries.len().div_ceil(threads);
    let mut left = entries.into_iter();
    let mut chunks: Vec<Vec<SignedEntry>> = (0..threads).map(|_| left.by_ref().take(share).collect()).collect();
    chunks.retain(|chunk| !chunk.is_empty());
    std::thread::scope(|scope| {
        let checking: Vec<_> = chunks.into_iter().map(|chunk| scope.spawn(move || check(chunk))).collect();
        let mut verified = Vec::new();
        for checked in checking {
            verified.extend(checked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(verified)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::ImportOptions;
    use crate::tests::{Exchange, NOW};

    #[test]
    fn many_entries_are_checked_in_order_and_one_bad_signature_refuses_all() {
        let mut exchange = Exchange::new();
        let rows: String = (0..MANY_ENTRIES * 3).map(|n| format!("H{n:05},Sở {n}\n")).collect();
        let list = format!("organ_id,name\n{rows}");
        exchange.authority.import_agencies(list.as_bytes(), ImportOptions::default(), NOW).unwrap();
        let (key, origin) = (exchange.authority.directory_key(), exchange.authority.origin().clone());
        let mut signed: Vec<SignedEntry> = exchange.authority.entries_since(0).cloned().collect();
        let versions: Vec<u64> =
            verify_all(signed.clone(), &key, &origin).unwrap().iter().map(|entry| entry.version).collect();
        assert_eq!(versions, (1..=signed.len() as u64).collect::<Vec<_>>());
        let last = signed.len() - 1;
        for at in [0, last / 2, last] {
            signed[at].signature.0[5] ^= 1;
            let refused = verify_all(signed.clone(), &key, &origin);
            assert!(matches!(refused, Err(DirectoryError::Signature(_))), "entry {at}");
            signed[at].signature.0[5] ^= 1;
        }
    }
}
