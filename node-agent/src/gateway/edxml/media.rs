//! What kind of file some bytes are, told by the bytes alone: senders' declared types are often wrong.

/// What the first bytes say. Office packages need a look inside the ZIP; see the attachment reader.
pub(super) fn media_type(bytes: &[u8]) -> &'static str {
    const MAGIC: [(&[u8], &str); 17] = [
        (b"%PDF-", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (b"PK\x05\x06", "application/zip"),
        // The container of .doc, .xls and .ppt does not say which of them it holds.
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"II*\0", "image/tiff"),
        (b"MM\0*", "image/tiff"),
        (b"BM", "image/bmp"),
        (b"{\\rtf", "application/rtf"),
        (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
        (b"Rar!\x1a\x07", "application/vnd.rar"),
        (b"\x1f\x8b", "application/gzip"),
        (b"OggS", "application/ogg"),
        (b"ID3", "audio/mpeg"),
    ];
    if let Some((_, media_type)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return media_type;
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return "video/mp4";
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if is_markup(text) => "application/xml",
        Ok(text) if !text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{c}')) => "text/plain",
        _ => "application/octet-stream",
    }
}

fn is_markup(text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}');
    text.starts_with("<?xml") || text.starts_with("<edXML")
}

/// The office formats that are ZIPs themselves: by the names inside (OPC), or by the first entry, which is called
/// `mimetype`, is stored as it is and holds nothing but the type (ODF).
pub(super) fn package_type(bytes: &[u8], entry_names: &[String]) -> &'static str {
    const OPEN_DOCUMENT: [&str; 4] = [
        "application/vnd.oasis.opendocument.text",
        "application/vnd.oasis.opendocument.spreadsheet",
        "application/vnd.oasis.opendocument.presentation",
        "application/vnd.oasis.opendocument.graphics",
    ];
    // A local file header is 30 bytes; the sizes of what follows stand at 22 (content) and 28 (extra field).
    let field = |at: usize| bytes.get(at..at + 2).map_or(0, |two| usize::from(two[0]) | usize::from(two[1]) << 8);
    if bytes.get(30..38) == Some(b"mimetype") {
        let start = 38 + field(28);
        let content = bytes.get(start..start + field(22)).unwrap_or(&[]);
        return OPEN_DOCUMENT.into_iter().find(|known| known.as_bytes() == content).unwrap_or("application/zip");
    }
    let by_folder = |name: &String| match name.split('/').next() {
        Some("word") => Some("application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        Some("xl") => Some("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        Some("ppt") => Some("application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        _ => None,
    };
    let is_office = entry_names.iter().any(|name| name == "[Content_Types].xml");
    entry_names.iter().find_map(by_folder).filter(|_| is_office).unwrap_or("application/zip")
}

/// Whether a declared type contradicts the bytes. Types that say nothing contradict nothing.
pub(super) fn contradicts(declared: &str, found: &str) -> bool {
    let declared = declared.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if declared == found || matches!(declared.as_str(), "" | "application/octet-stream") {
        return false;
    }
    match found {
        "application/x-ole-storage" => {
            !["msword", "ms-", "doc", "xls", "ppt"].iter().any(|part| declared.contains(part))
        }
        "application/xml" => !declared.ends_with("xml"),
        // Text in another encoding than UTF-8 looks like any bytes.
        "text/plain" | "application/octet-stream" => !declared.starts_with("text/"),
        _ => true,
    }
}
