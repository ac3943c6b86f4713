"""Daemons of Debian that fork away by themselves, as services of `type = "forking"`, without pid files.

What status says is compared with what the daemons themselves tell: their answers, and the pid files that they write
for nobody but these tests.  That nothing is left is seen from outside: by descriptors of every process that was below
the keeper, and by who has files of the test's directory open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import tomllib
from typing import Self

import pytest
from conftest import require
from helpers_daemons import PATH, STYLES, Instance, listeners, sockets_of
from helpers_supervisor import Running, keeper_of, kill
from helpers_wait import all_ended, wait_for

QUICK = "backoff = { first = '0s', then = '50ms', max = '200ms' }\nstart_limit = 0\n"


def instance(style: str, directory, number: int = 1, address: tuple[str, int] | None = None) -> Instance:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", PATH)
        require(style)
    made = Instance(STYLES[style], f"{style}-{number}", directory, address)
    made.toml += QUICK
    return made


class Daemons(Running):
    """In the end nobody uses files of the directory: of a failed test, too, whose daemons may have lost every mark."""

    def __exit__(self, *exc: object) -> None:
        try:
            super().__exit__(*exc)
        finally:
            left = who_use(self.directory)
            for pid in left:
                with contextlib.suppress(OSError):
                    fd = os.pidfd_open(pid)
                    if pid in who_use(self.directory):
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                    os.close(fd)
        assert not left


def running(directory, *instances: Instance) -> Running:
    return Daemons(directory, "".join(each.toml for each in instances), PATH=PATH)


def tree_of(keeper: int) -> set[int]:
    """All that lives below it."""
    found, todo = set(), [keeper]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
            todo += map(int, file.read().split())
        found.add(pid)
    return found - {keeper}


class Held:
    """Descriptors of processes, opened while these live: whether they have ended cannot be mistaken."""

    def __init__(self, pids) -> None:
        self.fds = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                self.fds.append(os.pidfd_open(pid))

    def living(self) -> int:
        alive = 0
        for fd in self.fds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, 0)
                alive += 1  # a zombie still counts
        return alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        for fd in self.fds:
            os.close(fd)


def who_use(directory) -> dict[int, str]:
    """Processes that have files below the directory open, or name it in their command line."""
    found = {}
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/cmdline") as file:
                words = file.read()
            links = [os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")]
            if int(entry) != os.getpid() and any(str(directory) in each for each in [words, *links]):
                found[int(entry)] = words
    return found


def is_right(up: Running, one: Instance, **fields) -> dict:
    """Wait until it is ready; at this moment it answers, and the main process is whom the daemon itself names."""
    status = up.until(one.name, ready=True, **fields)
    assert one.mistaken(status["pid"]) == ""
    assert status["main"]["rule"] == "only"
    if one.style.own_pid_file:  # some write it after they have listened
        wait_for(lambda: one.pid_file() == status["pid"], what=lambda: f"{one.pid_file()} written, {status}")
    tree = tree_of(keeper_of(status["pid"]))
    inodes = listeners(one.address)
    assert inodes
    owners = {pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if sockets_of(pid) & inodes}
    assert owners
    assert owners <= tree, f"{owners} listen, {tree} is the service"
    return status


@pytest.mark.parametrize("style", STYLES)
def test_a_daemon_is_a_service(tmp_path, style):
    """Two of a kind: ready when they answer, the main process is the right one, its end is noticed, and a stop leaves
    nothing; neither is touched by what happens to the other."""
    one, two = instance(style, tmp_path, 1), instance(style, tmp_path, 2)
    with running(tmp_path, one, two) as up:
        first, other = is_right(up, one), is_right(up, two)
        with Held(tree_of(keeper_of(first["pid"]))) as old:
            assert len(old.fds) > 0
            kill(first["pid"])
            status = is_right(up, one, incarnation=2)
            assert old.living() == 0
        assert status["last_exit"]["signal"] == "SIGKILL"
        with Held(tree_of(keeper_of(status["pid"]))) as old:
            up.holdfast("stop", one.name)
            assert old.living() == 0
        assert one.refuses()
        assert is_right(up, two)["pid"] == other["pid"]
        assert up.client().service(two.name)["incarnation"] == 1
    assert two.refuses()


def test_an_address_that_is_taken(tmp_path):
    """A second copy fails: in the process that was started, in the one that came of it, in the last of three.
    The first copy does not notice."""
    firsts = [instance(style, tmp_path, 1) for style in ("lighttpd", "memcached", "tinyproxy")]
    seconds = [instance(one.style.name, tmp_path, 2, one.address) for one in firsts]
    for one, two in zip(firsts, seconds, strict=True):
        two.toml = two.toml.replace("start_limit = 0", f"start_limit = 3\nrequires = ['{one.name}']")
    with running(tmp_path, *firsts, *seconds) as up:
        before = [is_right(up, one)["pid"] for one in firsts]
        for two in seconds:
            assert up.until(two.name, state="fatal")["last_exit"]["code"] not in (None, 0)
        assert [is_right(up, one, incarnation=1)["pid"] for one in firsts] == before
        assert [up.of_service(two.name) for two in seconds] == [[], [], []]


@pytest.mark.parametrize("main", ["", "redis-server"])
def test_a_script_that_starts_two_daemons(tmp_path, main):
    """Both lead sessions of their own: the older one is main, or the one with the name that was given."""
    memory, redis = instance("memcached", tmp_path), instance("redis-server", tmp_path)
    words = tomllib.loads(memory.toml)["service"][memory.name]["command"]
    script = f"{' '.join(words)} && redis-server {redis.file}"
    redis.toml = f"[service.both]\ntype = 'forking'\ncommand = 'sh -c \"{script}\"'\n{QUICK}"
    redis.toml += f"ready = {{ tcp = '{redis.address[0]}:{redis.address[1]}' }}\n"
    redis.toml += f"main = '{main}'\n" if main else ""
    with running(tmp_path, redis) as up:
        for incarnation in (1, 2):
            status = up.until("both", ready=True, incarnation=incarnation)
            assert status["main"]["rule"] == ("name" if main else "session")
            tree = tree_of(keeper_of(status["pid"]))
            server = wait_for(lambda tree=tree: (pid := redis.pid_file()) in tree and pid)  # that of before is left
            with Held(tree) as held:
                assert held.living() == 2
                assert (server == status["pid"]) == bool(main)
                assert redis.mistaken(server) == ""
                assert (memory.mistaken(status["pid"]) == "") == (not main)
                kill(status["pid"])
                up.until("both", incarnation=incarnation + 1)
                assert held.living() == 0
    assert memory.refuses()
    assert redis.refuses()


@pytest.mark.parametrize("ready", ["tcp", "notify"])
def test_who_answers_before_the_fork_is_over_is_not_ready_yet(tmp_path, ready):
    """The daemon serves, and the process that was started still lives: nobody knows who main is, nor how that ends."""
    redis = instance("redis-server", tmp_path)
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    say = "" if ready == "tcp" else "systemd-notify --ready --pid=parent; "
    script = f"redis-server {redis.file}; {say}read line < '{go_on}'"
    table = f"{{ tcp = '{redis.address[0]}:{redis.address[1]}' }}" if ready == "tcp" else "{ notify = true }"
    text = f"[service.redis]\ntype = 'forking'\ncommand = [\"sh\", \"-c\", \"{script}\"]\nready = {table}\n"
    with Daemons(tmp_path, text, PATH=PATH) as up:
        status = up.until("redis", lambda status: "has not ended yet" in status["reason"])
        assert (status["state"], status["ready"], status["main"]) == ("starting", False, None)
        wait_for(lambda: redis.pid_file() and not redis.mistaken(redis.pid_file()))
        go_on.write_text("now\n")
        status = up.until("redis", ready=True)
        assert (status["pid"], status["main"]["rule"]) == (redis.pid_file(), "only")


class Requests:
    """Asks an instance again and again, in a thread; `wrong` has every answer that was not right."""

    def __init__(self, one: Instance) -> None:
        self.one = one
        self.count = 0
        self.wrong: list[str] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.go)

    def go(self) -> None:
        while not self.done.is_set():
            if trouble := self.one.mistaken(0):
                self.wrong.append(trouble)
            self.count += 1

    def more(self) -> None:
        """Until as many again as are enough to meet whatever goes wrong."""
        wanted = self.count + 20
        wait_for(lambda: self.count >= wanted)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.done.set()
        self.thread.join()


def upgrade_nginx(one: Instance, old: int) -> int:
    """As its manual says: USR2, a new master comes; QUIT to the old one.  The new one's pid, once the old has ended."""
    kill(old, signal.SIGUSR2)
    wait_for(lambda: one.pid_file() not in (None, old))
    new = one.pid_file()
    assert new
    with Held([old]) as held:
        kill(old, signal.SIGQUIT)
        assert all_ended([old])
        wait_for(lambda: held.living() == 0)
    return new


def test_upgrade_of_nginx_is_followed_and_no_request_fails(tmp_path):
    one = instance("nginx", tmp_path)
    with running(tmp_path, one) as up:
        pid = is_right(up, one)["pid"]
        for _ in range(2):
            with Requests(one) as requests:
                requests.more()
                new = upgrade_nginx(one, pid)
                status = up.until(one.name, pid=new)
                requests.more()
            assert requests.wrong == []
            assert (status["incarnation"], status["ready"], status["state"]) == (1, True, "running")
            assert is_right(up, one)["pid"] == new != pid
            pid = new
        kill(pid)
        assert is_right(up, one, incarnation=2)["pid"] != pid
        with Held(tree_of(keeper_of(up.client().service(one.name)["pid"]))) as held:
            up.holdfast("stop", one.name)
            assert held.living() == 0
    assert one.refuses()


def test_stop_in_the_middle_of_an_upgrade_leaves_nothing(tmp_path):
    """Two masters with their workers, one the child of the other."""
    one = instance("nginx", tmp_path)
    with running(tmp_path, one) as up:
        old = is_right(up, one)["pid"]
        kill(old, signal.SIGUSR2)
        wait_for(lambda: one.pid_file() not in (None, old))
        status = up.client().service(one.name)
        assert (status["pid"], status["incarnation"]) == (old, 1)
        with Held(tree_of(keeper_of(old))) as held:
            up.holdfast("stop", one.name)
            assert held.living() == 0
    assert one.refuses()


def test_haproxy_that_executes_itself_anew_stays_main(tmp_path):
    one = instance("haproxy", tmp_path)
    with running(tmp_path, one) as up:
        pid = is_right(up, one)["pid"]
        workers = tree_of(keeper_of(pid)) - {pid}
        with Requests(one) as requests:
            requests.more()
            up.holdfast("reload", one.name)
            assert all_ended(workers)  # the new ones have taken over
            requests.more()
        assert requests.wrong == []
        status = is_right(up, one)
        assert (status["pid"], status["incarnation"]) == (pid, 1)
        assert tree_of(keeper_of(pid)) - {pid}


def kill_supervisor(up: Running) -> None:
    pid = up.client().supervisor()["pid"]
    with Held([pid]) as held:
        kill(pid)
        wait_for(lambda: held.living() == 0)
    up.wait_for_socket()


def kill_anchor_too(up: Running) -> None:
    assert up.process
    supervisor = up.client().supervisor()["pid"]
    with Held([supervisor]) as held:
        up.process.kill()
        up.process.wait()
        wait_for(lambda: held.living() == 0)
    up.up()
    up.wait_for_socket()


def said(status: dict) -> dict:
    return {key: status[key] for key in ("pid", "incarnation", "ready", "state", "restarts", "main")}


def test_the_next_supervisor_has_them_all_as_they_are(tmp_path):
    """Every style, and one that has moved: the same pid, rule and readiness, and each is as well held as before."""
    several = [instance(style, tmp_path) for style in STYLES]
    nginx = several[0]
    with running(tmp_path, *several) as up:
        for each in several:
            is_right(up, each)
        moved = upgrade_nginx(nginx, up.client().service(nginx.name)["pid"])
        up.until(nginx.name, pid=moved)
        before = {each.name: said(up.client().service(each.name)) for each in several}
        for lose in (kill_supervisor, kill_anchor_too):
            lose(up)
            assert {each.name: said(up.client().service(each.name)) for each in several} == before
            for each in several:
                is_right(up, each, incarnation=1)
        for each in several:
            kill(before[each.name]["pid"])
        for each in several:
            is_right(up, each, incarnation=2)
    assert all(each.refuses() for each in several)


def test_an_upgrade_that_no_supervisor_sees_is_followed(tmp_path):
    """The keeper follows; whoever comes then is told."""
    one = instance("nginx", tmp_path)
    with running(tmp_path, one) as up:
        pid = is_right(up, one)["pid"]
        supervisor = up.client().supervisor()["pid"]
        assert up.process
        with Held([supervisor]) as held:
            up.process.kill()
            up.process.wait()
            wait_for(lambda: held.living() == 0)
        with Requests(one) as requests:
            new = upgrade_nginx(one, pid)
            up.up()
            up.wait_for_socket()
            requests.more()
        assert requests.wrong == []
        status = is_right(up, one)
        assert (status["pid"], status["incarnation"]) == (new, 1)
        kill(new)
        is_right(up, one, incarnation=2)
