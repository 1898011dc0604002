//! Reasons: stable codes with a sentence in Vietnamese and English, an exit code, whether a retry can help, and what
//! to do next. The list is data; programs match on the code, people read the sentence.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_REASON_TEXT_BYTES;

/// What a reason means to a person and to a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasonText {
    pub code: &'static str,
    pub vi: &'static str,
    pub en: &'static str,
    /// What to do next.
    pub hint: &'static str,
    /// The command line's exit code: 3 not found, 4 try again later, 5 refused, 6 verification failed, 7 identity.
    pub exit_code: u8,
    pub retryable: bool,
}

macro_rules! reasons {
    ($($name:ident $code:literal $exit:literal $retry:literal $vi:literal $en:literal $hint:literal;)*) => {
        /// A stable reason code (`unknown-recipient`, `id-conflict`, ...).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ReasonCode { $($name,)* }

        impl ReasonCode {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn text(self) -> &'static ReasonText {
                match self {
                    $(Self::$name => &ReasonText {
                        code: $code, vi: $vi, en: $en, hint: $hint, exit_code: $exit, retryable: $retry,
                    },)*
                }
            }
        }
    };
}

reasons! {
    UnknownRecipient "unknown-recipient" 5 false "Không có cơ quan nhận này trong danh bạ." "The directory has no such recipient." "Check the agency code, or ask the authority to add the agency.";
    RecipientLocked "recipient-locked" 5 false "Cơ quan nhận đang bị khóa." "The recipient is locked." "Ask the authority why the agency is locked; send again when it is unlocked.";
    SenderLocked "sender-locked" 5 false "Cơ quan gửi đang bị khóa." "The sender is locked." "Ask the authority why the agency is locked; send again when it is unlocked.";
    DuplicateRecipient "duplicate-recipient" 5 false "Một cơ quan nhận được ghi hai lần." "A recipient is named twice." "Name each recipient once; two codes may be aliases of one agency.";
    NotHosted "not-hosted" 7 false "Nút này không phục vụ cơ quan gửi." "This node does not act for that agency." "Send from the node that hosts the agency, or ask the authority to move it.";
    NotYours "not-yours" 5 false "Chỉ bên gửi hoặc bên nhận của văn bản mới được làm việc này." "Only the dispatch's own sender or recipient may do this." "Check the dispatch id and the acting agency.";
    BadSeal "bad-seal" 5 false "Con dấu số không hợp lệ." "The seal is not valid." "Check the agency's seal certificate and seal the dispatch again.";
    DigestMismatch "digest-mismatch" 5 false "Nội dung không khớp mã băm đã niêm phong." "A part does not match the digest that was sealed." "Take the original file and send a new dispatch.";
    TooLarge "too-large" 5 false "Dữ liệu vượt quá kích thước cho phép." "It is larger than the exchange allows." "Split the document or make the file smaller.";
    TooManyParts "too-many-parts" 5 false "Quá nhiều tệp đính kèm." "It has more parts than the exchange allows." "Send fewer parts, or several dispatches.";
    UnsafeName "unsafe-name" 5 false "Tên tệp không an toàn." "A part's name is not safe as a file name." "Rename the file: no slashes, no control characters, at most 255 bytes.";
    BadArchive "bad-archive" 5 false "Tệp nén không hợp lệ." "An archive inside the document is not acceptable." "Pack exactly one unencrypted file per attachment, of normal size.";
    OverQuota "over-quota" 4 true "Vượt hạn mức." "The quota is used up." "Wait, then send again.";
    SecretRefused "secret-refused" 5 false "Văn bản mật không được gửi qua trục này." "State secrets may not travel over this exchange." "Send the document by the channel for state secrets.";
    IdConflict "id-conflict" 5 false "Mã văn bản này đã được dùng cho nội dung khác." "This dispatch id was already used for other content." "Make a new dispatch; never change one that was sent.";
    DuplicateDocument "duplicate-document" 5 false "Văn bản trùng mã định danh, hoặc trùng số, ký hiệu và cơ quan ban hành trong năm." "A document of the same id, or of the same number, notation, issuer and year, was sent before." "Look at the earlier dispatch; `doc send --again` sends it all the same.";
    Expired "expired" 5 false "Đã quá hạn." "The time for it has passed." "Send a new dispatch with a later expiry.";
    Withdrawn "withdrawn" 5 false "Bên gửi đã thu hồi văn bản." "The sender has withdrawn it." "Nothing is to be done.";
    Revoked "revoked" 7 false "Chứng thư đã bị thu hồi." "A certificate has been revoked." "Ask the authority for a new certificate.";
    ClockSkew "clock-skew" 7 true "Đồng hồ máy bị sai." "The clock is wrong." "Set this machine's clock, or point it at a time server.";
    Malformed "malformed" 2 false "Dữ liệu sai định dạng." "It is not well formed." "Correct the file or program that made it.";
    WrongAddressee "wrong-addressee" 5 false "Văn bản gửi nhầm nơi nhận." "It is not meant for this recipient." "Check the recipient and send a new dispatch.";
    TakenWithoutReceipt "taken-without-receipt" 5 false "Bên nhận đã lấy đủ dữ liệu nhưng không ký nhận." "The recipient's node took every byte and never signed for it." "Ask the recipient's administrator.";
    NoAnswer "no-answer" 5 false "Bên nhận chưa trả lời trong thời hạn." "The recipient did not answer in time." "Ask the recipient's document officer.";
    TokenUsed "token-used" 7 false "Mã mời đã được dùng." "The invitation has been used already." "Ask the authority for a new invitation.";
    TokenExpired "token-expired" 7 false "Mã mời đã hết hạn." "The invitation has expired." "Ask the authority for a new invitation.";
    DiskFull "disk-full" 4 true "Hết chỗ trên đĩa." "The disk is full." "Make room; work goes on by itself afterwards.";
    Busy "busy" 4 true "Hệ thống đang bận." "Too busy at the moment." "Try again in a little while.";
    NotFound "not-found" 3 false "Không tìm thấy." "There is no such thing." "Check the id.";
    NotYetSupported "not-yet-supported" 5 false "Chức năng này chưa được hỗ trợ." "The exchange does not carry this kind of message yet." "Use the channel used so far for this kind of message.";
    Other "other" 1 false "Lý do khác." "Another reason." "See the text beside it.";
}

impl ReasonCode {
    pub const fn as_str(self) -> &'static str {
        self.text().code
    }

    /// A reason with this code and a sentence about the particular case, cut at [`MAX_REASON_TEXT_BYTES`]: it may quote
    /// what a peer sent.
    pub fn because(self, text: impl Into<String>) -> Reason {
        let mut text = text.into();
        let end = text.floor_char_boundary(MAX_REASON_TEXT_BYTES);
        text.truncate(end);
        Reason { code: self.as_str().to_owned(), text }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A code that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("reason code {0:?} is not known")]
pub struct UnknownReason(pub String);

impl FromStr for ReasonCode {
    type Err = UnknownReason;
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ReasonCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A reason as it stands in evidence and statements: the code as text, so that a reader keeps codes that it does not
/// know, and a sentence about this case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    pub code: String,
    #[serde(default)]
    pub text: String,
}

impl Reason {
    /// The code, or `Other` if this version does not know it.
    pub fn known(&self) -> ReasonCode {
        self.code.parse().unwrap_or(ReasonCode::Other)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_quotes_too_much_is_cut_on_a_character() {
        let reason = ReasonCode::UnsafeName.because("đ".repeat(5_000));
        assert_eq!(reason.text, "đ".repeat(MAX_REASON_TEXT_BYTES / 2));
    }

    #[test]
    fn every_reason_has_both_languages_a_next_step_and_its_own_code() {
        let mut codes = std::collections::BTreeSet::new();
        for code in ReasonCode::ALL {
            let text = code.text();
            assert!(codes.insert(text.code), "{} stands twice", text.code);
            assert!(!text.vi.is_empty() && !text.en.is_empty() && !text.hint.is_empty(), "{}", text.code);
            assert!((1..=7).contains(&text.exit_code), "{}", text.code);
            assert_eq!(text.code.parse(), Ok(*code));
        }
    }
}
