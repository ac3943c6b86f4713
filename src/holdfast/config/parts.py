"""The tables of a service that are tables of their own, as structs; and what is common to all keys.

See model.py, which has the service itself: its readers take all of this from there.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec

KB, MB, GB = 1000, 1000**2, 1000**3
KIB, MIB, GIB = 1024, 1024**2, 1024**3

SECONDS_MAX = 366 * 24 * 3600  # no duration of a service is longer than a year
COUNT_MAX = 1_000_000
ROTATE_COUNT_MAX = 10_000
REPLICAS_MAX = 1000
SIZE_MAX = 1024 * 1024 * 1024 * 1024 * 1024
ROTATE_SIZE_LEAST = 1024
PROBE_FD_MAX = 255
BACKLOG = 1024
SOCKET_MODE = 0o600
SOCKETS_MAX = 64  # of one service
FD_STORE_MAX = 128
PIDS_MAX = 4 * 1024 * 1024  # as many numbers as Linux has
WEIGHT_MAX = 10_000  # of the kernel's weights, which are 100 where nobody says
CPUS_MAX = 8192
NAME_LENGTH_MAX = 64
SERVICE_NAME = f"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{NAME_LENGTH_MAX - 1}}}"

Type = Literal["simple", "notify", "oneshot", "forking"]
Restart = Literal["always", "on-failure", "on-abnormal", "unless-stopped", "never"]
Scope = Literal["main", "group", "tree"]
OnOwnerLoss = Literal["keep", "stop", "kill"]
Overlap = Literal["skip", "queue", "restart"]
Stdin = Literal["null", "pipe"]
RestartOrder = Literal["stop-first", "start-first"]
SocketType = Literal["stream", "datagram"]


class About(NamedTuple):
    """How a key is written and what it means."""

    form: str  # name of a form in forms.py; "table" for a struct of its own
    text: str
    low: float | None = None
    high: float | None = None
    key: str = ""  # dotted, where the text nests it differently from the struct
    without: str = ""  # what holds where the default is no constant
    short: str = ""  # of a table: the key that is meant by a string in its place


class Backoff(msgspec.Struct, frozen=True):
    """How long a restart waits.  Durations in seconds."""

    first: Annotated[float, About("duration", "Wait before the first restart.", 0, SECONDS_MAX)] = 0.0
    then: Annotated[float, About("duration", "Wait before the second restart.", 0, SECONDS_MAX)] = 0.1
    factor: Annotated[float, About("number", "Each further wait is this many times the one before.", 1, 100)] = 2.0
    max: Annotated[float, About("duration", "No wait is longer.", 0, SECONDS_MAX)] = 60.0
    jitter: Annotated[float, About("number", "Each wait is made longer or shorter by up to this part of it.", 0, 1)] = (
        0.1
    )
    reset_after: Annotated[
        float,
        About("duration", "A life of this length clears the wait and the count of `start_limit`.", 0, SECONDS_MAX),
    ] = 1.0


class Log(msgspec.Struct, frozen=True):
    """What becomes of a service's output.  Sizes in bytes."""

    rotate_size: Annotated[
        int,
        About(
            "size",
            "A file of this size is closed, at the end of a line, and the next begun.",
            ROTATE_SIZE_LEAST,
            SIZE_MAX,
            "rotate.size",
        ),
    ] = 16 * MIB
    rotate_count: Annotated[
        int,
        About("integer", "Closed files that are kept; older ones are removed.", 1, ROTATE_COUNT_MAX, "rotate.count"),
    ] = 8
    cap: Annotated[
        int,
        About(
            "size",
            "All files of the service together. What would go past it is dropped, counted and shown, so keep it above "
            "what rotation keeps: `size` times (`count` + 1), twice that with `merge = false`.",
            ROTATE_SIZE_LEAST,
            SIZE_MAX,
        ),
    ] = 512 * MIB  # above what rotation keeps, with two streams, too: else nothing would make room again
    timestamps: Annotated[bool, About("boolean", "Write the time before each line.")] = False
    merge: Annotated[bool, About("boolean", "stdout and stderr in one file; `false`: in two.")] = True


class Probe(msgspec.Struct, frozen=True):
    """How it is found out whether a service is well: one of these.  notify, fd and log are heard, the others asked."""

    notify: Annotated[bool, About("boolean", "It says so itself: `READY=1`; for health `WATCHDOG=1` (sd_notify).")] = (
        False
    )
    fd: Annotated[
        int | None, About("integer", "It writes a newline to this descriptor.", 3, PROBE_FD_MAX, without="none")
    ] = None
    tcp: Annotated[
        str | None,
        About(
            "address", 'Somebody listens there: `"127.0.0.1:8080"`, `"8080"`, `"[::1]:80"`, `"unix:/run/x.sock"`.',
            without="none",
        ),
    ] = None  # fmt: skip
    http: Annotated[
        str | None,
        About("url", "A GET of this URL is answered with a status from 200 to 399.", without="none"),
    ] = None
    command: Annotated[
        tuple[str, ...] | None,
        About(
            "command", "This command, run as the service (user, directory, environment, limits), ends with code 0.",
            without="none",
        ),
    ] = None  # fmt: skip
    log: Annotated[
        str | None, About("regex", "A line of its output matches this regular expression.", without="none")
    ] = None

    @property
    def kind(self) -> str:
        """The one that is given; "": none."""
        return next((kind for kind in PROBE_KINDS if getattr(self, kind) not in (False, None)), "")


PROBE_KINDS = Probe.__struct_fields__


class Ready(Probe, frozen=True):
    """When a service counts as ready.  Durations in seconds."""

    timeout: Annotated[
        float, About("duration", "It must be ready so long after its start, else it is stopped.", 0.01, SECONDS_MAX)
    ] = 90.0
    interval: Annotated[
        float, About("duration", "Pause before it is asked again (tcp, http, command).", 0.01, SECONDS_MAX)
    ] = 0.25


class Health(Probe, frozen=True):
    """Whether a service that is ready is well.  Durations in seconds."""

    interval: Annotated[
        float,
        About("duration", "It is asked so often; notify, fd and log must be heard once in each.", 0.01, SECONDS_MAX),
    ] = 10.0
    timeout: Annotated[
        float, About("duration", "An answer that takes longer is a failure (tcp, http, command).", 0.01, SECONDS_MAX)
    ] = 5.0
    failures: Annotated[
        int, About("integer", "So many failures in a row: it is stopped, and `restart` decides.", 1, COUNT_MAX)
    ] = 3


class Schedule(msgspec.Struct, frozen=True):
    """When a oneshot runs, by the clock on the wall.  Durations in seconds."""

    cron: Annotated[
        str | None, About("cron", "Minute, hour, day of the month, month, day of the week.", without="none")
    ] = None
    every: Annotated[
        float | None,
        About("duration", "Instead of `cron`: the same times of every day, counted from 1970 in UTC.", 1, SECONDS_MAX,
              without="none"),
    ] = None  # fmt: skip
    overlap: Annotated[
        Overlap,
        About("choice", "When the run before is not over: `skip` this one, `queue` it (one), or `restart` the run."),
    ] = "skip"
    jitter: Annotated[
        float, About("duration", "Each run begins later by up to this, and before the next time.", 0, SECONDS_MAX)
    ] = 0.0
    catch_up: Annotated[
        bool, About("boolean", "Run once at the start, or after a suspension, when times have passed meanwhile.")
    ] = False
    timezone: Annotated[
        str | None, About("zone", 'Whose clock `cron` goes by, such as `"Europe/Berlin"`.', without="the machine's")
    ] = None

    @property
    def given(self) -> bool:
        return bool(self.cron or self.every)


class Resources(msgspec.Struct, frozen=True):
    """What a service may use, all of its processes together.  Sizes in bytes."""

    memory_max: Annotated[
        int | None,
        About("size", "Memory; what would go past it is reclaimed, and when that fails, killed.", 1, SIZE_MAX,
              without="no limit"),
    ] = None  # fmt: skip
    memory_high: Annotated[
        int | None,
        About("size", "Memory from which on it is slowed down, and its memory reclaimed.", 1, SIZE_MAX,
              without="no limit"),
    ] = None  # fmt: skip
    cpu_max: Annotated[
        float | None,
        About("percent", 'Processor time: `"150%"` is that of one and a half processors.', 0.01, CPUS_MAX,
              without="no limit"),
    ] = None  # fmt: skip
    cpu_weight: Annotated[
        int | None,
        About("integer", "Its part of the processors, against others, when they are busy.", 1, WEIGHT_MAX,
              without="the kernel's, 100"),
    ] = None  # fmt: skip
    io_weight: Annotated[
        int | None,
        About("integer", "Its part of the disks, in the same way.", 1, WEIGHT_MAX, without="the kernel's, 100"),
    ] = None
    pids_max: Annotated[
        int | None,
        About("integer", "Processes and threads; one more cannot be forked.", 1, PIDS_MAX, without="no limit"),
    ] = None
    optional: Annotated[
        bool, About("boolean", "Start it where a limit cannot be had, too; `status` says how each one is held.")
    ] = False


class Socket(msgspec.Struct, frozen=True):
    """One socket of a service, which the supervisor opens and holds."""

    listen: Annotated[
        str,
        About(
            "listen",
            "Where: `ADDRESS:PORT` (IPv6 in brackets), a port alone for `127.0.0.1`, or the path of a unix socket.",
        ),
    ]
    name: Annotated[
        str, About("fd_name", "Its name in `LISTEN_FDNAMES`.", without="the name of the service")
    ] = ""
    type: Annotated[SocketType, About("choice", "`stream` (TCP), or `datagram` (UDP).")] = "stream"
    backlog: Annotated[
        int, About("integer", "Connections that wait until they are accepted; the kernel has a limit, too.", 1, 65535)
    ] = BACKLOG
    mode: Annotated[
        int,
        About("umask", "Mode of a unix socket's file, in octal digits; it belongs to the service's user and group."),
    ] = SOCKET_MODE
