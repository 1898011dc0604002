//! The built-in letter: an edXML file of our own making, as a document system would hand it over.

use docaxis_node_agent::gateway::edxml::{self, Attachment};
use serde_json::json;

use crate::out::Failure;

/// Codes, names and nodes of the built-in cast.
pub const AGENCIES: [(&str, &str, usize); 4] = [
    ("000.00.00.G22", "Văn phòng Chính phủ", 0),
    ("H37.DN.001", "Sở Tài chính tỉnh H37", 1),
    ("H37.TC.002", "Sở Xây dựng tỉnh H37", 1),
    ("000.00.00.G09", "Bộ Nội vụ", 2),
];

/// A letter from the Government Office to a department of the province and to the ministry.
pub fn letter() -> Result<Vec<u8>, Failure> {
    let header = json!({
        "From": {"OrganId": AGENCIES[0].0, "OrganName": AGENCIES[0].1},
        "To": [
            {"OrganId": AGENCIES[1].0, "OrganName": AGENCIES[1].1},
            {"OrganId": AGENCIES[3].0, "OrganName": AGENCIES[3].1},
        ],
        "DocumentId": "000.00.00.G22,2026/11/22,2211/VPCP-KSTT",
        "Code": {"CodeNumber": "2211", "CodeNotation": "VPCP-KSTT"},
        "PromulgationInfo": {"Place": "Hà Nội", "PromulgationDate": "2026/11/22"},
        "DocumentType": {"Type": "18", "TypeName": "Công văn"},
        "Subject": "V/v chuẩn bị họp giao ban trực tuyến tháng 12",
        "Content": "Kính mời cử lãnh đạo dự họp; tài liệu kèm theo.",
        "OtherInfo": {"Priority": "1"},
    });
    let header = header.as_object().cloned().unwrap_or_default();
    let agenda = "1. Kết quả tháng 11\n2. Việc cần làm tháng 12\n3. Ý kiến các địa phương\n";
    let attachments = [
        Attachment::new("2211_VPCP-KSTT.pdf", Some("Công văn"), pdf("Cong van 2211/VPCP-KSTT")),
        Attachment::new("Chương trình họp.txt", Some("Chương trình"), agenda.as_bytes().to_vec()),
    ];
    edxml::export(&header, &attachments).map_err(|e| Failure::other(format!("the built-in letter: {e}")))
}

/// A PDF of one page with one line of text.
fn pdf(text: &str) -> Vec<u8> {
    let stream = format!("BT /F1 18 Tf 72 720 Td ({text}) Tj ET");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
            .to_owned(),
        format!("<< /Length {} >>\nstream\n{stream}\nendstream", stream.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_owned(),
    ];
    let mut file = b"%PDF-1.4\n".to_vec();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (n, object) in objects.iter().enumerate() {
        table += &format!("{:010} 00000 n \n", file.len());
        file.extend_from_slice(format!("{} 0 obj\n{object}\nendobj\n", n + 1).as_bytes());
    }
    let start = file.len();
    let trailer = format!("trailer << /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
    file.extend_from_slice((table + &trailer).as_bytes());
    file
}
