//! `VERIFY.txt`: literal openssl and python commands that check a bundle without any of our software.
//!
//! The file is a shell script as well as a text. Every key that it uses is taken out of a certificate that it has
//! verified up to the reader's own copy of the root, at the time of the event.

use std::collections::BTreeSet;

use super::writer::{BundleContents, Told, crl_name};
use crate::envelope::Envelope;
use crate::evidence::Evidence;
use crate::time::Timestamp;

const HEAD: &str = r#"# How to check this bundle yourself. You need a shell, openssl 3, python3, and YOUR OWN copy of the authority's root
# certificate, from a source that you trust. The one in keys/ only shows which root is meant.
#
# Unpack the bundle into an empty folder, change into it, and either read and type what follows, or run it:
#
#     AUTHORITY=/where/you/keep/authority.pem sh VERIFY.txt
#
# It stops at the first thing that does not hold. These commands check signatures, certificates, revocation, names and
# the log's proofs. They do not replace reading what the evidence says, nor the rules of order between events.

set -eu
: "${AUTHORITY:?set AUTHORITY to your own copy of the root certificate}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The root in the bundle is yours:
openssl x509 -in "$AUTHORITY" -outform DER -out "$work/root"
openssl x509 -in keys/authority.pem -outform DER -out "$work/named"
cmp "$work/root" "$work/named"

# certificate FILE URI SECONDS KEY: the certificate chains to your root at that time (in seconds since 1970), has exactly
# this name, and was not revoked by then; its key is then written to KEY.
certificate() {
    openssl verify -x509_strict -no-CApath -no-CAstore -attime "$3" -CAfile "$AUTHORITY" -untrusted keys/chain.pem "$1"
    openssl x509 -in "$1" -noout -ext subjectAltName | grep -qxF "    URI:$2"
    openssl x509 -in "$1" -noout -serial | cut -d= -f2 > "$work/serial"
    python3 - "$work/serial" "$work/revoked" "$3" <<'END'
import calendar, re, sys, time
serial, lists = open(sys.argv[1]).read().strip(), open(sys.argv[2]).read()
for number, date in re.findall(r"Serial Number: ([0-9A-F]+)\s+Revocation Date: (\w+ +\d+ [\d:]+ \d+) GMT", lists):
    if int(number, 16) == int(serial, 16) and calendar.timegm(time.strptime(date, "%b %d %H:%M:%S %Y")) <= int(sys.argv[3]):
        sys.exit("this certificate was revoked before the event: " + date)
END
    openssl x509 -in "$1" -noout -pubkey > "$4"
}

# signature KEY PREFIX FILE SIGNATURE: the key signed PREFIX followed by the file's bytes.
signature() {
    { printf "$2"; cat "$3"; } > "$work/signed"
    openssl pkeyutl -verify -rawin -pubin -inkey "$1" -in "$work/signed" -sigfile "$4"
}

# in_log STEM: the evidence and its signature are in the tree whose checkpoint the log signed.
in_log() {
    python3 - "$1" "$work" <<'END'
import base64, hashlib, sys
stem, work = sys.argv[1:]
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
entry = sha(open(stem + ".json", "rb").read(), open(stem + ".sig", "rb").read())
head, body, signatures = open(stem + ".tlog-proof", encoding="utf-8").read().split("\n\n", 2)
lines = [line for line in head.split("\n") if not line.startswith("extra ")]
origin, size, root = (body + "\n").split("\n")[:3]
index, path = int(lines[1].split(" ")[1]), [base64.b64decode(line) for line in lines[2:]]
at, last, node = index, int(size) - 1, sha(b"\0", entry)
assert lines[0] == "c2sp.org/tlog-proof@v1" and index <= last
for step in path:
    assert last != 0, "the proof is too long"
    if at & 1 or at == last:
        node = sha(b"\1", step, node)
        while not at & 1 and at:
            at, last = at >> 1, last >> 1
    else:
        node = sha(b"\1", node, step)
    at, last = at >> 1, last >> 1
assert last == 0 and node == base64.b64decode(root), "the proof does not lead to the checkpoint's root"
mine = [line.split(" ") for line in signatures.strip().split("\n") if line.split(" ")[1] == origin]
open(work + "/checkpoint", "w", encoding="utf-8").write(body + "\n")
open(work + "/checkpoint.sig", "wb").write(base64.b64decode(mine[0][2])[4:])
print("leaf", index, "of", size, "in", origin)
END
    openssl pkeyutl -verify -rawin -pubin -inkey "$work/log" -in "$work/checkpoint" -sigfile "$work/checkpoint.sig"
}
"#;

/// The text of `VERIFY.txt`.
pub(super) fn commands(contents: &BundleContents, envelope: Option<&Envelope>, told: &[Told]) -> String {
    let mut out = HEAD.to_owned();
    out.push_str("\n# The revocation lists are signed by the authorities:\n");
    out.push_str("cat \"$AUTHORITY\" keys/chain.pem > \"$work/authorities\"\n: > \"$work/revoked\"\n");
    for name in (0..contents.keys.crls.len()).filter_map(crl_name) {
        out.push_str(&format!(
            "openssl crl -in {name} -CAfile \"$work/authorities\" -noout 2>&1 | grep 'verify OK'\n\
             openssl crl -in {name} -noout -text >> \"$work/revoked\"\n"
        ));
    }
    let Some(first) = told.first().map(|told| &told.evidence) else { return out };
    out.push_str("\n# The log's key:\n");
    out.push_str(&certificate("keys/log.pem", &format!("docaxis://log/{}", first.issuer), first.time, "log"));
    if let Some(envelope) = envelope.filter(|_| first.event == crate::Event::SubmissionAcceptance) {
        out.push_str("\n# The envelope is sealed by its sender, when it was made and when it was accepted:\n");
        let uri = format!("docaxis://agency/{}", envelope.sender.agency);
        for at in [envelope.created, first.time] {
            out.push_str(&certificate("seal.pem", &uri, at, "sender"));
        }
        out.push_str("signature \"$work/sender\" 'docaxis/envelope@1\\n' envelope.json envelope.sig\n");
    }
    out.push_str("\n# Every piece of evidence is about this envelope:\n");
    out.push_str(&format!("echo '{}  envelope.json' | sha256sum -c\n", first.envelope_sha256));
    cause(&mut out, contents);
    let mut successions = BTreeSet::new();
    for Told { stem, evidence } in told {
        piece(&mut out, stem, evidence, &mut successions);
    }
    out.push_str("\necho 'All of it holds.'\n");
    out
}

fn piece(out: &mut String, stem: &str, evidence: &Evidence, successions: &mut BTreeSet<String>) {
    let Evidence { event, issuer, time, key, .. } = evidence;
    let of = evidence.recipient.as_ref().map_or_else(String::new, |who| format!(" of {who}"));
    out.push_str(&format!("\n# {event}{of}, {}:\n", time.to_vietnam()));
    let uri = format!("docaxis://evidence/{issuer}");
    out.push_str(&certificate(&format!("keys/evidence-{key}.pem"), &uri, *time, "evidence"));
    out.push_str(&format!("signature \"$work/evidence\" '' {stem}.json {stem}.sig\n"));
    out.push_str(&format!("grep -qF '{}' {stem}.json\n", evidence.envelope_sha256));
    if let (Some(who), Some(_)) = (&evidence.recipient, &evidence.statement) {
        let signer = evidence.acting.as_ref().unwrap_or(who);
        if signer != who && successions.insert(who.to_string()) {
            let uri = format!("docaxis://directory/{issuer}");
            out.push_str(&format!("# {signer} succeeded {who}, says the directory:\n"));
            out.push_str(&certificate("keys/directory.pem", &uri, *time, "directory"));
            out.push_str(&format!(
                "signature \"$work/directory\" 'docaxis/succession@1\\n' directory/{who}.json directory/{who}.sig\n"
            ));
        }
        out.push_str(&certificate(&format!("{stem}.seal.pem"), &format!("docaxis://agency/{signer}"), *time, "seal"));
        out.push_str(&format!(
            "signature \"$work/seal\" 'docaxis/statement@1\\n' {stem}.statement.json {stem}.statement.sig\n"
        ));
    }
    out.push_str(&format!("in_log {stem}\n"));
}

/// The recall for which the dispatch was withdrawn.
fn cause(out: &mut String, contents: &BundleContents) {
    let Some(recall) = contents.cause.as_ref().and_then(|cause| Envelope::parse(&cause.bytes).ok()) else { return };
    out.push_str("\n# The recall is sealed by the same sender:\n");
    let uri = format!("docaxis://agency/{}", recall.sender.agency);
    out.push_str(&certificate("cause/envelope.pem", &uri, recall.created, "recall"));
    out.push_str("signature \"$work/recall\" 'docaxis/envelope@1\\n' cause/envelope.json cause/envelope.sig\n");
}

/// Names of agencies, exchanges and files have no character that a shell would read as anything but itself.
fn certificate(file: &str, uri: &str, at: Timestamp, key: &str) -> String {
    format!("certificate {file} {uri} {} \"$work/{key}\"\n", at.unix_s())
}
