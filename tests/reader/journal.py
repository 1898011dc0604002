"""Counts what a broker's journal and evidence hold, written from docs/format.md alone: journal.py DATA"""
import functools, glob, json, os, struct, sys
TABLE = list(range(256))
for _ in range(8):
    TABLE = [n >> 1 ^ (0x82F63B78 if n & 1 else 0) for n in TABLE]
def crc(data):
    return functools.reduce(lambda value, byte: TABLE[(value ^ byte) & 255] ^ value >> 8, data, 0xFFFFFFFF) ^ 0xFFFFFFFF
def files(folder, suffix, magic):  # bytes, number, salt, first; oldest first
    for path in sorted(glob.glob(os.path.join(sys.argv[1], folder, "*." + suffix))):
        data = open(path, "rb").read()
        assert data[:12] == magic + b"\2\0\0\0" and crc(data[:44]) == struct.unpack_from("<I", data, 44)[0], path
        yield (data, *struct.unpack_from("<QQQ", data, 16))
def frames(data, at):  # leaf and encoded record, as far as they are whole
    while at + 24 <= len(data):
        size, tail, leaf, version, check = struct.unpack_from("<IIQII", data, at)
        record = data[at + 24:at + 24 + size]
        if version != 2 or at + 24 + size + tail > len(data) or crc(data[at:at + 20] + record) != check:
            return
        yield leaf, record
        at += 24 + size + tail
class Reader:
    def __init__(self, data): self.data, self.at = data, 0
    def skip(self, count): self.at += count; return self.data[self.at - count:self.at]
    def number(self, kind): return struct.unpack("<" + kind, self.skip(struct.calcsize("<" + kind)))[0]
    def blob(self): return self.skip(self.number("Q"))
    def signed(self): return self.blob(), self.blob()
    def sealed(self): return self.signed(), [self.blob() for _ in range(self.number("Q"))]
found, waiting = dict.fromkeys(["leaves", "dispatches", "settled", "segment", "sequence", "durable"], 0), set()
def apply(leaf, record):
    r = Reader(record)
    tag, brings = r.number("I"), int(record[0] < 3)
    if tag == 0:  # Accepted
        r.blob(), r.skip(16), r.blob(), r.skip(49), r.sealed()
        r.skip(40 * r.number("Q")), r.skip(36 * r.number("Q")), r.signed()
        to = [(r.blob(), r.signed() if r.number("B") else None) for _ in range(r.number("Q"))]
        waiting.update((leaf, code) for code, refused in to if not refused)
        brings, found["dispatches"] = 1 + sum(1 for _, refused in to if refused), found["dispatches"] + 1
    elif tag == 2:  # Event
        delivery = r.number("Q"), r.blob()
        r.skip(44), r.signed(), r.number("B") and r.sealed()
        waiting.difference_update([] if r.number("I") == 0 else [delivery])
    assert not brings or leaf == found["leaves"], "a gap in the log"
    found["leaves"] += brings
for data, *_ in files("evidence", "evidence", b"dxeviden"):
    copy = []  # counts when the mark behind it is there
    for leaf, record in frames(data, 48):
        copy.append((leaf, record))
        if record[:4] == b"\6\0\0\0":  # Settled
            found["settled"] = struct.unpack_from("<Q", record, 4)[0]
            while copy: apply(*copy.pop(0))
for data, number, salt, sequence in files("journal", "segment", b"dxjournl"):
    at = 4096
    while number > found["settled"] and data[at:at + 4] == b"DXgr":
        length, *says, durable = struct.unpack_from("<IQQQQ", data, at + 4)
        group = data[at:at + length]
        if says != [number, salt, sequence] or crc(group[:44] + group[48:]) != struct.unpack_from("<I", group, 44)[0]: break
        for leaf, record in frames(group, 56): apply(leaf, record)
        found.update(segment=number, sequence=sequence, durable=durable)
        at, sequence = at + -(-length // 4096) * 4096, sequence + 1
print(json.dumps({**found, "waiting": len(waiting)}))
