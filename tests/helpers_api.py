"""Shared by the tests of the API over TCP and of its document: a served supervisor with a port and a token."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket

from helpers_control import Served

from holdfast.control.tcp import Tcp
from holdfast.process.socket_path import at_path

TOKEN = "0123456789abcdef" * 2


class ServedTcp(Served):
    """A Served that listens on a port of the loopback, too."""

    hosts: tuple[str, ...] = ()
    host = "127.0.0.1"

    def tcp(self):
        self.token_file = os.path.join(self.run_dir, "token")
        write_token(self.token_file)
        sock = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        sock.bind((self.host, 0))
        sock.listen(1)
        self.port = sock.getsockname()[1]
        return Tcp(sock, self.token_file, self.hosts)

    def ask_tcp(self, method, target, body=None, **headers):
        """Status, headers and JSON of an answer; `host`, `origin` ... as given, the token unless `authorization` is."""
        return ask_tcp((self.host, self.port), method, target, body, **headers)

    def connect_tcp(self):
        return socket.create_connection((self.host, self.port), timeout=30)


def write_token(path, token=TOKEN):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "w") as file:
        file.write(token + "\n")


def ask_tcp(address, method, target, body=None, **headers):
    named = {"authorization": f"Bearer {TOKEN}"}
    if body is not None:
        named["content-type"] = "application/json"
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.putrequest(method, target, skip_host="host" in named, skip_accept_encoding=True)
        for name, value in named.items():
            if value is not None:
                connection.putheader(name, value)
        text = b"" if body is None else json.dumps(body).encode()
        connection.putheader("content-length", str(len(text)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read
            connection.endheaders(text)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(data)
    finally:
        connection.close()


def connect(path):
    """A connection to a unix socket, however long its path is."""
    made = socket.socket(socket.AF_UNIX)
    at_path(made.connect, str(path))
    made.settimeout(30)
    return made


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Events:
    """A reader of server-sent events as their standard has it: fields, comments, `retry`; for one connection."""

    def __init__(self, made, target, **headers):
        self.made = made
        self.retry = None
        self.last_id = ""
        self._data = b""
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        made.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n{head}\r\n".encode())
        while b"\r\n\r\n" not in self._data:
            assert self._more(), self._data
        first, _, self._data = self._data.partition(b"\r\n\r\n")
        assert b"text/event-stream" in first, first + self._data

    def _more(self):
        piece = self.made.recv(65536)
        self._data += piece
        return bool(piece)

    def next(self):
        """(type, data) of the next event; None at the end."""
        while True:
            while b"\n\n" not in self._data:
                if not self._more():
                    return None
            block, _, self._data = self._data.partition(b"\n\n")
            kind, data = "message", None
            for line in block.decode().split("\n"):
                name, value = re.fullmatch(r"(\w*): ?(.*)", line).groups()
                if name == "id":
                    self.last_id = value
                elif name == "retry":
                    self.retry = int(value)
                elif name == "event":
                    kind = value
                elif name == "data":
                    data = json.loads(value)
            if data is not None:
                return kind, data
