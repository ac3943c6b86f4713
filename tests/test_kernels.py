"""`make kernels` takes minutes; here is what needs no boot: the archive that it makes, and its last results."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

from conftest import require
from helpers_wait import eventually
from kernels import boot, fetch, image, table

STAND_IN = """#!/bin/sh
printf '{"what": "a"}\\n{"wh'
printf 'at": "b"}\\n'
[ ! -e wait ] || exec sleep 99
"""


def entries(archive: bytes) -> dict[str, tuple[int, int, bytes]]:
    """Name: mode, time and data, read as cpio(5) has it; a name that comes twice fails."""
    found: dict[str, tuple[int, int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, changed, size, name_size = fields[1], fields[5], fields[6], fields[11]
        name = os.fsdecode(archive[at + 110 : at + 110 + name_size - 1])
        data_at = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert at + 110 + name_size <= len(archive) <= data_at
            return found
        assert name not in found
        # The kernel makes no directories that were not named before.
        assert name == os.path.basename(name) or stat.S_ISDIR(found[os.path.dirname(name)][0])
        found[name] = mode, changed, archive[data_at : data_at + size]
        at = (data_at + size + 3) & ~3


def test_a_suite_that_there_is_not_is_said_at_once():
    command = [sys.executable, "-m", "kernels", "sid", "potato"]
    here = os.path.dirname(__file__)
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no kernel is known of potato: there are bookworm, bookworm-backports, sid" in done.stderr


def test_files_links_and_libraries_get_where_they_were(tmp_path):
    """A file behind a link to a directory and a relative link: all three arrive, and a program brings its libraries."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "file").write_bytes(b"odd")
    os.utime(real / "file", (0, 1_000_000_000))
    (real / "link").symlink_to("file")
    (tmp_path / "alias").symlink_to("real")
    archive = tmp_path / "archive"
    made = image.Image(archive)
    made.add(str(tmp_path / "alias" / "link"))
    made.add("/bin/sh")
    made.finish()
    found = entries(archive.read_bytes())
    top = str(tmp_path).lstrip("/")
    assert found[f"{top}/real/file"] == (stat.S_IFREG | 0o644, 1_000_000_000, b"odd")
    assert found[f"{top}/real/link"] == (stat.S_IFLNK | 0o777, 0, b"file")
    assert found[f"{top}/alias"] == (stat.S_IFLNK | 0o777, 0, b"real")
    shell = found[os.path.realpath("/bin/sh").lstrip("/")]
    assert shell[0] & 0o111 and shell[2].startswith(b"\x7fELF")
    libc = [name for name, (mode, *_) in found.items() if stat.S_ISREG(mode) and "/libc.so" in name]
    assert libc or b"ld-linux" not in shell[2]


def test_what_a_distribution_requires_comes_along():
    names = {distribution.metadata["Name"].lower() for distribution in image.distributions(("holdfast", "pytest"))}
    assert {"holdfast", "click", "starlette", "anyio", "pytest", "pluggy"} <= names


def test_a_kernel_is_fetched_beside_what_an_interrupted_run_has_left(tmp_path):
    require("dpkg-deb")
    (tmp_path / "package/DEBIAN").mkdir(parents=True)
    (tmp_path / "package/DEBIAN/control").write_text(
        "Package: linux-image\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a stand-in\n"
    )
    (tmp_path / "package/vmlinuz-1").write_text("kernel")
    (tmp_path / "linux-image_0_all.deb").write_text("half of it")

    class Apt:
        directory = tmp_path

        def package_of(self, suite):
            return "linux-image", "1"

        def run(self, *command):
            made = ["dpkg-deb", "--build", tmp_path / "package", tmp_path / "linux-image_1_all.deb"]
            subprocess.run(made, check=True, stdout=subprocess.DEVNULL)

    for _ in range(2):  # the second time it is there
        assert fetch.kernel_of(Apt(), "sid", tmp_path).read_text() == "kernel"
    assert not list(tmp_path.glob("*.deb"))


def test_a_machine_is_read_to_its_end_or_to_the_limit(tmp_path, monkeypatch):
    """A stand-in for qemu: whole facts out of pieces, and nothing left of one that would go on."""
    script = tmp_path / "qemu"
    script.write_text(STAND_IN)
    script.chmod(0o755)
    monkeypatch.setattr(boot, "QEMU", str(script))
    monkeypatch.chdir(tmp_path)
    heard: list[str] = []
    nothing = tmp_path / "nothing"
    assert boot.boot(nothing, nothing, nothing, 60, lambda fact: heard.append(fact["what"]))
    assert heard == ["a", "b"]
    (tmp_path / "wait").touch()
    assert not boot.boot(nothing, nothing, nothing, 1, lambda fact: heard.append(fact["what"]))
    assert heard == ["a", "b", "a", "b"]
    assert eventually(lambda: not [p for p in os.listdir("/proc") if p.isdigit() and _cwd(p) == str(tmp_path)], 5)


def _cwd(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd") if int(pid) != os.getpid() else ""
    except OSError:
        return ""


def test_the_document_shows_the_last_results():
    found = table.results()
    assert table.tables(found) in table.DOCUMENT.read_text()


def test_three_kernels_were_green_and_the_newest_reaps_by_itself():
    found = table.results()
    versions = [table.version(result["doctor"]["kernel"]) for result in found]
    assert len(set(versions)) >= 3 and versions[0] <= (6, 1) and versions[-1] >= (7, 1), versions
    for result in found:
        assert result["ended"] == "ended with 0" and not result["failed"] and result["passed"] > 100
    reaps = [{f["name"]: f["available"] for f in result["doctor"]["findings"]}["auto-reap"] for result in found]
    assert not reaps[0] and reaps[-1]
