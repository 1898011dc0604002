#!/usr/bin/env python3
"""Errors of the disk, one at a time: the N-th write, sync, rename or truncation of one thread fails, of the broker or of
an agent, while they run or while they start.

    inject.py DOCAXIS [--count N] [--seed S] [-v]

strace makes the system call fail with EIO or ENOSPC, or write nothing (a short write). Whoever may not go on after that
acknowledges nothing more, does not touch the file again, says why and ends; a start in order then finds everything that
was acknowledged. A case whose call never came is bad.
"""
import re
import subprocess
import time
from pathlib import Path

from claims import agent_kept, broker_kept, fresh
from load import Acks, AgentLoad, BrokerLoad
from rig import HANG_S, RECIPIENT, SENDER, Broken, arguments, run, until

EIO, ENOSPC = ("error=EIO",), ("error=ENOSPC",)
ERRORS = EIO + ENOSPC
SHORT = ("retval=0",)
# What must follow: it ends, and acknowledges nothing meanwhile; it ends; or it may go on, where the call was about one
# request alone, about the index, or about room that can come back.
STOPS, ENDS, MAY_GO_ON = "stops", "ends", "may go on"
# Whose, which threads, which call, how it may fail, up to the how manieth call, and what follows.
TARGETS = [
    ("broker", "committer", "pwrite64", ERRORS + SHORT, 20, STOPS),
    ("broker", "committer", "fdatasync", ERRORS, 20, STOPS),
    ("broker", "committer", "rename", ERRORS, 2, MAY_GO_ON),
    ("broker", "committer", "fsync", ERRORS, 2, MAY_GO_ON),
    ("broker", "settler", "pwrite64", ERRORS + SHORT, 3, MAY_GO_ON),
    ("broker", "settler", "fdatasync", ERRORS, 2, MAY_GO_ON),
    ("broker", "log", "write", EIO, 10, ENDS),
    ("broker", "log", "write", ENOSPC, 10, MAY_GO_ON),
    ("broker", "log", "fsync", EIO, 10, ENDS),
    ("broker", "log", "fsync", ENOSPC, 10, MAY_GO_ON),
    ("broker", "log", "rename", EIO, 10, ENDS),
    ("broker", "log", "rename", ENOSPC, 10, MAY_GO_ON),
    ("broker", "sled-io-", "pwrite64", ERRORS, 2, MAY_GO_ON),
    ("broker", "tokio-rt-worker", "pwrite64", ERRORS + SHORT, 40, MAY_GO_ON),
    ("broker", "tokio-rt-worker", "fdatasync", ERRORS, 4, MAY_GO_ON),
    ("broker", "tokio-rt-worker", "fsync", ERRORS, 4, MAY_GO_ON),
    ("broker", "tokio-rt-worker", "rename", ERRORS, 4, MAY_GO_ON),
    # SQLite takes a write that writes nothing for a full disk, and undoes the transaction.
    ("agent", "mailbox-write", "pwrite64", EIO, 30, STOPS),
    ("agent", "mailbox-write", "pwrite64", ENOSPC + SHORT, 30, MAY_GO_ON),
    ("agent", "mailbox-write", "fsync", ERRORS, 10, STOPS),
    ("agent", "tokio-rt-worker", "fsync", ERRORS, 10, MAY_GO_ON),
    ("agent", "tokio-rt-worker", "rename", ERRORS, 5, MAY_GO_ON),
    ("broker", "start", "pwrite64", ERRORS + SHORT, 2, MAY_GO_ON),
    ("broker", "start", "fdatasync", ERRORS, 2, MAY_GO_ON),
    ("broker", "start", "fsync", ERRORS, 2, MAY_GO_ON),
    ("broker", "start", "rename", ERRORS, 1, MAY_GO_ON),
    ("broker", "start", "ftruncate", ERRORS, 1, MAY_GO_ON),
    ("agent", "start", "pwrite64", ERRORS, 1, MAY_GO_ON),
    ("agent", "start", "fsync", ERRORS, 1, MAY_GO_ON),
    ("agent", "start", "ftruncate", ERRORS, 1, MAY_GO_ON),
]
# These come only when a segment is full.
ONLY_WITH_SEGMENTS = {("committer", "rename"), ("committer", "fsync"), ("settler", "pwrite64"), ("settler", "fdatasync"),
                      ("start", "ftruncate")}
# How long something that may go on is watched after the error.
GOES_ON_S = 0.7


def threads(pid, name):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip().startswith(name):
            found.append(task.name)
    return found


def attach(pid, name, call, fault, nth, trace):
    """strace on these threads alone; returns when it holds them."""
    ids = until(f"a thread called {name}", lambda: threads(pid, name) or None)
    command = ["strace", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={nth}"]
    for one in ids:
        command += ["-p", one]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    def held():
        if child.poll() is not None:
            raise Broken(f"strace ended with {child.returncode}")
        states = [Path(f"/proc/{pid}/task/{one}/status").read_text() for one in ids]
        return True if all(re.search(r"TracerPid:\t[1-9]", state) for state in states) else None
    until("strace attaches", held)
    return child


def injected(trace):
    """The lines of the trace from the injected call on."""
    lines = trace.read_text(errors="replace").splitlines() if trace.exists() else []
    first = next((n for n, line in enumerate(lines) if "(INJECTED)" in line), None)
    return None if first is None else lines[first:]


def while_running(exchange, load, target, fault, nth, trace):
    whose, name, call, _, _, follows = target
    victim = "broker" if whose == "broker" else RECIPIENT
    load.start()
    until("the first acknowledgement", lambda: load.acks.lines or None)
    child = exchange.children[victim]
    tracer = attach(child.pid, name, call, fault, nth, trace)
    try:
        lines = until(f"call {nth} of {call}", lambda: injected(trace))
        asked_before = set(load.asked)
        if follows != MAY_GO_ON:
            code = exchange.ends_by_itself(victim)
            ended = f"ended with {code}"
            if code <= 0:
                raise Broken(f"{victim} {ended}; it said: {exchange.said(victim)[-300:]}")
            late = [ack for ack in load.acks.taken() if ack.get("subject") in set(load.asked) - asked_before]
            if late and follows == STOPS:
                raise Broken(f"what was asked for after the error was acknowledged: {late[0]['subject']}")
            lines = injected(trace)
            again = [line for line in lines[1:] if f"{call}(" in line]
            if name == "committer" and again:
                raise Broken(f"the committer went on after the error: {again[0]}")
        else:
            time.sleep(GOES_ON_S)
            ended = "goes on" if child.poll() is None else f"ended with {child.poll()}"
    finally:
        tracer.terminate()
        tracer.wait()
    return f"{lines[0].strip()[:60]}... {ended}"


def settled(data):
    """The evidence file, once a segment was copied into it and something stands behind its header."""
    return [file for file in (data / "evidence").glob("*.evidence") if file.stat().st_size > 48]


def begin_a_copy(data):
    """What a crash in the middle of a copy leaves: a record without its end, behind the last mark."""
    file = settled(data)[-1]
    whole = file.read_bytes()
    file.write_bytes(whole + whole[48:148])


def while_starting(exchange, load, target, fault, nth, trace):
    whose, _, call, _, _, _ = target
    victim = "broker" if whose == "broker" else RECIPIENT
    load.start()
    until("some acknowledgements", lambda: load.acks.lines if len(load.acks.lines) > 15 else None)
    unfinished = (whose, call) == ("broker", "ftruncate")
    if unfinished:
        until("a settled segment", lambda: settled(exchange.data[victim]) or None)
    exchange.kill(victim)
    if unfinished:
        begin_a_copy(exchange.data[victim])
    # With -D the program itself is our child, and strace goes with it.
    tracer = ["strace", "-D", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={nth}"]
    child = exchange.launch(victim, tracer)
    lines = until(f"call {nth} of {call} in a start", lambda: injected(trace), HANG_S)
    until_ended = time.monotonic() + GOES_ON_S
    while child.poll() is None and time.monotonic() < until_ended:
        time.sleep(0.01)
    ended = "goes on" if child.poll() is None else f"ended with {child.poll()}"
    exchange.kill(victim)
    return f"{lines[0].strip()[:60]}... in a start: {ended}"


def case(n, dice, template, folder):
    target = TARGETS[n % len(TARGETS)]
    whose, name, call, faults, most, _ = target
    fault, nth = faults[(n // len(TARGETS)) % len(faults)], dice.randint(1, most)
    exchange = template.copy(folder / "live")
    try:
        acks = Acks(folder / "acks")
        load = (BrokerLoad if whose == "broker" else AgentLoad)(exchange, acks, dice)
        if (name, call) in ONLY_WITH_SEGMENTS:
            load.parts_each = 4
        for one in ("broker", SENDER, RECIPIENT):
            exchange.start(one)
        does = while_starting if name == "start" else while_running
        said = does(exchange, load, target, fault, nth, folder / "trace")
        load.stop()
        exchange.kill()
        fresh(exchange)
        taken = acks.taken()
        (broker_kept if whose == "broker" else agent_kept)(exchange, taken)
        return f"{whose}, {name}, {call} {nth} {fault}: {said}; {len(taken)} acknowledged"
    except Broken as broken:
        raise Broken(f"{whose}, {name}, {call} {nth} {fault}: {broken}") from broken
    finally:
        exchange.kill()


if __name__ == "__main__":
    run(arguments(__doc__, 40), case, in_memory=True)
