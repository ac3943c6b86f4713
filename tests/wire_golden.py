"""The golden bytes of version 1: one of each record, as values.  tests/wire/v1 holds them as bytes.

Each file was written once (`python tests/wire_golden.py` makes those of new records) and is never written again:
whatever speaks version 1 must go on reading them.
"""

from __future__ import annotations

import os

from helpers_wire import ROOT, SPEC

DIRECTORY = os.path.join(ROOT, "tests", "wire", "v1")

SPAWN_ARGV = ["/bin/sh", "-c", 'read line; echo "$A $line"; umask; exit 7']
SPAWN_ENV = ["A=golden"]
SPAWN_HEAD = {
    "options": 512 | 4, "umask": 0o027, "fd_targets": (0, 1), "closed_std": 4,
    "stop_signal": 2, "stop_scope": 2, "on_owner_loss": 0, "grace_ms": 2500,
}  # fmt: skip

USAGE = dict(
    zip(
        ("user_us", "system_us", "max_rss_kib", "minor_faults", "major_faults", "blocks_in", "blocks_out",
         "voluntary_switches", "involuntary_switches"),
        (1_000_001, 2_000_002, 3_003, 44, 5, 6, 7, 88, 2**40 + 9),
        strict=True,
    )
)  # fmt: skip
MEMBERS = [
    {"pid": 4711, "flags": 1 | 2 | 8, "name": b"main"},
    {"pid": 4712, "flags": 4 | 16 | 32, "name": b"fifteen letters"},
]

REQUESTS = {
    "HELLO": {"version": 1, "flags": 1},
    "SPAWN_MAP": {"size": 0},  # set below
    "SIGNAL": {"signo": 10, "scope": 0},
    "STOP": {"id": 7, "signo": 15, "scope": 1, "grace_ms": 5000},
    "QUERY": {"id": 5},
    "ON_OWNER_LOSS": {"on_owner_loss": 2},
    "LAUNCH": {},
    "HELD": {"flags": 1, "report": b"41.report"},
    "LOG": {"flags": 3, "rotate_count": 8, "rotate_size": 16 << 20, "cap": 2**40, "label": b"web@41"},
    "ACK": {"what": 5},
    "ATTACH": {},
    "MAIN": {"pid": 4713},
}
# Between keeper and clients; bytes: the body.
CLIENTS = {
    "INPUT": b"typed\r",
    "WINDOW": {"rows": 50, "columns": 132},
    "ATTACHED": {"flags": 3, "pid": 4711},
    "RECENT": b"a line\n$ ",
    "OUTPUT": b"\x1b[1mbold\x1b[m\r\n",
    "SKIPPED": {"bytes": 2**33 + 1},
    "ENDED": {"code": 1, "status": 7},
    "REFUSED": {"error": 16},
}
REPORTS = {
    "KEEPER_HELLO": {"version": 1, "pid": 4242},
    "SPAWNED": {
        "pid": 4711, "identity": 2**63 + 5, "started_ns": 123_456_789_012, "started_at_ns": 1_750_000_000 * 10**9,
    },
    "FAILED": {"stage": 14, "error": 2},
    "EXITED": {"pid": 4711, "flags": 1, "code": 2, "status": 9, "ended_ns": 123_999_999_999, "usage": USAGE},
    "ADOPTED": {"pid": 4712, "identity": 77},
    "STOPPED": {"pid": 4711, "signo": 19},
    "CONTINUED": {"pid": 4711, "signo": 18},
    "EMPTY": {"at_ns": 124_000_000_000, "reaped": 3, "usage": USAGE},
    "STOP_REPORT": {
        "id": 7, "signo": 15, "scope": 1, "grace_ms": 5000, "duration_ns": 2**33, "signalled": 2, "left_group": 1,
        "killed": 1, "survivors": 1, "unlisted": 4, "n_members": 2, "members": MEMBERS,
    },
    "MEMBERS": {"id": 5, "n_members": 2, "unlisted": 0, "members": MEMBERS},
    "LOST": {"events": 2**40},
    "LAUNCHED": {"pid": 4243},
    "MOVED": {"old_pid": 4711, "pid": 4713, "identity": 2**63 + 7, "rule": 3, "count": 2},
    "LOG_STATE": {"written_bytes": 2**40 + 1, "lost_bytes": 2**33, "dropped_bytes": 100, "error": 28},
}  # fmt: skip


def spawn_body() -> bytes:
    return SPEC.spawn_body(SPAWN_ARGV, SPAWN_ENV, **SPAWN_HEAD)


def encode(name: str) -> bytes:
    if name == "SPAWN":
        return SPEC.record(name, body=spawn_body())
    if name in CLIENTS:
        said = CLIENTS[name]
        return SPEC.record(name, body=said) if isinstance(said, bytes) else SPEC.record(name, said)
    values = {"size": len(spawn_body())} if name == "SPAWN_MAP" else (REQUESTS | REPORTS)[name]
    return SPEC.record(name, values)


NAMES = ["SPAWN", *REQUESTS, *REPORTS, *CLIENTS]


def read(name: str) -> bytes:
    with open(os.path.join(DIRECTORY, name.lower() + ".hex")) as file:
        return bytes.fromhex(file.read())


def write() -> None:
    os.makedirs(DIRECTORY, exist_ok=True)
    for name in NAMES:
        path = os.path.join(DIRECTORY, name.lower() + ".hex")
        if os.path.exists(path):
            continue
        with open(path, "x") as file:
            data = encode(name)
            for at in range(0, len(data), 16):
                print(data[at : at + 16].hex(" "), file=file)


if __name__ == "__main__":
    write()
