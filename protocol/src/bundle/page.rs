//! The page of a bundle for people: who, what, when. It proves nothing and says so.
//!
//! One file without scripts or outside references. Whatever came from a sender is escaped.

use super::writer::Told;
use crate::envelope::Envelope;
use crate::evidence::{Event, Evidence};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111}\
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;vertical-align:top;padding:.4rem .6rem;\
border-bottom:1px solid #ccc;overflow-wrap:anywhere}th{background:#f3f3f3}.note{border-left:.3rem solid #b58105;\
padding:.5rem 1rem;background:#fff7e6}code{font-size:.85em}";

/// The page. Without an envelope (it did not read) only what the evidence says is shown.
pub(super) fn page(envelope: Option<&Envelope>, told: &[Told]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"vi\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>Chứng cứ giao nhận văn bản điện tử</title><style>{STYLE}</style></head><body>\n\
         <h1>Chứng cứ giao nhận văn bản điện tử <small lang=\"en\">(delivery evidence)</small></h1>\n\
         <p class=\"note\">Trang này chỉ để đọc và <strong>không chứng minh điều gì</strong>. Muốn kiểm tra, làm theo \
         <code>VERIFY.txt</code>.<br><span lang=\"en\">This page is for reading and <strong>proves nothing</strong>. \
         To check, follow <code>VERIFY.txt</code>.</span></p>\n"
    );
    if let Some(first) = told.first() {
        out.push_str(&facts(envelope, &first.evidence));
    }
    out.push_str(&events(told));
    if let Some(envelope) = envelope {
        out.push_str(&parts(envelope));
    }
    out.push_str("</body></html>\n");
    out
}

fn facts(envelope: Option<&Envelope>, first: &Evidence) -> String {
    let mut rows = vec![
        ("Mã lượt gửi (dispatch)", first.dispatch.to_string()),
        ("Trục liên thông (exchange)", first.issuer.to_string()),
        ("Cơ quan gửi (sender)", first.sender.to_string()),
        ("Cơ quan nhận (recipients)", joined(&first.recipients)),
    ];
    if let Some(envelope) = envelope {
        let field = |name: &str| envelope.document.get(name);
        let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if let Some(code) = field("Code") {
            let of = |name: &str| code.get(name).map_or_else(String::new, text);
            rows.push(("Số, ký hiệu (number)", format!("{}/{}", of("CodeNumber"), of("CodeNotation"))));
        }
        rows.extend(field("Subject").map(|subject| ("Trích yếu (subject)", text(subject))));
        rows.push(("Loại (kind)", envelope.kind.as_str().to_owned()));
        rows.push(("Tạo lúc (created)", envelope.created.to_vietnam()));
        rows.push(("Hết hạn (expires)", envelope.expires.to_vietnam()));
    }
    rows.push(("SHA-256 envelope.json", first.envelope_sha256.to_string()));
    let rows: String =
        rows.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(value))).collect();
    format!("<table>\n{rows}</table>\n")
}

fn events(told: &[Told]) -> String {
    let mut out = "<h2>Diễn biến <small lang=\"en\">(what happened)</small></h2>\n<table>\n<tr><th>Thời điểm \
                   (+07:00)</th><th>Sự kiện</th><th>Cơ quan</th><th>Lý do</th><th>Tệp</th></tr>\n"
        .to_owned();
    for Told { stem, evidence } in told {
        let who = evidence.recipient.as_ref().map_or_else(|| evidence.sender.to_string(), ToString::to_string);
        let reasons: Vec<String> =
            evidence.reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.text)).collect();
        let late = if evidence.late { " (sau khi đã báo không giao được)" } else { "" };
        out.push_str(&format!(
            "<tr><td>{}</td><td>{}{late}<br><small lang=\"en\">{}</small></td><td>{}</td><td>{}</td><td><code>{}</code></td></tr>\n",
            escape(&evidence.time.to_vietnam()),
            in_words(evidence.event),
            evidence.event,
            escape(&who),
            escape(&reasons.join("; ")),
            escape(stem),
        ));
    }
    out.push_str("</table>\n");
    out
}

fn parts(envelope: &Envelope) -> String {
    let mut out = "<h2>Tệp kèm theo <small lang=\"en\">(parts)</small></h2>\n<table>\n<tr><th>Tên</th><th>Byte</th>\
                   <th>SHA-256</th></tr>\n"
        .to_owned();
    for part in &envelope.parts {
        let row = format!(
            "<tr><td>{}</td><td>{}</td><td><code>{}</code></td></tr>\n",
            escape(&part.name),
            part.size,
            part.sha256
        );
        out.push_str(&row);
    }
    out.push_str("</table>\n");
    out
}

const fn in_words(event: Event) -> &'static str {
    match event {
        Event::SubmissionAcceptance => "Trục đã nhận để chuyển",
        Event::SubmissionRejection => "Trục từ chối nhận",
        Event::ContentHandover => "Đã giao đến cơ quan nhận",
        Event::ContentHandoverFailure => "Không giao được",
        Event::ContentAccessTracking => "Cán bộ đã mở lần đầu",
        Event::Registered => "Đã tiếp nhận, vào sổ",
        Event::Refused => "Cơ quan nhận trả lại",
        Event::NoAnswer => "Quá hạn chưa trả lời",
        Event::RelayAcceptance => "Trục khác đã nhận chuyển tiếp",
        Event::RelayRejection => "Trục khác từ chối chuyển tiếp",
        Event::RelayFailure => "Không chuyển tiếp được",
    }
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Text for HTML. Control and direction characters, which can make a page read otherwise than it is, are shown as codes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push_str(&format!("[U+{:04X}]", u32::from(c)));
            }
            c if c.is_control() => out.push_str(&format!("[U+{:04X}]", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sender_wrote_stays_text() {
        assert_eq!(escape("<b a='1'>&\"</b>"), "&lt;b a=&#39;1&#39;&gt;&amp;&quot;&lt;/b&gt;");
        assert_eq!(escape("a\u{202e}fdp.exe\n"), "a[U+202E]fdp.exe[U+000A]");
        assert_eq!(escape("công văn"), "công văn");
    }
}
