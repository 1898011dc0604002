//! Small files of our own making, varied by what a test cares about.

use std::io::{Cursor, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zip::write::SimpleFileOptions;

use super::super::*;

pub const NAMESPACE: &str = "http://www.mic.gov.vn/TBT/QCVN_102_2016";

/// A letter of an invented province to two invented departments, good under every mode.
pub fn letter() -> String {
    letter_with(&attachment("to-trinh.txt", &zip_of(&[("1.txt", "Kính gửi: Sở Thử nghiệm".as_bytes())])))
}

/// The same letter with these `Attachment` elements; the manifest announces `to-trinh.txt` as `cid:1`.
pub fn letter_with(attachments: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<edXML xmlns="{NAMESPACE}">
  <edXMLEnvelope>
    <edXMLHeader>
      <MessageHeader>
        <From><OrganId>000.00.00.X01</OrganId><OrganName>Văn phòng Thử nghiệm</OrganName></From>
        <To><OrganId>X99.SO.001</OrganId><OrganName>Sở Thử nghiệm &amp; Đo lường</OrganName></To>
        <To><OrganId>X99.SO.002</OrganId></To>
        <DocumentId>000.00.00.X01,2026/11/20,12/VPTN-TH</DocumentId>
        <Code><CodeNumber>12</CodeNumber><CodeNotation>VPTN-TH</CodeNotation></Code>
        <PromulgationInfo><Place>Thị trấn Giả Định</Place><PromulgationDate>2026/11/20</PromulgationDate></PromulgationInfo>
        <DocumentType><Type>18</Type><TypeName>Công văn</TypeName></DocumentType>
        <Subject>V/v thử đường truyền</Subject>
        <SignerInfo><Competence>KT.</Competence><Position>Phó Chánh văn phòng</Position><FullName>Trần Thị Thử</FullName></SignerInfo>
        <DueDate>2026/12/01</DueDate>
        <OtherInfo><Priority>2</Priority><PageAmount>3</PageAmount></OtherInfo>
        <SteeringType>1</SteeringType>
        <ToPlaces><Place>Như trên</Place><Place>Lưu: VT</Place></ToPlaces>
      </MessageHeader>
      <TraceHeaderList>
        <TraceHeader><OrganId>000.00.00.X01</OrganId><Timestamp>2026/11/20 16:05:00</Timestamp></TraceHeader>
        <Bussiness><BussinessDocType>0</BussinessDocType><BussinessDocReason>Văn bản mới</BussinessDocReason><Paper>1</Paper></Bussiness>
      </TraceHeaderList>
    </edXMLHeader>
    <edXMLBody><edXMLManifest version="1.0">
      <Reference><ContentId>cid:1</ContentId><ContentType>text/plain</ContentType><AttachmentName>to-trinh.txt</AttachmentName></Reference>
    </edXMLManifest></edXMLBody>
  </edXMLEnvelope>
  <AttachmentEncoded>{attachments}</AttachmentEncoded>
</edXML>
"#
    )
}

/// An `Attachment` element holding these bytes in base64.
pub fn attachment(name: &str, content: &[u8]) -> String {
    format!(
        "<Attachment><ContentId>cid:1</ContentId><AttachmentName>{name}</AttachmentName>\
         <ContentTransferEncoded>{}</ContentTransferEncoded></Attachment>",
        STANDARD.encode(content)
    )
}

pub fn status(code: &str) -> String {
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<edXML xmlns="{NAMESPACE}"><edXMLEnvelope><edXMLHeader><MessageHeader>
<From><OrganId>X99.SO.001</OrganId><OrganName>Sở Thử nghiệm</OrganName></From>
<ResponseFor><OrganId>000.00.00.X01</OrganId><Code>12/VPTN-TH</Code><PromulgationDate>2026/11/20</PromulgationDate>
<DocumentId>000.00.00.X01,2026/11/20,12/VPTN-TH</DocumentId></ResponseFor>
<StaffInfo><Department>Văn thư</Department><Staff>Lê Văn Thử</Staff></StaffInfo>
<StatusCode>{code}</StatusCode><Description>Đã vào sổ</Description><Timestamp>2026/11/20 17:00:00</Timestamp>
</MessageHeader></edXMLHeader></edXMLEnvelope></edXML>"#
    )
}

pub fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub fn read(text: &str, mode: Mode) -> Result<Message, EdxmlError> {
    import(text.as_bytes(), mode, &Limits::default())
}

#[track_caller]
pub fn document(text: &str, mode: Mode) -> Document {
    match read(text, mode) {
        Ok(Message::Document(document)) => *document,
        other => panic!("no document: {other:?}"),
    }
}

/// What each mode answers to the letter with `from` replaced: the error's text, or the repairs.
#[track_caller]
pub fn changed(from: &str, to: &str) -> [Result<Vec<String>, (&'static str, String)>; 2] {
    let text = letter();
    assert!(text.contains(from), "the letter has no {from:?}");
    let text = text.replacen(from, to, 1);
    [Mode::Strict, Mode::Lenient].map(|mode| match read(&text, mode) {
        Ok(message) => Ok(message.warnings().iter().map(Repair::to_string).collect()),
        Err(error) => Err((error.code().as_str(), error.to_string())),
    })
}
