#!/usr/bin/env python3
"""Power cuts at block level, with writes dropped and torn: under the data of a broker, and under that of an agent.

    powercut.py DOCAXIS [--count N] [--seed S] [-v]

The real programs run on a file system whose every write and flush is recorded (../shared/tools/powercut.py, which needs
qemu-storage-daemon); from the record an image is made for each of many moments, and the real programs are started on
it. In the broker's rounds it is also killed with SIGKILL and started again meanwhile, so that retries are answered
before the power goes. Half of the cuts are the broker's, half the agent's.
"""
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import agent_kept, another_boot, broker_kept
from load import Acks, AgentLoad, BrokerLoad, read_acks
from rig import RECIPIENT, SENDER, Broken, Exchange, Refused, Unreachable, arguments

TOOL = Path(__file__).resolve().parents[3] / "shared" / "tools" / "powercut.py"
# Cuts taken from one recording; the load ends after so many acknowledgements.
CUTS_A_ROUND = 50
ACKS_A_ROUND = 120
# The broker is killed and started again after so many.
KILL_EVERY = 40
ROUND_S = 60


def workload(whose, binary, template, work, data, seed):
    """Runs until enough was acknowledged, with the data of `whose` in `data`; says `ack N` for each."""
    dice = random.Random(seed)
    exchange = Exchange(binary, template).copy(work / "live")
    exchange.place("broker" if whose == "broker" else RECIPIENT, data)
    acks = Acks(work / "acks", lambda n: print(f"ack {n}", flush=True))
    load = (BrokerLoad if whose == "broker" else AgentLoad)(exchange, acks, dice, most=ACKS_A_ROUND)
    for name in ("broker", SENDER, RECIPIENT):
        exchange.start(name)
    load.start()
    killed = 0
    while len(acks.lines) < ACKS_A_ROUND and not load.failed:
        time.sleep(0.01)
        if whose == "broker" and len(acks.lines) >= KILL_EVERY * (killed + 1):
            killed += 1
            exchange.kill("broker")
            exchange.start("broker")
    exchange.kill()
    load.halt.set()
    if load.failed:
        raise load.failed[0]


def check(whose, binary, template, work, data, acked):
    """Starts the real programs on what a cut left, and says `ok=N` if all that was acknowledged is there."""
    acks = read_acks(work / "acks", acked)
    folder = Path(tempfile.mkdtemp(prefix="check-", dir=work))
    exchange = None
    try:
        live = Exchange(binary, work / "live")
        if whose == "broker":
            # The sender as it was at the end, the one that was away as it was at the beginning.
            exchange = live.copy(folder / "exchange", links=True)
            another_boot(data)
            exchange.use("broker", data)
            ready = broker_kept(exchange, acks)
        else:
            exchange = live.copy(folder / "exchange", links=True)
            exchange.use(RECIPIENT, data)
            ready = agent_kept(exchange, acks)
        print(f"ok={acked} ready in {ready:.2f} s")
    finally:
        if exchange is not None:
            exchange.kill()
        shutil.rmtree(folder, ignore_errors=True)


def one_round(args, whose, cuts, seed, work, template):
    """One recording and its cuts: how many there were, how many were bad, and the slowest recovery."""
    work.mkdir()
    env = dict(os.environ, POWERCUT_DIR=str(work / "images"), SEED=str(seed), V="1", MB="256", PYTHONDONTWRITEBYTECODE="1")
    me = [sys.executable, str(Path(__file__).resolve())]
    common = f"{args.binary} {template} {work}"
    checker = " ".join([*me, "--check", whose, common, "{dir}", "{n}"])
    tool = [sys.executable, str(TOOL), str(cuts), str(ROUND_S), checker, "--", *me, "--workload", whose, *common.split(),
            "{dir}", str(seed)]
    try:
        done = subprocess.run(tool, env=env, capture_output=True, text=True)
    finally:
        clean(work / "images")
    found = re.search(r"^(\d+) cuts, (\d+) bad", done.stdout, re.MULTILINE)
    acked = re.search(r"acks (\d+)", done.stdout)
    if args.verbose or found is None or int(found[2]):
        print(f"--- {whose}, seed {seed}\n{done.stdout}{done.stderr}", flush=True)
    if found is None or int(acked[1]) < ACKS_A_ROUND:
        raise Broken(f"{whose}, seed {seed}: the recording did not come to its end")
    slowest = max((float(s) for s in re.findall(r"ready in ([0-9.]+) s", done.stdout)), default=0)
    return int(found[1]), int(found[2]), slowest


def clean(images):
    """Nothing stays mounted, whatever went wrong."""
    for name in ("mnt", "exp"):
        subprocess.run(["umount", "-l", str(images / name)], capture_output=True)
    if (images / "pid").exists():
        subprocess.run(["kill", (images / "pid").read_text().strip()], capture_output=True)


def main():
    args = arguments(__doc__, 60)
    if not TOOL.exists():
        sys.exit(f"{TOOL} is not there: no power can be cut")
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="docaxis-powercut-"))
    template = Exchange(args.binary, work / "template")
    total = bad = 0
    slowest = {"broker": 0.0, "agent": 0.0}
    try:
        try:
            template.make()
        finally:
            template.kill()
        left = {"broker": args.count - args.count // 2, "agent": args.count // 2}
        for n in range(args.count):
            for whose in left:
                cuts = min(CUTS_A_ROUND, left[whose])
                if cuts:
                    done, wrong, ready = one_round(args, whose, cuts, args.seed + n, work / f"{whose}{n}", template.folder)
                    total, bad, left[whose] = total + done, bad + wrong, left[whose] - done
                    slowest[whose] = max(slowest[whose], ready)
                    shutil.rmtree(work / f"{whose}{n}", ignore_errors=True)
            if not any(left.values()):
                break
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{total} cases, {bad} bad, {time.monotonic() - began:.0f} s; slowest recovery: broker {slowest['broker']:.2f} s, "
          f"agent {slowest['agent']:.2f} s", flush=True)
    sys.exit(1 if bad or total < args.count else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--workload"]:
        whose, binary, template, work, data, seed = sys.argv[2:]
        workload(whose, binary, template, Path(work), Path(data), int(seed))
    elif sys.argv[1:2] == ["--check"]:
        whose, binary, template, work, data, acked = sys.argv[2:]
        try:
            check(whose, binary, template, Path(work), Path(data), int(acked))
        except (Broken, Unreachable, Refused, OSError, AssertionError) as error:
            # The recording tool shows the beginning; what a process said last is at the end.
            sys.exit(f"{error}"[-150:])
    else:
        main()
