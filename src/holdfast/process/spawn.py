"""`spawn`: start one process, and give it a keeper.  `attach`: come back to one that has outlived its owner."""

from __future__ import annotations

from . import tier
from .direct import DirectTree
from .handle import Process
from .kept import KeptTree
from .options import make_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Unpack

    from .options import Command, Plan, SpawnOptions, StrPath


def spawn(args: Command, **options: Unpack[SpawnOptions]) -> Process:
    """Start a command and return its handle when it runs (exec has succeeded).

    `args` is a list of arguments; a string only with `shell=True`.  The child inherits what the
    calling thread has at this moment, exactly as with subprocess.  Options, each with its default:

    - `cwd=None`, `env=None` (None: ours; a mapping: exactly that), `executable=None`, `shell=False`;
    - `stdin=None`, `stdout=None`, `stderr=None`: None (ours), PIPE, DEVNULL, a descriptor or a file;
      stderr also STDOUT; `pass_fds=()`: descriptors that keep their numbers (237 at most);
    - `new_session=False`, `process_group=None` (0: a group of its own), `umask=None`;
    - `user=None`, `group=None`, `extra_groups=None` (names or numbers; 1,024 groups at most),
      `nice=None` (added to ours), `rlimits=None` (`{"nofile": 64}` or `{"nofile": (soft, hard)}`);
    - `capabilities=None`: names, such as `["net_bind_service"]`, of those that it and all below it can have: they are
      the bounding set, and ambient, so that an ordinary user has them; or `{"ambient": names, "bounding": names}`;
    - `no_new_privs=False`, `oom_score_adj=None` (-1000 to 1000), `ioprio=None` ("idle", "best-effort:0" to
      "best-effort:7", "realtime:0" to "realtime:7", "none"), `cpu_affinity=None` (numbers of CPUs, or "0-3,5");
    - `on_owner_loss="stop"`: what happens to the tree when we end or drop the handle: "stop"
      (`stop_signal`, `grace`, KILL), "kill" or "keep";
    - `stop_signal="TERM"`, `stop_scope="group"` ("main", "group", "tree"), `grace=10.0` seconds;
    - `address=None`: a path.  The keeper listens there, and when we are gone or have released the handle another
      program of this user can `attach`; best with `on_owner_loss="keep"`.  The directory must be ours and writable
      by nobody else.  The process gets a session of its own, unless `process_group=0` is given;
    - `forking=False`.  True: the command ends with code 0 when it has left a daemon; spawn returns then, and the handle
      is the daemon's (which of several processes that is: docs/daemons.md).  `main=None`: the name of that process,
      as `ps` shows it.  `ready_timeout=90.0` seconds until it counts as failed, and is stopped;
    - `private=True`.  False: a direct child without a keeper: visible to waitpid(-1) and SIGCHLD of
      this program (`forward_waits` keeps them off), not contained, and nobody stops it when we are killed.
      From Linux 7.1 on the kernel reaps it: no zombie, no SIGCHLD at its end, no wait can take its status; but that has
      no `usage`.  There `on_owner_loss="kill"` may be given with it, as root or with `no_new_privs=True`: the kernel
      kills the process, and it alone, when the last copy of its descriptor closes.  Where no keeper can work
      (docs/notifiers.md) every process is a direct child, and a RuntimeWarning says so once.

    SpawnError: not started, with errno and stage; nothing is left (stage "fork": no daemon came of it).
    FileExistsError: the address is taken.  ValueError, TypeError: misuse, before anything is started.  Any thread.  A
    KeyboardInterrupt during the start undoes it, and nothing of it is left when that arrives; one that comes when spawn
    has returned and the result is not yet assigned drops the handle of a process that is started: `on_owner_loss`
    holds, and with "keep" it runs on.  With "keep", a keeper that somebody kills at that moment leaves a process that
    may run: KeeperLost where there is an `address`, which stays, else SpawnError.
    """
    return spawn_into([], args, options)


def spawn_into(held: list[Process], args: Command, options: SpawnOptions) -> Process:
    """As `spawn`, for those who stop what they have started whatever raises: it is in `held`, or it is undone."""
    if options.get("private", True) and tier.why_no_keeper():
        options = tier.without_keeper(options)
    plan = make_plan(args, **options)
    return start(plan, options.get("private", True), held)


def start(plan: Plan, private: bool, held: list[Process]) -> Process:
    tree: KeptTree | DirectTree | None = None
    try:
        tree = _at_address(plan) if plan.address else KeptTree.launch(plan) if private else DirectTree(plan)
        plan.close_child_files()
        if plan.forking and isinstance(tree, KeptTree):  # it is: make_plan has seen to that
            _await_daemon(tree, plan)
        process = Process(tree, plan)
        tree.started()
    except BaseException:
        if tree is not None:
            tree.drop()
        plan.discard()
        raise
    held.append(process)  # between started's end and this no handler runs
    return process


def _await_daemon(tree: KeptTree, plan: Plan) -> None:
    from .forking import await_daemon

    await_daemon(tree, plan)


def _at_address(plan: Plan) -> KeptTree:
    from .addressed import launch_held  # with what only those need who ask for it

    return launch_held(plan)


def attach(address: StrPath) -> Process:
    """Take over a process that was started with `spawn(address=...)` and has no owner now; return its handle.

    The owner before has released it, or has died; we must be of the same user.  The handle is like spawn's, with what
    happened meanwhile: `status` if it has ended, `report` of the last stop.  Its `args` is the address, pipes are
    not there, and `stop` has the library's defaults.  `on_owner_loss` and all else is as at the start.

    What became of it stays known at the address until nothing of the tree is left and the handle is closed; only then
    is the address free.  An owner who releases the handle, drops it or dies leaves all to the next.

    FileNotFoundError: nothing is there, or its end was taken.  BlockingIOError: not now: another owner has it
    (EALREADY), or its keeper does not answer for 3 s, as one that is stopped (EAGAIN).  PermissionError: it is another
    user's.  KeeperLost: its keeper was killed and has left nothing; the address stays until you remove it.
    SpawnError: its start had failed and nobody knew; the address is free.  Any thread.
    """
    from .addressed import take_over

    return take_over(address)
