//! The last act: what each recipient got is compared with what was sealed, and an auditor checks every bundle with
//! nothing but the authority's root and a copy of the log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::{Digest, DispatchId};
use serde_json::Value;

use crate::control::Control;
use crate::doc::{get_parts, write_new};
use crate::out::Failure;

/// A checkpoint covers the newest evidence within a second; this is far more.
const PROOFS_WITHIN: Duration = Duration::from_secs(20);

/// Writes a dispatch's bundle, once every piece of evidence in it has its proof.
pub fn export(broker: &Control, id: DispatchId, folder: &Path) -> Result<PathBuf, Failure> {
    let deadline = Instant::now() + PROOFS_WITHIN;
    let zip = loop {
        match broker.bytes(&format!("/v1/dispatches/{id}/bundle")) {
            Ok(zip) => break zip,
            Err(failure) if failure.exit == 4 && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(failure) => return Err(failure),
        }
    };
    let path = folder.join(format!("{id}.zip"));
    write_new(&path, |file| Ok(std::io::Write::write_all(file, &zip)?))?;
    Ok(path)
}

/// Writes a recipient's parts and compares them with the digests in the sealed envelope. Says how many there are.
pub fn compare(recipient: &Control, id: DispatchId, folder: &Path) -> Result<usize, Failure> {
    let shown: Value = recipient.get(&format!("/v1/dispatches/{id}"))?;
    let mut sealed: BTreeMap<String, Digest> = BTreeMap::new();
    for part in shown["parts"].as_array().into_iter().flatten() {
        let name = part["name"].as_str().unwrap_or_default().to_owned();
        let digest = part["sha256"].as_str().unwrap_or_default();
        sealed.insert(name, digest.parse().map_err(|e| Failure::other(format!("{e}")))?);
    }
    for path in get_parts(recipient, id, folder)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let found = digest_of(&path)?;
        if sealed.get(&name) != Some(&found) {
            return Err(Failure::other(format!("{} has SHA-256 {found}; the envelope says otherwise", path.display())));
        }
    }
    Ok(sealed.len())
}

fn digest_of(path: &Path) -> Result<Digest, Failure> {
    let mut hasher = Hasher::new();
    hasher.update(&std::fs::read(path)?);
    Ok(hasher.finish())
}
