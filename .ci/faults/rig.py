"""What the fault runs share: an exchange of real processes in a folder, load that remembers what was acknowledged, and
the frame around the cases. Python's standard library only. Whatever is started here dies with this process."""
import argparse
import ctypes
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from by_hand import Broken, free_udp_port  # noqa: E402

HERE = Path(__file__).resolve().parent
SENDER, RECIPIENT, AWAY = "g22", "h37", "a53"
AGENCY = {SENDER: "000.00.00.G22", RECIPIENT: "H37.DN.001", AWAY: "000.00.01.A53"}
# What nothing on one machine may take.
HANG_S = 60
# How long a process may take after the loss of its disk until it has ended.
END_S = 20
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20


def die_with_parent():
    """In a child, before it becomes another program: SIGKILL when this process is gone, however it went."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Unreachable(Exception):
    """Nobody answers on a control socket, or the answer broke off."""


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(f"{status}: {body[:300]!r}")
        self.status = status


class Unix(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        # The name of a socket may be too long for bind and connect; through the folder's descriptor it never is.
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(self.path)}")
        finally:
            os.close(folder)


def ask(path, method, url, body=None, timeout=HANG_S):
    """One request to a control socket; its answer as bytes."""
    connection = Unix(str(path), timeout)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, url, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{path}: {error!r}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise Refused(answer.status, data)
    return data


def until(what, attempt, within_s=HANG_S):
    """Asks again until there is an answer that is not None."""
    deadline = time.monotonic() + within_s
    why = None
    while True:
        try:
            found = attempt()
            if found is not None:
                return found
        except (Unreachable, Refused) as error:
            why = error
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {within_s} s; last: {why}")
        time.sleep(0.01)


class Exchange:
    """Authority, broker and three nodes in one folder. Only one copy of an exchange runs at a time: they share a port."""

    def __init__(self, binary, folder):
        self.binary, self.folder = str(binary), Path(folder)
        self.data = {name: self.folder / name / "data" for name in ("broker", SENDER, RECIPIENT, AWAY)}
        self.children = {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("DOCAXIS", "LC_", "LANG", "RUST_LOG"))}
        self.env.update(LANG="en_US.UTF-8", NO_COLOR="1")

    def make(self):
        """A new exchange: everybody has joined, the directory is published, nothing runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.command("ca", "init", "--dir", "auth", "--origin", "docaxis.example/vn", "--broker-address",
                     f"127.0.0.1:{free_udp_port()}", "--broker-dir", "broker")
        for node, agency in AGENCY.items():
            self.command("agency", "add", agency, "--name", node, "--authority", "auth")
        config = self.folder / "broker" / "broker.toml"
        # Small segments, so that they fill, settle and are freed within seconds.
        text = config.read_text()
        before, store = text[:text.index("[store]")], "[store]\nsegment_mib = 8\nindex_cache_mib = 8\n"
        store += "[console]\nlisten = \"off\"\n"
        config.write_text(before + store)
        self.start("broker")
        self.spawn("authority", ["ca", "serve", "--dir", "auth"])
        for node, agency in AGENCY.items():
            token = self.command("ca", "invite", node, "--agency", agency, "--dir", "auth")
            until(f"{node} joins", lambda node=node, token=token: self.command(
                "agent", "join", "-", "--dir", node, stdin=token + "\n", may_be_early=True))
            agent = self.folder / node / "agent.toml"
            agent.write_text(agent.read_text() + "\n[link]\nretry_min = '20ms'\nretry_max = '300ms'\n"
                             "keep_alive = '300ms'\nproofs_every = '300ms'\n[outbox]\nretry_min = '50ms'\n"
                             "retry_max = '300ms'\n")
            self.start(node)
        for node in AGENCY:
            # Each knows all of the directory, and none has anything to do.
            until(f"{node} has the directory", lambda node=node: self.known_agencies(node) == len(AGENCY) or None)
        self.stop()

    def known_agencies(self, node):
        return len(json.loads(ask(self.socket(node), "GET", "/v1/agencies?q="))["agencies"])

    def copy(self, folder, links=False):
        """The same exchange in another folder. Nothing may run."""
        def light(source, target):
            # A body is never changed in place: the copy may share it.
            if links and "/parts/" in source:
                os.link(source, target)
            else:
                shutil.copy2(source, target)
        sockets = shutil.ignore_patterns("control.sock", "*.log")
        shutil.copytree(self.folder, folder, ignore=sockets, copy_function=light)
        copied = Exchange(self.binary, folder)
        return copied

    def place(self, name, data):
        """Puts the data of the broker or of a node elsewhere: what is there now moves."""
        data = Path(data)
        if self.data[name].exists() and not data.exists():
            shutil.copytree(self.data[name], data, ignore=shutil.ignore_patterns("control.sock"))
            # What the case begins with is on the disk; only what the program writes from here on is in question.
            os.sync()
        self.use(name, data)

    def use(self, name, data):
        """Takes the data of the broker or of a node from where it lies."""
        self.data[name] = Path(data)
        config = self.config(name)
        lines = [line for line in config.read_text().splitlines() if not line.startswith("data =")]
        section = lines.index("[broker]" if name == "broker" else "[agent]")
        lines.insert(section + 1, f'data = "{data}"')
        config.write_text("\n".join(lines) + "\n")

    def config(self, name):
        return self.folder / name / ("broker.toml" if name == "broker" else "agent.toml")

    def socket(self, name):
        return self.data[name] / "control.sock"

    def log(self, name):
        return self.folder / f"{name}.log"

    def said(self, name):
        log = self.log(name)
        return log.read_text(errors="replace") if log.exists() else ""

    def command(self, *args, stdin=None, may_be_early=False):
        """Runs a command and returns its output; none if it may be early, and says that it is to be repeated."""
        done = subprocess.run([self.binary, *args], cwd=self.folder, env=self.env, input=stdin, capture_output=True,
                              text=True, timeout=HANG_S)
        if may_be_early and done.returncode == 4:
            return None
        if done.returncode != 0:
            raise Broken(f"docaxis {' '.join(args)}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def spawn(self, name, args, before=()):
        with open(self.log(name), "ab") as log:
            self.children[name] = subprocess.Popen([*before, self.binary, *args], cwd=self.folder, env=self.env,
                                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                                                   preexec_fn=die_with_parent)
        return self.children[name]

    def launch(self, name, before=()):
        """Starts the broker or an agent, without waiting; `before` is a program that starts it."""
        role = "broker" if name == "broker" else "agent"
        return self.spawn(name, [role, "run", "--config", str(self.config(name))], before)

    def start(self, name, before=()):
        """Starts the broker or an agent. Returns the seconds until it answered; Broken if it ended instead."""
        began = time.monotonic()
        child = self.launch(name, before)
        def answers():
            if child.poll() is not None:
                raise Broken(f"{name} ended with {child.returncode} instead of serving: {self.said(name).strip()[-600:]}")
            return ask(self.socket(name), "GET", "/v1/status", timeout=5)
        until(f"{name} answers", answers)
        return time.monotonic() - began

    def kill(self, *names):
        """kill -9 of these, or of everything."""
        for name in names or list(self.children):
            child = self.children.pop(name, None)
            if child is not None:
                if child.poll() is None:
                    child.kill()
                child.wait()

    def stop(self, *names):
        """SIGTERM, and a wait for the end in order."""
        for name in names or list(self.children)[::-1]:
            child = self.children.pop(name)
            child.terminate()
            try:
                code = child.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                raise Broken(f"{name} did not end within {END_S} s of SIGTERM") from None
            if code != 0:
                raise Broken(f"{name} ended with {code} after SIGTERM: {self.said(name)[-800:]}")

    def ends_by_itself(self, name):
        """Waits until a process that cannot go on has said so and ended; its exit code."""
        child = self.children.pop(name)
        try:
            return child.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise Broken(f"{name} goes on for {END_S} s without its disk; it said: {self.said(name)[-600:]}") from None


# --- mounting -----------------------------------------------------------------------------------------------------------

class Image:
    """A file system of its own in a file, mounted while the value is in use."""

    def __init__(self, folder, kind, mib=320):
        self.file, self.at, self.kind = Path(folder) / "image", Path(folder) / "mounted", kind
        self.at.mkdir(parents=True)
        with open(self.file, "wb") as file:
            file.truncate(mib * MIB)
        quiet = ["-q", "-F"] if kind == "ext4" else ["-q"]
        subprocess.run([f"mkfs.{kind}", *quiet, str(self.file)], check=True)
        self.mount()

    def mount(self):
        subprocess.run(["mount", "-o", "loop", str(self.file), str(self.at)], check=True)

    def shut_down(self):
        """The file system is gone in one moment, with everything that it had not written."""
        subprocess.run(["xfs_io", "-x", "-c", "shutdown", str(self.at)], check=True, stdout=subprocess.DEVNULL)

    def unmount(self):
        # A process that has just died may hold it for another moment.
        for _ in range(100):
            if subprocess.run(["umount", str(self.at)], capture_output=True).returncode == 0:
                return
            time.sleep(0.02)
        raise Broken(f"{self.at} cannot be unmounted")

    def close(self):
        subprocess.run(["umount", "-l", str(self.at)], capture_output=True)


# --- the frame around the cases ---------------------------------------------------------------------------------------

def arguments(doc, count, add=lambda parser: None):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, help="the program")
    parser.add_argument("--count", type=int, default=count, help="how many cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn follows from it (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case, to repeat one")
    parser.add_argument("-v", action="store_true", dest="verbose", help="a line for each case")
    add(parser)
    args = parser.parse_args()
    args.binary = args.binary.resolve()
    subprocess.run([str(HERE / "tools.sh")], check=True)
    return args


def run(args, case, in_memory=False):
    """Runs `case(n, random, template, folder)` for each n, each in a folder of its own; prints, and exits. What does not
    depend on a real disk is done in memory, if there is a place."""
    began = time.monotonic()
    place = "/dev/shm" if in_memory and os.path.isdir("/dev/shm") else None
    work = Path(tempfile.mkdtemp(prefix="docaxis-faults-", dir=place))
    bad = 0
    try:
        template = Exchange(args.binary, work / "template")
        try:
            template.make()
        finally:
            template.kill()
        for n in range(args.first, args.first + args.count):
            folder = work / str(n)
            folder.mkdir()
            dice = random.Random(f"{args.seed}-{n}")
            try:
                verdict, fine = case(n, dice, template, folder), True
            except (Broken, Unreachable, Refused, subprocess.SubprocessError, OSError, KeyError, ValueError) as error:
                verdict, fine = f"{type(error).__name__}: {error}", False
            bad += not fine
            if args.verbose or not fine:
                print(f"{'ok ' if fine else 'BAD'} {n} (seed {args.seed}): {verdict}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{args.count} cases, {bad} bad, {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(1 if bad or not args.count else 0)
