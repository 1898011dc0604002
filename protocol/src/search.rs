//! Names as people type them when they search.

use unicode_normalization::UnicodeNormalization as _;

/// A name as it is kept: composed (NFC), without invisible characters, with single spaces. Lists that were exported from
/// word processors hold zero-width spaces and decomposed letters that nobody sees.
pub fn clean(text: &str) -> String {
    let visible: String = text.nfc().filter(|c| !is_invisible(*c)).collect();
    visible.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Letters without accents, in lower case, with single spaces; "đ" is "d".
pub fn fold(text: &str) -> String {
    let plain = text
        .nfd()
        .filter(|c| !unicode_normalization::char::is_combining_mark(*c) && !is_invisible(*c))
        .flat_map(char::to_lowercase)
        .map(|c| if c == 'đ' { 'd' } else { c })
        .collect::<String>();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Characters that have no width and no meaning in a name.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaint_14_names_in_nfd_without_accents_and_with_a_stroke_fold_to_the_same_letters() {
        let composed = "Sở Nội vụ tỉnh Đồng Nai";
        let decomposed: String = composed.nfd().collect();
        assert_ne!(composed, decomposed);
        for text in [composed, &decomposed, "SO NOI VU TINH DONG NAI", "sở  nội\u{200b} vụ\u{a0}tỉnh đồng nai "]
        {
            assert_eq!(fold(text), "so noi vu tinh dong nai", "{text:?}");
        }
        assert_eq!(clean(&decomposed), composed);
        assert_eq!(clean(" Thanh tra huyện\u{200b}  Bến Cầu "), "Thanh tra huyện Bến Cầu");
    }
}
