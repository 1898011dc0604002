//! Attachment names that every system can store: made safe, and distinct within one message.
//!
//! A name is never used as a path here; it is made so that a caller who does can come to no harm.

use std::borrow::Cow;
use std::collections::BTreeSet;

use docaxis_protocol::limits::MAX_NAME_BYTES;
use unicode_normalization::UnicodeNormalization;

/// The longest ending that is kept when a name is cut.
const MAX_EXTENSION_BYTES: usize = 16;
const UNNAMED: &str = "unnamed";
/// Names of devices on Windows, with any extension.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];

/// The name without anything that could lead out of a folder or that some system cannot store: NFC, no path (only what
/// follows the last separator of either kind), no control or direction characters, none of `<>:"|?*`, no trailing dots or
/// spaces, no device name, at most 255 bytes with the extension kept. The second value says whether it changed.
///
/// ```
/// use docaxis_node_agent::gateway::edxml::safe_name;
/// assert_eq!(safe_name("../../etc/passwd"), ("passwd".to_owned(), true));
/// assert_eq!(safe_name("Công văn 12.pdf"), ("Công văn 12.pdf".to_owned(), false));
/// ```
pub fn safe_name(name: &str) -> (String, bool) {
    let composed: String = name.nfc().collect();
    let last = composed
        .rsplit(['/', '\\'])
        .map(|part| part.trim_matches(|c: char| c.is_whitespace() || c.is_control()))
        .find(|part| !part.trim_matches('.').is_empty())
        .unwrap_or("");
    let kept: String = last
        .chars()
        .filter(|c| !c.is_control() && !is_direction(*c))
        .map(|c| if matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*') { '_' } else { c })
        .collect();
    let mut safe = trim_end(&kept).trim_start().to_owned();
    if is_device(&safe) {
        safe.insert(0, '_');
    }
    if safe.len() > MAX_NAME_BYTES {
        safe = shorten(&safe, MAX_NAME_BYTES, "");
    }
    if safe.trim_matches('.').is_empty() {
        safe = UNNAMED.to_owned();
    }
    // Dropping a character may bring two together that compose.
    if let Cow::Owned(composed) = composed_again(&safe) {
        safe = composed;
    }
    let changed = safe != name;
    (safe, changed)
}

fn composed_again(name: &str) -> Cow<'_, str> {
    if unicode_normalization::is_nfc(name) {
        Cow::Borrowed(name)
    } else {
        let composed: String = name.nfc().collect();
        Cow::Owned(if composed.len() > MAX_NAME_BYTES { shorten(&composed, MAX_NAME_BYTES, "") } else { composed })
    }
}

fn trim_end(name: &str) -> &str {
    name.trim_end_matches(|c: char| c == '.' || c.is_whitespace())
}

/// Characters that make a name read in another order than it is stored, or that cannot be seen.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or("").trim_end().to_lowercase();
    DEVICES.iter().any(|device| match stem.strip_prefix(device) {
        Some("") => !matches!(*device, "com" | "lpt"),
        Some(rest) => matches!(*device, "com" | "lpt") && rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()),
        None => false,
    })
}

/// The ending of a name with its dot, or nothing.
pub(super) fn extension(name: &str) -> &str {
    match name.rfind('.') {
        Some(at) if at > 0 && at + 1 < name.len() && name.len() - at <= MAX_EXTENSION_BYTES => &name[at..],
        _ => "",
    }
}

/// `name` in at most `max` bytes with `suffix` before its extension.
fn shorten(name: &str, max: usize, suffix: &str) -> String {
    let extension = extension(name);
    let stem = &name[..name.len() - extension.len()];
    let mut end = stem.len().min(max.saturating_sub(extension.len() + suffix.len()));
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}{extension}", trim_end(&stem[..end]))
}

/// Hands out names that are distinct within one message, also where case does not count.
#[derive(Debug, Default)]
pub struct SafeNames {
    taken: BTreeSet<String>,
}

impl SafeNames {
    /// `name` made safe and, if another part has it, numbered: `letter.pdf`, `letter (2).pdf`.
    pub fn take(&mut self, name: &str) -> (String, bool) {
        let (safe, mut changed) = safe_name(name);
        let mut candidate = safe.clone();
        let mut number = 1_u32;
        while !self.taken.insert(candidate.to_lowercase()) {
            number += 1;
            candidate = shorten(&safe, MAX_NAME_BYTES, &format!(" ({number})"));
            changed = true;
        }
        (candidate, changed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_and_foreign_names_become_harmless_ones() {
        for (name, safe) in [
            ("../../etc/passwd", "passwd"),
            (r"C:\Users\van thu\to trinh.docx", "to trinh.docx"),
            ("..", "unnamed"),
            ("...", "unnamed"),
            ("", "unnamed"),
            ("a/", "a"),
            ("a/..", "a"),
            ("bao cao.pdf. .", "bao cao.pdf"),
            ("bảng\u{0}\n kê.xlsx", "bảng kê.xlsx"),
            ("V/v: họp?.pdf", "v_ họp_.pdf"),
            ("ảnh\u{202e}gpj.exe", "ảnhgpj.exe"),
            ("con.txt", "_con.txt"),
            ("COM7", "_COM7"),
            ("Tie\u{302}\u{301}ng Vie\u{323}\u{302}t.pdf", "Tiếng Việt.pdf"),
        ] {
            assert_eq!(safe_name(name), (safe.to_owned(), true), "{name:?}");
        }
        for name in ["Công văn số 12.pdf", "a", ".profile", "common.pdf", "7816_VPCP-TTĐT.signed.pdf"] {
            assert_eq!(safe_name(name), (name.to_owned(), false));
        }
    }

    #[test]
    fn a_long_name_is_cut_at_a_character_and_keeps_its_extension() {
        let (safe, changed) = safe_name(&format!("{}.pdf", "ố".repeat(200)));
        assert_eq!((safe, changed), (format!("{}.pdf", "ố".repeat(83)), true));
    }

    #[test]
    fn the_same_name_twice_becomes_two_names() {
        let mut names = SafeNames::default();
        let taken = ["a.pdf", "A.PDF", "a (2).pdf", "a.pdf"].map(|name| names.take(name));
        assert_eq!(
            taken,
            [
                ("a.pdf".to_owned(), false),
                ("A (2).PDF".to_owned(), true),
                ("a (2) (2).pdf".to_owned(), true),
                ("a (3).pdf".to_owned(), true)
            ]
        );
    }

    proptest! {
        #[test]
        fn any_name_becomes_safe_and_stays_so(
            name in prop_oneof![
                ".{0,300}",
                "(\\.| |/|\\\\|:|con|nul|com1|e|\u{302}|\u{323}|\u{202e}|\u{200b}|\u{0}|\n|\u{a0}|\u{1100}|\u{1161}|ố){0,200}",
            ],
        ) {
            let (safe, _) = safe_name(&name);
            prop_assert_eq!(docaxis_protocol::envelope::check_part_name(&safe), Ok(()));
            prop_assert!(!safe.trim_matches('.').is_empty());
            prop_assert_eq!(safe_name(&safe), (safe, false));
        }
    }
}
