#!/usr/bin/env python3
"""Checks what `docaxis demo --json` printed: every check held, and every dispatch has its evidence for each recipient.

    check_demo.py DEMO.json [--samples SAMPLES --received DIR]

With --samples (a folder with expected.json and edxml/) each of its files must have had its right result, and with
--received every part of a document must lie with each of its recipients, byte for byte. Prints one line per file; a
list of what differs goes to stderr, and then the exit code is 1. Python's standard library only.
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

# What every dispatch of a demo must have come to.
SUBMITTED, HANDED_OVER = "SubmissionAcceptance", "ContentHandover"


class Report:
    def __init__(self):
        self.differences = []

    def differs(self, text):
        self.differences.append(text)

    def same(self, what, found, expected):
        if found != expected:
            self.differs(f"{what}: found {found!r}, expected {expected!r}")
        return found == expected


def check_whole(demo, report):
    report.same("ok", demo.get("ok"), True)
    if not demo.get("checks"):
        report.differs("no checks were made")
    for check in demo.get("checks", []):
        if check.get("ok") is not True:
            report.differs(f"check {check.get('name')!r} does not hold: {check.get('detail')}")
    if not demo.get("dispatches"):
        report.differs("no dispatch was sent")
    if not isinstance(demo.get("seconds"), (int, float)):
        report.differs(f"seconds: found {demo.get('seconds')!r}, expected a number")


def check_dispatch(dispatch, report):
    name = f"dispatch {dispatch.get('id')}"
    missing = {"id", "kind", "sender", "recipients", "bundle", "timeline"} - set(dispatch)
    if missing:
        report.differs(f"{name} lacks {sorted(missing)}")
        return
    if not Path(dispatch["bundle"]).is_file():
        report.differs(f"{name}: its bundle {dispatch['bundle']} is not there")
    timeline = dispatch["timeline"]
    if not any(entry.get("event") == SUBMITTED for entry in timeline):
        report.differs(f"{name}: its timeline lacks {SUBMITTED}")
    handed = {entry.get("agency") for entry in timeline if entry.get("event") == HANDED_OVER}
    for recipient in dispatch["recipients"]:
        if recipient not in handed:
            report.differs(f"{name}: its timeline lacks {HANDED_OVER} by {recipient}")
    untold = [entry for entry in timeline if not {"time", "agency", "event"} <= set(entry)]
    if untold:
        report.differs(f"{name}: entries of its timeline lack time, agency or event: {untold}")


def outcome(file, wanted, dispatches, received, report):
    """One file of the samples against what is expected of it."""
    name = Path(file["file"]).name
    result, code = file.get("result"), file.get("code")
    if not wanted["well_formed"]:
        report.same(f"{name}: result and code", (result, code), ("refused", "malformed"))
    elif wanted["kind"] == "new":
        report.same(f"{name}: kind and result", (file.get("kind"), result), ("new", "queued"))
        if result == "queued":
            check_document(name, wanted, dispatches.get(file.get("id")), received, report)
    else:
        # About a document: it depends on whether that was sent here, and on what has become of it.
        if result not in ("imported", "refused") or (result == "refused" and not code):
            report.differs(f"{name}: found {result!r} with code {code!r}, expected imported, or refused with a code")
        report.same(f"{name}: kind", file.get("kind"), wanted["kind"])


def check_document(name, wanted, dispatch, received, report):
    if dispatch is None:
        report.differs(f"{name}: it was queued, but its dispatch is not listed")
        return
    recipients = [code.upper() for code in wanted["recipients"]]
    report.same(f"{name}: sender", dispatch["sender"], wanted["sender"].upper())
    report.same(f"{name}: recipients", sorted(dispatch["recipients"]), sorted(recipients))
    if received is None:
        return
    for recipient in recipients:
        folder = received / recipient / dispatch["id"]
        if not folder.is_dir():
            report.differs(f"{name}: nothing lies with {recipient}: {folder} is not there")
            continue
        there = {path.name: path for path in folder.iterdir() if path.is_file()}
        for part in wanted["parts"]:
            where = f"{name}: part {part['name']!r} with {recipient}"
            if part["name"] not in there:
                report.differs(f"{where} is not there; there are {sorted(there)}")
                continue
            data = there[part["name"]].read_bytes()
            report.same(f"{where}, size", len(data), part["size"])
            report.same(f"{where}, SHA-256", hashlib.sha256(data).hexdigest(), part["sha256"])


def check_samples(demo, samples, received, report):
    expected = json.loads((samples / "expected.json").read_text(encoding="utf-8"))
    dispatches = {dispatch["id"]: dispatch for dispatch in demo.get("dispatches", []) if "id" in dispatch}
    files = {}
    for file in demo.get("files", []):
        name = Path(file.get("file", "")).name
        if name in files:
            report.differs(f"{name} is listed twice")
        files[name] = file
    for name in sorted(set(files) - set(expected)):
        report.differs(f"{name} is listed, but nothing is expected of it")
    for name in sorted(expected):
        before = len(report.differences)
        if name in files:
            outcome(files[name], expected[name], dispatches, received, report)
        else:
            report.differs(f"{name} is not listed")
        file = files.get(name, {})
        words = " ".join(str(file[key]) for key in ("result", "code", "id") if file.get(key))
        print(f"{'ok  ' if len(report.differences) == before else 'FAIL'}  {name}: {words}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--received", type=Path)
    args = parser.parse_args()
    if args.received and not args.samples:
        parser.error("--received says where the files are that --samples expects: give both")
    report = Report()
    try:
        demo = json.loads(args.demo.read_text(encoding="utf-8"))
        check_whole(demo, report)
        for dispatch in demo.get("dispatches", []):
            check_dispatch(dispatch, report)
        if args.samples:
            check_samples(demo, args.samples, args.received, report)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        report.differs(f"this is not the document that the demo promises: {type(error).__name__}: {error}")
    for difference in report.differences:
        print(f"FAIL  {difference}", file=sys.stderr)
    if report.differences:
        sys.exit(1)
    print(f"ok    {len(demo['dispatches'])} dispatches, {len(demo['checks'])} checks, {demo['seconds']} s")


if __name__ == "__main__":
    main()
