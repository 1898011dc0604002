//! A certificate and its key in two files, replaced as one.
//!
//! Both are first written into one file, `<certificate>.next`, which appears whole or not at all. From then on the new
//! pair is in force: whoever reads the folder finishes copying it to the two files. Without this, a crash between them
//! would leave a node with a key that fits no certificate, and no way back but a new invitation.

use std::fs;
use std::path::Path;

use zeroize::Zeroizing;

use crate::files::{self, FileError, failed};
use crate::keys::PrivateKey;

pub(crate) const NEXT: &str = ".next";

const FIRST_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

pub(crate) fn write(
    folder: &Path,
    certificate: &str,
    key: &str,
    chain: &str,
    private: &PrivateKey,
) -> Result<(), FileError> {
    let both = Zeroizing::new([private.pem().as_str(), chain].concat());
    files::write(&folder.join(format!("{certificate}{NEXT}")), both.as_bytes())?;
    finish(folder, certificate, key)
}

/// Brings a pair that was written into its two files; does nothing if there is none.
pub(crate) fn finish(folder: &Path, certificate: &str, key: &str) -> Result<(), FileError> {
    let next = folder.join(format!("{certificate}{NEXT}"));
    let both = match files::read(&next) {
        Ok(both) => Zeroizing::new(both),
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    let mark = FIRST_CERTIFICATE.as_bytes();
    let split = both.windows(mark.len()).position(|window| window == mark).unwrap_or(both.len());
    files::write(&folder.join(key), &both[..split])?;
    files::write(&folder.join(certificate), &both[split..])?;
    fs::remove_file(&next).map_err(failed("remove", &next))?;
    files::sync_folder_of(&next)
}
