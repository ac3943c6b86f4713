"""What runs in the emulated machine: /init, and a pytest plugin that tells of each test as it ends.

Everything told is a line of JSON on the second serial line; the first one is the console.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import traceback

REPORTS = "/dev/ttyS1"
MOUNTS = (
    ("proc", "/proc", "proc", ""),
    ("sys", "/sys", "sysfs", ""),
    ("dev", "/dev", "devtmpfs", ""),
    ("pts", "/dev/pts", "devpts", "ptmxmode=0666"),
    ("shm", "/dev/shm", "tmpfs", ""),
    ("run", "/run", "tmpfs", "mode=755"),
    ("cgroup", "/sys/fs/cgroup", "cgroup2", ""),
)
LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))  # of /dev
RB_AUTOBOOT = 0x01234567
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

libc = ctypes.CDLL(None, use_errno=True)


def tell(what: str, **facts: object) -> None:
    with open(REPORTS, "wb", buffering=0) as line:
        line.write(json.dumps({"what": what, **facts}).encode() + b"\n")


def mount_all() -> None:
    for source, target, kind, options in MOUNTS:
        os.makedirs(target, exist_ok=True)
        if libc.mount(source.encode(), target.encode(), kind.encode(), 0, options.encode()):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)
    for name, target in LINKS:
        os.symlink(target, f"/dev/{name}")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def raw_line() -> None:
    """Bytes as they are: no echo, no carriage returns."""
    fd = os.open(REPORTS, os.O_RDWR | os.O_NOCTTY)
    settings = termios.tcgetattr(fd)
    settings[0] = settings[1] = settings[3] = 0
    settings[4] = settings[5] = termios.B115200
    termios.tcsetattr(fd, termios.TCSANOW, settings)
    os.close(fd)


def run_job() -> None:
    with open("/job.json", encoding="utf-8") as file:
        job = json.load(file)
    os.environ.update(job["environment"])
    os.chdir(job["directory"])
    with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
        controllers = [name for name in file.read().split() if name in ("cpu", "memory", "pids", "io")]
    with open("/sys/fs/cgroup/cgroup.subtree_control", "w", encoding="ascii") as file:
        file.write(" ".join(f"+{name}" for name in controllers))
    asked = [sys.executable, "-m", "holdfast", "doctor", "--json"]
    doctor = subprocess.run(asked, stdout=subprocess.PIPE, check=False)
    tell("doctor", code=doctor.returncode, doctor=json.loads(doctor.stdout or "null"))
    tests = [sys.executable, "-m", "pytest", "-p", "kernels.inside", *job["tests"]]
    # In a session of its own: the group of PID 1 has no number, and nothing under test starts out like that.
    environment = {**os.environ, "PYTHONPATH": f"{job['directory']}/tests"}
    main = subprocess.Popen(tests, env=environment, start_new_session=True)
    while True:  # as PID 1 we get every orphan
        pid, status = os.wait()
        if pid == main.pid:
            main.returncode = os.waitstatus_to_exitcode(status)
            tell("end", code=main.returncode)
            return


def main() -> None:
    try:
        mount_all()
        console = os.open("/dev/console", os.O_RDWR)
        for fd in range(3):
            os.dup2(console, fd)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raw_line()
        loopback_up()
        run_job()
    except BaseException:
        try:
            tell("broken", trace=traceback.format_exc())
        finally:
            traceback.print_exc()
    finally:
        os.sync()
        libc.reboot(RB_AUTOBOOT)  # qemu ends there (-no-reboot); power off would need ACPI


# ---- the plugin


def pytest_runtest_logreport(report) -> None:
    # One word a test: what its call said, or what kept it from being called, or that its end failed.
    if report.when != "call" and report.outcome == "passed":
        return
    facts: dict[str, object] = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1)}
    if report.outcome != "passed":
        facts["why"] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)[-4000:]
    tell("test", **facts)


if __name__ == "__main__" and os.getpid() == 1:
    main()
