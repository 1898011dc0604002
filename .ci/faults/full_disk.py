#!/usr/bin/env python3
"""Fills the disk under a broker and under an agent, once by bytes and once by inodes, and looks at what goes on.

    full_disk.py DOCAXIS_BINARY

Needs root and the right to mount: the data folders lie on small tmpfs mounts, which are filled for real. Prints one line
per check and ends with 1 at the first that fails. Where it may not mount, it fails. Python's standard library only.
Whatever it starts, it stops; whatever it mounts, it unmounts.
"""
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import by_hand
from by_hand import Broken, GOVERNMENT, PROVINCE, Run, export, receive, same, send, step

LIMIT_S = 600
MIB = 1 << 20
BROKER = ("broker", "status", "--config", "broker/broker.toml")
AGENT = ("agent", "status", "--config", "h37/agent.toml")
# What fills a disk: how the mount is bounded, and what is written.
KINDS = {"bytes": "", "inodes": ",nr_inodes=500"}


class Disk:
    """A small tmpfs on a data folder."""

    def __init__(self, folder, mib, kind):
        self.folder, self.kind = folder, kind
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={mib}m,mode=0700{KINDS[kind]}"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True,
                                 text=True, timeout=30)
        if mounted.returncode != 0:
            raise Broken(f"a tmpfs cannot be mounted at {folder}: {mounted.stderr.strip()}\n"
                         "  this check needs root and the right to mount; without it nothing was checked")

    def percent(self):
        found = os.statvfs(self.folder)
        total, free = (found.f_blocks, found.f_bavail) if self.kind == "bytes" else (found.f_files, found.f_favail)
        return 100 * (total - free) / total

    def fill(self, percent=101):
        """Writes until the disk is so full; over 100, until there is no room for one byte or one name more."""
        other = self.folder / "of-another-program"
        other.mkdir(exist_ok=True)
        number = len(list(other.iterdir()))
        size = 256 << 10 if self.kind == "bytes" else 0
        while self.percent() < percent:
            try:
                with open(other / str(number), "wb") as out:
                    out.write(b"x" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                if size <= 4096:
                    return
                size //= 2
            number += 1

    def give_back(self):
        shutil.rmtree(self.folder / "of-another-program")

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, timeout=30)


class Scene:
    """One exchange with its own folder and disks."""

    def __init__(self, binary, what):
        self.what = what
        self.folder = Path(tempfile.mkdtemp(prefix="docaxis-full-disk-"))
        self.run = Run(str(binary), self.folder)
        self.disks = []

    def mount(self, name, mib, kind):
        self.disks.append(Disk(self.folder / name, mib, kind))
        return self.disks[-1]

    def holds(self, text):
        step(f"{self.what}: {text}")

    def close(self):
        for child in self.run.children.values():
            if child.poll() is None:
                child.kill()
                child.wait()
        for disk in self.disks:
            disk.unmount()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- parts of a story -----------------------------------------------------------------------------------------

    def prepare(self, broker=None, agent=None):
        """Authority, broker's files and two nodes; the broker and the authority run. Retries are short. `broker` or `agent`
        says how the disk of the one that has a small one is bounded; returns that disk."""
        by_hand.establish(self.run)
        (self.folder / "letter.bin").write_bytes(os.urandom(100_000))
        config = self.folder / "broker/broker.toml"
        smaller = config.read_text(encoding="utf-8").replace("segment_mib = 64", "segment_mib = 8")
        config.write_text(smaller, encoding="utf-8")
        disk = self.mount("broker/data", 128, broker) if broker else None
        self.run.start_exchange()
        by_hand.join_nodes(self.run)
        disk = self.mount("h37/data", 48, agent) if agent else disk
        for node in ("g22", "h37"):
            with open(self.folder / node / "agent.toml", "a", encoding="utf-8") as config:
                config.write('\n[outbox]\nretry_max = "2s"\n[link]\nretry_max = "1s"\n')
        return disk

    def start_agent(self, node):
        self.run.start(node, "agent", "run", "--config", f"{node}/agent.toml")
        self.run.until_answers(node, "agent", "status", "--config", f"{node}/agent.toml")

    def kill(self, name):
        child = self.run.children.pop(name)
        child.kill()
        child.wait(timeout=20)

    def stop(self, name):
        """SIGTERM: it must end by itself and in order, also on a full disk."""
        child = self.run.children.pop(name)
        child.terminate()
        same(f"the exit code of {name} after SIGTERM", child.wait(timeout=20), 0)

    def restart_broker(self, end=None):
        (end or self.kill)("broker")
        self.run.start("broker", "broker", "run", "--config", "broker/broker.toml")
        self.run.until_answers("broker", *BROKER)

    def until_state(self, status, *expected):
        """Waits until the disk is said to be in one of these states; both outputs must say why and what next. They are
        asked for one after the other, and the figures in the words may have changed between: then once more."""
        until = time.monotonic() + 30
        while True:
            space = self.run.json(*status)["space"]
            text = self.run.command(*status)
            there = space["state"] in expected
            if there and space["words"] in text:
                break
            if time.monotonic() > until:
                other = f"its words in:\n{text}" if there else f"one of {expected}"
                raise Broken(f"{' '.join(status)} says {space}, expected {other}")
            time.sleep(0.1)
        parts = space["words"].split("; ", 2)
        if len(parts) < 3 or not all(parts):
            raise Broken(f"{' '.join(status)} says {space['words']!r}, expected a state, why, and what next")
        return space

    def send(self, subject):
        return send(self.run, subject, ["letter.bin"])

    def accepted(self, dispatch, expect=0, timeout="60s"):
        self.run.command("doc", "wait", "--config", "g22/agent.toml", dispatch, "--until", "accepted", "--timeout",
                         timeout, expect=expect)

    def not_accepted(self, dispatch):
        """Not accepted, for the reason disk-full, and not given up."""
        self.accepted(dispatch, expect=4, timeout="3s")
        shown = self.run.command("doc", "show", "--config", "g22/agent.toml", dispatch)
        if "disk-full" not in shown:
            raise Broken(f"what the broker refuses does not say disk-full:\n{shown}")

    def register(self, dispatch):
        self.run.command("doc", "accept", "--config", "h37/agent.toml", dispatch)
        self.run.command("doc", "wait", "--config", "g22/agent.toml", dispatch, "--until", "registered", "--timeout",
                         "60s")

    def verify(self, dispatches, event):
        for dispatch in dispatches:
            (self.folder / f"{dispatch}.zip").unlink(missing_ok=True)
            export(self.run, dispatch, f"{dispatch}.zip")
            verdict = self.run.json("audit", "verify", f"{dispatch}.zip", "--authority", "auth/authority.pem", "--log",
                                    "broker/data/log", "--parts", f"received/{dispatch}", "--expect",
                                    f"{event}:{PROVINCE}")
            same(f"the verdict about {dispatch}", verdict["ok"], True)


def full_broker(scene, kind):
    disk = scene.prepare(broker=kind)
    scene.start_agent("g22")
    scene.until_state(BROKER, "open")
    waiting = {}
    for number in range(6):
        dispatch = scene.send(f"Công văn số {number}")
        waiting[dispatch] = f"Công văn số {number}"
        scene.accepted(dispatch)
    scene.holds("six dispatches wait for a node that is away")

    disk.fill(92)
    scene.until_state(BROKER, "refuse-new")
    late = scene.send("Khi đĩa gần đầy")
    scene.not_accepted(late)
    scene.holds("at 92 % new work is refused with disk-full, exit code 4, and its sender keeps it")

    disk.fill(96)
    scene.until_state(BROKER, "drain-only")
    scene.holds("at 96 % the broker says that it only drains")

    disk.fill()
    scene.until_state(BROKER, "full")
    disk.fill()
    scene.restart_broker()
    space = scene.until_state(BROKER, "drain-only", "full")
    scene.holds(f"kill -9 and a restart at 100 % work: {space['words']}")

    scene.start_agent("h37")
    for dispatch, subject in waiting.items():
        receive(scene.run, dispatch, subject, ["letter.bin"])
    scene.holds("what waited is handed over while the disk is full")
    scene.not_accepted(late)
    scene.restart_broker()
    for dispatch in waiting:
        scene.register(dispatch)
    scene.until_state(BROKER, "drain-only", "full")
    scene.holds("after another kill -9, registrations are recorded while the disk is full")
    scene.verify(waiting, "Registered")
    scene.restart_broker(end=scene.stop)
    scene.holds("their bundles verify while the disk is full, and SIGTERM ends the broker in order")

    disk.give_back()
    scene.accepted(late)
    receive(scene.run, late, "Khi đĩa gần đầy", ["letter.bin"])
    scene.until_state(BROKER, "open")
    new = scene.send("Sau khi có chỗ")
    receive(scene.run, new, "Sau khi có chỗ", ["letter.bin"])
    scene.holds("when room returns, new work is accepted by itself")
    scene.verify([*waiting], "Registered")
    scene.verify([late, new], "ContentHandover")
    same("the dispatches that the broker has", scene.run.json(*BROKER)["dispatches"], len(waiting) + 2)
    scene.holds("nothing acknowledged is lost, and all bundles verify")


def full_agent(scene, kind):
    disk = scene.prepare(agent=kind)
    scene.start_agent("g22")
    scene.start_agent("h37")
    scene.until_state(AGENT, "open")
    first = scene.send("Trước khi đầy")
    receive(scene.run, first, "Trước khi đầy", ["letter.bin"])

    disk.fill(92)
    scene.until_state(AGENT, "refuse-new")
    refuse = ("doc", "send", "--config", "h37/agent.toml", "--from", PROVINCE, "--to", GOVERNMENT, "--subject", "x",
              "letter.bin")
    scene.run.refused(*refuse, expect=4, codes={"disk-full"})
    scene.holds("at 92 % doc send is refused with disk-full and exit code 4")

    disk.fill()
    scene.until_state(AGENT, "full")
    disk.fill()
    scene.run.refused(*refuse, expect=4, codes={"disk-full"})
    second = scene.send("Khi máy nhận đầy")
    scene.accepted(second)
    scene.run.command("doc", "wait", "--config", "g22/agent.toml", second, "--until", "handed-over", "--timeout", "8s",
                      expect=4)
    scene.holds("at 100 % what comes in waits at the broker and does not fail")
    scene.register(first)
    scene.holds("a registration is stored, recorded and answered while the disk is full")

    scene.kill("h37")
    disk.fill()
    scene.start_agent("h37")
    scene.until_state(AGENT, "drain-only", "full")
    shown = scene.run.command("doc", "show", "--config", "h37/agent.toml", first)
    if "Registered" not in shown:
        raise Broken(f"after the restart the registration is not there:\n{shown}")
    scene.holds("kill -9 and a restart at 100 % work, and the registration is there")
    scene.verify([first], "Registered")

    disk.give_back()
    receive(scene.run, second, "Khi máy nhận đầy", ["letter.bin"])
    scene.until_state(AGENT, "open")
    scene.run.command(*refuse)
    scene.holds("when room returns, what waited is taken and doc send works, without a restart")
    scene.verify([second], "ContentHandover")
    scene.run.stop_all()
    scene.holds("nothing acknowledged is lost, bundles verify, SIGTERM ends everything in order")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    by_hand.LIMIT_S = LIMIT_S
    binary = Path(sys.argv[1]).resolve()
    scenes = []

    def over():
        print(f"FAIL  not done after {LIMIT_S} s", file=sys.stderr, flush=True)
        for scene in scenes:
            scene.close()
        os._exit(1)

    watch = threading.Timer(LIMIT_S, over)
    watch.daemon = True
    watch.start()
    for story in (full_broker, full_agent):
        for kind in KINDS:
            scene = Scene(binary, f"{story.__name__.replace('_', ' ')} ({kind})")
            scenes.append(scene)
            try:
                story(scene, kind)
            except (Broken, subprocess.TimeoutExpired, KeyError, TypeError, ValueError, OSError) as error:
                print(f"FAIL  {scene.what}: {type(error).__name__}: {error}", file=sys.stderr)
                scene.run.logs()
                sys.exit(1)
            finally:
                scene.close()
    step("everything held")


if __name__ == "__main__":
    main()
