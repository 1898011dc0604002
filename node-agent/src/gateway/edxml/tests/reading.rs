//! What is read from a good file, and what each mode makes of one that is nearly good.

use docaxis_protocol::{AgencyCode, Kind};
use serde_json::json;

use super::super::*;
use super::fixture::*;

#[test]
fn a_good_letter_is_read_whole_in_both_modes_without_a_warning() {
    for mode in [Mode::Strict, Mode::Lenient] {
        let letter = document(&letter(), mode);
        assert_eq!(letter.warnings, []);
        assert_eq!((letter.kind, letter.priority, letter.secret), (Kind::New, 2, false));
        assert_eq!(letter.sender.name.as_deref(), Some("Văn phòng Thử nghiệm"));
        let names: Vec<_> = letter.recipients.iter().map(|to| (to.code.as_str(), to.name.as_deref())).collect();
        assert_eq!(names, [("X99.SO.001", Some("Sở Thử nghiệm & Đo lường")), ("X99.SO.002", None)]);
        assert_eq!(
            (letter.number.as_deref(), letter.notation.as_deref(), letter.subject.as_deref()),
            (Some("12"), Some("VPTN-TH"), Some("V/v thử đường truyền"))
        );
        assert_eq!(letter.due_date.and_then(|due| due.date), Some(jiff::civil::date(2026, 12, 1)));
        assert_eq!(letter.to_places, ["Như trên", "Lưu: VT"]);
        let sent_on = letter.traces[0].time.as_ref().and_then(|moment| moment.time).map(|time| time.to_string());
        assert_eq!(sent_on.as_deref(), Some("2026-11-20T09:05:00.000Z"));
        assert_eq!((letter.bussiness.paper, letter.bussiness.reason.as_deref()), (true, Some("Văn bản mới")));
        assert_eq!(
            letter.attachments,
            [Attachment {
                name: "to-trinh.txt".into(),
                original_name: None,
                content_id: "cid:1".into(),
                description: None,
                declared_content_type: Some("text/plain".into()),
                media_type: "text/plain".into(),
                encoding: Encoding::ZipWrapped { entry_name: "1.txt".into() },
                bytes: "Kính gửi: Sở Thử nghiệm".into(),
            }]
        );
    }
}

#[test]
fn the_header_is_json_with_its_own_field_names_and_keeps_what_is_unknown() {
    let text = letter()
        .replace("<SteeringType>", r#"<HoSo loai="mở"><Ma>7</Ma><Ma>8</Ma></HoSo><SteeringType>"#)
        .replace("</TraceHeaderList>", "</TraceHeaderList><Lạ>giữ lại</Lạ>");
    let header = document(&text, Mode::Strict).header;
    assert_eq!(
        serde_json::Value::Object(header),
        json!({
            "From": {"OrganId": "000.00.00.X01", "OrganName": "Văn phòng Thử nghiệm"},
            "To": [{"OrganId": "X99.SO.001", "OrganName": "Sở Thử nghiệm & Đo lường"}, {"OrganId": "X99.SO.002"}],
            "DocumentId": "000.00.00.X01,2026/11/20,12/VPTN-TH",
            "Code": {"CodeNumber": "12", "CodeNotation": "VPTN-TH"},
            "PromulgationInfo": {"Place": "Thị trấn Giả Định", "PromulgationDate": "2026/11/20"},
            "DocumentType": {"Type": "18", "TypeName": "Công văn"},
            "Subject": "V/v thử đường truyền",
            "SignerInfo": {"Competence": "KT.", "Position": "Phó Chánh văn phòng", "FullName": "Trần Thị Thử"},
            "DueDate": "2026/12/01",
            "OtherInfo": {"Priority": "2", "PageAmount": "3"},
            "HoSo": {"@loai": "mở", "Ma": ["7", "8"]},
            "SteeringType": "1",
            "ToPlaces": {"Place": ["Như trên", "Lưu: VT"]},
            "TraceHeaderList": {
                "TraceHeader": [{"OrganId": "000.00.00.X01", "Timestamp": "2026/11/20 16:05:00"}],
                "Bussiness": {"BussinessDocType": "0", "BussinessDocReason": "Văn bản mới", "Paper": "1"}
            },
            "edXMLHeader": {"Lạ": "giữ lại"},
            "secret": false
        })
    );
}

#[test]
fn order_prefixes_legacy_namespaces_comments_and_line_ends_make_no_difference() {
    let plain = document(&letter(), Mode::Strict);
    let prefixed = letter()
        .replace("<edXML xmlns=", "<e:edXML xmlns:e=")
        .replace("</edXML>", "</e:edXML>")
        .replace("<edXMLEnvelope>", &format!("<edXMLEnvelope xmlns=\"{NAMESPACE}\"><!-- một ghi chú -->"))
        .replace("<AttachmentEncoded>", &format!("<AttachmentEncoded xmlns=\"{NAMESPACE}\">"));
    let legacy = letter().replace(NAMESPACE, "http://www.e-doc.vn/Schema/");
    let windows = letter().replace('\n', "\r\n");
    let subject = "<Subject>V/v thử đường truyền</Subject>";
    let moved = letter().replace(subject, "").replace("<From>", &format!("{subject}<From>"));
    let character_data = letter().replace("V/v thử đường", "<![CDATA[V/v th]]>&#x1EED; đường");
    for (what, text) in [
        ("prefixed", prefixed),
        ("legacy", legacy),
        ("windows", windows),
        ("moved", moved),
        ("character data", character_data),
    ] {
        assert_eq!(document(&text, Mode::Strict), plain, "{what}");
    }
}

#[test]
fn a_byte_order_mark_is_left_out_and_said() {
    let Ok(Message::Document(document)) = read(&format!("\u{feff}{}", letter()), Mode::Strict) else {
        panic!("refused");
    };
    let said: Vec<_> = document.warnings.iter().map(Repair::to_string).collect();
    assert_eq!(said, ["the file: a UTF-8 byte order mark was left out"]);
}

#[test]
fn lower_case_codes_are_upper_cased_with_a_word_or_refused_by_name() {
    let [strict, lenient] = changed("<OrganId>X99.SO.002<", "<OrganId>x99.so.002<");
    let expected = "expected an agency code in capitals, found \"x99.so.002\"";
    assert_eq!(strict, Err(("malformed", format!("To/OrganId at line 8, column 13: {expected}"))));
    assert_eq!(lenient, Ok(vec![format!("To/OrganId (line 8, column 13): {expected}; read as X99.SO.002")]));
    let spelled = document(&letter().replace("X99.SO.002", "x99.so.002"), Mode::Lenient).recipients[1].clone();
    let code: AgencyCode = "X99.SO.002".parse().unwrap();
    assert_eq!((spelled.code, spelled.spelled.as_str()), (code, "x99.so.002"));
}

#[test]
fn no_code_and_the_word_null_are_refused_in_both_modes() {
    for wrong in ["null", "", "  ", "Sở Thử nghiệm"] {
        for outcome in changed("<OrganId>X99.SO.002<", &format!("<OrganId>{wrong}<")) {
            let (code, text) = outcome.unwrap_err();
            assert_eq!(code, "malformed");
            assert!(text.starts_with("To/OrganId at line 8, column 13: expected groups of 0-9 and A-Z"), "{text}");
        }
    }
}

#[test]
fn a_recipient_named_twice_is_refused_also_in_another_spelling() {
    let [strict, lenient] = changed("<OrganId>X99.SO.002<", "<OrganId>X99.SO.001<");
    let text = "recipient \"X99.SO.001\" at line 8, column 9 is agency X99.SO.001, already named as \"X99.SO.001\"";
    assert_eq!(strict, Err(("duplicate-recipient", text.to_owned())));
    assert_eq!(lenient, strict);
    let [_, lenient] = changed("<OrganId>X99.SO.002<", "<OrganId>x99.so.001<");
    assert_eq!(lenient.unwrap_err().0, "duplicate-recipient");
}

#[test]
fn each_small_fault_is_refused_by_name_or_forgiven_with_a_word() {
    let long = "x".repeat(501);
    for (from, to, field, done) in [
        ("2026/12/01", "2026/02/30", "DueDate", "kept as text, without a date"),
        ("2026/12/01", "01/12/2026", "DueDate", "read as 2026-12-01"),
        ("<Priority>2<", "<Priority>hỏa tốc<", "OtherInfo/Priority", "taken as normal (0)"),
        ("<Priority>2<", "<Priority>7<", "OtherInfo/Priority", "taken as normal (0)"),
        ("V/v thử đường truyền", &long, "MessageHeader/Subject", "kept whole"),
        ("<BussinessDocType>0</BussinessDocType>", "", "Bussiness/BussinessDocType", "taken as a new document"),
        ("<DocumentId>000.00.00.X01,2026/11/20,12/VPTN-TH</DocumentId>", "", "DocumentId", "taken without"),
        ("16:05:00", "lúc bốn giờ", "TraceHeader/Timestamp", "kept as text, without a time"),
        ("<SteeringType>1", "<DueDate>2026/12/01</DueDate><SteeringType>1", "DueDate", "taken once"),
        (
            "<ContentId>cid:1</ContentId><ContentType>",
            "<ContentId>cid:9</ContentId><ContentType>",
            "edXMLManifest/Reference",
            "imported without it",
        ),
        (NAMESPACE, "urn:somewhere", "edXML", "read as if it were the standard's"),
    ] {
        let [strict, lenient] = changed(from, to);
        let (code, text) = strict.expect_err(field);
        assert_eq!((code, text.starts_with(&format!("{field} at line "))), ("malformed", true), "{text}");
        let repairs = lenient.expect(field);
        let said = repairs.iter().any(|repair| repair.starts_with(field) && repair.ends_with(done));
        assert!(said, "{field}: {repairs:?}");
    }
}

#[test]
fn a_wrong_type_number_and_a_wrong_content_type_are_said_but_refused_by_no_one() {
    for (from, to, said) in [
        ("<Type>18<", "<Type>2<", "2 stands for \"Quyết định\", but TypeName says \"Công văn\"; the name counts"),
        (
            ">text/plain<",
            ">application/pdf<",
            "\"application/pdf\" is declared, but the bytes are text/plain; the bytes count",
        ),
    ] {
        for outcome in changed(from, to) {
            let repairs = outcome.unwrap();
            assert!(repairs.len() == 1 && repairs[0].ends_with(said), "{repairs:?}");
        }
    }
}

#[test]
fn recall_update_and_replacement_are_recognised_with_what_they_say() {
    let with = |kind: &str, more: &str| {
        let from = "<BussinessDocType>0</BussinessDocType>";
        let text = letter().replace(from, &format!("<BussinessDocType>{kind}</BussinessDocType>{more}"));
        let document = document(&text, Mode::Strict);
        (document.kind, document.bussiness)
    };
    let (kind, recall) = with("1", "");
    assert_eq!((kind, recall.reason.as_deref()), (Kind::Recall, Some("Văn bản mới")));
    let (kind, update) = with(
        "2",
        "<DocumentId>cũ</DocumentId><BussinessDocumentInfo><DocumentInfo>1</DocumentInfo><ReceiverList>\
         <Receiver><OrganId>X99.SO.001</OrganId><ReceiverType>0</ReceiverType></Receiver>\
         <Receiver><OrganId>X99.SO.003</OrganId><ReceiverType>1</ReceiverType></Receiver></ReceiverList></BussinessDocumentInfo>",
    );
    let receivers: Vec<_> = update.receivers.iter().map(|r| (r.code.as_str(), r.added)).collect();
    assert_eq!((kind, update.target.as_deref()), (Kind::Update, Some("cũ")));
    assert_eq!(
        (receivers, update.document_info.as_deref()),
        (vec![("X99.SO.001", false), ("X99.SO.003", true)], Some("1"))
    );
    let (kind, replace) = with(
        "3",
        "<ReplacementInfoList><ReplacementInfo><DocumentId>cũ</DocumentId>\
         <OrganIdList><OrganId>X99.SO.001</OrganId></OrganIdList></ReplacementInfo></ReplacementInfoList>",
    );
    let code: AgencyCode = "X99.SO.001".parse().unwrap();
    assert_eq!(kind, Kind::Replace);
    assert_eq!(replace.replacements, [Replacement { document_id: "cũ".into(), organs: vec![code] }]);
    for outcome in changed("<BussinessDocType>0<", "<BussinessDocType>4<") {
        assert!(outcome.unwrap_err().1.contains("expected a digit from 0 to 3, found \"4\""));
    }
}

#[test]
fn a_mark_of_secrecy_in_any_spelling_is_found_and_its_denial_is_not() {
    for (mark, secret) in [
        ("<DoMat>Mật</DoMat>", true),
        ("<SecurityLevel>2</SecurityLevel>", true),
        ("<Secret>true</Secret>", true),
        ("<MucDoMat><Ma>Tối mật</Ma></MucDoMat>", true),
        ("<HoSo DoMat=\"Tuyệt mật\"/>", true),
        ("<DoMat>Thường</DoMat>", false),
        ("<SecurityLevel>0</SecurityLevel>", false),
        ("<DoMat/>", false),
    ] {
        let text = letter().replace("<SteeringType>", &format!("{mark}<SteeringType>"));
        let document = document(&text, Mode::Strict);
        assert_eq!((document.secret, &document.header["secret"]), (secret, &json!(secret)), "{mark}");
        let exported = export(&document.header, &[]).map(|_| ());
        assert_eq!(exported, if secret { Err(EdxmlError::Secret) } else { Ok(()) }, "{mark}");
    }
}

#[test]
fn every_status_is_read_and_an_unknown_one_is_refused() {
    for code in StatusCode::ALL {
        let Ok(Message::Status(status)) = read(&status(code.as_str()), Mode::Strict) else { panic!("{code}") };
        assert_eq!((status.code, status.warnings.len()), (code, 0));
        assert_eq!(
            (status.sender.spelled.as_str(), status.to_spelled.as_str(), status.description.as_str()),
            ("X99.SO.001", "000.00.00.X01", "Đã vào sổ")
        );
        assert_eq!(status.about_document.as_deref(), Some("000.00.00.X01,2026/11/20,12/VPTN-TH"));
        assert_eq!(status.about_code.as_deref(), Some("12/VPTN-TH"));
        assert_eq!(status.staff.and_then(|staff| staff.staff).as_deref(), Some("Lê Văn Thử"));
    }
    let error = read(&status("07"), Mode::Lenient).unwrap_err();
    assert!(error.to_string().ends_with("expected one of 01 to 06, 13, 15, 16, found \"07\""), "{error}");
    let Ok(Message::Status(short)) = read(&status("3"), Mode::Lenient) else { panic!("refused") };
    assert_eq!(
        (short.code, short.warnings[0].what.as_str()),
        (StatusCode::Accepted, "expected two digits, found \"3\"; read as 03")
    );
}
