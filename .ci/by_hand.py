#!/usr/bin/env python3
"""Does what a new administrator does from the README: every command by hand, as real processes on loopback.

    by_hand.py DOCAXIS_BINARY

An authority, a broker and two agents are set up in a temporary folder; a dispatch goes through; everything is killed
with SIGKILL and started again; another dispatch goes through; the evidence is exported and verified. Exit codes and
--json are checked on the way. Python's standard library only. Whatever it starts, it stops.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

LIMIT_S = 120
UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"
GOVERNMENT, PROVINCE, MINISTRY = "000.00.00.G22", "H37.DN.001", "000.00.01.A53"
STARTED = time.monotonic()


class Broken(Exception):
    """What does not hold."""


class Run:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        self.children = {}
        # Only what a person's shell would give: no setting of this machine's docaxis may leak in.
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCAXIS", "LC_", "LANG", "RUST_LOG"))}
        self.env.update(LANG="en_US.UTF-8", NO_COLOR="1")

    # --- commands -------------------------------------------------------------------------------------------------

    def command(self, *args, expect=0, stdin=None):
        """Runs one command to its end and returns its stdout; its exit code must be the expected one."""
        left = LIMIT_S - (time.monotonic() - STARTED)
        if left <= 0:
            raise Broken(f"the {LIMIT_S} s are over before: docaxis {' '.join(args)}")
        done = subprocess.run([self.binary, *args], cwd=self.folder, env=self.env, input=stdin, capture_output=True,
                              text=True, timeout=min(60, left))
        if done.returncode != expect:
            raise Broken(f"docaxis {' '.join(args)}\n  exit code {done.returncode}, expected {expect}\n"
                         f"  stdout: {done.stdout.strip()}\n  stderr: {done.stderr.strip()}")
        return done.stdout.strip()

    def json(self, *args, expect=0):
        """The same with --json: stdout must be one JSON document."""
        text = self.command(*args, "--json", expect=expect)
        try:
            return json.loads(text)
        except ValueError as error:
            raise Broken(f"docaxis {' '.join(args)} --json printed no JSON document ({error}): {text!r}") from error

    def refused(self, *args, expect, codes):
        """A command that must fail with an exit code, and under --json with one of these reason codes."""
        error = self.json(*args, expect=expect).get("error")
        if not isinstance(error, dict) or set(error) != {"code", "message", "hint"}:
            raise Broken(f"docaxis {' '.join(args)} --json: expected {{error: {{code, message, hint}}}}, found {error!r}")
        if error["code"] not in codes:
            raise Broken(f"docaxis {' '.join(args)}: code {error['code']!r}, expected one of {sorted(codes)}: "
                         f"{error['message']}")

    # --- long-running processes -----------------------------------------------------------------------------------

    def start(self, name, *args):
        log = open(self.folder / f"{name}.log", "ab")
        with log:
            self.children[name] = subprocess.Popen([self.binary, *args], cwd=self.folder, env=self.env,
                                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start_exchange(self):
        self.start("broker", "broker", "run", "--config", "broker/broker.toml")
        self.until_answers("broker", "broker", "status", "--config", "broker/broker.toml")
        self.start("authority", "ca", "serve", "--dir", "auth")

    def start_agents(self):
        for node in ("g22", "h37"):
            self.start(node, "agent", "run", "--config", f"{node}/agent.toml")
        for node in ("g22", "h37"):
            self.until_answers(node, "agent", "status", "--config", f"{node}/agent.toml")

    def until_answers(self, name, *args):
        """Polls a status command until the process answers; it must not have ended meanwhile."""
        until = time.monotonic() + 20
        while True:
            done = subprocess.run([self.binary, *args], cwd=self.folder, env=self.env, capture_output=True, text=True,
                                  timeout=20)
            if done.returncode == 0:
                return
            ended = self.children[name].poll()
            if ended is not None or time.monotonic() > until:
                raise Broken(f"{name} does not answer (ended: {ended}); its status said: "
                             f"{done.stdout.strip()} {done.stderr.strip()}")
            time.sleep(0.1)

    def kill_all(self):
        """SIGKILL to every child at once, as when the power goes."""
        for child in self.children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
        for child in self.children.values():
            child.wait(timeout=20)
        self.children.clear()

    def stop_all(self):
        """SIGTERM: each must end by itself within 10 s, with exit code 0."""
        for child in self.children.values():
            child.terminate()
        for name, child in self.children.items():
            try:
                code = child.wait(timeout=12)
            except subprocess.TimeoutExpired:
                raise Broken(f"{name} did not end within 12 s of SIGTERM") from None
            if code != 0:
                raise Broken(f"{name} ended with {code} after SIGTERM, expected 0")
        self.children.clear()

    def logs(self):
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-25:]
            print(f"--- last lines of {log.name}", *lines, sep="\n", file=sys.stderr)


def free_udp_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def same(what, found, expected):
    if found != expected:
        raise Broken(f"{what}: found {found!r}, expected {expected!r}")


def step(text):
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def flipped(bundle, out):
    """A copy of a bundle in which one byte of the envelope is another; the ZIP itself stays whole."""
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = bytearray(old.read(entry))
            if entry.filename == "envelope.json":
                data[len(data) // 2] ^= 1
            new.writestr(entry.filename, bytes(data))


def send(run, subject, files, to=(PROVINCE,)):
    recipients = [arg for code in to for arg in ("--to", code)]
    return run.command("doc", "send", "--config", "g22/agent.toml", "--from", GOVERNMENT, *recipients,
                       "--subject", subject, *files)


def receive(run, dispatch, subject, files):
    """Waits for the handover and compares what the recipient has with what was sent."""
    run.command("doc", "wait", "--config", "g22/agent.toml", dispatch, "--until", "handed-over", "--timeout", "30s")
    # Sender and recipient are told at the same time, so the recipient's agent may be a moment behind.
    until = time.monotonic() + 10
    while True:
        listed = run.json("doc", "list", "--config", "h37/agent.toml", "--box", "in")
        subjects = {one["id"]: one["subject"] for one in listed}
        if dispatch in subjects or time.monotonic() > until:
            break
        time.sleep(0.05)
    same("the subject in the recipient's list", subjects.get(dispatch), subject)
    run.command("doc", "get", "--config", "h37/agent.toml", dispatch, "--out", f"received/{dispatch}")
    there = {path.name: path.read_bytes() for path in (run.folder / "received" / dispatch).iterdir()}
    same("the files at the recipient", sorted(there), sorted(files))
    for name in files:
        if there[name] != (run.folder / name).read_bytes():
            raise Broken(f"{name} of dispatch {dispatch} has other bytes at the recipient than were sent")


def export(run, dispatch, bundle):
    """Exports a bundle. Exit code 4 says "try again later": the log's next checkpoint may be a second away."""
    args = ["audit", "export", "--config", "broker/broker.toml", dispatch, "--out", bundle]
    until = time.monotonic() + 5
    while time.monotonic() < until:
        done = subprocess.run([run.binary, *args], cwd=run.folder, env=run.env, capture_output=True, timeout=60)
        if done.returncode != 4:
            break
        time.sleep(0.1)
    if done.returncode != 0:
        raise Broken(f"docaxis {' '.join(args)}: exit code {done.returncode}: {done.stderr.decode().strip()}")


def unknown_recipient(run):
    """Refused at once with the code, or taken and then rejected by the exchange with it."""
    args = ["doc", "send", "--config", "g22/agent.toml", "--from", GOVERNMENT, "--to", "H99.ZZ.999",
            "--subject", "Nobody is there", "letter.txt", "--json"]
    done = subprocess.run([run.binary, *args], cwd=run.folder, env=run.env, capture_output=True, text=True, timeout=60)
    said = json.loads(done.stdout)
    if done.returncode != 0:
        same("the refusal of an unknown recipient", said["error"]["code"], "unknown-recipient")
        return
    run.command("doc", "wait", "--config", "g22/agent.toml", said["id"], "--until", "handed-over", "--timeout", "20s",
                expect=5)
    shown = run.command("doc", "show", "--config", "g22/agent.toml", said["id"])
    if "unknown-recipient" not in shown:
        raise Broken(f"an unknown recipient was taken, and its refusal does not say unknown-recipient:\n{shown}")


def establish(run):
    """An authority, its broker's files, and three agencies."""
    run.command("ca", "init", "--dir", "auth", "--origin", "docaxis.example/vn", "--broker-address",
                f"127.0.0.1:{free_udp_port()}", "--broker-dir", "broker")
    # The console takes any free port: a broker of this machine may have the usual one.
    config = run.folder / "broker" / "broker.toml"
    text = config.read_text(encoding="utf-8")
    assert "127.0.0.1:7402" in text, text
    config.write_text(text.replace("127.0.0.1:7402", "127.0.0.1:0"), encoding="utf-8")
    for code, name in ((GOVERNMENT, "Văn phòng Chính phủ"), (PROVINCE, "Sở Nội vụ"), (MINISTRY, "Một bộ")):
        run.command("agency", "add", code, "--name", name, "--authority", "auth")


def join_nodes(run):
    """Two nodes join the running exchange; returns their tokens, which are used now."""
    tokens = {}
    for node, agency in (("g22", GOVERNMENT), ("h37", PROVINCE)):
        tokens[node] = run.command("ca", "invite", node, "--agency", agency, "--dir", "auth")
        join(run, node, tokens[node])
    return tokens


def join(run, node, token):
    """Joins a node. Exit code 4 says "try again later": the authority may still be linking."""
    until = time.monotonic() + 10
    while True:
        done = subprocess.run([run.binary, "agent", "join", "-", "--dir", node], cwd=run.folder, env=run.env,
                              input=token + "\n", capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return
        if done.returncode != 4 or time.monotonic() > until:
            raise Broken(f"docaxis agent join --dir {node}: exit code {done.returncode}: {done.stderr.strip()}")
        time.sleep(0.1)


def main_job(run):
    step("the authority, its broker's files, three agencies")
    establish(run)
    codes = {agency["agency"] for agency in run.json("agency", "list", "--authority", "auth")["agencies"]}
    same("the agencies in the directory", codes, {GOVERNMENT, PROVINCE, MINISTRY})
    run.command("broker", "check", "--config", "broker/broker.toml")
    run.refused("broker", "status", "--config", "broker/broker.toml", expect=4, codes={"busy"})

    step("the broker and the authority run; two nodes join")
    run.start_exchange()
    tokens = join_nodes(run)
    run.refused("agent", "join", tokens["g22"], "--dir", "second", expect=7, codes={"token-used"})
    for secret in [*run.folder.rglob("*.key"), *run.folder.rglob("*key*.pem")]:
        same(f"the mode of {secret.name}", oct(secret.stat().st_mode & 0o777), "0o600")
    run.refused("doc", "list", "--config", "g22/agent.toml", expect=4, codes={"busy"})
    run.start_agents()

    step("a dispatch with a Vietnamese subject and two files")
    (run.folder / "letter.txt").write_text("Kính gửi: Sở Nội vụ\n", encoding="utf-8")
    (run.folder / "Phụ lục.pdf").write_bytes(os.urandom(300_000))
    subject, files = "Về việc triển khai gửi, nhận văn bản điện tử", ["letter.txt", "Phụ lục.pdf"]
    first = send(run, subject, files)
    if not re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", first):
        raise Broken(f"doc send prints the dispatch's id and nothing else on stdout, found {first!r}")
    receive(run, first, subject, files)

    step("accepted by the recipient's officer; the sender sees it")
    run.command("doc", "accept", "--config", "h37/agent.toml", first)
    run.command("doc", "wait", "--config", "g22/agent.toml", first, "--until", "registered", "--timeout", "20s")
    events = [entry["event"] for entry in run.json("doc", "show", "--config", "g22/agent.toml", first)["timeline"]]
    for event in ("SubmissionAcceptance", "ContentHandover", "Registered"):
        if event not in events:
            raise Broken(f"the sender's timeline lacks {event}: {events}")

    step("what is refused says so, with its exit code")
    run.refused("doc", "show", "--config", "g22/agent.toml", UNKNOWN_ID, expect=3, codes={"not-found"})
    run.refused("doc", "send", "--config", "h37/agent.toml", "--from", GOVERNMENT, "--to", PROVINCE, "--subject", "x",
                "letter.txt", expect=7, codes={"not-hosted"})
    run.command("doc", "send", "--config", "g22/agent.toml", expect=2)
    unknown_recipient(run)

    step("kill -9 of the broker, the authority and both agents; all start again")
    run.kill_all()
    run.start_exchange()
    run.start_agents()
    second_subject = "Công văn thứ hai, sau khi mất điện"
    second = send(run, second_subject, ["letter.txt"])
    receive(run, second, second_subject, ["letter.txt"])
    kept = run.json("doc", "list", "--config", "g22/agent.toml", "--box", "out", "--state", "registered")
    same("the dispatches that the sender knows to be registered, after the kill", [one["id"] for one in kept], [first])

    step("evidence, exported and verified")
    for dispatch, expected in ((first, ["ContentHandover", "Registered"]), (second, ["ContentHandover"])):
        bundle = f"{dispatch}.zip"
        export(run, dispatch, bundle)
        asked = [arg for event in expected for arg in ("--expect", f"{event}:{PROVINCE}")]
        verdict = run.json("audit", "verify", bundle, "--authority", "auth/authority.pem", "--log", "broker/data/log",
                           "--parts", f"received/{dispatch}", *asked)
        same("the verdict", verdict["ok"], True)
    flipped(run.folder / f"{first}.zip", run.folder / "flipped.zip")
    same("the verdict about a flipped byte",
         run.json("audit", "verify", "flipped.zip", "--authority", "auth/authority.pem", expect=6)["ok"], False)

    step("SIGTERM ends everything in order")
    run.stop_all()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    binary = Path(sys.argv[1]).resolve()
    folder = Path(tempfile.mkdtemp(prefix="docaxis-by-hand-"))
    run = Run(str(binary), folder)
    # A command that hangs must not hold the caller: when the time is over, the children go and then we do.
    def over():
        print(f"FAIL  not done after {LIMIT_S} s", file=sys.stderr, flush=True)
        for child in list(run.children.values()):
            child.kill()
        os._exit(1)
    watch = threading.Timer(LIMIT_S, over)
    watch.daemon = True
    watch.start()
    try:
        main_job(run)
    except (Broken, subprocess.TimeoutExpired, KeyError, TypeError, ValueError, OSError) as error:
        print(f"FAIL  {type(error).__name__}: {error}", file=sys.stderr)
        run.logs()
        sys.exit(1)
    finally:
        for child in run.children.values():
            if child.poll() is None:
                child.kill()
                child.wait()
        shutil.rmtree(folder, ignore_errors=True)
    step("everything held")


if __name__ == "__main__":
    main()
