"""What `[supervisor.http]` is made of: an address of this machine, and a token that nobody else can read.

Standard library alone.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat

from .files import Untrusted

TOKEN_LEAST = 32  # characters
TOKEN_FILE_MAX = 4096  # bytes
HOW_TO_MAKE_ONE = "make one: (umask 077; head -c 32 /dev/urandom | base64 > {path})"


def split(address: str) -> tuple[str, int]:
    """`127.0.0.1:9001`, `[::1]:9001`, `localhost:9001` or `9001` as host and port.  ValueError: it is none of these."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(address)
    if host in ("", "localhost"):
        return "127.0.0.1", int(port)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (":" in bare) != (bare != host) or "%" in bare:
        raise ValueError(address)  # one of IPv6 stands in brackets, and has no zone
    return str(ipaddress.ip_address(bare)), int(port)


def join(host: str, port: int) -> str:
    """The address in the one way in which we write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(host: str) -> bool:
    """Whether only this machine can connect to it."""
    return ipaddress.ip_address(host).is_loopback


def read_token(path: str) -> str:
    """The token in a file.  OSError: it cannot be read; Untrusted: it is no secret, or no token."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Untrusted("is no regular file")
        if status.st_uid not in (0, os.geteuid()):
            raise Untrusted(f"belongs to user {status.st_uid}")
        if status.st_mode & 0o077:
            raise Untrusted(f"is not ours alone (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 it")
        text = os.read(fd, TOKEN_FILE_MAX + 1)
    finally:
        os.close(fd)
    token = text.strip().decode("ascii", "replace")
    if len(text) > TOKEN_FILE_MAX or not re.fullmatch(r"[!-~]*", token):
        raise Untrusted("must contain one word of ASCII characters and nothing else")
    if len(token) < TOKEN_LEAST:
        raise Untrusted(f"must contain at least {TOKEN_LEAST} characters, so that nobody guesses them")
    return token
