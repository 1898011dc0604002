//! What is written reads back the same, under the strict mode; what cannot be written says why.

use docaxis_protocol::{AgencyCode, Timestamp};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::super::*;
use super::fixture::*;

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("no object: {other}"),
    }
}

#[test]
fn a_letter_exported_and_imported_strictly_is_the_same_letter_and_the_same_bytes() {
    let first = document(&letter(), Mode::Strict);
    let bytes = export(&first.header, &first.attachments).unwrap();
    let second = document(std::str::from_utf8(&bytes).unwrap(), Mode::Strict);
    assert_eq!(second, first);
    assert_eq!(export(&second.header, &second.attachments).unwrap(), bytes);
}

#[test]
fn elements_are_written_in_the_standards_order_and_its_namespace() {
    let header = object(json!({
        "Zzz": "lạ", "ToPlaces": {"Place": ["a"]}, "Subject": "<&>\"", "To": [{"OrganName": "b", "OrganId": "X99.SO.001"}],
        "From": {"OrganId": "000.00.00.X01"}, "TraceHeaderList": {"Bussiness": {"Paper": 0, "BussinessDocType": "0"}},
    }));
    let written = String::from_utf8(export(&header, &[]).unwrap()).unwrap();
    assert_eq!(
        written,
        r#"<?xml version="1.0" encoding="UTF-8"?>
<edXML xmlns="http://www.mic.gov.vn/TBT/QCVN_102_2016">
  <edXMLEnvelope>
    <edXMLHeader>
      <MessageHeader>
        <From>
          <OrganId>000.00.00.X01</OrganId>
        </From>
        <To>
          <OrganId>X99.SO.001</OrganId>
          <OrganName>b</OrganName>
        </To>
        <Subject>&lt;&amp;&gt;&quot;</Subject>
        <ToPlaces>
          <Place>a</Place>
        </ToPlaces>
        <Zzz>lạ</Zzz>
      </MessageHeader>
      <TraceHeaderList>
        <Bussiness>
          <BussinessDocType>0</BussinessDocType>
          <Paper>0</Paper>
        </Bussiness>
      </TraceHeaderList>
    </edXMLHeader>
    <edXMLBody>
      <edXMLManifest version="1.0">
      </edXMLManifest>
    </edXMLBody>
  </edXMLEnvelope>
</edXML>
"#
    );
}

#[test]
fn a_status_about_a_received_letter_is_written_and_read_back_strictly() {
    let letter = document(&letter(), Mode::Strict);
    let (sender, to) = (letter.recipients[0].code.clone(), letter.sender.code.clone());
    let time: Timestamp = Timestamp::from_unix_ms(1_795_000_000_000);
    for code in StatusCode::ALL {
        let header = status_header(&sender, &to, &letter.header, code, "Đã nhận", time);
        let bytes = export_status(&header).unwrap();
        let Message::Status(status) = import(&bytes, Mode::Strict, &Limits::default()).unwrap() else {
            panic!("{code}")
        };
        assert_eq!((&status.sender.code, &status.to, status.code), (&sender, &to, code));
        assert_eq!(status.time.and_then(|moment| moment.time), Some(time));
        assert_eq!(status.about_code.as_deref(), Some("12/VPTN-TH"));
        assert_eq!(
            (status.about_document, status.about_date.map(|d| d.text)),
            (letter.document_id.clone(), Some("2026/11/20".into()))
        );
        assert_eq!((status.header.get("secret"), status.warnings), (Some(&json!(false)), vec![]));
    }
}

#[test]
fn what_xml_cannot_carry_is_refused_with_the_field_named() {
    for (header, words) in [
        (
            json!({"Subject": "a\u{0}b"}),
            "Subject cannot be written as edXML: expected characters that XML 1.0 allows, found character U+0000",
        ),
        (
            json!({"Code": {"CodeNumber": "\u{fffe}"}}),
            "CodeNumber cannot be written as edXML: expected characters that XML 1.0 allows, found character U+FFFE",
        ),
        (json!({"a b": "x"}), "\"a b\" cannot be written as edXML: expected a name that XML allows, found \"a b\""),
        (
            json!({"To": [["x"]]}),
            "To cannot be written as edXML: expected values without a list inside a list, found a list",
        ),
        (json!({"X": {"@a": {}}}), "@a cannot be written as edXML: expected an attribute with a text, found an object"),
        (json!({"X": {"#text": 1}}), "X cannot be written as edXML: expected text, found a number"),
        (json!({"edXMLHeader": []}), "edXMLHeader cannot be written as edXML: expected an object, found a list"),
    ] {
        let error = export(&object(header), &[]).unwrap_err();
        assert_eq!((error.code().as_str(), error.to_string().as_str()), ("malformed", words));
    }
    let unsafe_name = Attachment { name: "../a".into(), ..Attachment::new("a", None, vec![]) };
    let error = export(&Map::new(), &[unsafe_name]).unwrap_err();
    assert!(error.to_string().contains("\"../a\", which would have to become \"a\""), "{error}");
    let mut deep = json!("x");
    for _ in 0..100 {
        deep = json!({ "a": deep });
    }
    assert_eq!(export(&object(deep), &[]).unwrap_err().code().as_str(), "too-large");
}

#[test]
fn new_attachments_get_distinct_ids_and_any_file_comes_back_byte_for_byte() {
    let office = zip_of(&[("[Content_Types].xml", b"<Types/>"), ("xl/a.xml", b"")]);
    let files: [(&str, Vec<u8>); 5] = [
        ("a.xlsx", office),
        ("nhiều.zip", zip_of(&[("a", b"a"), ("b", b"b")])),
        ("trống.txt", vec![]),
        ("một.zip", zip_of(&[("a.txt", b"a")])),
        ("số.pdf", b"%PDF-1.7\n".repeat(50_000)),
    ];
    let attachments: Vec<_> =
        files.iter().map(|(name, bytes)| Attachment::new(name, Some("Phụ lục"), bytes.clone())).collect();
    let header = document(&letter(), Mode::Strict).header;
    let bytes = export(&header, &attachments).unwrap();
    let Ok(Message::Document(read)) = import(&bytes, Mode::Strict, &Limits::default()) else { panic!("refused") };
    let got: Vec<_> = read.attachments.iter().map(|a| (a.name.as_str(), a.bytes.clone())).collect();
    assert_eq!(got, files);
    let ids: Vec<_> = read.attachments.iter().map(|a| a.content_id.as_str()).collect();
    assert_eq!(ids, ["cid:1", "cid:2", "cid:3", "cid:4", "cid:5"]);
    assert_eq!(read.warnings, []);
}

/// Any text that XML can carry, trimmed as a reader trims it, and not empty.
fn text(max: usize) -> impl Strategy<Value = String> {
    let plain = prop_oneof![Just('&'), Just('<'), Just('"'), Just('\r'), Just('\n'), Just('ệ'), any::<char>()];
    proptest::collection::vec(plain, 1..max).prop_map(|chars| {
        let allowed =
            |c: &char| !matches!(*c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}');
        let text: String = chars.into_iter().filter(allowed).collect();
        let text = text.trim_matches([' ', '\t', '\r', '\n']);
        if text.is_empty() { "x".to_owned() } else { text.to_owned() }
    })
}

fn any_letter() -> impl Strategy<Value = (Map<String, Value>, Vec<Attachment>)> {
    let numbers = proptest::collection::btree_set(0..1000_u32, 1..6);
    let files = proptest::collection::vec((text(20), text(30), proptest::collection::vec(any::<u8>(), 0..200)), 0..4);
    let texts = (text(60), text(60), text(10), text(20), text(20), text(40));
    (numbers, files, texts, 0..5_u8, proptest::collection::vec(text(20), 2..4)).prop_map(
        |(recipients, files, (subject, content, number, notation, name, id), priority, unknown)| {
            let to: Vec<_> =
                recipients.iter().map(|n| json!({"OrganId": format!("X99.{n:03}"), "OrganName": name})).collect();
            let header = object(json!({
                "From": {"OrganId": "000.00.00.X01", "OrganName": name}, "To": to, "DocumentId": id, "Subject": subject,
                "Content": content, "Code": {"CodeNumber": number, "CodeNotation": notation},
                "OtherInfo": {"Priority": priority.to_string()}, "DueDate": "2026/12/01",
                "HoSo": {"@nguon": unknown[0], "Mục": unknown},
                "TraceHeaderList": {"Bussiness": {"BussinessDocType": "0", "Paper": "0"}}, "secret": false,
            }));
            let mut names = SafeNames::default();
            let mut attachments = Vec::new();
            for (name, description, bytes) in files {
                attachments.push(Attachment::new(&names.take(&name).0, Some(&description), bytes));
            }
            (header, attachments)
        },
    )
}

proptest! {
    #[test]
    fn any_letter_that_xml_can_carry_reads_back_strictly_as_it_was((header, attachments) in any_letter()) {
        let bytes = export(&header, &attachments).unwrap();
        let read = match import(&bytes, Mode::Strict, &Limits::default()) {
            Ok(Message::Document(read)) => read,
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        prop_assert_eq!(&read.header, &header);
        let parts = |list: &[Attachment]| -> Vec<_> {
            list.iter().map(|a| (a.name.clone(), a.description.clone(), a.bytes.clone())).collect()
        };
        prop_assert_eq!(parts(&read.attachments), parts(&attachments));
        let code: AgencyCode = "000.00.00.X01".parse().unwrap();
        prop_assert_eq!(&read.sender.code, &code);
        // Written once more, nothing changes any further.
        let again = export(&read.header, &read.attachments).unwrap();
        let reread = import(&again, Mode::Strict, &Limits::default());
        prop_assert_eq!(reread, Ok(Message::Document(read)));
    }
}
