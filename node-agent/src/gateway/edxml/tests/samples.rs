//! Real files, where a folder of them lies beside the repository: everything that is expected of each must come out.

use std::path::Path;

use docaxis_protocol::Digest;
use serde_json::{Value, json};

use super::super::*;

fn summary(message: &Message) -> Value {
    let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
    match message {
        Message::Document(document) => json!({
            "well_formed": true,
            "sender": document.sender.spelled,
            "kind": document.kind.as_str(),
            "recipients": document.recipients.iter().map(|to| to.spelled.clone()).collect::<Vec<_>>(),
            "document_id": or_empty(&document.document_id),
            "number": or_empty(&document.number),
            "notation": or_empty(&document.notation),
            "subject": or_empty(&document.subject),
            "priority": document.header.get("OtherInfo").and_then(|o| o.get("Priority")).cloned().unwrap_or(json!("")),
            "parts": document.attachments.iter().map(part).collect::<Vec<_>>(),
        }),
        Message::Status(status) => json!({
            "well_formed": true,
            "sender": status.sender.spelled,
            "kind": "status",
            "status": status.code.as_str(),
            "about_document": or_empty(&status.about_document),
            "to": status.to_spelled,
            "description": status.description,
        }),
    }
}

fn part(attachment: &Attachment) -> Value {
    let entries = match &attachment.encoding {
        Encoding::ZipWrapped { entry_name } => vec![entry_name.clone()],
        Encoding::Raw => vec![],
    };
    json!({
        "name": attachment.name,
        "content_type": attachment.declared_content_type,
        "zip_entries": entries,
        "size": attachment.bytes.len(),
        "sha256": Digest::of(&attachment.bytes).to_string(),
    })
}

#[test]
fn every_real_file_gives_what_is_expected_of_it_in_both_modes() {
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let folder = Path::new(&package).join("../../shared/samples");
    let Ok(expected) = std::fs::read(folder.join("expected.json")) else {
        assert!(std::env::var_os("DOCAXIS_REQUIRE_ALL").is_none(), "no samples at {}", folder.display());
        eprintln!("SKIPPED: no samples at {}; real edXML files were not tried", folder.display());
        return;
    };
    let expected: serde_json::Map<String, Value> = serde_json::from_slice(&expected).unwrap();
    for (name, wanted) in &expected {
        let bytes = std::fs::read(folder.join("edxml").join(name)).unwrap();
        let strict = import(&bytes, Mode::Strict, &Limits::default());
        let lenient = import(&bytes, Mode::Lenient, &Limits::default());
        if wanted["well_formed"] == false {
            for outcome in [strict, lenient] {
                let error = outcome.expect_err(name);
                assert_eq!(error.code().as_str(), "malformed", "{name}: {error}");
                assert!(error.place().is_some(), "{name}: {error}");
                eprintln!("{name}: {error}");
            }
            continue;
        }
        let message = lenient.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(&summary(&message), wanted, "{name}");
        for warning in message.warnings() {
            eprintln!("{name}: {warning}");
        }
        match strict {
            Ok(message) => assert_eq!(&summary(&message), wanted, "{name}"),
            Err(error) => eprintln!("{name}, strictly: {error}"),
        }
        reads_back(name, message);
    }
}

/// What was imported, exported and imported again says the same.
fn reads_back(name: &str, message: Message) {
    let (header, parts, bytes) = match &message {
        Message::Document(d) => (&d.header, d.attachments.clone(), export(&d.header, &d.attachments).unwrap()),
        Message::Status(s) => (&s.header, vec![], export_status(&s.header).unwrap()),
    };
    match import(&bytes, Mode::Lenient, &Limits::default()).unwrap() {
        Message::Document(again) => assert_eq!((&again.header, &again.attachments), (header, &parts), "{name}"),
        Message::Status(again) => assert_eq!(&again.header, header, "{name}"),
    }
}
