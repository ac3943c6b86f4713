"""What few starts ask for, checked and packed: the hf_more of a spawn request.  Imported only when one does."""

from __future__ import annotations

import os
import re
import struct

from .capabilities import as_bits, capability_sets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .capabilities import Capabilities

CPUS_MAX = 8192  # as many as a kernel can be built for
OOM_SCORE_LEAST, OOM_SCORE_MOST = -1000, 1000

# Bits of the wire (csrc/common/child.h).
_OOM_SCORE_ADJ, _IOPRIO, _NO_NEW_PRIVS, _BOUNDING, _AMBIENT, _CPUS = 1, 2, 4, 8, 16, 32
_HEAD = struct.Struct("<IIiIQQII16s")

_IO_CLASSES = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}
_IO_LEVEL = 4  # where none is given, as for ionice


def pack_more(
    *,
    oom_score_adj: int | None = None,
    ioprio: int | None = None,
    no_new_privs: bool = False,
    bounding: int | None = None,
    ambient: int | None = None,
    cpus: Iterable[int] | None = None,
    main_name: str = "",
) -> bytes:
    """The bytes of it; b"" when nothing is asked for.  All values are checked already."""
    flags, mask = 0, b""
    given = (oom_score_adj is not None, ioprio is not None, no_new_privs, bounding is not None, ambient is not None)
    for bit, is_given in zip((_OOM_SCORE_ADJ, _IOPRIO, _NO_NEW_PRIVS, _BOUNDING, _AMBIENT), given, strict=True):
        flags |= bit if is_given else 0
    if cpus is not None:
        flags |= _CPUS
        bits = sum(1 << cpu for cpu in set(cpus))
        mask = bits.to_bytes((bits.bit_length() + 63) // 64 * 8, "little")
    if not flags and not main_name:
        return b""
    head = _HEAD.pack(
        _HEAD.size + len(mask), flags, oom_score_adj or 0, ioprio or 0, bounding or 0, ambient or 0,
        _HEAD.size, len(mask), os.fsencode(main_name),
    )  # fmt: skip
    return head + mask


def pack_identity(
    capabilities: Capabilities | None,
    no_new_privs: bool,
    ioprio: str | None,
    oom_score_adj: int | None,
    cpu_affinity: str | Iterable[int] | None,
    main_name: str = "",
) -> bytes:
    """The same from `spawn`'s arguments, checked here.  ValueError, TypeError."""
    sets = {} if capabilities is None else capability_sets(capabilities)
    if not isinstance(no_new_privs, bool):
        raise TypeError(f"no_new_privs must be True or False, not {no_new_privs!r}")
    if oom_score_adj is not None:
        if isinstance(oom_score_adj, bool) or not isinstance(oom_score_adj, int):
            raise TypeError(f"oom_score_adj must be a number, not {oom_score_adj!r}")
        if not OOM_SCORE_LEAST <= oom_score_adj <= OOM_SCORE_MOST:
            raise ValueError(
                f"oom_score_adj must be between {OOM_SCORE_LEAST} and {OOM_SCORE_MOST}, not {oom_score_adj}"
            )
    return pack_more(
        oom_score_adj=oom_score_adj,
        ioprio=None if ioprio is None else io_priority(ioprio),
        no_new_privs=no_new_privs,
        bounding=as_bits(sets["bounding"]) if "bounding" in sets else None,
        ambient=as_bits(sets["ambient"]) if "ambient" in sets else None,
        cpus=None if cpu_affinity is None else cpu_numbers(cpu_affinity),
        main_name=main_name,
    )


def io_priority(text: str) -> int:
    """"idle", "best-effort:0" and so on as ioprio_set(2) takes it.  ValueError, TypeError."""
    if not isinstance(text, str):
        raise TypeError(f"ioprio must be a string, not {text!r}")
    found = re.fullmatch(r"(none|idle)|(best-effort|realtime)(?::([0-7]))?", text)
    if not found:
        raise ValueError(f'no such ioprio: {text!r} ("best-effort:0" to "best-effort:7", "realtime:0", "idle", "none")')
    level = 0 if found[1] else _IO_LEVEL if found[3] is None else int(found[3])
    return _IO_CLASSES[found[1] or found[2]] << 13 | level


def cpu_numbers(given: str | Iterable[int]) -> tuple[int, ...]:
    """Numbers of CPUs, or "0-3,5" as the kernel writes them, each once and in order.  ValueError, TypeError."""
    numbers: set[int] = set()
    if isinstance(given, str):
        for part in given.split(","):
            found = re.fullmatch(r" *([0-9]{1,9})(?:-([0-9]{1,9}))? *", part)
            if not found or int(found[2] or found[1]) < int(found[1]):
                raise ValueError(f'not CPUs: {given!r} (such as "0-3,5")')
            numbers.update(range(min(int(found[1]), CPUS_MAX), min(int(found[2] or found[1]), CPUS_MAX) + 1))
    else:
        for each in given:
            if isinstance(each, bool) or not isinstance(each, int):
                raise TypeError(f"a CPU is a number, not {each!r}")
            numbers.add(each)
    if not numbers:
        raise ValueError("no CPU is left to run on")
    if min(numbers) < 0 or max(numbers) >= CPUS_MAX:
        raise ValueError(f"CPUs have numbers from 0 to {CPUS_MAX - 1}")
    return tuple(sorted(numbers))
