#!/usr/bin/env python3
"""Single bits that rot while nothing runs, anywhere in the data of a broker or of an agent.

    bitflips.py DOCAXIS [--count N] [--seed S] [--only PLACE] [-v]

After a flip the damage is refused or reported, or repaired from another copy, or stood for nothing. It is never passed on
as content, it never changes a receipt, and whatever is not damaged goes its way. What was written last is put right, or the
start is refused: it is never taken for a torn write and left out. Each case is an exchange with settled
segments, waiting dispatches, large bodies and a log, closed in order or killed.
"""
import dataclasses
import functools
import hashlib
import json
import re
import time
from pathlib import Path

from claims import AWAY, fresh, forget_receipts
from load import Acks, AgentLoad, BrokerLoad, evidence, rows
from rig import AGENCY, RECIPIENT, SENDER, Broken, Refused, Unreachable, arguments, ask, run, until

# By whose data, and which part of them. What was written last is a place of its own: the journal's newest group before the
# durable position is written behind it, and the last transaction of the mailbox's log.
PLACES = [
    ("broker", "journal"), ("broker", "newest group"), ("broker", "evidence"), ("broker", "index"), ("broker", "blobs"),
    ("broker", "log"), ("broker", "spare"), ("agent", "mailbox.db"), ("agent", "mailbox.db-wal"),
    ("agent", "last transaction"), ("agent", "parts"),
]
NEWEST = ("newest group", "last transaction")
PAGE = 4096
# How the program says that something is damaged.
DAMAGE = re.compile(r"damage|does not read|does not agree|malformed|corrupt|digest|CRC|not a database|does not open|"
                    r"does not verify|is not good|no checkpoint|lead to root|UnexpectedEof|ALARM", re.IGNORECASE)
# Kills of which one at least leaves a whole group.
TRIES = 5
# How long what is not damaged may take to go its way.
FLOWS_S = 20


class Prepared:
    """One exchange with content, in the states in which a bit may rot: made once for all cases."""

    def __init__(self):
        self.made = {}

    def get(self, whose, state, template, folder, dice):
        key = (whose, state)
        for n in range(TRIES if key not in self.made else 0):
            exchange, acks = self.make(whose, state, template, folder.parent / f"prepared-{whose}-{state}-{n}", dice)
            # A kill in the middle of a write leaves a group that is torn: its bits stand for nothing.
            if key != ("broker", "killed") or groups(exchange.data["broker"] / "journal")[-1].whole:
                self.made[key] = exchange, acks
                break
        if key not in self.made:
            raise Broken(f"each of {TRIES} kills was in the middle of a write")
        return self.made[key]

    def make(self, whose, state, template, folder, dice):
        exchange = template.copy(folder)
        acks = Acks(folder / "acks", lambda n: None)
        try:
            for name in ("broker", SENDER, RECIPIENT):
                exchange.start(name)
            load = (BrokerLoad if whose == "broker" else AgentLoad)(exchange, acks, dice)
            load.start()
            until("enough was acknowledged", lambda: len(acks.lines) > 60 or load.failed or None)
            if whose == "broker":
                load.parts_each = 4
                files = exchange.data["broker"] / "evidence"
                until("a settled segment", lambda: any(f.stat().st_size > 48 for f in files.glob("*.evidence")) or None)
            if (whose, state) == ("broker", "killed"):
                # While it works: nothing says yet that the newest group was durable.
                exchange.kill("broker")
            load.stop()
            if whose == "agent":
                for ack in acks.lines:
                    ack["shown"] = shown(exchange, RECIPIENT, ack)
            if state == "closed":
                exchange.stop()
            else:
                exchange.kill()
        finally:
            exchange.kill()
        fresh(exchange)
        return exchange, acks.taken()


@dataclasses.dataclass
class Group:
    file: Path
    at: int
    length: int
    records: int
    # Whether its records are those of which its header has the digest.
    whole: bool


def groups(journal):
    """The groups in a journal's segments, as docs/format.md describes them, oldest first."""
    found = []
    for file in sorted(journal.glob("*.segment")):
        data = file.read_bytes()
        salt, at = data[24:32], PAGE
        while data[at:at + 4] == b"DXgr" and data[at + 16:at + 24] == salt:
            length = int.from_bytes(data[at + 4:at + 8], "little")
            whole = hashlib.sha256(data[at + 56:at + length]).digest()[:8] == data[at + 48:at + 56]
            found.append(Group(file, at, length, int.from_bytes(data[at + 40:at + 44], "little"), whole))
            at += (length + PAGE - 1) // PAGE * PAGE
    return found


def last_transaction(log):
    """Where the last transaction of SQLite's log begins and ends."""
    page, salts = int.from_bytes(log[8:12], "big"), log[16:24]
    ends = [at + 24 + page for at in range(32, len(log) - 23 - page, 24 + page)
            if log[at + 8:at + 16] == salts and log[at + 4:at + 8] != bytes(4)]
    if not ends:
        raise Broken("the mailbox's log holds no transaction")
    return ([32] + ends)[-2], ends[-1]


def an_auditor_finds(log):
    """What somebody who reads the log finds wrong: an entry that does not hash to its leaf."""
    for bundle in sorted(path for path in (log / "tile" / "entries").glob("**/*") if path.is_file()):
        hashes = (log / "tile" / "0" / bundle.relative_to(log / "tile" / "entries")).read_bytes()
        data, at, n = bundle.read_bytes(), 0, 0
        while at < len(data):
            length = int.from_bytes(data[at:at + 2], "big")
            leaf = hashlib.sha256(b"\0" + data[at + 2:at + 2 + length]).digest()
            if hashes[32 * n:32 * n + 32] != leaf:
                return f"entry {n} of {bundle.name} does not hash to its leaf"
            at, n = at + 2 + length, n + 1
    return None


def choose(dice, data, place):
    """A file, an offset and a bit."""
    if place == "newest group":
        group = groups(data / "journal")[-1]
        if not group.records:
            raise Broken("the newest group is a mark: the broker was idle before it was killed")
        return group.file, group.at + dice.randrange(group.length), dice.randrange(8)
    if place == "last transaction":
        file = data / "mailbox.db-wal"
        begin, end = last_transaction(file.read_bytes())
        return file, dice.randrange(begin, end), dice.randrange(8)
    folders = {"journal": ("journal", "*.segment"), "spare": ("journal", "*.spare"), "evidence": ("evidence", "*"),
               "index": ("index", "**/*"), "blobs": ("blobs", "??/*"), "log": ("log", "**/*"), "parts": ("parts", "??/*")}
    folder, pattern = folders.get(place, ("", place))
    files = sorted(file for file in (data / folder).glob(pattern) if file.is_file() and file.stat().st_size)
    if not files:
        raise Broken(f"there is nothing in {place}")
    file = dice.choice(files)
    size = file.stat().st_size
    at = dice.randrange(size)
    if place in ("journal", "mailbox.db", "mailbox.db-wal"):
        # Most of a preallocated file is empty: what stands for something is what is of interest.
        whole = file.read_bytes()
        for _ in range(100):
            if any(whole[at // PAGE * PAGE:at // PAGE * PAGE + PAGE]):
                break
            at = dice.randrange(size)
    return file, at, dice.randrange(8)


def flip(file, at, bit):
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))


def told(exchange, *names):
    """The lines in which these said that something is damaged."""
    return [line for name in names for line in exchange.said(name).splitlines()
            if DAMAGE.search(line) and ("WARN" in line or "ERROR" in line or "error" in line)]


def starts(exchange, name):
    """None if it serves; what it said if it refused to start. Dying without a word of damage is Broken."""
    try:
        exchange.start(name)
        return None
    except Broken as refused:
        child = exchange.children.pop(name)
        said = exchange.said(name)
        if child.returncode is None or child.returncode < 0 or not DAMAGE.search(said):
            raise Broken(f"{name} neither serves nor says what is damaged: {refused}") from refused
        return [line for line in said.splitlines() if DAMAGE.search(line)][-1]


def settle(conditions, within_s):
    """Waits until all of these hold, or the time is over; what does not hold."""
    deadline = time.monotonic() + within_s
    while True:
        conditions = [one for one in conditions if not one[1]()]
        if not conditions or time.monotonic() > deadline:
            return [name for name, _ in conditions]
        time.sleep(0.05)


def shown(exchange, node, ack):
    """What the node shows of a dispatch and what does not change any more; none before it may be shown."""
    found = json.loads(ask(exchange.socket(node), "GET", f"/v1/dispatches/{ack['id']}"))
    if not found["incoming"] and not found.get("outgoing") or any(i["state"] == "taken" for i in found["incoming"]):
        return None
    return {name: found[name] for name in ("kind", "sender", "recipients", "created", "expires", "priority", "subject",
                                           "document", "parts")}


def shown_right(exchange, node, ack):
    """Whether the node shows this dispatch with what was sent. Other content is Broken; an error of the node is not."""
    try:
        found = shown(exchange, node, ack)
        if found is None:
            return False
        if found["subject"] != ack["subject"] or [p["sha256"] for p in found["parts"]] != [p["sha256"] for p in ack["parts"]]:
            raise Broken(f"dispatch {ack['id']} is shown as {found['subject']!r} with other parts or another subject")
        for name, value in (ack.get("shown") or found).items():
            if found[name] != value:
                raise Broken(f"dispatch {ack['id']} is shown with {name} {found[name]!r}, it was {value!r}")
        for n, part in enumerate(ack["parts"]):
            body = ask(exchange.socket(node), "GET", f"/v1/dispatches/{ack['id']}/parts/{n}")
            if hashlib.sha256(body).hexdigest() != part["sha256"]:
                raise Broken(f"part {n} of dispatch {ack['id']} is given out with other bytes than were sent")
        return True
    except (Refused, Unreachable):
        return False


def bundle(exchange, ack, deadline):
    """The evidence that the node gives out about this dispatch; none if its proofs do not come, which follow within a second."""
    while True:
        try:
            return ask(exchange.socket(RECIPIENT), "GET", f"/v1/dispatches/{ack['id']}/bundle")
        except Refused as refused:
            if refused.status != 503:
                raise
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)


def bundles_verify(exchange, acks):
    """What an auditor finds wrong in the evidence that the node gives out about these."""
    bundles, deadline = [], time.monotonic() + FLOWS_S
    for ack in acks:
        path = exchange.folder / f"{ack['id']}.zip"
        try:
            given = bundle(exchange, ack, deadline)
        except Refused as refused:
            return str(refused)
        if given is not None:
            path.write_bytes(given)
            bundles.append(str(path))
    if not bundles:
        return "it gives out no evidence at all"
    try:
        exchange.command("audit", "verify", *bundles, "--authority", "auth/authority.pem")
        return None
    except Broken as broken:
        return str(broken)[-200:]


def broker_case(exchange, acks, place):
    refused = starts(exchange, "broker")
    if refused:
        return f"refused: {refused[-160:]}"
    accepted = [ack for ack in acks if ack["kind"] == "accepted"]
    forget_receipts(exchange.data[SENDER])
    exchange.start(SENDER)
    exchange.start(AWAY)

    def answered(ack):
        try:
            found = evidence(exchange, SENDER, ack["id"], "SubmissionAcceptance")
        except AssertionError:
            return False
        if found != list(ack["receipt"]):
            raise Broken(f"dispatch {ack['id']} got another receipt")
        return True

    conditions = [(f"receipt of {a['id']}", lambda a=a: answered(a)) for a in accepted]
    conditions += [(f"arrival of {a['id']}", lambda a=a: shown_right(exchange, AWAY, a))
                   for a in accepted if a["to"] == AGENCY[AWAY]]
    missing = settle(conditions, FLOWS_S / 4)
    said = told(exchange, "broker", AWAY, SENDER)
    if missing and (not said or len(missing) > 2):
        # More than what a flipped bit explains stays away: perhaps the machine is only slow.
        late, began = len(missing), time.monotonic()
        missing = settle(conditions, FLOWS_S)
        said = told(exchange, "broker", AWAY, SENDER)
        print(f"    {late} were late, {len(missing)} after another {time.monotonic() - began:.1f} s", flush=True)
    if missing and not said:
        raise Broken(f"{len(missing)} do not come and nobody says why: {missing[:3]}")
    if len(missing) > 2:
        raise Broken(f"one bit holds up {len(missing)} others: {missing[:3]}; said: {said[-1][-200:]}")
    if missing:
        return f"reported: {missing}, {said[-1][-160:]}"
    if place == "log":
        # Every proof that the sender asks for verifies at its agent; then the entries are read as an auditor does.
        unproven = "SELECT count(*) FROM evidence WHERE proof IS NULL"
        proven = settle([("proofs", lambda: rows(exchange.data[SENDER], unproven) == [(0,)])], FLOWS_S)
        said = told(exchange, "broker", SENDER)
        exchange.kill()
        found = an_auditor_finds(exchange.data["broker"] / "log")
        if proven and not said:
            raise Broken("proofs do not come and nobody says why")
        if found:
            return f"found by whoever reads the log: {found}"
    return f"repaired: {said[-1][-160:]}" if said else "stands for nothing"


def agent_case(exchange, acks, _):
    exchange.start("broker")
    refused = starts(exchange, RECIPIENT)
    if refused:
        return f"refused: {refused[-160:]}"
    conditions = [(f"dispatch {a['id']}", lambda a=a: shown_right(exchange, RECIPIENT, a)) for a in acks]
    missing = settle(conditions, 1)
    said = told(exchange, RECIPIENT)
    errors = []
    for name in missing:
        ack = next(ack for ack in acks if ack["id"] in name)
        try:
            ask(exchange.socket(RECIPIENT), "GET", f"/v1/dispatches/{ack['id']}")
            for n in range(len(ack["parts"])):
                ask(exchange.socket(RECIPIENT), "GET", f"/v1/dispatches/{ack['id']}/parts/{n}")
        except Unreachable as error:
            # The body breaks off before its end: nobody takes it for whole.
            errors.append(str(error))
        except Refused as error:
            if error.status != 404:
                errors.append(str(error))
    if missing and not said and not errors:
        # The database is checked from the start on, which takes its time.
        settle([("a word of damage", lambda: told(exchange, RECIPIENT))], FLOWS_S)
        said = told(exchange, RECIPIENT)
    if missing and not said and not errors:
        raise Broken(f"{len(missing)} are not shown and nobody says why: {missing[:3]}")
    if len(missing) > 2 and not errors:
        raise Broken(f"one bit holds up {len(missing)} others: {missing[:3]}; said: {(said + errors)[-1][-200:]}")
    if missing:
        return f"reported: {missing}, {(errors + said)[-1][-160:]}"
    found = bundles_verify(exchange, acks)
    if found:
        return f"found by whoever verifies the evidence: {found}"
    return f"repaired: {said[-1][-160:]}" if said else "stands for nothing"


PREPARED = Prepared()


def case(places, n, dice, template, folder):
    whose, place = places[n % len(places)]
    killed = place.endswith("wal") or place in NEWEST
    states = ("closed",) if place == "index" else ("killed",) if killed else ("closed", "killed")
    state = dice.choice(states)
    prepared, acks = PREPARED.get(whose, state, template, folder, dice)
    exchange = prepared.copy(folder / "live", links=False)
    victim = "broker" if whose == "broker" else RECIPIENT
    try:
        file, at, bit = choose(dice, exchange.data[victim], place)
        flip(file, at, bit)
        where = f"{place}, {file.name} byte {at} bit {bit}, {state}"
        try:
            verdict = (broker_case if whose == "broker" else agent_case)(exchange, acks, place)
            # The journal says of each bit which it was; SQLite's checksum has bits that it does not tell apart.
            allowed = {"newest group": ("repaired",), "last transaction": ("repaired", "refused")}.get(place)
            if allowed and not verdict.startswith(allowed):
                raise Broken(f"{verdict}; expected {' or '.join(allowed)}")
            return f"{where}: {verdict}"
        except Broken as broken:
            raise Broken(f"{where}: {broken}") from broken
    finally:
        exchange.kill()


if __name__ == "__main__":
    named = [place for _, place in PLACES]
    args = arguments(__doc__, 200, lambda parser: parser.add_argument("--only", choices=named, help="flip bits in this alone"))
    run(args, functools.partial(case, [one for one in PLACES if args.only in (None, one[1])]), in_memory=True)
