"""Kernels from Debian's archive, with apt's own tools, an apt configuration and package lists of their own.

Nothing is installed and the machine's lists stay as they are.  The archive is the one that the machine uses already.
"""

from __future__ import annotations

import pathlib
import re
import subprocess

# What a suite has at the time is what is booted: its newest, of the flavour for virtual machines.
SUITES = ("bookworm", "bookworm-backports", "sid")
META = "linux-image-cloud-amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Apt:
    """apt with its files below `directory`."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        sources = directory / "sources.list"
        places = {
            "Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null", "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null", "Dir::State::Lists": directory / "lists",
            "Dir::Cache": directory / "cache", "APT::Architecture": "amd64", "APT::Sandbox::User": "root",
        }  # fmt: skip
        self._options = [f"-o{name}={value}" for name, value in places.items()]
        for name in ("lists/partial", "cache/archives/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        archive = self._archive()
        sources.write_text("".join(f"deb [signed-by={KEYRING}] {archive} {suite} main\n" for suite in SUITES))

    @staticmethod
    def _archive() -> str:
        """Where this machine gets its Debian from."""
        asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
        found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        if not found:
            raise SystemExit("kernels: this machine's apt knows no Debian archive; apt-get update would tell it")
        return found[0]

    def run(self, program: str, *arguments: str) -> str:
        command = [program, "-q", *self._options, *arguments]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"kernels: {program} {' '.join(arguments)} failed:\n{done.stderr}{done.stdout}")
        return done.stdout

    def package_of(self, suite: str) -> tuple[str, str]:
        """Name and version of the package that holds the suite's kernel itself."""
        told = self.run("apt-cache", "madison", META).splitlines()
        lines = [[part.strip() for part in line.split("|")] for line in told]
        version = next(line[1] for line in lines if len(line) == 3 and f" {suite}/" in line[2])
        image = self._dependency(META, version, "linux-image-")
        assert image
        # Later suites have modules and kernel in packages of their own.
        return self._dependency(image, version, "linux-binary-") or image, version

    def _dependency(self, package: str, version: str, prefix: str) -> str | None:
        told = self.run("apt-cache", "show", f"{package}={version}")
        found = re.search(rf"^Depends:.*?\b({prefix}\d[^ ,]*)", told, re.M)
        return found and found[1]


def kernel_of(apt: Apt, suite: str, cache: pathlib.Path) -> pathlib.Path:
    """The path of the suite's kernel, fetched where it is not there yet.  Its name ends with its release."""
    package, version = apt.package_of(suite)
    place = cache / f"{package}_{version}"
    if not place.exists():
        print(f"kernels: fetching {package} {version}", flush=True)
        for left in apt.directory.glob("*.deb"):  # by a run that was interrupted
            left.unlink()
        apt.run("apt-get", "download", f"{package}={version}")
        (archive,) = apt.directory.glob("*.deb")
        half = place.with_name(place.name + ".half")
        subprocess.run(["dpkg-deb", "--extract", archive, half], check=True)
        archive.unlink()
        half.rename(place)
    (kernel,) = place.glob("**/vmlinuz*")
    return kernel
