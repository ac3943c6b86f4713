"""A socket's path that is longer than the kernel takes.  For every layer, so it imports next to nothing."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET_PATH_MAX = 107  # bytes of sun_path, without the zero at its end


def at_path(use: Callable[[str], object], path: str) -> None:
    """Call `use`, a socket's bind or connect, with the path, or with a shorter name of the same place.  OSError."""
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        use(path)
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)
