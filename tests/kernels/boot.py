"""Boot one kernel with one initramfs under qemu's software emulation, and read what is told there."""

from __future__ import annotations

import json
import os
import pathlib
import select
import time
from collections.abc import Callable
from typing import Any

import holdfast

QEMU = "qemu-system-x86_64"
# Without what is slow to emulate: copies byte by byte (erms), wide registers, a fifth level of page tables; and without
# cmpxchg16b, after which qemu 7.2 has other flags than a processor (Linux 6.12 does not survive that).
PROCESSOR = "max,erms=off,avx=off,la57=off,cx16=off"
# The machine's clock counts its instructions, one a nanosecond, and jumps where it has nothing to do: inside it is a
# fast machine, whatever else this one does, and no test meets a time limit for being emulated.
CLOCK = ("-icount", "shift=0,sleep=off")
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr rdinit=/init"


def boot(
    kernel: pathlib.Path, initramfs: pathlib.Path, console: pathlib.Path, limit: float,
    heard: Callable[[dict[str, Any]], None],
) -> bool:  # fmt: skip
    """Run until the machine is off, at most `limit` seconds, and hand over each fact as it is told.  Whether it is off.

    What the kernel and the tests print goes to the file `console`.
    """
    command = [
        QEMU, "-accel", "tcg", *CLOCK, "-cpu", PROCESSOR, "-m", "3G", "-nodefaults", "-no-reboot",
        "-display", "none", "-monitor", "none", "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", COMMAND_LINE, "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip
    deadline = time.monotonic() + limit
    with holdfast.spawn(command, stdin=holdfast.DEVNULL, stdout=holdfast.PIPE, nice=10) as machine:
        assert machine.stdout is not None
        poller = select.poll()
        poller.register(machine.stdout, select.POLLIN)
        line = b""
        while poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            told = os.read(machine.stdout.fileno(), 65536)
            if not told:
                return True
            *lines, line = (line + told).split(b"\n")
            for whole in lines:
                heard(json.loads(whole))
        return False
