#!/usr/bin/env python3
"""The file system under the data goes away under live load, on ext4 and on xfs: for the broker and for an agent.

    shutdown.py DOCAXIS [--count N] [--seed S] [-v]

From that moment nothing more may be acknowledged; the process says why it cannot go on, and ends. After the file system
was mounted again, a start finds everything that was acknowledged.
"""
import time

from claims import agent_kept, broker_kept, fresh
from load import Acks, AgentLoad, BrokerLoad
from rig import RECIPIENT, SENDER, Broken, Image, arguments, run

KINDS = [(whose, kind) for kind in ("ext4", "xfs") for whose in ("broker", "agent")]
# The moment lies between the first acknowledgement and this much later.
LATEST_S = 2.0


def case(n, dice, template, folder):
    whose, kind = KINDS[n % len(KINDS)]
    image = Image(folder, kind)
    victim = "broker" if whose == "broker" else RECIPIENT
    exchange = template.copy(folder / "live")
    try:
        exchange.place(victim, image.at / "data")
        acks = Acks(folder / "acks")
        load = (BrokerLoad if whose == "broker" else AgentLoad)(exchange, acks, dice)
        for name in ("broker", SENDER, RECIPIENT):
            exchange.start(name)
        load.start()
        deadline = time.monotonic() + LATEST_S * 10
        while not acks.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, LATEST_S))
        image.shut_down()
        gone = time.monotonic()
        asked_before = set(load.asked)
        try:
            code = exchange.ends_by_itself(victim)
        except Broken:
            # An agent that comes to no commit any more, because its reads fail before, says so and keeps on trying.
            if whose == "broker" or "the mailbox's database refused an operation" not in exchange.said(victim)[-2000:]:
                raise
            code = None
        ended_s = time.monotonic() - gone
        load.stop()
        late = [ack for ack in acks.lines if ack.get("subject") in set(load.asked) - asked_before]
        if late:
            raise Broken(f"{whose} on {kind}: {len(late)} of what was asked for after the loss was acknowledged: {late[0]}")
        said = exchange.said(victim).strip()
        if code is not None and (code <= 0 or "start the" not in said[-2000:]):
            raise Broken(f"{whose} on {kind} ended with {code} and said {said[-300:]}")
        exchange.kill()
        image.unmount()
        image.mount()
        fresh(exchange)
        (broker_kept if whose == "broker" else agent_kept)(exchange, acks.taken())
        image.unmount()
        return f"{whose} on {kind}: {len(acks.lines)} acknowledged; {f'ended after {ended_s:.1f} s with {code}' if code else 'only refused'}"
    finally:
        exchange.kill()
        image.close()


if __name__ == "__main__":
    run(arguments(__doc__, 10), case)
