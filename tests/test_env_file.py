"""Files of variables: what is read, what is refused where readers differ, and that no value is ever shown."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.config import env_file
from holdfast.config.env_file import EnvFileError, read_env_file

QUICK = settings(
    max_examples=200, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(directory: pathlib.Path, text: str | bytes) -> dict[str, str]:
    path = directory / "x.env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_env_file(str(path))


def refusal(directory: pathlib.Path, text: str | bytes) -> str:
    with pytest.raises(EnvFileError) as error:
        read(directory, text)
    return str(error.value).replace(f"{directory}/", "")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("\n \t\n# c\n  ; c\nA=1\n\n", {"A": "1"}),
        ("  A = b c \t\n", {"A": "b c"}),
        ("A=\nB=''\nC=\"\"\n", {"A": "", "B": "", "C": ""}),
        ("A=a=b\n", {"A": "a=b"}),
        ("A=a#b;c\n", {"A": "a#b;c"}),
        ("A=$B ${C} `d` it's \"so\"\n", {"A": "$B ${C} `d` it's \"so\""}),
        ("A='$B \\n \" # x'\n", {"A": '$B \\n " # x'}),
        ('A="\\"\\\\\\$\\` $ # \'"\n', {"A": "\"\\$` $ # '"}),
        ("A='x' # c\nB=\"y\"\t;c\nC=z\n", {"A": "x", "B": "y", "C": "z"}),
        ("A='one\ntwo'\nB=\"one\n# two\"\n", {"A": "one\ntwo", "B": "one\n# two"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=1\r\nB='x'\r\n# c\r\n", {"A": "1", "B": "x"}),
        ("\ufeffA=ä\n", {"A": "ä"}),
        ("_a1=x", {"_a1": "x"}),
    ],
)
def test_what_is_read(tmp_path, text, values):
    assert read(tmp_path, text) == values


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("A=1\nexport B=hush\n", 2, "is not NAME=VALUE"),
        ("\n\nhush\n", 3, "is not NAME=VALUE"),
        ("1A=hush", 1, "is not NAME=VALUE"),
        ("A-B=hush", 1, "is not NAME=VALUE"),
        ("=hush", 1, "is not NAME=VALUE"),
        ("A: hush", 1, "is not NAME=VALUE"),
        ("A='hush\nB=hush\n", 1, "the quotation of A has no end"),
        ('A="hush\\"\n', 1, "the quotation of A has no end"),
        ("A='hush'hush\n", 1, "something stands behind the quotation of A"),
        ("A='x\ny'\nB=hush\\\n", 3, "B has a backslash or a comment"),
        ("A=hu\\sh\n", 1, "A has a backslash or a comment"),
        ("A=hush # c\n", 1, "A has a backslash or a comment"),
        ("A=#hush\n", 1, "A has a backslash or a comment"),
        ('A="hush\\n"\n', 1, 'A: in double quotes a backslash stands before " \\ $ ` alone'),
        ("A=hush\0\n", 1, "the value of A contains a NUL byte"),
        ("HOLDFAST_SERVICE=hush\n", 1, "HOLDFAST_SERVICE is set by the supervisor itself"),
        (b"A=1\nB=hush\xff\n", 2, "is not UTF-8"),
    ],
)
def test_what_is_refused(tmp_path, text, line, why):
    said = refusal(tmp_path, text)
    assert said.startswith(f"env_file x.env:{line}: {why}")
    assert "hush" not in said
    assert said.isprintable()


def test_files_that_are_none(tmp_path):
    def said(path: pathlib.Path) -> str:
        with pytest.raises(EnvFileError) as error:
            read_env_file(str(path))
        return str(error.value)

    assert said(tmp_path / "no") == f"env_file {tmp_path}/no: there is no such file"
    os.mkfifo(tmp_path / "fifo")
    assert said(tmp_path / "fifo") == f"env_file {tmp_path}/fifo: is not a regular file"  # and nobody waits
    assert said(tmp_path) == f"env_file {tmp_path}: is a directory, not a file"
    (tmp_path / "big").write_bytes(b"#" * (env_file.ENV_FILE_MAX + 1))
    assert said(tmp_path / "big") == f"env_file {tmp_path}/big: is larger than 1048576 bytes"
    (tmp_path / "big").write_bytes(b"#" * env_file.ENV_FILE_MAX)
    assert read_env_file(str(tmp_path / "big")) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="these refusals are root's")
def test_root_refuses_what_everybody_may_write(tmp_path):
    (tmp_path / "x.env").touch()
    (tmp_path / "x.env").chmod(0o666)
    assert "is writable by everybody" in refusal(tmp_path, "A=1")


@given(st.binary(max_size=40) | st.text(alphabet="AB='\"\\$` #;\n\r\t", max_size=40).map(str.encode))
@QUICK
def test_any_bytes_are_variables_or_an_error(tmp_path, data):
    try:
        found = read(tmp_path, data)
    except EnvFileError as error:
        assert re.match(r"env_file .*x\.env:\d+: ", str(error))
    else:
        assert all(re.fullmatch(r"[A-Za-z_]\w*", name, re.A) for name in found)


VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@given(st.lists(VALUE, min_size=1, max_size=8))
@settings(QUICK, max_examples=60)
def test_quoted_values_are_what_a_shell_reads(tmp_path, values):
    """Another reader of the same file, with another grammar: where ours accepts, both mean the same."""
    lines, wanted = [], {}
    for number, value in enumerate(values):
        escaped = re.sub(r'(["\\$`])', r"\\\1", value)
        lines.append(f'D{number}="{escaped}"')
        wanted[f"D{number}"] = value
        if "'" not in value:
            lines.append(f"S{number}='{value}'")
            wanted[f"S{number}"] = value
    assert read(tmp_path, "\n".join(lines) + "\n") == wanted
    shell = ["/bin/sh", "-ac", '. "$0"; exec env -0', str(tmp_path / "x.env")]
    done = subprocess.run(shell, capture_output=True, check=True, env={"PATH": os.environ["PATH"]}, timeout=30)
    seen = dict(each.decode().split("=", 1) for each in done.stdout.split(b"\0") if each)
    assert {name: seen.get(name) for name in wanted} == wanted
