"""The forms in which values are written: how each is read, how it is described to an editor and to a reader.

One function per form: a value as tomllib gives it -> the value of the spec, or Wrong.  The table FORMS at the end is
what loader, schema and documentation look into.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args

from . import schedule_forms, tcp, units
from .errors import Wrong, one_line
from .files import Untrusted
from .model import About, Key
from .vars import expand

T = TypeVar("T")
N = TypeVar("N", int, float)

OWN_VARIABLES = (
    "HOLDFAST_SERVICE", "HOLDFAST_INCARNATION", "HOLDFAST_SUPERVISOR", "HOLDFAST_EXIT_CODE", "HOLDFAST_EXIT_SIGNAL",
    "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
)  # fmt: skip
BYTE_LIMITS = ("as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack")
TIME_LIMITS = {"cpu": 1, "rttime": 1_000_000}  # units of the kernel per second
COUNT_LIMITS = ("nice", "nofile", "nproc", "rtprio", "sigpending")
LIMITS = tuple(sorted((*BYTE_LIMITS, *TIME_LIMITS, *COUNT_LIMITS)))
UNLIMITED = "unlimited"
LIMIT_KEY = Key("", About("", ""), int, None)  # a value of any size
HOST = r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]"
WORD_MAX = 200  # characters of a word that is compared with others
SHELL_WORDS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "2>&1", "2>", "&>"}


class Around(NamedTuple):
    """What a value's meaning depends on besides itself."""

    directory: str  # of the file, absolute
    environ: Mapping[str, str]
    shell: bool = False  # the service's `shell`


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of the known words; "" when none is near."""
    import difflib

    words = {str(each).lower(): str(each) for each in known}
    near = difflib.get_close_matches(word.lower()[:WORD_MAX], words, n=1, cutoff=0.6 if len(word) > 3 else 0.5)
    return f'did you mean "{words[near[0]]}"?' if near else ""


def kind(value: object) -> str:
    """What TOML calls it, with an article."""
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


def string(value: object, around: Around) -> str:
    """Any string of a file: variables replaced, nothing in it that no system call takes."""
    if not isinstance(value, str):
        raise Wrong(f"must be a string, not {kind(value)}")
    if "\0" in value:
        raise Wrong("contains a NUL byte, which no program can be given")
    try:
        return expand(value, around.environ)
    except ValueError as error:
        raise Wrong(*_split(str(error))) from None


def duration(value: object, key: Key, around: Around) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = one_line(value)
        raise Wrong(f"{text} has no unit", f'write "{text}s" or "{text}ms"; units: ms, s, m, h')
    if not isinstance(value, str):
        raise Wrong(f'must be a duration such as "10s", not {kind(value)}')
    try:
        seconds = units.milliseconds(value) / 1000
    except ValueError as error:
        raise Wrong(*_split(str(error))) from None
    return _in_range(seconds, key, units.duration_text)


def size(value: object, key: Key, around: Around) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = one_line(value)
        raise Wrong(f"{text} has no unit", f'write "{text}MB" or "{text}MiB"; units: {", ".join(units.SIZES)}')
    if not isinstance(value, str):
        raise Wrong(f'must be a size such as "16MiB", not {kind(value)}')
    try:
        number = units.size(value)
    except ValueError as error:
        raise Wrong(*_split(str(error))) from None
    return _in_range(number, key, units.size_text)


def _split(text: str) -> tuple[str, str]:
    message, _, hint = text.partition(": ")
    return message, hint


def _in_range(number: N, key: Key, show: Callable[[Any], str]) -> N:
    low, high = key.about.low, key.about.high
    if low is not None and not number >= low:  # so that nan is outside, too
        raise Wrong(f"must be at least {show(low)}, not {show(number)}")
    if high is not None and number > high:
        raise Wrong(f"must be at most {show(high)}, not {show(number)}")
    return number


def integer(value: object, key: Key, around: Around) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"must be an integer, not {kind(value)}", _without_quotes(value))
    return _in_range(value, key, one_line)


def number(value: object, key: Key, around: Around) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong(f"must be a number, not {kind(value)}", _without_quotes(value))
    return float(_in_range(value, key, lambda each: one_line(each) if isinstance(each, int) else f"{each:g}"))


def _without_quotes(value: object) -> str:
    return f"write {value} without quotes" if isinstance(value, str) and value.isascii() and value.isdigit() else ""


def boolean(value: object, key: Key, around: Around) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"must be true or false, not {kind(value)}", "without quotes" if value in ("true", "false") else "")
    return value


def choice(value: object, key: Key, around: Around) -> str:
    words = get_args(key.type)
    if not isinstance(value, str):
        raise Wrong(f"must be one of {_words(words)}, not {kind(value)}")
    if value not in words:
        raise Wrong(f"must be one of {_words(words)}, not {one_line(value)}", did_you_mean(value, words))
    return value


def _words(words: tuple[str, ...]) -> str:
    return ", ".join(f'"{each}"' for each in words)


def command(value: object, key: Key, around: Around) -> tuple[str, ...]:
    if around.shell:
        if not isinstance(value, str):
            raise Wrong(f"must be one string where shell = true, not {kind(value)}", "or leave `shell` out")
        if "\0" in value:
            raise Wrong("contains a NUL byte, which no program can be given")
        if not value.strip():
            raise Wrong("is empty", "name the program to run")
        return (value,)  # ${VAR} is the shell's business
    if isinstance(value, str):
        words: list[object] = [*_shell_words(value)]
    elif isinstance(value, list):
        words = value
    else:
        raise Wrong(f"must be a list of strings or a string, not {kind(value)}")
    for at, word in enumerate(words):
        if not isinstance(word, str):
            raise Wrong(f"word {at + 1} must be a string, not {kind(word)}", "write it in quotes")
    result = tuple(string(word, around) for word in words)
    if not result or not result[0].strip():
        raise Wrong("is empty", "name the program to run")
    return result


def _shell_words(text: str) -> list[str]:
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Wrong(f"cannot be split into words: {str(error)[0].lower()}{str(error)[1:]}") from None
    shell = next((word for word in words if word in SHELL_WORDS), None)
    if shell is not None:
        raise Wrong(
            f"`{shell}` would be a word of the command, for no shell reads it",
            "shell = true, or a list if the word is meant",
        )
    return words


def path(value: object, key: Key, around: Around) -> str:
    text = string(value, around)
    if not text:
        raise Wrong("is empty", 'the directory of the file is "."')
    if text.startswith("~"):
        raise Wrong("`~` is not replaced", "write ${HOME}")
    return os.path.normpath(os.path.join(around.directory, text))


def paths(value: object, key: Key, around: Around) -> tuple[str, ...]:
    if not isinstance(value, (str, list)):
        raise Wrong(f"must be a path or a list of paths, not {kind(value)}", 'such as "web.env"')
    return tuple(path(each, key, around) for each in ([value] if isinstance(value, str) else value))


def env(value: object, key: Key, around: Around) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Wrong(f"must be a table of strings, not {kind(value)}", 'such as env = { PORT = "8080" }')
    return each_of(value, lambda name, item: _variable(name, item, around))


def _variable(name: str, value: object, around: Around) -> str:
    if not name or "=" in name or "\0" in name:
        raise Wrong("is no name of a variable: it must not be empty, nor contain `=` or NUL")
    if name in OWN_VARIABLES:
        raise Wrong("is set by the supervisor itself")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise Wrong(f"must be a string, not {kind(value)}", "write it in quotes")
    return string(value, around)


class Several(Exception):
    """More than one value within a value is wrong: (key within it, Wrong)."""

    def __init__(self, wrongs: list[tuple[str, Wrong]]) -> None:
        super().__init__(wrongs)
        self.wrongs = wrongs


def each_of(table: dict[str, Any], read: Callable[[str, Any], T]) -> dict[str, T]:
    """Every value of a table read; Several when some are wrong."""
    result, wrongs = {}, []
    for name, value in table.items():
        try:
            result[name] = read(name, value)
        except Wrong as wrong:
            wrongs.append((name, wrong))
    if wrongs:
        raise Several(wrongs)
    return result


def user(value: object, key: Key, around: Around) -> str | int:
    import pwd

    return _identity(value, key, around, "user", pwd.getpwnam, lambda: [each.pw_name for each in pwd.getpwall()])


def group(value: object, key: Key, around: Around) -> str | int:
    import grp

    return _identity(value, key, around, "group", grp.getgrnam, lambda: [each.gr_name for each in grp.getgrall()])


def _identity(
    value: object, key: Key, around: Around, what: str, look_up: Callable[[str], object],
    everybody: Callable[[], list[str]],
) -> str | int:  # fmt: skip
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Wrong(f"must be a name or a number, not {kind(value)}")
    if isinstance(value, str):
        value = string(value, around)
        try:
            look_up(value)
        except (KeyError, ValueError):  # ValueError: what no name can contain
            hint = _without_quotes(value) or did_you_mean(value, everybody())
            raise Wrong(f"there is no {what} {one_line(value)} on this machine", hint) from None
    elif not 0 <= value < 2**32 - 1:  # 2**32 - 1 means "leave it" to the kernel
        raise Wrong(f"{one_line(value)} is no {what}'s number", "0 to 4294967294")
    if os.geteuid() != 0:
        raise Wrong(f"only root may choose the {what}", f"leave `{key.field}` out, or start the supervisor as root")
    return value


def umask(value: object, key: Key, around: Around) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        # TOML's 022 is an error and 22 is no octal: a string can only be read in one way.
        raise Wrong("must be a string of octal digits, not an integer", f'such as {key.field} = "022"')
    text = string(value, around)
    if not text or len(text) > 4 or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise Wrong(f"{one_line(text)} is no mask", 'octal digits up to "777", such as "022"')
    return int(text, 8)


def rlimits(value: object, key: Key, around: Around) -> dict[str, tuple[int, int]]:
    if not isinstance(value, dict):
        raise Wrong(f"must be a table, not {kind(value)}", "such as rlimits = { nofile = 4096 }")
    return each_of(value, lambda name, item: _limit(name, item, around))


def _limit(name: str, value: object, around: Around) -> tuple[int, int]:
    if name not in LIMITS:
        hint = did_you_mean(name.lower().removeprefix("rlimit_"), LIMITS)
        raise Wrong("is no resource limit", hint or f"known: {', '.join(LIMITS)}")
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2:
        raise Wrong("must be one value, or two: [soft, hard]")
    soft, hard = (_one_limit(name, each, around) for each in pair)
    if hard != -1 and (soft == -1 or soft > hard):
        raise Wrong("the soft limit is above the hard one", "[soft, hard]")
    return soft, hard


def _one_limit(name: str, value: object, around: Around) -> int:
    if value == UNLIMITED:
        return -1
    if name in BYTE_LIMITS:
        return size(value, LIMIT_KEY, around)
    if name in TIME_LIMITS:
        return round(duration(value, LIMIT_KEY, around) * TIME_LIMITS[name])
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f'must be an integer or "{UNLIMITED}", not {kind(value)}', _without_quotes(value))
    if not 0 <= value < 2**63:
        raise Wrong(f"{one_line(value)} is out of range", f'0 or more; "{UNLIMITED}" for none')
    return value


def codes(value: object, key: Key, around: Around) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise Wrong(f"must be a list of exit codes, not {kind(value)}", "such as [0, 143]")
    if not value:
        raise Wrong("is empty: nothing would be a success", "[0]")
    return tuple(dict.fromkeys(integer(each, key, around) for each in value))


def names(value: object, key: Key, around: Around) -> tuple[str, ...]:
    """Names of services, and names by group; what they mean is only known when all files are read."""
    if isinstance(value, str):
        raise Wrong("must be a list of services, not a string", f"[{one_line(value)}]")
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        what = f"not {kind(value)}" if not isinstance(value, list) else "and each must be a string"
        raise Wrong(f"must be a list of services, {what}", 'such as ["db"]')
    return tuple(dict.fromkeys(value))


SIGNALS = {each.name.removeprefix("SIG"): int(each) for each in signal.Signals}
UNABLE = {"STOP": "only pauses a process", "CONT": "only lets a process go on"}


def stop_signal(value: object, key: Key, around: Around) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        name = next((name for name, number in SIGNALS.items() if number == value), "TERM")
        raise Wrong("must be a signal's name, not a number", f'"{name}"')
    if not isinstance(value, str):
        raise Wrong(f"must be a signal's name, not {kind(value)}", '"TERM"')
    name = value.removeprefix("SIG")
    base, plus, offset = name.partition("+")
    if plus and base == "RTMIN" and offset.isascii() and offset.isdecimal() and len(offset) < 3:
        found = SIGNALS["RTMIN"] + int(offset)
        if found <= SIGNALS["RTMAX"]:
            return found
    if name in UNABLE:
        raise Wrong(f"{name} {UNABLE[name]}", '"TERM" asks it to stop, "KILL" does not ask')
    if name not in SIGNALS:
        raise Wrong(f"{one_line(value)} is no signal", did_you_mean(value.upper().removeprefix("SIG"), SIGNALS))
    return SIGNALS[name]


def loopback(value: object, key: Key, around: Around) -> str:
    text = string(value, around)
    try:
        host, port = tcp.split(text)
        local = tcp.is_local(host)
    except ValueError:
        raise Wrong(f"{one_line(text)} is no address and port", 'such as "127.0.0.1:9001" or "[::1]:9001"') from None
    if not local:
        message = f"{one_line(text)} can be reached from other machines, and what is said there, with the token, read"
        raise Wrong(message, 'listen at "127.0.0.1:PORT"; others come by ssh -L, or a proxy that speaks TLS')
    return tcp.join(host, port)


def token_file(value: object, key: Key, around: Around) -> str:
    name = path(value, key, around)
    hint = tcp.HOW_TO_MAKE_ONE.format(path=name)
    try:
        tcp.read_token(name)
    except OSError as error:
        raise Wrong(f"{one_line(name)} cannot be read: {error.strerror}", hint) from None
    except Untrusted as error:
        raise Wrong(f"{one_line(name)} {error}", hint) from None
    return name


def hosts(value: object, key: Key, around: Around) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong(f"must be a list of names, not {kind(value)}", 'such as ["ops.example.org"]')
    for each in value:
        if not isinstance(each, str) or not re.fullmatch(HOST, each):
            raise Wrong(f"{one_line(str(each))} is no name of a host", 'without scheme and port: "ops.example.org"')
    return tuple(dict.fromkeys(value))


FORMS: dict[str, Callable[[object, Key, Around], Any]] = {
    "duration": duration,
    "size": size,
    "integer": integer,
    "number": number,
    "boolean": boolean,
    "choice": choice,
    "command": command,
    "path": path,
    "paths": paths,
    "env": env,
    "user": user,
    "group": group,
    "umask": umask,
    "rlimits": rlimits,
    "codes": codes,
    "names": names,
    "signal": stop_signal,
    "cron": schedule_forms.cron,
    "zone": schedule_forms.zone,
    "loopback": loopback,
    "token_file": token_file,
    "hosts": hosts,
}
