"""What this kernel and this installation offer, found out by doing, never by version.

Each probe returns a `Finding`.  Processes that a probe starts are its own and are gone when it returns.
"""

from __future__ import annotations

import os
import select

from . import _native
from .connector import FORK, Connector
from .keeper import KEEPER
from .notify import RUNGS, choice, load
from .run import run
from .spawn import spawn
from .tier import why_no_keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P_PIDFD = 3
ENOSYS = 38


class Finding:
    """One capability: `name`, `available`, `detail` (what was seen) and `without` (what is lost when it is absent)."""

    __slots__ = ("available", "detail", "name", "without")

    def __init__(self, name: str, available: bool, detail: str, without: str) -> None:
        self.name = name
        self.available = available
        self.detail = detail
        self.without = without

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("name", "available", "detail", "without")}


def _child(code: int = 0) -> tuple[int, int]:
    """A child that has ended with `code`, not reaped: (pid, pidfd)."""
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    return pid, _native.pidfd_open(pid)


def pidfd() -> str:
    fd = _native.pidfd_open(os.getpid())
    try:
        _native.pidfd_signal(fd, 0)
        return "pidfd_open, pidfd_send_signal"
    finally:
        os.close(fd)


def p_pidfd() -> str:
    pid, fd = _child(7)
    try:
        _native.poll(fd, select.POLLIN, 5_000_000_000)
        status = _native.wait_status(fd)
        if status is None or status[1] != 7:
            raise OSError(0, f"waitid answered {status}")
        return "waitid on a pidfd gives status and rusage"
    finally:
        _reap(pid)
        os.close(fd)


def exit_info() -> str:
    pid, fd = _child(7)
    try:
        _native.poll(fd, select.POLLIN, 5_000_000_000)
        _reap(pid)
        _native.poll(fd, 0, 1_000_000_000)
        status = _native.exit_info(fd)
        if status is None:
            raise OSError(0, "no exit information (before Linux 6.15)")
        return f"exit code {status >> 8} read after the reap"
    finally:
        os.close(fd)


def clone3() -> str:
    run(["/bin/true"], private=not why_no_keeper())
    if not _native.has_clone3():
        raise OSError(ENOSYS, "clone3 is refused or not built for this machine; clone is used")
    return "clone3 with CLONE_CLEAR_SIGHAND"


def auto_reap() -> str:
    if not _native.has_autoreap():
        raise OSError(22, "no CLONE_AUTOREAP (before Linux 7.1)")
    return "direct children and keepers leave no zombie and raise no SIGCHLD"


def notifier() -> str:
    """Which of the rungs direct children get, and why not the others that come before it."""
    chosen = choice()
    before = [f"{name}: {load(name).unusable(False) or 'usable'}" for name in RUNGS if name != chosen]
    return f"{chosen} ({'; '.join(before)})"


def group_signal() -> str:
    if why_no_keeper():
        raise OSError(ENOSYS, why_no_keeper())
    with spawn(["sleep", "60"], process_group=0) as process:
        _native.pidfd_signal(process.fileno(), 0, 4)
    return "a pidfd signals its whole process group"


def subreaper() -> str:
    import ctypes

    value = ctypes.c_int()
    if ctypes.CDLL(None, use_errno=True).prctl(37, ctypes.byref(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_GET_CHILD_SUBREAPER")
    return "PR_SET_CHILD_SUBREAPER" + ("; this process is one" if value.value else "")


def children_files() -> str:
    if os.readlink("/proc/self") != str(os.getpid()):
        raise OSError(0, "/proc belongs to another pid namespace and is not used (unshare --mount-proc)")
    with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
        file.read()
    return "/proc/PID/task/TID/children"


def cgroup2() -> str:
    for root in _cgroup2_mounts():
        own = _own_cgroup(root)
        path = os.path.join(own, f"holdfast-doctor-{os.getpid()}")
        try:
            os.mkdir(path)
        except OSError:
            continue
        try:
            if not os.path.exists(os.path.join(path, "cgroup.kill")):
                raise OSError(0, "no cgroup.kill (before Linux 5.14)")
            return f"writable at {own}"
        finally:
            os.rmdir(path)
    raise OSError(0, "no cgroup v2 directory of ours is writable")


def _cgroup2_mounts() -> Iterator[str]:
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == "cgroup2":
                yield fields[1]


def _own_cgroup(root: str) -> str:
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("0::"):
                return os.path.join(root, line[4:].strip("\n/"))
    return root


def proc_connector() -> str:
    """Listen, fork, hear of it, and say goodbye."""
    connector = Connector()
    try:
        pid = _fork_and_exit()
        _reap(pid)
        while True:  # its fork lies there, with what else happens on this machine
            happenings, lost = connector.read(1000)
            if lost or any(each[0] == FORK and each[5] == pid for each in happenings):
                return "process events arrive"
            if not happenings:
                raise OSError(0, "no process events arrive")
    finally:
        connector.close()


def _fork_and_exit() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def keeper() -> str:
    if not os.path.exists(KEEPER):
        raise OSError(2, f"{KEEPER} is missing: reinstall holdfast")
    if not os.access(KEEPER, os.X_OK):
        raise OSError(13, f"{KEEPER} is not executable: chmod +x it")
    with open(KEEPER, "rb") as file:
        head = file.read(4096)
    kind = "static" if b"/ld-" not in head else "dynamic (slower to start: install musl-tools and reinstall)"
    return f"{kind}, {os.path.getsize(KEEPER) // 1024} KiB, {KEEPER}"


PROBES: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("keeper", keeper, "nothing can be started"),
    ("pidfd", pidfd, "no keeper can work, what is started is a direct child: Linux 5.3 is needed"),
    ("P_PIDFD", p_pidfd, "no keeper can work, what is started is a direct child: Linux 5.4 is needed"),
    ("notifier", notifier, "no direct child can be started: HOLDFAST_NOTIFIER asks for what is not here"),
    ("PIDFD_GET_INFO exit", exit_info, "a stolen status of a direct child, or one under a lost keeper, stays unknown"),
    ("clone3", clone3, "clone(2) is used, and handlers are reset one by one (8 us a start)"),
    ("auto-reap", auto_reap, "a direct child is a zombie until it is waited for; another wait may take its status"),
    ("group signal", group_signal, "a group is signalled by number while its leader is held, later member by member"),
    ("subreaper", subreaper, "daemons that fork away cannot be held"),
    ("children files", children_files, "only the main process and its group are seen, what left it is not found"),
    ("cgroup v2", cgroup2, "trees are stopped by the subreaper walk, without the kernel's own tree kill"),
    ("proc connector", proc_connector, "of lineage, adoptions alone are known, noticed at the next event"),
)


def examine() -> list[Finding]:
    """Run every probe.  Starts and ends a few short processes; any thread; about 20 ms."""
    findings = []
    for name, probe, without in PROBES:
        try:
            findings.append(Finding(name, True, probe(), without))
        except (OSError, RuntimeError, ValueError) as error:
            detail = (error.strerror if isinstance(error, OSError) else None) or str(error)
            findings.append(Finding(name, False, detail, without))
    return findings


def means(findings: list[Finding]) -> dict[str, str]:
    """What is used on this machine, in the words of the docs."""
    have = {f.name: f.available for f in findings}
    return {
        "start": "clone3" if have["clone3"] else "clone",
        "processes": f"direct children alone: {why_no_keeper()}" if why_no_keeper() else "each under a keeper",
        "notifier": choice() if have["notifier"] else "none",
        "direct children": "reaped by the kernel" if have["auto-reap"] else "waited for",
        "tree kill": "subreaper walk" if have["children files"] else "process group",
        "group handle": "pidfd" if have["group signal"] else "number while the leader is held",
    }
