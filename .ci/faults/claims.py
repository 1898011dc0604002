"""What must hold after a fault, whatever it was: asked of the real programs, started on what is left of the data."""
import hashlib
import json
import os
import sqlite3
import uuid
from pathlib import Path

from load import evidence, rows
from rig import AGENCY, AWAY, HANG_S, RECIPIENT, SENDER, Broken, ask, until

# How long a broker may take from its start until it answers.
READY_S = 5


def another_boot(data):
    """What was open in this boot counts as open in an earlier one: an image of before a power cut is looked at in the
    boot that wrote it."""
    state = Path(data) / "index.state"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if state.exists() and (text := state.read_text(errors="replace")).endswith(boot):
        state.write_text(text.removesuffix(boot) + str(uuid.uuid4()))


def forget_receipts(data):
    """The sender's mailbox as it was before any answer came: it will submit everything once more, byte for byte."""
    database = sqlite3.connect(Path(data) / "mailbox.db")
    with database:
        database.execute("UPDATE outgoing SET state = 'queued', attempts = 0, next_attempt = 0, trouble = NULL")
        database.execute("UPDATE deliveries SET state = 'waiting', reason = NULL")
        for table in ("evidence", "cursors", "contradictions"):
            database.execute(f"DELETE FROM {table}")
        # The sender's mailbox is as it was at the end, the broker's data as of the cut: a checkpoint of between would close
        # the broker as one that was put back, and its nodes would give back what the cut has lost.
        database.execute("DELETE FROM meta WHERE key = 'checkpoint'")
    database.close()


def broker_kept(exchange, acks):
    """Every acknowledged dispatch and handover is there: a retry gets the same receipt, the recipient that was away gets
    the right bytes, once, and the log's checkpoint covers the evidence. `exchange` has the broker's data in question."""
    ready = exchange.start("broker")
    if ready > READY_S:
        raise Broken(f"the broker took {ready:.1f} s to recover, expected at most {READY_S}")
    accepted = [ack for ack in acks if ack["kind"] == "accepted"]
    forget_receipts(exchange.data[SENDER])
    exchange.start(SENDER)
    exchange.start(AWAY)
    open_query = "SELECT count(*) FROM outgoing WHERE state = 'queued'"
    until("every dispatch has its answer again", lambda: rows(exchange.data[SENDER], open_query) == [(0,)] or None)
    for ack in accepted:
        again = evidence(exchange, SENDER, ack["id"], "SubmissionAcceptance")
        if again != list(ack["receipt"]):
            raise Broken(f"dispatch {ack['id']} got another receipt: leaf {again[0]} after {ack['receipt'][0]}")
    for ack in acks:
        if ack["kind"] == "handed-over":
            leaf = ack["receipt"][0]
            query = f"SELECT leaf, hex(bytes), hex(signature) FROM evidence WHERE leaf = {leaf}"
            found = until(f"the evidence at leaf {leaf}", lambda query=query: rows(exchange.data[SENDER], query) or None)
            if [list(found[0])] != [list(ack["receipt"])]:
                raise Broken(f"the evidence at leaf {leaf} is another than before")
    arrived(exchange, AWAY, [ack for ack in accepted if ack["to"] == AGENCY[AWAY]])
    for ack in accepted[-1:]:
        bundle_verifies(exchange, ack["id"])
    exchange.kill()
    return ready


def arrived(exchange, node, acks):
    """The node shows each of these once, with the bytes that were sent."""
    for ack in acks:
        url = f"/v1/dispatches/{ack['id']}"
        def seen(url=url):
            shown = json.loads(ask(exchange.socket(node), "GET", url))
            return shown if shown["incoming"] and shown["incoming"][0]["state"] != "taken" else None
        shown = until(f"dispatch {ack['id']} arrives at {node}", seen)
        if shown["subject"] != ack["subject"] or len(shown["incoming"]) != 1:
            raise Broken(f"dispatch {ack['id']} arrived as {shown['subject']!r}, {len(shown['incoming'])} times; "
                         f"{ack['subject']!r} was sent")
        for n, part in enumerate(ack["parts"]):
            found = hashlib.sha256(ask(exchange.socket(node), "GET", f"{url}/parts/{n}")).hexdigest()
            if found != part["sha256"]:
                raise Broken(f"part {n} of dispatch {ack['id']} arrived with digest {found}, sent was {part['sha256']}")


def bundle_verifies(exchange, dispatch):
    """The broker's bundle holds, with its log beside it."""
    path = exchange.folder / "bundle.zip"
    path.write_bytes(until("a bundle", lambda: ask(exchange.socket("broker"), "GET", f"/v1/dispatches/{dispatch}/bundle")))
    exchange.command("audit", "verify", str(path), "--authority", "auth/authority.pem", "--log",
                     str(exchange.data["broker"] / "log"), "--expect", "SubmissionAcceptance")


def agent_kept(exchange, acks):
    """Every id that the recipient's agent gave is sent, and everything that its officers saw is there. `exchange` has
    the agent's data in question, and the broker as it was at the end."""
    exchange.start("broker")
    ready = exchange.start(RECIPIENT)
    if ready > READY_S:
        raise Broken(f"the agent took {ready:.1f} s to recover, expected at most {READY_S}")
    for ack in acks:
        if ack["kind"] == "queued":
            url = f"/v1/dispatches/{ack['id']}/wait?until=accepted&timeout_ms={HANG_S * 1000}"
            waited = json.loads(ask(exchange.socket(RECIPIENT), "GET", url, timeout=2 * HANG_S))
            if waited["outcome"] != "reached" or waited["dispatch"]["subject"] != ack["subject"]:
                raise Broken(f"dispatch {ack['id']} was queued and is {waited['outcome']}: {waited['dispatch']}")
            for n, part in enumerate(ack["parts"]):
                found = hashlib.sha256(ask(exchange.socket(RECIPIENT), "GET", f"/v1/dispatches/{ack['id']}/parts/{n}"))
                if found.hexdigest() != part["sha256"]:
                    raise Broken(f"part {n} of the queued dispatch {ack['id']} has another digest")
    arrived(exchange, RECIPIENT, [ack for ack in acks if ack["kind"] == "visible"])
    exchange.kill()
    return ready


def fresh(exchange, *names):
    """The control sockets that a killed process left are gone, so that nobody takes them for a living one."""
    for name in names or exchange.data:
        path = exchange.socket(name)
        if os.path.lexists(path):
            path.unlink()
