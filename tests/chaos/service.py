"""A service of the chaos run: it writes down on its own what the supervisor claims of it.

    python3 -I -S service.py KIND DIRECTORY NAME INCARNATION

Files in DIRECTORY, each only ever appended to or replaced in place:
    NAME.births   "INCARNATION PID START-TIME" of every copy that ever began
    NAME.ends     "INCARNATION exit CODE", "INCARNATION term", before it ends in that way
    NAME.counts   8 bytes an incarnation: how many lines it has written
    NAME.doubles  whoever found the lock taken: part of an earlier copy was alive
    NAME.lock     held by every process of the tree, so free only when nothing of it is left
"""

import fcntl
import os
import random
import signal
import socket
import struct
import sys
import time

kind, directory, name, number = sys.argv[1:5]
if kind == "hider" and "HOLDFAST_SERVICE" in os.environ:  # nothing of what marks it as a service is left
    os.execve(sys.executable, [sys.executable, "-I", "-S", *sys.argv], {})
incarnation = int(number)
rng = random.Random(f"{name} {incarnation}")


def append(what, text):
    fd = os.open(f"{directory}/{name}.{what}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.write(fd, f"{incarnation} {text}\n".encode())
    os.close(fd)


def end(text, code):
    append("ends", text)
    os._exit(code)


def start_time():
    with open("/proc/self/stat") as file:
        return file.read().rpartition(")")[2].split()[19]


def stay():
    """What a descendant does: hold the lock, until a signal ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL if rng.random() < 0.7 else signal.SIG_IGN)
    while True:
        signal.pause()


def grow():
    """A child in a session of its own, and a grandchild that has lost its parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            stay()
        stay()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            stay()
        os._exit(0)
    os.waitpid(middle, 0)


def say_ready():
    """Said again and again: what lies in the socket unread dies with anchor and supervisor, and nobody can know."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.environ["NOTIFY_SOCKET"])
            sock.send(b"READY=1")
        except OSError:
            pass  # no anchor lives at this moment


signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else lambda *_: end("term", 0))
lock = os.open(f"{directory}/{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    append("doubles", f"{os.getpid()}")
append("births", f"{os.getpid()} {start_time()}")
counts = os.open(f"{directory}/{name}.counts", os.O_WRONLY | os.O_CREAT, 0o644)
if kind == "forker":
    grow()

life = {"crasher": rng.uniform(0.1, 4), "oneshot": 0.3}.get(kind, float("inf"))
until = time.monotonic() + life
written, heard, say_again = 0, True, 0.0
while (now := time.monotonic()) < until:
    if kind == "notify" and now >= say_again:
        say_ready()
        say_again = now + 1
    for _ in range(rng.randrange(5)):
        line = f"{name} {incarnation} {written + 1} {'.' * rng.randrange(200)}\n".encode()
        try:
            if heard:
                os.write(1, line)
        except BrokenPipeError:  # the keeper was killed: what is next is up to the supervisor
            heard = False
        else:
            written += heard
            os.pwrite(counts, struct.pack("<Q", written), 8 * incarnation)
    time.sleep(rng.uniform(0.02, 0.1))
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on it ends as it says
code = 0 if kind == "oneshot" else 1 + (7 * incarnation + len(name)) % 120
end(f"exit {code}", code)
