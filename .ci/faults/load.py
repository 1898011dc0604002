"""Load on an exchange, and a list of what was acknowledged: what must be there whatever happens afterwards.

A line of the list is written before it is said that the thing was acknowledged. There are four kinds: `accepted` (the
sender's agent holds the receipt), `handed-over` (it holds the evidence of a handover), `queued` (the agent gave an id)
and `visible` (a recipient sees the dispatch)."""
import hashlib
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

from rig import AGENCY, AWAY, HANG_S, RECIPIENT, SENDER, Refused, Unreachable, ask

# Sizes of bodies: most travel with the submission, some are files of their own.
SIZES = (700, 9_000, 60_000, 150_000)


def rows(data, query):
    """What an agent's mailbox holds."""
    database = sqlite3.connect(f"file:{data}/mailbox.db", uri=True, timeout=5)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


class Acks:
    """The list. `say` is told the number of each line, in order, after it was written."""

    def __init__(self, path, say=lambda n: None):
        self.path, self.say = Path(path), say
        self.lock = threading.Lock()
        self.lines = []

    def add(self, kind, **what):
        with self.lock:
            line = {"kind": kind, **what}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self.lines.append(line)
            self.say(len(self.lines) - 1)

    def taken(self):
        with self.lock:
            return list(self.lines)


def read_acks(path, n):
    lines = Path(path).read_text(encoding="utf-8").splitlines()[:n]
    return [json.loads(line) for line in lines]


class Load:
    """Threads that send from one node to others until told to stop, and note what is acknowledged."""

    def __init__(self, exchange, acks, dice, senders, most=10 ** 9):
        """`senders`: (node, recipients, threads)."""
        self.exchange, self.acks, self.most = exchange, acks, most
        # More parts fill the journal's segments sooner.
        self.parts_each = 1
        self.halt = threading.Event()
        self.failed = []
        # Every dispatch that was asked for, by subject: also those whose answer never came.
        self.asked = {}
        self.threads = []
        for node, recipients, count in senders:
            for n in range(count):
                mine = (node, recipients, f"{node}-{n}", dice.randrange(2 ** 32))
                self.threads.append(threading.Thread(target=self.guarded, args=(self.send_all, *mine), daemon=True))

    def guarded(self, work, *args):
        try:
            work(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, the case must hear of it
            self.failed.append(error)
            self.halt.set()

    def follow(self, work, *args):
        self.threads.append(threading.Thread(target=self.guarded, args=(work, *args), daemon=True))

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.halt.set()
        for thread in self.threads:
            thread.join(HANG_S)
        if self.failed:
            raise self.failed[0]

    def send_all(self, node, recipients, name, seed):
        n = 0
        while not self.halt.is_set() and len(self.acks.lines) < self.most:
            to = recipients[n % len(recipients)]
            self.send(node, to, f"{name}-{n}", SIZES[(n + seed) % len(SIZES)])
            n += 1

    def send(self, node, to, subject, size):
        """Queues one dispatch and waits for what its sender is promised; gives up quietly when told to stop."""
        folder = self.exchange.folder / "outgoing"
        folder.mkdir(exist_ok=True)
        parts, files = [], []
        for n in range(self.parts_each):
            body = hashlib.shake_128(f"{subject}-{n}".encode()).digest(size if self.parts_each == 1 else 60_000)
            parts.append({"name": f"{n}.pdf", "sha256": hashlib.sha256(body).hexdigest()})
            files.append(folder / f"{subject}-{n}")
            files[-1].write_bytes(body)
        about = {"subject": subject, "to": AGENCY[to], "parts": parts}
        self.asked[subject] = about
        draft = {"from": AGENCY[node], "to": [AGENCY[to]], "document": {"Subject": subject, "secret": False},
                 "parts": [{"name": part["name"], "path": str(file)} for part, file in zip(parts, files)]}
        made = self.persist(node, "POST", "/v1/dispatches", draft)
        for file in files:
            file.unlink()
        if made is None:
            return
        about["id"] = json.loads(made)["id"]
        self.queued(node, about)
        while not self.halt.is_set():
            waited = self.persist(node, "GET", f"/v1/dispatches/{about['id']}/wait?until=accepted&timeout_ms=500")
            if waited is not None and json.loads(waited)["outcome"] == "reached":
                self.accepted(node, about)
                return

    def queued(self, node, about):
        """An agent gave an id."""

    def accepted(self, node, about):
        """An agent has the receipt."""

    def persist(self, node, method, url, body=None):
        """Asks until there is an answer, or the load is to stop. A request that may have been heard is not repeated:
        it has no key, and twice would be two dispatches."""
        while not self.halt.is_set():
            try:
                return ask(self.exchange.socket(node), method, url, body, timeout=HANG_S)
            except Unreachable:
                if method == "POST" and os.path.exists(self.exchange.socket(node)):
                    return None
            except Refused as refused:
                if refused.status < 500:
                    raise
                if method == "POST":
                    return None
            time.sleep(0.02)
        return None


class BrokerLoad(Load):
    """The broker is what may fail: receipts and handovers that the sender's agent holds are what counts. One recipient
    is there, the other is away, so that something always waits."""

    def __init__(self, exchange, acks, dice, threads=3, most=10 ** 9):
        super().__init__(exchange, acks, dice, [(SENDER, (RECIPIENT, AWAY), threads)], most)
        self.follow(self.handovers)

    def accepted(self, node, about):
        receipt = evidence(self.exchange, node, about["id"], "SubmissionAcceptance")
        self.acks.add("accepted", receipt=receipt, **about)

    def handovers(self):
        seen = set()
        while not self.halt.is_set():
            query = "SELECT leaf, hex(bytes), hex(signature) FROM evidence WHERE event = 'ContentHandover' ORDER BY leaf"
            for leaf, signed, signature in rows(self.exchange.data[SENDER], query):
                if leaf not in seen and len(self.acks.lines) < self.most:
                    seen.add(leaf)
                    self.acks.add("handed-over", receipt=[leaf, signed, signature])
            time.sleep(0.02)


class AgentLoad(Load):
    """The recipient's agent is what may fail: ids that it gave, and dispatches that its officers see."""

    def __init__(self, exchange, acks, dice, most=10 ** 9):
        super().__init__(exchange, acks, dice, [(RECIPIENT, (SENDER,), 2), (SENDER, (RECIPIENT,), 2)], most)
        self.follow(self.arrivals)

    def queued(self, node, about):
        if node == RECIPIENT:
            self.acks.add("queued", **about)

    def arrivals(self):
        seen = set()
        while not self.halt.is_set():
            try:
                listed = json.loads(ask(self.exchange.socket(RECIPIENT), "GET", "/v1/dispatches?box=in"))["dispatches"]
            except (Unreachable, Refused):
                listed = []
            for one in reversed(listed):
                if one["id"] not in seen and len(self.acks.lines) < self.most:
                    seen.add(one["id"])
                    asked = self.asked[one["subject"]]
                    self.acks.add("visible", id=one["id"], subject=one["subject"], parts=asked["parts"])
            time.sleep(0.02)


def evidence(exchange, node, dispatch, event):
    """[leaf, signed bytes, signature] of the one such piece that the node holds."""
    query = "SELECT leaf, hex(bytes), hex(signature) FROM evidence WHERE " \
            f"hex(dispatch) = '{dispatch.replace('-', '').upper()}' AND event = '{event}'"
    found = rows(exchange.data[node], query)
    if len(found) != 1:
        raise AssertionError(f"{node} holds {len(found)} pieces of {event} about {dispatch}")
    return list(found[0])
