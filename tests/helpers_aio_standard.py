"""CPython's own tests of asyncio.subprocess, pointed at holdfast.aio.  Run as a program: asyncio or uvloop.

`create_subprocess_exec` and `create_subprocess_shell` give processes of holdfast in the shape that asyncio has for
them; the tests are those of the running interpreter's `test` package.
"""

from __future__ import annotations

import asyncio
import sys
import unittest

import anyio
from test.test_asyncio import test_subprocess as standard

from holdfast import aio

# Tests of asyncio's own machinery: they replace its parts and look whether these were called (docs/aio.md).
OF_ITS_PARTS = {
    "test_pause_reading": "looks at asyncio's pipe transport",
    "test_cancel_post_init": "loop.subprocess_exec: its transports",
    "test_close_kill_running": "loop.subprocess_exec: its transports",
    "test_close_dont_kill_finished": "loop.subprocess_exec: its transports",
    "test_popen_error": "replaces subprocess.Popen",
    "test_popen_error_with_stdin_pipe": "replaces subprocess.Popen",
}


class Reader:
    """An asyncio.StreamReader's face on a receive stream."""

    def __init__(self, stream) -> None:
        self._stream = stream
        self._rest = b""

    async def _more(self) -> bool:
        try:
            self._rest += await self._stream.receive()
        except anyio.EndOfStream:
            return False
        return True

    async def read(self, n: int = -1) -> bytes:
        while (n < 0 or not self._rest) and await self._more():
            pass
        size = len(self._rest) if n < 0 else n
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def readline(self) -> bytes:
        while b"\n" not in self._rest and await self._more():
            pass
        line, end, self._rest = self._rest.partition(b"\n")
        return line + end


class Writer:
    """An asyncio.StreamWriter's face on a send stream."""

    def __init__(self, stream) -> None:
        self._stream = stream
        self._waiting = b""

    def write(self, data: bytes) -> None:
        self._waiting += data

    async def drain(self) -> None:
        data, self._waiting = self._waiting, b""
        try:
            await self._stream.send(data)
        except anyio.BrokenResourceError:
            raise BrokenPipeError from None

    def close(self) -> None:
        self._stream.close()

    async def wait_closed(self) -> None:
        pass


class Process:
    """An asyncio.subprocess.Process's face on ours."""

    def __init__(self, process: aio.Process) -> None:
        self.process = process
        self.stdin = process.stdin and Writer(process.stdin)
        self.stdout = process.stdout and Reader(process.stdout)
        self.stderr = process.stderr and Reader(process.stderr)

    def __getattr__(self, name: str):
        return getattr(self.process, name)  # pid, returncode, wait, send_signal, terminate, kill

    async def communicate(self, input=None):
        async def feed():
            if self.stdin:
                try:
                    if input:
                        self.stdin.write(input)
                        await self.stdin.drain()
                except BrokenPipeError:
                    pass
                self.stdin.close()

        async def read(reader):
            return await reader.read() if reader else None

        _, out, err = await asyncio.gather(feed(), read(self.stdout), read(self.stderr))
        await self.wait()
        return out, err


STARTED: list[Process] = []


async def create(args, options, shell):
    for word in ("text", "universal_newlines", "encoding", "errors"):
        if options.pop(word, None):
            raise ValueError(f"{word} must be False")
    if options.pop("bufsize", 0):
        raise ValueError("bufsize must be 0")
    options.pop("limit", None), options.pop("creationflags", None), options.pop("close_fds", None)
    options["new_session"] = options.pop("start_new_session", False)
    options = {"stdin": None, "stdout": None, "stderr": None, **options}
    started = Process(await aio.open_process(args, shell=shell, grace=0, **options))
    STARTED.append(started)
    return started


async def create_subprocess_exec(*args, **options):
    return await create(args, options, shell=False)


async def create_subprocess_shell(cmd, **options):
    if not isinstance(cmd, (str, bytes)):
        raise ValueError("cmd must be a string")
    return await create(cmd, options, shell=True)


class Tests(standard.SubprocessMixin, unittest.TestCase):
    def setUp(self) -> None:
        if sys.argv[1] == "uvloop":
            import uvloop

            self.loop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)

    def tearDown(self) -> None:
        while STARTED:
            self.loop.run_until_complete(STARTED.pop().aclose())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        asyncio.set_event_loop(None)


def main() -> None:
    asyncio.create_subprocess_exec = asyncio.subprocess.create_subprocess_exec = create_subprocess_exec
    asyncio.create_subprocess_shell = asyncio.subprocess.create_subprocess_shell = create_subprocess_shell
    for name, reason in OF_ITS_PARTS.items():
        if hasattr(Tests, name):
            setattr(Tests, name, unittest.skip(reason)(getattr(Tests, name)))
    result = unittest.TextTestRunner(stream=sys.stdout).run(unittest.defaultTestLoader.loadTestsFromTestCase(Tests))
    passed = result.testsRun - len(result.skipped) - len(result.failures) - len(result.errors)
    print(f"passed {passed}, of parts {len(OF_ITS_PARTS)}, skipped {len(result.skipped)}")
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main()
