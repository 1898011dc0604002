//! Taking an evidence bundle apart: a ZIP whose members have exactly the names of the format, each once.
//!
//! Nothing is written anywhere and nothing is decompressed beyond the bounds. What the members say is not judged here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read, Seek, SeekFrom};

/// The longest member: an envelope is at most 1 MiB, a page for people of a dispatch to 4,000 recipients a few more.
pub const MAX_MEMBER_BYTES: u64 = 64 << 20;
/// Enough for the evidence of 4,000 recipients, with room.
pub const MAX_MEMBERS: usize = 200_000;
/// All members together: 4,000 recipients with four events each need about 200 MiB.
pub const MAX_BUNDLE_BYTES: u64 = 1 << 30;

/// The members of a bundle by name. Their names are checked, their content is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleFiles(pub(crate) BTreeMap<String, Vec<u8>>);

/// Why a file is not a bundle.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the bundle is not a readable ZIP file")]
    Zip(#[from] zip::result::ZipError),
    #[error("the bundle cannot be read")]
    Io(#[from] std::io::Error),
    #[error("the bundle has {found} files; the limit is {MAX_MEMBERS}")]
    Count { found: usize },
    #[error("the bundle's list of files is damaged or tells two stories")]
    Directory,
    #[error("{name:?} does not belong in a bundle")]
    Foreign { name: String },
    #[error("{name} is in the bundle twice")]
    Twice { name: String },
    #[error("{name} is {found} bytes; the limit is {MAX_MEMBER_BYTES}")]
    MemberTooLarge { name: String, found: u64 },
    #[error("the files in the bundle are over {MAX_BUNDLE_BYTES} bytes together")]
    TooLarge,
    #[error("{name} says it has {expected} bytes, but holds {found}")]
    Length { name: String, expected: u64, found: u64 },
}

impl BundleFiles {
    pub fn read(zip: &[u8]) -> Result<Self, ReadError> {
        Self::read_from(Cursor::new(zip))
    }

    pub fn read_from<R: Read + Seek>(zip: R) -> Result<Self, ReadError> {
        let mut archive = zip::ZipArchive::new(zip)?;
        let (count, start) = (archive.len(), archive.central_directory_start());
        if count > MAX_MEMBERS {
            return Err(ReadError::Count { found: count });
        }
        let mut files = BTreeMap::new();
        let mut total = 0;
        for n in 0..count {
            let member = archive.by_index(n)?;
            let name = String::from_utf8_lossy(member.name_raw()).into_owned();
            if !is_member_name(&name) {
                return Err(ReadError::Foreign { name: name.chars().take(80).collect() });
            }
            let expected = member.size();
            if expected > MAX_MEMBER_BYTES {
                return Err(ReadError::MemberTooLarge { name, found: expected });
            }
            total += expected;
            if total > MAX_BUNDLE_BYTES {
                return Err(ReadError::TooLarge);
            }
            let mut bytes = Vec::new();
            // One byte more than announced shows a false length without decompressing all that hides behind it.
            member.take(expected + 1).read_to_end(&mut bytes)?;
            let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if found != expected {
                return Err(ReadError::Length { name, expected, found });
            }
            if files.insert(name.clone(), bytes).is_some() {
                return Err(ReadError::Twice { name });
            }
        }
        check_directory(archive.into_inner(), start, count)?;
        Ok(Self(files))
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

/// Walks the ZIP's own list of files. The reader behind `ZipArchive` keeps one entry per name and takes the count from
/// the end record, so a second file of the same name would stay unseen here and be seen by another tool.
fn check_directory<R: Read + Seek>(mut zip: R, start: u64, count: usize) -> Result<(), ReadError> {
    const ENTRY: [u8; 4] = *b"PK\x01\x02";
    const ENDS: [[u8; 4]; 2] = [*b"PK\x05\x06", *b"PK\x06\x06"];
    zip.seek(SeekFrom::Start(start))?;
    let mut zip = std::io::BufReader::new(zip);
    let mut names = BTreeSet::new();
    let mut seen = 0usize;
    loop {
        let mut signature = [0; 4];
        zip.read_exact(&mut signature)?;
        if ENDS.contains(&signature) {
            break;
        }
        if signature != ENTRY || seen >= MAX_MEMBERS {
            return Err(ReadError::Directory);
        }
        let mut fixed = [0; 42];
        zip.read_exact(&mut fixed)?;
        let length = |at: usize| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]]));
        let mut rest = vec![0; length(24) + length(26) + length(28)];
        zip.read_exact(&mut rest)?;
        rest.truncate(length(24));
        seen += 1;
        if let Some(name) = names.replace(rest) {
            return Err(ReadError::Twice { name: String::from_utf8_lossy(&name).into_owned() });
        }
    }
    if seen == count { Ok(()) } else { Err(ReadError::Directory) }
}

/// Whether a bundle may have a member of this name.
pub fn is_member_name(name: &str) -> bool {
    if matches!(name, "envelope.json" | "envelope.sig" | "seal.pem" | "index.html" | "VERIFY.txt" | "policy.txt") {
        return true;
    }
    match name.split_once('/') {
        Some(("evidence", file)) => is_evidence_name(file),
        Some(("cause", file)) => matches!(file, "envelope.json" | "envelope.sig" | "envelope.pem"),
        Some(("directory", file)) => any_suffix(file, &[".json", ".sig"], is_code),
        Some(("personal", file)) => any_suffix(file, &[".sig", ".pem"], |stem| is_digits(stem, 3)),
        Some(("keys", file)) => is_key_name(file),
        _ => false,
    }
}

fn is_evidence_name(file: &str) -> bool {
    let suffixes = [".statement.json", ".statement.sig", ".seal.pem", ".json", ".sig", ".tlog-proof"];
    any_suffix(file, &suffixes, |stem| {
        let mut fields = stem.splitn(3, '-');
        fields.next().is_some_and(|number| is_digits(number, 6))
            && fields.next().is_some_and(|event| !event.is_empty() && event.bytes().all(|b| b.is_ascii_alphabetic()))
            && fields.next().is_none_or(is_code)
    })
}

fn is_key_name(file: &str) -> bool {
    let of_evidence = |stem: &str| {
        stem.strip_prefix("evidence-")
            .is_some_and(|id| id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    };
    matches!(file, "authority.pem" | "chain.pem" | "log.pem" | "directory.pem" | "log.vkey")
        || any_suffix(file, &[".crl"], |stem| !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_lowercase()))
        || any_suffix(file, &[".pub.pem", ".pem"], of_evidence)
}

fn any_suffix(file: &str, suffixes: &[&str], is: impl Fn(&str) -> bool) -> bool {
    suffixes.iter().any(|suffix| file.strip_suffix(suffix).is_some_and(&is))
}

fn is_digits(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_code(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase() || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn a_bundle_has_exactly_the_names_of_the_format() {
        let key = "0123456789abcdef".repeat(4);
        for name in [
            "envelope.json",
            "envelope.sig",
            "seal.pem",
            "index.html",
            "VERIFY.txt",
            "policy.txt",
            "evidence/000001-SubmissionAcceptance.json",
            "evidence/000002-ContentHandover-H37.DN.001.statement.sig",
            "evidence/000002-ContentHandover-H37.DN.001.seal.pem",
            "evidence/000001-Refused-A.tlog-proof",
            "cause/envelope.pem",
            "directory/H37.DN.001.json",
            "personal/001.sig",
            "keys/seals.crl",
            "keys/authority.pem",
            "keys/log.vkey",
            &format!("keys/evidence-{key}.pem"),
            &format!("keys/evidence-{key}.pub.pem"),
        ] {
            assert!(is_member_name(name), "{name} was refused");
        }
        for name in [
            "",
            "envelope.json/",
            "/envelope.json",
            "../envelope.json",
            "seal.pem.bak",
            "evidence/000001-A-.json",
            "evidence/00001-A.json",
            "evidence/000001-.json",
            "evidence/000001-A.statement.pem",
            "evidence/x.json",
            "evidence/zz/003.json",
            "cause/seal.pem",
            "directory/h37.json",
            "personal/1.sig",
            "keys/Seals.crl",
            "keys/evidence-00.pem",
            "keys/other.pem",
            "keys\\log.pem",
            "Envelope.json",
            "keys/.crl",
        ] {
            assert!(!is_member_name(name), "{name} was taken");
        }
    }

    #[test]
    fn members_come_back_and_foreign_ones_are_refused() {
        let zip = zipped(&[("envelope.json", b"{}"), ("index.html", b"")]);
        let expected = BTreeMap::from([("envelope.json".into(), b"{}".to_vec()), ("index.html".into(), vec![])]);
        assert_eq!(BundleFiles::read(&zip).unwrap(), BundleFiles(expected));
        let zip = zipped(&[("envelope.json", b"{}"), ("setup.exe", b"")]);
        assert!(matches!(BundleFiles::read(&zip), Err(ReadError::Foreign { name }) if name == "setup.exe"));
        assert!(matches!(BundleFiles::read(b"PK"), Err(ReadError::Zip(_))));
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        let mut zip = zipped(&[("envelope.json", b"{}"), ("envelopf.json", b"[]")]);
        for at in 0..zip.len() - 13 {
            if zip[at..].starts_with(b"envelopf.json") {
                zip[at..at + 13].copy_from_slice(b"envelope.json");
            }
        }
        assert!(matches!(BundleFiles::read(&zip), Err(ReadError::Twice { name }) if name == "envelope.json"));
    }

    #[test]
    fn a_member_that_swells_is_not_decompressed() {
        let zeros = vec![0; usize::try_from(MAX_MEMBER_BYTES).unwrap() + 1];
        let zip = zipped(&[("envelope.json", &zeros)]);
        assert!(zip.len() < 1 << 20);
        assert!(matches!(BundleFiles::read(&zip), Err(ReadError::MemberTooLarge { .. })));
        // The same with a length that lies: in the list of files, at offset 24 of the entry.
        let mut lying = zipped(&[("envelope.json", &zeros[..1 << 20])]);
        let entry = lying.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        lying[entry + 24..entry + 28].copy_from_slice(&10u32.to_le_bytes());
        assert!(BundleFiles::read(&lying).is_err());
    }
}
