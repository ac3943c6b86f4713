"""The API over TCP: who comes this way has no user id that the kernel could tell, but a token; and may be a web page.

A page that the user of a browser visits can make that browser send requests to this machine.  It does not know the
token; Host and Origin see to it that it gets nowhere (DNS rebinding) even where it does.
"""

from __future__ import annotations

import hmac
import re
import socket
from collections.abc import Iterable

from holdfast.config.files import Untrusted
from holdfast.config.tcp import read_token

from .errors import Refusal

LOCAL = ("localhost", "127.0.0.1", "[::1]")
SEND_IT = "send the header Authorization: Bearer TOKEN"


class Tcp:
    """A listening TCP socket, and what is asked of who comes by it."""

    def __init__(self, sock: socket.socket, token_file: str, allowed_hosts: Iterable[str] = ()) -> None:
        self.sock = sock
        self.token_file = token_file
        host = sock.getsockname()[0]
        self.hosts = {*LOCAL, f"[{host}]" if ":" in host else host, *(each.lower() for each in allowed_hosts)}

    def check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Refusal, unless it may ask.  `headers` with their names in lower case."""

        def every(name: bytes) -> list[str]:
            return [value.decode("latin-1") for each, value in headers if each == name]

        hosts = [each.lower() for each in every(b"host")]
        if len(hosts) != 1 or re.sub(r":[0-9]*$", "", hosts[0]) not in self.hosts:
            named = ", ".join(hosts)[:100] or "nobody"
            raise Refusal(
                "not_permitted", f"the header Host names {named!r}, and that is not us",
                "`allowed_hosts` in [supervisor.http] names others",
            )  # fmt: skip
        for origin in every(b"origin"):
            if origin.lower() not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                raise Refusal("not_permitted", f"pages of {origin[:100]!r} may not command this supervisor")
        self._check_token(every(b"authorization"))

    def _check_token(self, given: list[str]) -> None:
        # Read each time: a new token holds at once, and a supervisor starts whatever has become of the file.
        try:
            token = read_token(self.token_file)
        except OSError as error:
            raise Refusal("unavailable", f"the token cannot be read: {error.strerror}", self.token_file) from None
        except Untrusted as error:
            raise Refusal("unavailable", f"the file of the token {error}", self.token_file) from None
        scheme, _, said = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            raise Refusal("no_token", "a token is needed here", SEND_IT)
        if not hmac.compare_digest(said.strip().encode("latin-1"), token.encode()):
            raise Refusal("no_token", "this is not the token", f"it is in {self.token_file}")
