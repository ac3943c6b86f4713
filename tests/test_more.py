"""The later part of a spawn request ("A more" of docs/wire.md): what the library writes, and what a keeper obeys."""

from __future__ import annotations

import errno
import os
import struct

from helpers_identity import ONE_CPU
from helpers_wire import SPEC, RawKeeper, align, raw_record

from holdfast.process import _native
from holdfast.process.more import pack_more

N = SPEC.numbers
TAG = SPEC.records["SPAWN"].tag
SIZE = SPEC.size("more")
SHOW = "cat /proc/self/oom_score_adj; grep -E 'NoNew|Cpus_allowed_list' /proc/self/status"
NOTHING = {
    "size": SIZE, "flags": 0, "oom_score_adj": 0, "ioprio": 0, "bounding": 0, "ambient": 0, "cpus": 0, "cpus_size": 0,
    "main_name": b"",
}  # fmt: skip


def body_of(more: bytes) -> bytes:
    """A SPAWN as the library writes it: SHOW, with its output to the one descriptor that comes along."""
    return _native.spawn_body(
        ["sh", "-c", SHOW], {}, "/bin/sh", None, 0, 0, 0, 0, 0, 0, [], [], [1], 0, 0, 15, 1, 0, more
    )


BEHIND = len(body_of(b""))  # where `with_more` puts it


def with_more(more: bytes, **changes: int) -> bytes:
    """One with `more` behind the strings, and some of its fields overwritten."""
    plain, text = body_of(b""), bytearray(more)
    for offset, kind, name in SPEC.records["more"].fields:
        if name in changes:
            struct.pack_into({"u32": "<I", "i32": "<i"}[kind], text, offset, changes[name])
    return at(plain, BEHIND) + bytes(text).ljust(align(len(text)) + 8, b"\0")


def at(body: bytes, place: int) -> bytes:
    """The same with another offset of its `more`."""
    offset = next(offset for offset, _, name in SPEC.records["SPAWN"].fields if name == "more")
    return body[:offset] + struct.pack("<I", place) + body[offset + 4 :]


def shown(body: bytes) -> list[str]:
    """What a process shows that a keeper has started from this."""
    reader, writer = os.pipe()
    with RawKeeper() as k, open(reader) as file:
        k.send(raw_record(TAG, body), [writer])
        os.close(writer)
        answer = k.answer()
        assert answer["name"] == "SPAWNED", answer
        text = file.read()
        k.rest()
    return [line.partition(":")[2].strip() or line for line in text.splitlines()]


def test_tables_read_what_the_library_writes():
    body = body_of(pack_more(oom_score_adj=-7, ioprio=3, bounding=1 << 63, ambient=5, cpus=[0, 9], main_name="x"))
    place = SPEC.read_spawn_body(body)["more"]
    flags = ("OOM_SCORE_ADJ", "IOPRIO", "BOUNDING", "AMBIENT", "CPUS")
    assert SPEC.unpack("more", body[place:]) == {
        "size": SIZE + 8, "flags": sum(N[f"MORE_{flag}"] for flag in flags), "oom_score_adj": -7, "ioprio": 3,
        "bounding": 1 << 63, "ambient": 5, "cpus": place + SIZE, "cpus_size": 8, "main_name": "x",
    }  # fmt: skip
    assert body[place + SIZE :][:8] == (1 | 1 << 9).to_bytes(8, "little")
    none = body_of(pack_more(no_new_privs=True))
    assert SPEC.unpack("more", none[SPEC.read_spawn_body(none)["more"] :])["flags"] == N["MORE_NO_NEW_PRIVS"]


def test_a_name_that_is_no_text_is_the_bytes_of_the_process():
    assert pack_more(main_name=os.fsdecode(b"x\xff")).endswith(b"x\xff" + bytes(14))


def test_a_keeper_obeys_one_made_from_the_tables():
    flags = N["MORE_OOM_SCORE_ADJ"] | N["MORE_NO_NEW_PRIVS"] | N["MORE_CPUS"]
    mask = (1 << ONE_CPU).to_bytes(1024, "little")
    more = SPEC.pack("more", {**NOTHING, "flags": flags, "oom_score_adj": 1000}) + mask
    body = with_more(more, size=len(more), cpus=BEHIND + SIZE, cpus_size=1024)
    assert shown(body) == ["1000", "1", str(ONE_CPU)]


def test_an_older_one_is_shorter_and_a_newer_one_longer():
    flags = N["MORE_OOM_SCORE_ADJ"]
    whole = SPEC.pack("more", {**NOTHING, "flags": flags, "oom_score_adj": 999, "ioprio": 2**32 - 1})
    plain = shown(body_of(b""))
    assert shown(with_more(whole[:12], size=12)) == ["999", *plain[1:]]
    assert shown(with_more(whole + b"\xff" * 64, size=SIZE + 64)) == ["999", *plain[1:]]
    # Nothing is read of what lies behind its size.
    assert shown(with_more(SPEC.pack("more", {**NOTHING, "oom_score_adj": 999}), size=8)) == plain


def test_malformed_ones_start_nothing():
    good = SPEC.pack("more", {**NOTHING, "flags": N["MORE_CPUS"]}) + b"\xff" * 8
    fine = with_more(good, size=len(good), cpus=BEHIND + SIZE, cpus_size=8)
    end = len(fine)
    bad = {
        "size 0": with_more(good, size=0),
        "size 4": with_more(good, size=4),
        "size beyond the end": with_more(good, size=end),
        "unknown flag": with_more(good, flags=1 << 6),
        "CPUs in the head": with_more(good, cpus=8, cpus_size=8),
        "CPUs at 0": with_more(good, cpus=0, cpus_size=8),
        "CPUs beyond the end": with_more(good, cpus=end, cpus_size=8),
        "CPUs far away": with_more(good, cpus=2**32 - 8, cpus_size=8),
        "CPUs that reach beyond the end": with_more(good, cpus=BEHIND + SIZE, cpus_size=end),
        "more CPUs than there are anywhere": with_more(good + b"\0" * 2000, cpus=BEHIND + SIZE, cpus_size=1025),
        **{f"more at {place}": at(fine, place) for place in (1, 8, BEHIND + 1, end - 2, end, 2**32 - 8)},
    }  # fmt: skip
    with RawKeeper() as k, open(os.devnull) as null:
        k.send(raw_record(SPEC.records["HELLO"].tag, struct.pack("<II", 1, N["KEEPER_REUSED"])))
        for name, body in bad.items():
            k.send(raw_record(TAG, body), [null.fileno()])
            answer = k.answer()
            assert answer == {"name": "FAILED", "stage": N["STAGE_RECEIVE"], "error": errno.EBADMSG}, (name, answer)
        k.send(raw_record(TAG, with_more(good, size=len(good), flags=0)), [null.fileno()])
        assert k.answer()["name"] == "SPAWNED"
        k.wait_for("EMPTY")
