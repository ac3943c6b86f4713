# The C half; see csrc/spawn.  Errors are OSError; a failed start has (errno, text, None, None, stage).

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

_K = TypeVar("_K")
_T = TypeVar("_T")

def spawn_body(
    argv: Sequence[str | bytes | PathLike[str] | PathLike[bytes]],
    env: Mapping[str, str] | Mapping[bytes, bytes] | None,
    executable: str | bytes | PathLike[str] | PathLike[bytes],
    cwd: str | bytes | PathLike[str] | PathLike[bytes] | None,
    options: int,
    pgid: int,
    umask: int,
    uid: int,
    gid: int,
    nice: int,
    groups: Sequence[int],
    rlimits: Sequence[tuple[int, int, int]],
    fd_targets: Sequence[int],
    closed_std: int,
    on_owner_loss: int,
    stop_signal: int,
    stop_scope: int,
    grace_ms: int,
    /,
) -> bytes: ...
def launch(
    keeper: bytes,
    hello_flags: int,
    body: bytes,
    fds: Sequence[int],
    own_keeper: Callable[[int, int, bool], _K],
    own_pidfd: Callable[[int], _T],
    /,
) -> tuple[_K, list[tuple[list[Any] | None, list[int]]], int, _T, int, int]: ...
def launch_from(template_socket: int, own_keeper: Callable[[int, int, bool], _K], /) -> _K: ...
def hang_up(sock: int, /) -> None: ...
def start(
    sock: int, keeper_pidfd: int, body: bytes, fds: Sequence[int], own: Callable[[int], _T], /
) -> tuple[int, _T, int, int]: ...
def spawn_direct(body: bytes, fds: Sequence[int], own: Callable[[int], _T], /) -> tuple[int, _T]: ...
def send(sock: int, tag: int, body: bytes, /) -> None: ...
def receive(
    sock: int,
    keeper_pidfd: int,
    pidfd: int,
    timeout_ns: int,
    inbox: list[tuple[list[Any] | None, list[int]]],
    /,
) -> bool: ...
def wire_decode(packet: bytes, /) -> list[tuple[Any, ...]]: ...
def wait_status(pidfd: int, /) -> tuple[int, int, tuple[int, ...]] | None: ...
def exit_info(pidfd: int, /) -> int | None: ...
def pidfd_open(pid: int, /) -> int: ...
def pidfd_signal(pidfd: int, signo: int, flags: int = ..., /) -> None: ...
def poll(fd: int, events: int, timeout_ns: int, /) -> int: ...
def closed_std() -> int: ...
def identity(status_fd: int, ns_fd: int, /) -> bytes: ...
def forbid_clone3() -> None: ...
def has_clone3() -> bool: ...
