"""Boot one kernel with one initramfs under qemu's software emulation, and read what is told there."""

from __future__ import annotations

import json
import pathlib
import subprocess
import time
from collections.abc import Callable
from typing import Any

import holdfast

QEMU = "qemu-system-x86_64"
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr rdinit=/init"


def boot(
    kernel: pathlib.Path, image: pathlib.Path, console: pathlib.Path, limit: float, heard: Callable[[dict[str, Any]], None]
) -> str:
    """Run until the machine is off, at most `limit` seconds, and hand over each fact as it is told.

    "ended", or what went wrong instead.
    """
    command = [
        QEMU, "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "2G", "-nodefaults", "-no-reboot",
        "-display", "none", "-monitor", "none", "-kernel", str(kernel), "-initrd", str(image), "-append", COMMAND_LINE,
        "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip
    deadline = time.monotonic() + limit
    with holdfast.spawn(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, nice=10) as machine:
        assert machine.stdout is not None
        rest = b""
        import os
        import select

        poller = select.poll()
        poller.register(machine.stdout.fileno(), select.POLLIN)
        while poller.poll(max(0, deadline - time.monotonic()) * 1000):
            data = os.read(machine.stdout.fileno(), 65536)
            if not data:
                machine.wait()
                return "ended"
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                heard(json.loads(line))
        return f"took longer than {limit:g} s"
