"""The wire as docs/wire.md tells it, and a keeper that is spoken to without the library.

`Spec` knows the records from the tables alone: nothing here is taken from the code.  `RawKeeper` starts
the installed keeper as a plain child with a socket and a pidfd, as the page says.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Self

from helpers_wait import wait_for

from holdfast.process import _native

KEEPER = os.path.join(os.path.dirname(_native.__file__), "holdfast-keeper")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WRAP: list[str] = []  # what a keeper is run under (valgrind)
CODES = {"u16": "H", "u32": "I", "i32": "i", "u64": "Q"}
CODES |= {"char[16]": "16s", "char[64]": "64s", "char[160]": "160s", "char[240]": "240s"}
PATIENCE = 30.0


@dataclass
class Record:
    name: str
    tag: int = -1
    to_keeper: bool = False
    struct_name: str = ""
    fields: list[tuple[int, str, str]] = field(default_factory=list)  # offset, type, name


@dataclass
class Spec:
    records: dict[str, Record]
    tags: dict[int, Record]
    numbers: dict[str, int]

    def size(self, name: str) -> int:
        record = self.records[name]
        return max((at + self._size(kind) for at, kind, _ in record.fields), default=0)

    def _size(self, kind: str) -> int:
        return struct.calcsize("<" + CODES[kind]) if kind in CODES else self.size(kind)

    def pack(self, name: str, values: dict) -> bytes:
        body = bytearray(self.size(name))
        for at, kind, key in self.records[name].fields:
            value = 0 if key == "zero" else values[key]
            if kind in CODES:
                struct.pack_into("<" + CODES[kind], body, at, value)
            else:
                body[at : at + self._size(kind)] = self.pack(kind, value)
        return bytes(body)

    def unpack(self, name: str, body: bytes) -> dict:
        assert len(body) >= self.size(name), f"{name}: {len(body)} bytes"
        result = {}
        for at, kind, key in self.records[name].fields:
            if kind in CODES:
                (value,) = struct.unpack_from("<" + CODES[kind], body, at)
                if kind.startswith("char["):
                    value = value.split(b"\0")[0].decode()
                if key == "zero":
                    assert value == 0
                    continue
                result[key] = value
            else:
                result[key] = self.unpack(kind, body[at:])
        return result

    def record(self, name: str, values: dict | None = None, *, body: bytes | None = None) -> bytes:
        """One padded record."""
        if body is None:
            body = self.pack(name, values or {})
            for member in (values or {}).get("members", ()):
                body += self.pack("member", member)
        return raw_record(self.records[name].tag, body)

    def decode(self, packet: bytes) -> list[tuple[str, dict]]:
        """Every record of a packet; those with members carry them as `members`."""
        result: list[tuple[str, dict]] = []
        at = 0
        while at < len(packet):
            tag, zero, length = struct.unpack_from("<HHI", packet, at)
            assert zero == 0
            body = packet[at + 8 : at + 8 + length]
            assert len(body) == length
            at += 8 + (length + 7) // 8 * 8
            record = self.tags.get(tag)
            if record is None:
                result.append((f"tag {tag}", {}))
                continue
            values = self.unpack(record.name, body) if record.fields else {}
            if "n_members" in values:
                first, each = self.size(record.name), self.size("member")
                values["members"] = [
                    self.unpack("member", body[first + i * each :]) for i in range(values["n_members"])
                ]
            result.append((record.name, values))
        return result

    # ---- the plan

    def spawn_body(self, argv, env=(), **head) -> bytes:
        """The body of a SPAWN, built from the tables."""
        groups, rlimits, targets = head.pop("groups", ()), head.pop("rlimits", ()), head.pop("fd_targets", ())
        executable, cwd = head.pop("executable", argv[0]), head.pop("cwd", None)
        at = align(self.size("SPAWN"))
        middle = b""
        for element, items in (("I", groups), (None, rlimits), ("i", targets)):
            if element:
                part = struct.pack(f"<{len(items)}{element}", *items)
            else:
                part = b"".join(
                    self.pack("rlimit", {"which": w, "soft": soft, "hard": hard}) for w, soft, hard in items
                )
            middle += part.ljust(align(len(part)), b"\0")
        first = at + len(middle) + 8 * (len(argv) + 1 + len(env) + 1)
        strings = b""
        offsets = []
        for text in [*argv, *env, executable, *([cwd] if cwd is not None else [])]:
            offsets.append(first + len(strings))
            strings += os.fsencode(text) + b"\0"
        lists = [*offsets[: len(argv)], 0, *offsets[len(argv) : len(argv) + len(env)], 0]
        after = offsets[len(argv) + len(env) :]
        values = {
            "options": 0, "pgid": 0, "umask": 0, "uid": 0, "gid": 0, "nice": 0, "mask": 0,
            "on_owner_loss": self.numbers["LOSS_STOP"], "stop_signal": signal.SIGTERM,
            "stop_scope": self.numbers["SCOPE_GROUP"], "closed_std": 0, "grace_ms": 1000,
            "n_groups": len(groups), "n_rlimits": len(rlimits), "n_fds": len(targets),
            "n_argv": len(argv), "n_env": len(env), "more": 0,
            "executable": after[0], "cwd": after[1] if cwd is not None else 0,
        }  # fmt: skip
        values.update(head)
        body = self.pack("SPAWN", values).ljust(at, b"\0") + middle + struct.pack(f"<{len(lists)}Q", *lists) + strings
        return body.ljust(align(len(body)), b"\0")

    def read_spawn_body(self, body: bytes) -> dict:
        """The opposite: a SPAWN's body as plain values."""
        head = self.unpack("SPAWN", body)
        at = align(self.size("SPAWN"))

        def take(code: str, count: int) -> tuple:
            nonlocal at
            items = struct.unpack_from(f"<{count}{code}", body, at)
            at = align(at + struct.calcsize(f"<{count}{code}"))
            return items

        head["groups"] = take("I", head["n_groups"])
        head["rlimits"] = []
        for _ in range(head["n_rlimits"]):
            head["rlimits"].append(tuple(self.unpack("rlimit", body[at:]).values()))
            at += self.size("rlimit")
        head["fd_targets"] = take("i", head["n_fds"])
        argv, env = take("Q", head["n_argv"] + 1), take("Q", head["n_env"] + 1)
        assert argv[-1] == env[-1] == 0
        assert len(body) % 8 == 0 and body[-1] == 0

        def text(offset: int) -> str:
            assert at <= offset < len(body)
            return os.fsdecode(body[offset : body.index(b"\0", offset)])

        head["argv"], head["env"] = [text(o) for o in argv[:-1]], [text(o) for o in env[:-1]]
        head["executable"] = text(head["executable"])
        head["cwd"] = text(head["cwd"]) if head["cwd"] else None
        return head


def align(n: int) -> int:
    return (n + 7) // 8 * 8


def raw_record(tag: int, body: bytes = b"", length: int | None = None) -> bytes:
    """A record of any content; `length` may lie."""
    head = struct.pack("<HHI", tag, 0, len(body) if length is None else length)
    return head + body.ljust(align(len(body)), b"\0")


def grown(name: str) -> bytes:
    """A golden request as a later version might send it: longer, and after a record that nobody knows."""
    import wire_golden

    data = wire_golden.read(name)
    return raw_record(63, b"unknown") + raw_record(SPEC.records[name].tag, data[8:] + b"\xff" * 16)


def read_spec(path: str = os.path.join(ROOT, "docs", "wire.md"), *, anchor: bool = False) -> Spec:
    """What the page says of owner and keeper; with `anchor`, of anchor and supervisor too."""
    records: dict[str, Record] = {}
    numbers: dict[str, int] = {}
    current = None
    section = ""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("## "):
                section = line[3:].strip()
            if section == "The anchor" and not anchor:
                continue
            if line.startswith("#"):
                heading = line.lstrip("#").strip()
                current = records.setdefault(heading, Record(heading)) if line.startswith("### ") else None
            elif line.startswith("A more,"):
                current = records.setdefault("more", Record("more", struct_name="hf_more"))
            elif line.startswith("An rlimit:"):
                current = records.setdefault("rlimit", Record("rlimit", struct_name="hf_rlimit"))
            if current and (found := re.match(r"Tag (\d+), (\w+ to \w+)\.", line)):
                current.tag, current.to_keeper = int(found[1]), found[2] == "owner to keeper"
            if current and not current.struct_name and (found := re.search(r"`struct (\w+)`", line)):
                current.struct_name = found[1]
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
            if cells and current and re.fullmatch(r"\d+", cells[0]) and len(cells) == 4:
                current.fields.append((int(cells[0]), cells[1], cells[2]))
            elif cells and re.fullmatch(r"\d+", cells[0]) and re.fullmatch(r"[A-Z_]+", cells[1]):
                numbers[cells[1]] = int(cells[0])
    return Spec(records, {r.tag: r for r in records.values() if r.tag >= 0}, numbers)


SPEC = read_spec()


class RawKeeper:
    """A keeper as a direct child.  `owner` is the process that it is told to watch: by default ours.

    `argv` may wrap the program (valgrind); `sndbuf` makes the keeper's end of the socket narrow.
    """

    def __init__(self, *, owner: int | None = None, program=None, argv=None, env=None, sndbuf=None) -> None:
        import fcntl

        argv = argv or [*WRAP, program or KEEPER]
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if sndbuf:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        owner_fd = os.pidfd_open(os.getpid()) if owner is None else os.dup(owner)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs.fileno(), owner_fd)]
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in ((null, 0), (null, 1), (high[0], 3), (high[1], 4))]
        for name in os.listdir("/proc/self/fd"):  # what the test runner leaves open is not the keeper's
            try:
                if int(name) > 4 and os.get_inheritable(int(name)):
                    actions.append((os.POSIX_SPAWN_CLOSE, int(name)))
            except OSError:
                pass
        try:
            self.pid = os.posix_spawn(
                argv[0], argv, env or {},
                file_actions=actions, setsigmask=signal.valid_signals(), setsigdef=[signal.SIGCHLD],
            )  # fmt: skip
        finally:
            theirs.close()
            for fd in (owner_fd, null, *high):
                os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)  # our child, not reaped yet: the number is its own
        self.seen: list[tuple[str, dict]] = []
        self.fds: list[int] = []
        self.code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes, fds=()) -> None:
        if fds:
            socket.send_fds(self.sock, [data], list(fds))
        else:
            self.sock.send(data)

    def say(self, name: str, **values) -> None:
        self.send(SPEC.record(name, values))

    def spawn(self, *argv: str, env=(), fds=(), hello=0, **head) -> dict:
        """HELLO and SPAWN; its answer: SPAWNED's values and the pidfd as `pidfd`, or FAILED's."""
        self.send(
            SPEC.record("HELLO", {"version": 1, "flags": hello})
            + SPEC.record("SPAWN", body=SPEC.spawn_body(argv, env, **head)),
            fds,
        )
        return self.answer()

    def answer(self) -> dict:
        name, values = self.wait_for("SPAWNED", "FAILED", "LAUNCHED")
        return values | {"name": name}

    def receive(self, timeout: float = PATIENCE) -> bool:
        """Take in one packet; False at the end of the socket.  AssertionError when nothing comes."""
        self.sock.settimeout(timeout)
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, 65536, 16)
        except TimeoutError:
            raise AssertionError(f"the keeper says nothing more; so far: {self.seen}") from None
        except ConnectionResetError:
            return False
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        self.fds += fds
        self.last = data
        self.seen += SPEC.decode(data)
        assert len(_native.wire_decode(data)) == len(SPEC.decode(data))  # the library agrees
        return bool(data)

    def wait_for(self, *names: str) -> tuple[str, dict]:
        """The next record with one of these names; those before it stay in `passed`."""
        self.passed = []
        while True:
            while self.seen:
                record = self.seen.pop(0)
                if record[0] in names:
                    return record
                self.passed.append(record)
            assert self.receive(), f"the keeper ended; it had said {self.passed}"

    def rest(self) -> list[tuple[str, dict]]:
        """Everything that it says until its end."""
        while self.receive():
            pass
        self.wait()
        result, self.seen = self.seen, []
        return result

    def wait(self, timeout: float = PATIENCE) -> int:
        if self.code is None:
            assert select.select([self.pidfd], [], [], timeout)[0], "the keeper does not end"
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def close(self) -> None:
        """Leave: the keeper loses its owner and ends with its tree; for one that does not, SIGKILL."""
        self.sock.close()
        try:
            if self.code is None and not select.select([self.pidfd], [], [], 15)[0]:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            assert self.wait() == 0, f"the keeper ended with {self.code}"
        finally:
            os.close(self.pidfd)
            for fd in self.fds:
                os.close(fd)
            self.fds = []

    # ---- what it costs

    def runs(self) -> tuple[int, int]:
        """Nanoseconds on the processor, and how often it was put there."""
        with open(f"/proc/{self.pid}/schedstat") as file:  # our child, not reaped
            ns, _, times = map(int, file.read().split())
        return ns, times

    def assert_idle(self, window: float = 0.3) -> None:
        """Over a moment it neither spins nor wakes up all the time."""
        deadline = time.monotonic() + PATIENCE
        while True:  # what it still had to do may run on into the first windows
            ns, times = self.runs()
            select.select([], [], [], window)
            now_ns, now_times = self.runs()
            if now_ns - ns < window * 1e9 / 20 and now_times - times <= 3:
                return
            assert time.monotonic() < deadline, f"{now_ns - ns} ns and {now_times - times} runs in {window} s"


def marked(marker: str) -> list[int]:
    """Every process with this marker in its environment."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if marker.encode() in file.read().split(b"\0"):
                        found.append(int(name))
            except OSError:
                pass
    return found


def wait_until(look, what: str = "") -> None:
    """For facts that no descriptor tells; bounded."""
    wait_for(look, PATIENCE, what)
