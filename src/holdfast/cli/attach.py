"""`holdfast attach`: sit at a service's terminal, or write to its stdin; leave, and come back.

In: the socket `attach` of a run directory, then the keeper's words (docs/wire.md, Clients).  Out: what the service
writes on stdout, and words of our own on stderr.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import tty
from typing import TYPE_CHECKING

import click

from .target import complete_names, fail, target

if TYPE_CHECKING:
    from holdfast.client import Client

INPUT, WINDOW, ATTACHED, RECENT, OUTPUT, SKIPPED, ENDED, REFUSED = 40, 41, 48, 49, 50, 51, 52, 53
HAS_TERMINAL, HAS_INPUT = 1, 2
HEAD = struct.Struct("<HHI")
PACKET = 65536
INPUT_MAX = 4096  # bytes typed in one packet
TYPED_MAX = 65536  # bytes that a service has not taken and are kept; more are thrown away, with a beep
ANSWER_LIMIT = 10.0  # seconds until the keeper has answered
ESCAPE = b"\x1d"  # Ctrl-]


@click.command(name="attach", short_help="Sit at a service's terminal, or write to its stdin.")
@click.argument("name", shell_complete=complete_names)
@target
def attach(client: Client, name: str) -> None:
    """Show what a service writes, its last lines first, and give it what is typed (with `pty = true` or
    `stdin = "pipe"`). Ctrl-] leaves, and the service goes on; so does the end of the input.

    Exit code: 0 after leaving; when the service has ended, its own (128 + n by signal n).
    """
    client.service(name)  # refuses with more words than the socket has
    try:
        sys.exit(Session(name, _connect(client.run_dir, name)).run())
    except _Trouble as trouble:
        fail(str(trouble), 1)
    except KeyboardInterrupt:  # where it is no input: leaving
        sys.exit(130)


class _Trouble(Exception):
    pass


def _connect(run_dir: str, name: str) -> socket.socket:
    from holdfast.config.places import ATTACH
    from holdfast.process.socket_path import at_path

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.path.join(run_dir, ATTACH)
    try:
        at_path(sock.connect, path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused already; the answer says why
            sock.send(json.dumps({"name": name}).encode())
    except OSError as error:
        raise _Trouble(f"cannot attach at {path}: {error.strerror}") from None
    return sock


class Session:
    """One client at one keeper.  `run` returns the exit code."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        self.name = name
        self.sock = sock
        self.typed = bytearray()  # that the keeper has had no room for yet
        self.reading = True  # of stdin there may be more
        self.sits = os.isatty(0)
        self.raw = False
        self.window_due = False
        self.code: int | None = None

    def run(self) -> int:
        before = termios.tcgetattr(0) if self.sits else []
        for signo in (signal.SIGTERM, signal.SIGHUP):  # the modes are put back first
            signal.signal(signo, lambda signo, _: sys.exit(128 + signo))
        try:
            self._set_modes(self._begin())
            while self.code is None:
                self._round()
        finally:
            if self.sits:
                signal.signal(signal.SIGWINCH, signal.SIG_DFL)
                with contextlib.suppress(termios.error):  # it has gone
                    termios.tcsetattr(0, termios.TCSADRAIN, before)
            self.sock.close()
        return self.code

    def _begin(self) -> int:
        """The keeper's first word; what there is."""
        self.sock.settimeout(ANSWER_LIMIT)
        try:
            packet = self._receive()
        except TimeoutError:
            raise _Trouble(f"the keeper of {self.name} does not answer (stopped with SIGSTOP?)") from None
        except OSError:
            packet = b""
        self.sock.setblocking(False)
        if packet[:1] == b"{":
            raise _Trouble(json.loads(packet)["error"]["message"])
        tag, body = _record(packet)
        if tag == REFUSED:
            number, _ = struct.unpack_from("<iI", body)
            why = {errno.EBUSY: "as many clients as it takes are attached", errno.ESRCH: "it has just ended"}
            raise _Trouble(f"the keeper of {self.name} refuses: {why.get(number) or os.strerror(number)}")
        if tag != ATTACHED:
            raise _Trouble(f"the keeper of {self.name} has gone, or is of a version that cannot do this")
        flags, _pid = struct.unpack_from("<Ii", body)
        way = "Ctrl-] leaves" if self.sits else "the end of the input leaves"
        if not flags & HAS_INPUT:
            way = f'it takes no input: set pty = true, or stdin = "pipe"; {way}'
        self._say(f"attached to {self.name}; {way}")
        return flags  # type: ignore[no-any-return]

    def _set_modes(self, flags: int) -> None:
        if not self.sits:
            return
        if flags & HAS_TERMINAL:
            self.raw = True
            tty.setraw(0, termios.TCSANOW)
            signal.signal(signal.SIGWINCH, lambda *_: self._tell_window())
            self._tell_window()
        else:  # lines are made here; this key ends one at once
            modes = termios.tcgetattr(0)
            modes[6][termios.VEOL] = ESCAPE
            termios.tcsetattr(0, termios.TCSANOW, modes)

    # ---- what happens

    def _round(self) -> None:
        poll = select.poll()
        due = select.POLLOUT if self.typed or self.window_due else 0
        poll.register(self.sock, select.POLLIN | due)
        if self.reading and (self.sits or not self.typed):
            poll.register(0, select.POLLIN)
        # Once a second, for a change of window while the socket was full.
        for fd, events in poll.poll(1000 if self.window_due else None):
            if fd == 0:
                self._take_typed()
            elif events & ~select.POLLOUT:
                self._hear()
            elif self.window_due:
                self._tell_window()
        self._send_typed()

    def _take_typed(self) -> None:
        try:
            data = os.read(0, INPUT_MAX)
        except OSError:  # the terminal has gone
            data = b""
        text, key, _ = data.partition(ESCAPE) if self.sits else (data, b"", b"")
        if len(self.typed) + len(text) > TYPED_MAX:
            os.write(2, b"\a")
        else:
            self.typed += text
        if key or (self.sits and not data):
            self._send_typed()
            self._leave()
        elif not data:
            self.reading = False
            self._send_typed()

    def _send_typed(self) -> None:
        try:
            while self.typed:
                self._send(INPUT, bytes(self.typed[:INPUT_MAX]))
                del self.typed[:INPUT_MAX]
            if not self.reading:
                self.sock.shutdown(socket.SHUT_WR)  # the keeper hangs up when it has taken all
        except BlockingIOError:
            pass
        except OSError:
            self.typed.clear()  # what was said before the end is still to be read

    def _send(self, tag: int, body: bytes) -> None:
        self.sock.send(HEAD.pack(tag, 0, len(body)) + body)

    def _tell_window(self) -> None:
        try:
            columns, rows = os.get_terminal_size(0)
        except OSError:
            return  # it has gone
        if not rows or not columns:
            return  # nobody knows
        try:
            self._send(WINDOW, struct.pack("<II", rows, columns))
            self.window_due = False
        except BlockingIOError:
            self.window_due = True
        except OSError:
            pass  # gone; that will be read

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(PACKET)
        except ConnectionResetError:  # told once, ahead of what was said before
            return self.sock.recv(PACKET)

    def _hear(self) -> None:
        try:
            tag, body = _record(self._receive())
        except BlockingIOError:
            return
        if tag == RECENT:
            self._show(body.replace(b"\n", b"\r\n") if self.raw else body)
        elif tag == OUTPUT:
            self._show(body)
        elif tag == SKIPPED:
            self._say(f"{struct.unpack_from('<Q', body)[0]} bytes were skipped: they are in the log")
        elif tag == ENDED:
            code, status = struct.unpack_from("<ii", body)
            self.code = status if code == 1 else 128 + status
            how = f"has exited with code {status}" if code == 1 else f"was killed by signal {status}"
            self._say(f"{self.name} {how}")
        elif tag == 0 and not self.reading:
            self._leave()
        elif tag == 0:
            self._say(f"the connection to {self.name} has ended: holdfast status says how it is")
            self.code = 1

    def _leave(self) -> None:
        self._say(f"left {self.name}, which goes on")
        self.code = 0

    def _show(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError:
            self.code = 0  # nobody looks any more

    def _say(self, text: str) -> None:
        end = "\r\n" if self.raw else "\n"
        with contextlib.suppress(OSError):  # nobody looks
            os.write(2, f"{end if self.raw else ''}[holdfast: {text}]{end}".encode())


def _record(packet: bytes) -> tuple[int, bytes]:
    """Tag and body; (0, b"") for the end of the connection."""
    if len(packet) < HEAD.size:
        return 0, b""
    tag, _, length = HEAD.unpack_from(packet)
    return tag, packet[HEAD.size : HEAD.size + length]
