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

/// The office formats that are ZIPs themselves, by a name inside (OPC) or by the content of `mimetype` (ODF).
pub(super) fn package_type(mut entry_names: impl Iterator<Item = String>) -> &'static str {
    entry_names
        .find_map(|name| match name.split('/').next() {
            Some("word") => Some("application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
            Some("xl") => Some("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
            Some("ppt") => Some("application/vnd.openxmlformats-officedocument.presentationml.presentation"),
            _ => None,
        })
        .unwrap_or("application/zip")
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
