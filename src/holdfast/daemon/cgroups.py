"""Where cgroups can be made, found out by making them.

In each hierarchy there is a directory of ours, `holdfast-DIGEST` for one run directory, and in it one for each
incarnation, `NAME@N`.  It lies below the cgroup that we are in ourselves: limits from above hold for it, and whoever
has delegated that to us has meant it.

Version 2 gives limits to those below a cgroup only when nobody is in it.  So, where that is needed, what is ours moves
into `holdfast-supervisor` below it: supervisor, anchor, keepers.  Where others are in it, they are not moved: then,
as root, the top of the hierarchy is taken, and otherwise there are no limits.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from holdfast.config.model import Config, Resources

from .cgroup_files import CONTROLLERS, LIMITS, Cgroups, asked, read, words, write
from .processes import name_of

SUPERVISORS = "holdfast-supervisor"
MOVE_TRIES = 8  # what is moved may fork meanwhile

Ours = Callable[[], Collection[int]]  # numbers of those who may be moved, as it is now


class Mount(NamedTuple):
    """A hierarchy: where its directories are seen, which of them is the highest that is, and its controllers."""

    version: int
    point: str
    root: str
    controllers: frozenset[str]


class Ground:
    """What of this machine is ours.  `parents`: directories that incarnations get theirs in, version 2 first; `places`:
    of each limit the version that holds it; `why`: of each other one why it cannot be had."""

    def __init__(self) -> None:
        self.parents: list[str] = []
        self.places: dict[str, int] = {}
        self.why: dict[str, str] = {}

    def missing(self, resources: Resources) -> dict[str, str]:
        """The limits that are asked for and cannot be had, and why."""
        return {name: self.why[name] for name in asked(resources) if name not in self.places}

    def _take(self, version: int, parent: str, usable: Collection[str], trial: bool) -> None:
        self.parents.append(parent)
        for name, limit in LIMITS.items():
            file = limit.v2 if version == 2 else limit.v1
            if limit.controller not in usable:
                continue
            if not file:
                self.why[name] = "cgroup v1 has no such limit"
            elif trial or os.path.exists(os.path.join(parent, file)):
                self.places[name] = version
            else:
                self.why[name] = f"this kernel has no {file}"

    def _refuse(self, controllers: Collection[str], why: str) -> None:
        for name, limit in LIMITS.items():
            if limit.controller in controllers:
                self.why[name] = why


def find(run_dir: str, ours: Ours, *, trial: bool = False) -> Ground:
    """Make, and keep, what limits need.  With `trial` nothing is moved or kept: only what could be had is told.
    Raises nothing."""
    ground = Ground()
    for name in LIMITS:
        ground.why[name] = "there is no cgroup controller for it here"
    name = "holdfast-" + hashlib.blake2b(os.fsencode(os.path.realpath(run_dir)), digest_size=6).hexdigest()
    try:
        mounts, own = list(_mounts()), _own()
    except OSError as error:
        ground._refuse(CONTROLLERS, f"/proc does not tell: {error.strerror}")
        return ground
    once = {each.controllers: each for each in reversed(mounts)}  # mounted twice: the first is the machine's own
    for mount in once.values():
        wanted = mount.controllers.intersection(CONTROLLERS)
        if not wanted and mount.version == 1:
            continue
        path = own.get(min(wanted, default=""), "/")
        if ".." in path or os.path.commonpath([path, mount.root]) != mount.root:
            ground._refuse(wanted or CONTROLLERS, f"our cgroup {path} is not seen below {mount.point}")
            continue
        directory = os.path.normpath(os.path.join(mount.point, os.path.relpath(path, mount.root)))
        if mount.version == 2:
            _find_v2(ground, mount, directory, name, ours, trial)
            continue
        try:
            _make(os.path.join(directory, name), trial)
            ground._take(1, os.path.join(directory, name), wanted, trial)
        except OSError as error:
            ground._refuse(wanted, f"{directory} is not ours: {error.strerror}")
    ground.parents.sort(key=lambda each: not os.path.exists(os.path.join(os.path.dirname(each), "cgroup.controllers")))
    return ground


def refused(config: Config, ground: Ground) -> list[str]:
    """What `config` asks for and cannot have, in words: then nothing of it may be started."""
    return [
        f"service {spec.name}: {words(name, asked(spec.resources)[name])} cannot be had: {why}"
        for spec in config.services.values() if spec.resources and not spec.resources.optional
        for name, why in ground.missing(spec.resources).items()
    ]  # fmt: skip


def remove(directory: str) -> None:
    """With what those who were in it have made below it.  OSError: EBUSY, somebody is in there."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EBUSY or Cgroups((directory,)).pids():
            raise
        for path, _, _ in os.walk(directory, topdown=False):
            os.rmdir(path)


def _find_v2(ground: Ground, mount: Mount, own: str, name: str, ours: Ours, trial: bool) -> None:
    if os.path.basename(own) == SUPERVISORS:
        own = os.path.dirname(own)
    last = mount.point if os.geteuid() == 0 else own
    for directory in dict.fromkeys((own, last)):
        wanted = set(read(directory, "cgroup.controllers").split()).intersection(CONTROLLERS)
        base = os.path.join(directory, name)
        try:
            _make(base, trial)
            failed = (_would_fail if trial else _enable)(directory, wanted, ours)
            if failed and directory != last:
                remove(base)
                continue
            if not trial:
                failed.update(_enable(base, wanted - failed.keys(), ours))
        except OSError as error:
            ground._refuse(wanted, f"{directory} is not ours: {error.strerror}")
            continue
        for controller, why in failed.items():
            ground._refuse([controller], why)
        ground._take(2, base, wanted - failed.keys(), trial)
        return


def _make(directory: str, trial: bool) -> None:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return
    if trial:
        os.rmdir(directory)


def _enable(directory: str, wanted: Collection[str], ours: Ours) -> dict[str, str]:
    """Let those below have these controllers; which cannot, and why."""
    failed = {}
    for controller in sorted(set(wanted).difference(read(directory, "cgroup.subtree_control").split())):
        try:
            try:
                write(directory, "cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                if error.errno != errno.EBUSY or make_room(directory, ours):
                    raise
                write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            why = strangers(directory, ours) if error.errno == errno.EBUSY else ""
            failed[controller] = why or f"{directory}: {error.strerror}"
    return failed


def _would_fail(directory: str, wanted: Collection[str], ours: Ours) -> dict[str, str]:
    missing = set(wanted).difference(read(directory, "cgroup.subtree_control").split())
    if not missing or not os.path.exists(os.path.join(directory, "cgroup.type")):  # the root may have both
        return {}
    if not os.access(os.path.join(directory, "cgroup.subtree_control"), os.W_OK):
        return dict.fromkeys(missing, f"{directory} is not ours")
    why = strangers(directory, ours)
    return dict.fromkeys(missing, why) if why else {}


def strangers(directory: str, ours: Ours) -> str:
    """Who is in a cgroup and is not ours, in words; "": nobody."""
    inside = [int(pid) for pid in read(directory, "cgroup.procs").split()]
    known = ours() if inside else ()  # after the look: what is new among them is known then
    others = [pid for pid in inside if pid not in known]
    if not others:
        return ""
    return f"others are in {directory} with us, such as {name_of(others[0]) or '?'} {others[0]}"


def make_room(directory: str, ours: Ours) -> str:
    """Move what is ours one further down, so that nobody is left; else who is, and nothing was moved.  OSError."""
    for _ in range(MOVE_TRIES):
        if why := strangers(directory, ours):
            return why
        pids = read(directory, "cgroup.procs").split()
        if not pids:
            return ""
        leaf = os.path.join(directory, SUPERVISORS)
        _make(leaf, trial=False)
        for pid in pids:
            try:
                write(leaf, "cgroup.procs", pid)
            except ProcessLookupError:
                pass  # it has ended
    return f"there are always new processes in {directory}"


def _mounts() -> Iterator[Mount]:
    """proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            root, point = (_unescaped(each) for each in before.split()[3:5])
            if kind == "cgroup2":
                yield Mount(2, point, root, frozenset())
            elif kind == "cgroup":
                yield Mount(1, point, root, frozenset(options.split(",")))


def _unescaped(path: str) -> str:
    for code in ("\\040", "\\011", "\\012"):
        path = path.replace(code, chr(int(code[1:], 8)))
    return path.replace("\\134", "\\")


def _own() -> dict[str, str]:
    """Our cgroup in each hierarchy, by controller; "" is version 2."""
    found = {}
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            found.update(dict.fromkeys(controllers.split(","), path))
    return found
