//! Files that are broken or meant to do harm: each is refused with its code and place, at a bounded cost.

use docaxis_protocol::ReasonCode;
use proptest::prelude::*;

use super::super::*;
use super::fixture::*;

/// The error of both modes, which must agree.
#[track_caller]
fn refused(text: &str) -> EdxmlError {
    let strict = read(text, Mode::Strict).expect_err("strict took it");
    assert_eq!(read(text, Mode::Lenient).expect_err("lenient took it"), strict);
    strict
}

fn with_attachment(name: &str, content: &[u8]) -> String {
    letter_with(&attachment(name, content))
}

#[test]
fn what_is_not_xml_is_refused_with_place_expected_and_found() {
    for (from, to, at, words) in [
        ("<?xml", "12<?xml", (1, 1), "found \"12\""),
        ("<?xml", " <?xml", (1, 2), "an XML declaration only at the very beginning"),
        ("UTF-8", "ISO-8859-1", (1, 1), "expected encoding \"UTF-8\", found encoding \"ISO-8859-1\""),
        (
            "version=\"1.0\" encoding",
            "version=\"1.1\" encoding",
            (1, 1),
            "expected <?xml version=\"1.0\" encoding=\"UTF-8\"?>",
        ),
        ("<From>", "<From><From>", (19, 7), "expected the end tag </From>, found </MessageHeader>"),
        ("<SteeringType>1", "<SteeringType x:y=\"\">1", (17, 9), "\"x:y\" with an unbound prefix"),
        ("<SteeringType>", "<e:Lạ/><SteeringType>", (17, 9), "\"e:Lạ\" with an unbound prefix"),
        ("<SteeringType>", "<Lạ a=\"1\" a=\"2\"/><SteeringType>", (17, 9), "attributes written name=\"value\""),
        ("<SteeringType>", "<Lạ a=\"<\"/><SteeringType>", (17, 9), "\"&lt;\""),
        ("<SteeringType>", "<Lạ a=\"1\"b=\"2\"/><SteeringType>", (17, 9), "white space between"),
        ("<SteeringType>", "<?1 x?><SteeringType>", (17, 9), "a processing instruction's name"),
        ("<SteeringType>", "<1x/><SteeringType>", (17, 9), "a name that XML allows"),
        ("Lưu: VT", "Lưu & VT", (18, 53), "&amp;"),
        ("Lưu: VT", "&nbsp;", (18, 49), "found \"&nbsp;\""),
        ("Lưu: VT", "&#0;", (18, 49), "found \"&#0;\""),
        ("Lưu: VT", "]]>", (18, 49), "found \"]]>\""),
        ("Lưu: VT", "\u{1}", (18, 49), "found character U+0001"),
        ("<SteeringType>", "<!-- a -- b --><SteeringType>", (17, 16), "a comment without \"--\" inside"),
        ("</edXML>", "</edXML><edXML/>", (30, 9), "another element"),
        ("</edXML>", "</edXML>hết", (30, 9), "expected the end of the file"),
        ("</edXML>", "", (31, 1), "expected the end tag </edXML>"),
    ] {
        let text = letter().replacen(from, to, 1);
        let error = refused(&text);
        let place = error.place().map(|at| (at.line, at.column));
        assert_eq!((error.code().as_str(), place), ("malformed", Some(at)), "{to:?}: {error}");
        assert!(error.to_string().contains(words), "{to:?}: {error}");
        assert!(!error.hint().is_empty());
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_in_words() {
    let latin: Vec<u8> =
        letter().replace("UTF-8", "windows-1258").chars().map(|c| u8::try_from(c).unwrap_or(0xf4)).collect();
    let utf_16: Vec<u8> = std::iter::once(0xfeff).chain(letter().encode_utf16()).flat_map(u16::to_le_bytes).collect();
    for (bytes, found) in [
        (latin, "found encoding \"windows-1258\""),
        (utf_16, "found UTF-16"),
        (
            b"<?xml version=\"1.0\"?>\n<edXML>\xc3(</edXML>".to_vec(),
            "at line 2, column 8: expected UTF-8, found byte 0xc3",
        ),
    ] {
        let error = import(&bytes, Mode::Lenient, &Limits::default()).unwrap_err();
        assert!(error.code().as_str() == "malformed" && error.to_string().contains(found), "{error}");
    }
}

#[test]
fn no_document_type_is_accepted_so_nothing_can_expand_or_be_fetched() {
    for declaration in [
        "<!DOCTYPE edXML>",
        "<!DOCTYPE edXML SYSTEM \"file:///etc/passwd\">",
        "<!DOCTYPE e [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;\">]>",
    ] {
        let error = refused(&letter().replacen("\n<edXML", &format!("\n{declaration}<edXML"), 1));
        assert!(error.to_string().contains("expected no document type"), "{error}");
    }
}

#[test]
fn every_dimension_of_a_file_is_bounded() {
    let limits = Limits {
        file_bytes: 20_000,
        depth: 20,
        elements: 200,
        attributes_per_element: 4,
        text_bytes: 5_000,
        recipients: 3,
        attachments: 2,
        ..Limits::default()
    };
    let at = |from: &str, to: String| {
        let text = letter().replacen(from, &to, 1);
        import(text.as_bytes(), Mode::Lenient, &limits)
            .map(|_| ())
            .map_err(|error| (error.code().as_str(), error.to_string()))
    };
    let steering = "<SteeringType>1";
    assert_eq!(at(steering, steering.to_owned()), Ok(()));
    let too_large = |text: &str| Err(("too-large", text.to_owned()));
    let deep = format!("{}{}{steering}", "<a>".repeat(17), "</a>".repeat(17));
    assert_eq!(at(steering, deep), too_large("the depth of nested elements is 21; the limit is 20"));
    assert_eq!(
        at(steering, format!("{}{steering}", "<a/>".repeat(200))),
        too_large("the number of elements is 201; the limit is 200")
    );
    let many = "<Lạ a=\"\" b=\"\" c=\"\" d=\"\" e=\"\"/><SteeringType>1".to_owned();
    assert_eq!(at(steering, many), too_large("the number of attributes of one element is 5; the limit is 4"));
    assert_eq!(at("Như trên", "x".repeat(5_001)), too_large("the text of Place (bytes) is 5001; the limit is 5000"));
    let wide = Limits { attributes_per_element: 400, ..limits.clone() };
    let many: String = (0..300).map(|n| format!(" xmlns:p{n}=\"u\"")).collect();
    let error =
        import(letter().replacen(steering, &format!("<a{many}/>{steering}"), 1).as_bytes(), Mode::Lenient, &wide)
            .unwrap_err();
    assert_eq!(error.to_string(), "the number of namespace declarations in scope is 257; the limit is 256");
    let more: String = (3..5).map(|n| format!("<To><OrganId>X99.SO.00{n}</OrganId></To>")).collect();
    assert_eq!(
        at("<DocumentId>", format!("{more}<DocumentId>")),
        too_large("the number of recipients is 4; the limit is 3")
    );
    let spaces = " ".repeat(20_000);
    assert_eq!(at(steering, format!("{spaces}{steering}")).unwrap_err().0, "too-large");
    let three = attachment("a.txt", b"a").repeat(3);
    let error = import(letter_with(&three).as_bytes(), Mode::Lenient, &limits).unwrap_err();
    assert_eq!(
        (error.code().as_str(), error.to_string().as_str()),
        ("too-many-parts", "the file holds more than 2 attachments")
    );
}

#[test]
fn base64_that_is_not_is_refused_with_the_attachment_named() {
    for wrong in ["${__StringFromFile(test.txt)}", "QQ", "QQ=A", "Q_-=", "ảnh"] {
        let text = letter_with(&format!(
            "<Attachment><ContentId>cid:1</ContentId><AttachmentName>to-trinh.txt</AttachmentName>\
             <ContentTransferEncoded>{wrong}</ContentTransferEncoded></Attachment>"
        ));
        let error = refused(&text);
        let start = "ContentTransferEncoded of attachment \"to-trinh.txt\" at line 29, column 107: expected base64 (A-Z a-z 0-9 + / and = at the end), found ";
        assert!(error.code().as_str() == "malformed" && error.to_string().starts_with(start), "{error}");
    }
    let broken_in_lines = letter_with(
        "<Attachment><ContentId>cid:1</ContentId><AttachmentName>a.txt</AttachmentName><ContentTransferEncoded>\r\n  S8Ot\n\tbmg= \
         </ContentTransferEncoded></Attachment>",
    );
    assert_eq!(document(&broken_in_lines, Mode::Strict).attachments[0].bytes, "Kính".as_bytes());
}

#[test]
fn an_office_document_or_any_other_raw_file_stays_as_it_is() {
    let docx = zip_of(&[("[Content_Types].xml", b"<Types/>"), ("word/document.xml", b"<w/>")]);
    let open_text = "application/vnd.oasis.opendocument.text";
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut odt = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    odt.start_file("mimetype", stored).unwrap();
    std::io::Write::write_all(&mut odt, open_text.as_bytes()).unwrap();
    let odt = odt.finish().unwrap().into_inner();
    let maps = zip_of(&[("ban-do.shp", b"shp")]);
    let word = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
    for (name, bytes, media_type) in [
        ("a.docx", docx.clone(), word),
        ("a.odt", odt, open_text),
        ("ban-do.zip", maps, "application/zip"),
        ("a.pdf", b"%PDF-1.7 \xff".to_vec(), "application/pdf"),
    ] {
        let read = document(&with_attachment(name, &bytes), Mode::Strict).attachments.remove(0);
        assert_eq!((read.encoding, read.media_type.as_str(), read.bytes), (Encoding::Raw, media_type, bytes), "{name}");
    }
    let wrapped =
        document(&with_attachment("a.docx", &zip_of(&[("1.docx", &docx)])), Mode::Strict).attachments.remove(0);
    let encoding = Encoding::ZipWrapped { entry_name: "1.docx".into() };
    assert_eq!((wrapped.encoding, wrapped.media_type.as_str(), wrapped.bytes), (encoding, word, docx));
}

#[test]
fn archives_of_several_entries_encrypted_or_damaged_ones_are_refused() {
    let two = zip_of(&[("a.txt", b"a"), ("b.txt", b"b")]);
    let mut encrypted = zip_of(&[("a.txt", b"a")]);
    for signature in [b"PK\x03\x04", b"PK\x01\x02"] {
        let at = encrypted.windows(4).position(|window| window == signature).unwrap();
        encrypted[at + if signature[2] == 3 { 6 } else { 8 }] |= 1;
    }
    let mut damaged = zip_of(&[("a.txt", "một đoạn dài hơn".as_bytes())]);
    let at = damaged.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    damaged[at - 3] ^= 0xff;
    // Two entries of one name, which a reader that keeps entries by name sees as one.
    let mut twins = two.clone();
    while let Some(at) = twins.windows(5).position(|window| window == b"b.txt") {
        twins[at] = b'a';
    }
    let cut = two[..two.len() - 10].to_vec();
    let mut folder = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    folder.add_directory("a", zip::write::SimpleFileOptions::default()).unwrap();
    let folder = folder.finish().unwrap().into_inner();
    for (what, bytes) in [
        ("two", two),
        ("twins", twins),
        ("none", zip_of(&[])),
        ("encrypted", encrypted),
        ("damaged", damaged),
        ("cut", cut),
        ("folder", folder),
    ] {
        let error = refused(&with_attachment("to-trinh.txt", &bytes));
        assert_eq!(error.code().as_str(), "bad-archive", "{what}: {error}");
        assert!(error.to_string().starts_with("attachment \"to-trinh.txt\": expected "), "{what}: {error}");
    }
}

#[test]
fn a_zip_bomb_is_refused_by_its_ratio_and_a_large_entry_by_its_size() {
    let text = |content: &[u8]| with_attachment("a.txt", content);
    let bomb = zip_of(&[("1.txt", &vec![0; 8 << 20])]);
    // The same with both declared sizes set to one byte: what comes out counts.
    let mut lying = bomb.clone();
    for (signature, at) in [(b"PK\x03\x04", 22), (b"PK\x01\x02", 24)] {
        let start = lying.windows(4).position(|window| window == signature).unwrap() + at;
        lying[start..start + 4].copy_from_slice(&1_u32.to_le_bytes());
    }
    for bomb in [bomb, lying] {
        let error = refused(&text(&bomb));
        assert_eq!(error.code(), ReasonCode::BadArchive, "{error}");
    }
    let limits = Limits { attachment_bytes: 1000, ..Limits::default() };
    let random: Vec<u8> =
        (0..2000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes().into_iter().take(1)).collect();
    for content in [random.clone(), zip_of(&[("1.bin", &random)])] {
        let error = import(text(&content).as_bytes(), Mode::Lenient, &limits).unwrap_err();
        assert!(error.to_string().starts_with("attachment \"a.txt\" (bytes) is "), "{error}");
        assert_eq!(error.code(), ReasonCode::TooLarge);
    }
    let limits = Limits { total_bytes: 3000, ..Limits::default() };
    let twice = letter_with(&attachment("a.txt", &random).repeat(2));
    let error = import(twice.as_bytes(), Mode::Lenient, &limits).unwrap_err();
    assert!(error.to_string().starts_with("attachment \"a.txt\" and those before it (bytes) is "), "{error}");
}

#[test]
fn a_name_that_leads_out_of_its_folder_is_refused_or_cut_with_the_original_kept() {
    let text = with_attachment("../../etc/passwd", &zip_of(&[("../../../root/.ssh/keys", b"x")]));
    let error = read(&text, Mode::Strict).unwrap_err();
    assert_eq!(error.code().as_str(), "unsafe-name");
    let read = document(&text, Mode::Lenient);
    let attachment = &read.attachments[0];
    assert_eq!((attachment.name.as_str(), attachment.original_name.as_deref()), ("passwd", Some("../../etc/passwd")));
    assert_eq!(attachment.encoding, Encoding::ZipWrapped { entry_name: "../../../root/.ssh/keys".into() });
    let said: Vec<_> = read.warnings.iter().map(|repair| repair.what.as_str()).collect();
    assert_eq!(said, ["\"../../etc/passwd\" became \"passwd\""]);
}

#[test]
fn a_decomposed_name_is_composed_in_both_modes_with_the_original_kept() {
    let read = document(&with_attachment("ba\u{309}n.txt", b"a"), Mode::Strict).attachments.remove(0);
    assert_eq!((read.name.as_str(), read.original_name.as_deref()), ("bản.txt", Some("ba\u{309}n.txt")));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for mode in [Mode::Strict, Mode::Lenient] {
            let _ = import(&bytes, mode, &Limits::default());
        }
    }

    #[test]
    fn arbitrary_markup_never_panics(text in r#"(<|>|/|&|;|!|\?|\[|\]|--|"|=| |:|\r|\n|xml|edXML|To|a|ố|#x?|[0-9]){0,60}"#) {
        for around in [("", ""), ("<edXML><edXMLEnvelope><edXMLHeader><MessageHeader>", "")] {
            let _ = read(&format!("{}{text}{}", around.0, around.1), Mode::Lenient);
        }
    }

    #[test]
    fn a_mutated_letter_never_panics(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6)) {
        let mut bytes = letter().into_bytes();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len().max(1));
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 if bytes.len() > 2 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(2)),
            }
        }
        for mode in [Mode::Strict, Mode::Lenient] {
            let _ = import(&bytes, mode, &Limits::default());
        }
    }

    #[test]
    fn a_mutated_archive_never_panics(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = zip_of(&[("1.txt", b"mot hai ba bon nam")]);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(&with_attachment("a.txt", &bytes), Mode::Lenient);
    }
}
