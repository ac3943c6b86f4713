"""docs/limits.md says what the code does: every number is compared with its definition, and none is missing."""

from __future__ import annotations

import os
import pathlib
import re

import pytest

import holdfast

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/limits.md").read_text()


def rows() -> list[tuple[str, float, str]]:
    """(what, number, where) of every row of every table."""
    found = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and cells[0] != "what" and not set(line) <= set("|- "):
            assert len(cells) == 4, line
            found.append((cells[0], float(cells[1].replace(",", "")), cells[2]))
    return found


def definitions(text: str, is_c: bool) -> dict[str, float]:
    """Every named constant number of a source file.  C: enum members and #defines; Python: upper-case assignments."""
    if is_c:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        pattern = r"^#define (\w+) ([\d(][\dA-Za-z_ +*()]*)$|\b([A-Z][A-Z0-9_]+) = ([\d(][\d +*()A-Fa-fxX]*)(?=[,}\s])"
    else:
        pattern = r"^([A-Z][A-Z0-9_]+)(?:: \w+)? = ([\d.][\d._ +*]*?)(?:\s*#.*)?$|(?!)()()"
    found = {}
    for match in re.finditer(pattern, text, flags=re.M):
        name, value = (match[1], match[2]) if match[1] else (match[3], match[4])
        try:
            found[name] = float(eval(value, {"__builtins__": {}}))
        except (SyntaxError, NameError):
            continue  # 0x100ULL and the like: a constant of the kernel, not a limit
    return found


SOURCES = {
    str(path.relative_to(ROOT)): definitions(path.read_text(), path.suffix in (".c", ".h"))
    for folder in ("csrc", "src")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".c", ".h", ".py")
}
DEFINED = [
    (what, number, code, path)
    for what, number, where in rows()
    for code, path in re.findall(r"`([^`]+)` in `([^`]+)`", where)
]


def test_the_page_was_read():
    assert len(rows()) >= 20
    assert len(DEFINED) >= 20
    assert SOURCES["csrc/common/wire.h"]["HF_PACKET_MAX"] == 65536 + 1024
    assert SOURCES["src/holdfast/process/keeper.py"]["FROZEN_LIMIT"] == 1.0


@pytest.mark.parametrize(("what", "number", "code", "path"), DEFINED, ids=[f"{d[2]}" for d in DEFINED])
def test_number_is_the_one_in_the_code(what, number, code, path):
    if re.fullmatch(r"[A-Z][A-Z0-9_]*", code):
        assert SOURCES[path].get(code) == number, f"{what}: {code} in {path}"
        return
    # No name of its own: the code itself stands in the table.
    assert code in (ROOT / path).read_text(), f"{what}: {code!r} is not in {path}"
    digits = int(re.findall(r"\d+", code)[-1 if "[" in code else 0])
    if code.startswith("char ") and "candidate" not in code:
        digits -= 1  # the zero at the end
    assert digits == number, what


def test_no_limit_of_the_code_is_missing():
    """A constant that is called a limit stands on the page."""
    named = {(code, path) for _, _, code, path in DEFINED}
    missing = [
        f"{name} = {value:g} in {path}"
        for path, constants in SOURCES.items()
        for name, value in constants.items()
        if re.search(r"(^|_)(MAX|LIMIT|LIMIT_MS|RING)$", name) and (name, path) not in named
    ]
    assert not missing


def test_every_row_says_where_or_is_measured_here():
    for what, _, where in rows():
        assert re.search(r"`[^`]+` in `[^`]+`", where) or where == "measured by the test", what


def number_of(start: str) -> int:
    (number,) = (number for what, number, _ in rows() if what.startswith(start))
    return int(number)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_of_a_handle():
    with holdfast.spawn(["true"]) as first:  # whatever is opened once is open now
        first.wait()
    before = open_descriptors()
    with holdfast.spawn(["sleep", "60"], grace=1) as process:
        assert open_descriptors() - before == number_of("descriptors of one handle")
        with holdfast.spawn(["cat"], stdin=holdfast.PIPE, stdout=holdfast.PIPE) as other:
            assert open_descriptors() - before == 2 * number_of("descriptors of one handle") + 2
            assert other.stdin
        process.kill()
    assert open_descriptors() == before


def test_descriptors_of_a_runner():
    before = open_descriptors()
    with holdfast.Runner() as runner:
        idle = number_of("descriptors of a `Runner`")
        assert open_descriptors() - before == idle
        runner.run(["true"])
        assert open_descriptors() - before == idle + 2
        with runner.spawn(["sleep", "60"]) as process:
            assert open_descriptors() - before == idle + 3
            process.kill()
    assert open_descriptors() == before


def test_limits_of_one_start_are_errors_before_it():
    """At the number it works, beyond it nothing is started."""
    descriptors = number_of("descriptors handed to one process") - 3
    with pytest.raises(ValueError, match=f"at most {descriptors} pass_fds"):
        holdfast.run(["true"], pass_fds=range(100, 101 + descriptors))
    limits = number_of("resource limits")
    with pytest.raises(ValueError, match=f"at most {limits} rlimits"):
        holdfast.run(["true"], rlimits=dict.fromkeys(range(limits + 1), (1, 1)))
    groups = number_of("supplementary groups")
    with pytest.raises(ValueError, match=f"at most {groups} extra groups"):
        holdfast.run(["true"], extra_groups=range(1, groups + 2))
    copies = [os.dup(0) for _ in range(descriptors)]
    try:
        command = ["sh", "-c", 'for fd; do [ -e "/proc/self/fd/$fd" ] || exit 1; done', "sh", *map(str, copies)]
        assert holdfast.run(command, pass_fds=copies).returncode == 0
    finally:
        for fd in copies:
            os.close(fd)


@pytest.mark.parametrize("value", [2**64, 2**70, -2, (0, 2**64), (-5, 10)])
def test_resource_limit_that_no_kernel_can_hold_is_refused(value):
    """2**64 must not become 0: a process without descriptors instead of one without a limit."""
    with pytest.raises(ValueError, match="limit 'nofile' must be"):
        holdfast.run(["true"], rlimits={"nofile": value})


def test_as_many_groups_as_the_limit_says_arrive():
    if os.geteuid() != 0:
        pytest.skip("only root may set groups")
    groups = number_of("supplementary groups")
    for private in (True, False):
        options = {} if private else {"private": False}
        command = ["sh", "-c", "grep ^Groups: /proc/self/status"]
        done = holdfast.run(command, extra_groups=range(1, groups + 1), capture_output=True, text=True, **options)
        assert [int(word) for word in done.stdout.split()[1:]] == list(range(1, groups + 1))


@pytest.mark.parametrize("extra", [0, 1], ids=["even", "odd"])
@pytest.mark.parametrize("private", [True, False], ids=["private", "direct"])
def test_requests_around_the_inline_limit_arrive_whole(extra, private):
    size = number_of("request that travels inside a packet")
    options = {} if private else {"private": False}
    for near in range(-256, 257, 32):
        text = "x" * (size + near + extra)
        env = {"BIG": text, "PATH": os.environ["PATH"]}
        done = holdfast.run(["printenv", "BIG"], env=env, capture_output=True, **options)
        assert done.stdout == text.encode() + b"\n"
