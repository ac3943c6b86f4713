"""The initramfs: this machine's Python, the packages that the tests need, some programs; each at its own path.

An archive of the kind that the kernel unpacks (cpio, "newc"), not compressed: under emulation unpacking would cost
more than it saves.
"""

from __future__ import annotations

import os
import pathlib
import re
import stat
import subprocess
import sys
import sysconfig
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAMS = (
    "bash", "cat", "chmod", "cp", "cut", "dash", "date", "dd", "echo", "env", "false", "grep", "head", "hostname",
    "id", "ionice", "kill", "ln", "ls", "mkdir", "mkfifo", "mktemp", "mount", "mv", "nice", "nohup", "printf",
    "prlimit", "ps", "readlink", "rm", "rmdir", "sed", "seq", "setpriv", "setsid", "sh", "sleep", "sort", "stat",
    "stty", "su", "tail", "taskset", "tee", "test", "timeout", "touch", "tr", "true", "umount", "uname", "uniq",
    "unshare", "wc", "yes",
)  # fmt: skip
PACKAGES = ("holdfast", "pytest", "pytest-timeout", "hypothesis")
# Debian's, for the tests that compile something; {} is gcc's version.
COMPILER = (
    "gcc", "gcc-{}", "cpp-{}", "libgcc-{}-dev", "binutils", "binutils-x86-64-linux-gnu", "libc6-dev", "linux-libc-dev",
)  # fmt: skip
UNUSED = ("/usr/share/", "/lto1", "san.a")  # and large
FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ld.so.cache", "/etc/ld.so.conf")
# Directories of the standard library that nothing here imports, and that are half of it.
LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "lib2to3", "turtledemo", "ensurepip",
}  # fmt: skip


class Image:
    """A cpio archive in the making."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("wb")
        self._known: set[str] = {"/"}
        self._programs: set[str] = set()

    def _entry(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0), changed: int = 0
    ) -> None:
        encoded = os.fsencode(name.lstrip("/")) + b"\0"
        fields = (len(self._known), mode, 0, 0, 1, changed, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._file.write(head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4))

    def write(self, name: str, data: bytes, mode: int = 0o644, changed: int = 0) -> None:
        self.directory(os.path.dirname(name))
        self._known.add(name)
        self._entry(name, stat.S_IFREG | mode, data, changed=changed)

    def device(self, name: str, major: int, minor: int) -> None:
        self.directory(os.path.dirname(name))
        self._entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def directory(self, name: str, mode: int = 0o755) -> None:
        if name not in self._known:
            self.directory(os.path.dirname(name))
            self._known.add(name)
            self._entry(name, stat.S_IFDIR | mode)

    def add(self, path: str) -> None:
        """A file at its own path, with every link on the way to it."""
        at = "/"
        for part in os.path.normpath(path).strip("/").split("/"):
            at = os.path.join(at, part)
            status = os.lstat(at)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(at)
                if at not in self._known:
                    self._known.add(at)
                    self._entry(at, stat.S_IFLNK | 0o777, os.fsencode(target))
                rest = os.path.abspath(path)[len(at) :]
                self.add(os.path.normpath(os.path.join(os.path.dirname(at), target)) + rest)
                return
            if stat.S_ISDIR(status.st_mode):
                self.directory(at, stat.S_IMODE(status.st_mode))
            elif at not in self._known:
                data = pathlib.Path(at).read_bytes()
                if data.startswith(b"\x7fELF"):
                    self._programs.add(at)
                # With its time, or no compiled module would be taken for that of its source.
                self.write(at, data, stat.S_IMODE(status.st_mode), int(status.st_mtime))

    def add_tree(self, top: str, leave_out: set[str]) -> None:
        for directory, names, files in os.walk(top):
            names[:] = sorted(set(names) - leave_out)
            self.directory(directory)
            for name in sorted(files):
                self.add(os.path.join(directory, name))

    def add_compiler(self) -> None:
        asked = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=True)
        names = [name.format(asked.stdout.strip()) for name in COMPILER]
        listed = subprocess.run(["dpkg", "-L", *names], capture_output=True, text=True, check=True).stdout
        for file in sorted(set(listed.split("\n"))):
            if os.path.lexists(file) and not any(part in file for part in UNUSED):
                self.add(file)

    def finish(self) -> None:
        """The libraries of all programs that were added, and the end."""
        asked = ["ldd", *sorted(self._programs)]
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # 1: one of them was static
        for library in sorted(set(re.findall(r"(/\S+) \(0x", told))):
            self.add(library)
        self._entry("TRAILER!!!", 0)
        self._file.close()


def distributions(names: tuple[str, ...]) -> list[metadata.Distribution]:
    """Those of the environment, and all that they require."""
    found: dict[str, metadata.Distribution] = {}
    wanted = list(names)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in names:
                raise
            continue  # of another system, or another Python
        required = [line for line in found[name].requires or [] if "extra ==" not in line]
        wanted += [match[0] for line in required if (match := re.match(r"[\w.-]+", line))]
    return list(found.values())


def make(path: pathlib.Path, job: bytes) -> None:
    """An initramfs whose /init is inside.py, which reads the job."""
    image = Image(path)
    for name in ("/dev", "/proc", "/sys", "/run", "/var/tmp"):
        image.directory(name)
    image.directory("/tmp", 0o1777)
    image.directory("/root", 0o700)
    image.device("/dev/console", 5, 1)
    for program in PROGRAMS:
        for directory in ("/bin", "/usr/bin", "/sbin", "/usr/sbin"):
            if os.path.lexists(f"{directory}/{program}"):
                image.add(f"{directory}/{program}")
    image.add_compiler()
    for file in FILES:
        if os.path.exists(file):
            image.add(file)
    image.add(sys.executable)
    image.add(os.path.join(sys.prefix, "pyvenv.cfg"))
    image.add(os.path.join(sys.prefix, "bin", "holdfast"))
    image.add_tree(sysconfig.get_paths()["stdlib"], {*LEFT_OUT, f"config-{sysconfig.get_config_var('LDVERSION')}"})
    for distribution in distributions(PACKAGES):
        for file in distribution.files or []:
            whole = os.path.normpath(distribution.locate_file(file))
            if os.path.exists(whole):
                image.add(whole)
    for name in ("pyproject.toml", "csrc", "src", "docs", "examples"):
        if (ROOT / name).is_dir():
            image.add_tree(str(ROOT / name), {"__pycache__", ".holdfast"})
        else:
            image.add(str(ROOT / name))
    image.add_tree(str(ROOT / "tests"), {"__pycache__"})
    image.write("/job.json", job)
    inside = (ROOT / "tests/kernels/inside.py").read_bytes()
    image.write("/init", b"#!%s\n%s" % (os.fsencode(sys.executable), inside), 0o755)
    image.finish()
