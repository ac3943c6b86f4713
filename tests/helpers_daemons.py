"""Real daemons of Debian, on loopback addresses of their own, as docs/daemons.md has them.

The recipes of that page are what runs: only addresses, ports and the names of files are put in.  Each instance has
an address that nobody else uses (127.0.0.0/8 is all loopback), so tests at the same time cannot meet.
"""

from __future__ import annotations

import functools
import os
import pathlib
import random
import re
import shutil
import socket
import struct
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from helpers_config import toml

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "daemons.md"
# Ordinary users have no sbin in theirs, and Debian keeps daemons there.
PATH = os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"
ROOT = os.geteuid() == 0
LIMIT = 10.0  # seconds for an answer: a guard against hangs


@dataclass(frozen=True)
class Style:
    """One kind of daemon: what its configuration says, and how it is asked who it is."""

    name: str  # of the program, and of its recipe
    file: str  # the configuration that the recipe names, "" if none
    port: int  # that the recipe names, or the file has
    config: str
    ask: Callable[[tuple[str, int]], bytes]
    says: str  # a part of the answer that only the right instance gives
    forks: str  # how
    own_pid_file: bool = True

    def program(self) -> str | None:
        return shutil.which(self.name, path=PATH)


def talk(address: tuple[str, int], text: bytes, until: bytes = b"") -> bytes:
    """Say it, and what is said then: up to the end, or to `until`."""
    with socket.create_connection(address, LIMIT) as sock:
        sock.sendall(text)
        heard = b""
        while (part := sock.recv(65536)) and not (until and (heard + part).endswith(until)):
            heard += part
        return heard + part


def http(path: str) -> Callable[[tuple[str, int]], bytes]:
    return lambda address: talk(address, f"GET {path} HTTP/1.0\r\n\r\n".encode())


def dns(address: tuple[str, int]) -> bytes:
    """The text of who.test, over TCP."""
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + b"\3who\4test\0" + struct.pack(">2H", 16, 1)
    with socket.create_connection(address, LIMIT) as sock:
        sock.sendall(struct.pack(">H", len(question)) + question)
        return sock.recv(4096)


def lines(*text: str) -> str:
    return "".join(f"{line}\n" for line in text)


# What is written <<so>> is put in.  Each writes a pid file, which only the tests read: the service has no such key.
STYLES = {
    style.name: style
    for style in (
        Style(
            "nginx", "/etc/nginx/nginx.conf", 80,
            lines(
                "user nobody nogroup;" if ROOT else "", "worker_processes 2;", "pid <<dir>>/<<name>>.pid;",
                "error_log <<dir>>/<<name>>.log;", "events { worker_connections 64; }", "http {", "access_log off;",
                *(f"{each}_temp_path <<dir>>/<<name>>.tmp;" for each in
                  ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
                "server { listen <<host>>:<<port>>; location / { return 200 '<<name>>\\n'; } }", "}",
            ),
            http("/"), "\r\n\r\n<<name>>\n", "once, after it listens; has workers",
        ),
        Style(
            "memcached", "", 11211, "", lambda address: talk(address, b"stats\r\n", b"END\r\n"), "STAT pid <<pid>>\r\n",
            "once, before it listens; has threads", own_pid_file=False,
        ),
        Style(
            "redis-server", "/etc/redis/redis.conf", 6379,
            lines(
                "daemonize yes", "bind <<host>>", "port <<port>>", "dir <<dir>>", 'save ""',
                "pidfile <<dir>>/<<name>>.pid", "logfile <<dir>>/<<name>>.log",
            ),
            lambda address: talk(address, b"INFO server\r\nQUIT\r\n"), "\nprocess_id:<<pid>>\r\n",
            "once, before it listens; overwrites its environment",
        ),
        Style(
            "dnsmasq", "/etc/dnsmasq.conf", 53,
            lines(
                "listen-address=<<host>>", "port=<<port>>", "bind-interfaces", "no-resolv", "no-hosts",
                "txt-record=who.test,<<name>>", "pid-file=<<dir>>/<<name>>.pid", "user=nobody" if ROOT else "",
            ),
            dns, "<<name>>", "twice, and the first waits for the last",
        ),
        Style(
            "haproxy", "/etc/haproxy/haproxy.cfg", 8080,
            lines(
                "global", "  pidfile <<dir>>/<<name>>.pid", "  maxconn 64", "  nbthread 1", "defaults", "  mode http",
                "  timeout connect 5s", "  timeout client 5s", "  timeout server 5s", "frontend who",
                "  bind <<host>>:<<port>>",
                '  http-request return status 200 content-type text/plain string "<<name>>"',
            ),
            http("/"), "\r\n\r\n<<name>>", "once, then executes itself anew; has workers",
        ),
        Style(
            "lighttpd", "/etc/lighttpd/lighttpd.conf", 80,
            lines(
                'server.document-root = "<<dir>>"', 'server.bind = "<<host>>"', "server.port = <<port>>",
                'server.pid-file = "<<dir>>/<<name>>.pid"', 'server.errorlog = "<<dir>>/<<name>>.log"',
                'server.tag = "<<name>>"',
            ),
            http("/"), "Server: <<name>>\r\n", "twice, and the first waits for the last",
        ),
        Style(
            "tinyproxy", "/etc/tinyproxy/tinyproxy.conf", 8888,
            lines(
                "Listen <<host>>", "Port <<port>>", 'PidFile "<<dir>>/<<name>>.pid"', 'LogFile "<<dir>>/<<name>>.log"',
                'StatHost "who.test"', 'StatFile "<<dir>>/<<name>>.conf"', "# <<name>>",
            ),
            http("http://who.test/"), "# <<name>>\n", "twice, and nobody waits",
        ),
    )
}  # fmt: skip


@functools.cache
def recipes() -> dict[str, dict[str, object]]:
    """Of the page: the tables of services, by name."""
    found: dict[str, dict[str, object]] = {}
    for block in re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S):
        found |= tomllib.loads(block).get("service", {})
    return found


def an_address() -> tuple[str, int]:
    dice = random.SystemRandom()
    with socket.socket() as sock:
        sock.bind((f"127.{dice.randrange(1, 255)}.{dice.randrange(1, 255)}.1", 0))
        return sock.getsockname()


class Instance:
    """A daemon with an address and files of its own.  `toml` is its service."""

    def __init__(
        self, style: Style, name: str, directory: pathlib.Path, address: tuple[str, int] | None = None, **keys: object
    ) -> None:
        self.style, self.name, self.directory = style, name, directory
        self.address = address or an_address()
        self.file = directory / f"{name}.conf"
        self.file.write_text(self.put_in(style.config))
        self.toml = f"[service.{toml(name)}]\n" + "".join(
            f"{key} = {toml(self._own(value))}\n" for key, value in {**recipes()[style.name], **keys}.items()
        )

    def put_in(self, text: str, pid: int = 0) -> str:
        host, port = self.address
        values = {"dir": self.directory, "name": self.name, "host": host, "port": port, "pid": pid}
        return re.sub(r"<<(\w+)>>", lambda found: str(values[found[1]]), text)

    def _own(self, value: object) -> object:
        """A value of the recipe with what is ours instead of Debian's."""
        if isinstance(value, dict):
            return {key: self._own(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._own(each) for each in value]
        if not isinstance(value, str):
            return value
        if self.style.file:
            value = value.replace(self.style.file, str(self.file))
        host, port = self.address
        return re.sub(rf"\b{self.style.port}$", str(port), value.replace("127.0.0.1", host))

    def pid_file(self) -> int | None:
        """What the daemon itself has written down."""
        try:
            return int((self.directory / f"{self.name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def mistaken(self, pid: int) -> str:
        """Ask at its address; "" if this instance answers, with that pid where it tells it, else what is wrong."""
        try:
            answer = self.style.ask(self.address)
        except OSError as error:
            return f"{self.name} at {self.address}: {error}"
        expected = self.put_in(self.style.says, pid).encode()
        return "" if expected in answer else f"{self.name} at {self.address}: no {expected!r} in {answer[-300:]!r}"

    def refuses(self) -> bool:
        """Nobody listens at its address."""
        with socket.socket() as sock:
            return sock.connect_ex(self.address) != 0


def listeners(address: tuple[str, int]) -> set[str]:
    """The inodes of TCP sockets that listen there."""
    host, port = address
    wanted = f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}:{port:04X}"
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file]
    return {row[9] for row in rows if row[1] == wanted and row[3] == "0A"}


def sockets_of(pid: int) -> set[str]:
    """The inodes of sockets that a process has open."""
    links = []
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed since: of the others we still want to know
                links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {link[8:-1] for link in links if link.startswith("socket:[")}
