"""Run a program under a seccomp filter that answers ENOSYS to every call for pidfds, and to clone3.

python without_pidfds.py PROGRAM ARGUMENT...: what a kernel before 5.2 would answer, or a container of that time.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

ENOSYS = 38
PIDFD_SEND_SIGNAL, PIDFD_OPEN, CLONE3, PIDFD_GETFD = 424, 434, 435, 438
WAITID, CLONE = {"x86_64": (247, 56), "aarch64": (95, 220), "riscv64": (95, 220)}.get(platform.machine(), (0, 0))
P_PIDFD, CLONE_PIDFD = 3, 0x1000

LOAD, EQUAL, ANY_BIT, ANSWER = 0x20, 0x15, 0x45, 0x06
NUMBER, FIRST_ARGUMENT = 0, 16  # where they lie in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x50000 | ENOSYS


def program() -> list[tuple[int, int, int, int]]:
    """Classic BPF: operation, steps over if true, steps over if false, operand."""
    refused = (PIDFD_SEND_SIGNAL, PIDFD_OPEN, CLONE3, PIDFD_GETFD)
    rest = [
        (EQUAL, 0, 2, WAITID),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (EQUAL, 4, 3, P_PIDFD),
        (EQUAL, 0, 2, CLONE),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 1, 0, CLONE_PIDFD),
        (ANSWER, 0, 0, ALLOW),
        (ANSWER, 0, 0, REFUSE),
    ]
    to_refuse = len(refused) + len(rest) - 2  # steps over from the first comparison
    return [(LOAD, 0, 0, NUMBER), *((EQUAL, to_refuse - at, 0, n) for at, n in enumerate(refused)), *rest]


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def install() -> None:
    """For this process and all that it starts, for ever."""
    if not WAITID:
        sys.exit(f"the numbers of this machine's system calls are not known: {platform.machine()}")
    steps = program()
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    for call in (
        (no_new_privs, 1, 0, 0, 0),
        (set_seccomp, filter_mode, ctypes.byref(Program(len(steps), ctypes.addressof(code))), 0, 0),
    ):
        if libc.prctl(*call):
            sys.exit(f"prctl: errno {ctypes.get_errno()}")


if __name__ == "__main__":
    install()
    os.execvp(sys.argv[1], sys.argv[1:])
