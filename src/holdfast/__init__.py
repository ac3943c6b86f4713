"""holdfast: processes held by file descriptor, never by number.

`run` a command bounded and contained; `spawn` one and hold its handle; `attach` to one that has outlived
its owner.  See the README.

Names are loaded at first use, so that `import holdfast` costs nothing and `holdfast run` can exec
the keeper before anything else is imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .process.errors import CalledProcessError, KeeperLost, SpawnError, TimeoutExpired
    from .process.handle import Process
    from .process.options import DEVNULL, PIPE, STDOUT
    from .process.pipeline import CompletedPipeline, pipeline
    from .process.popen import Popen
    from .process.run import CompletedProcess, capture, run
    from .process.runner import Runner
    from .process.spawn import attach, spawn
    from .process.status import ExitStatus, Member, StopReport, Usage
    from .process.waits import forward_waits

__version__ = "0.1.0"

__all__ = (
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedPipeline",
    "CompletedProcess",
    "ExitStatus",
    "KeeperLost",
    "Member",
    "Popen",
    "Process",
    "Runner",
    "SpawnError",
    "StopReport",
    "TimeoutExpired",
    "Usage",
    "attach",
    "capture",
    "forward_waits",
    "pipeline",
    "run",
    "spawn",
)

_HOMES = {
    "errors": ("CalledProcessError", "KeeperLost", "SpawnError", "TimeoutExpired"),
    "handle": ("Process",),
    "options": ("DEVNULL", "PIPE", "STDOUT"),
    "pipeline": ("CompletedPipeline", "pipeline"),
    "popen": ("Popen",),
    "run": ("CompletedProcess", "capture", "run"),
    "runner": ("Runner",),
    "spawn": ("attach", "spawn"),
    "status": ("ExitStatus", "Member", "StopReport", "Usage"),
    "waits": ("forward_waits",),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    from importlib import import_module

    home = next(home for home, names in _HOMES.items() if name in names)
    module = import_module(f"holdfast.process.{home}")
    for each in _HOMES[home]:
        globals()[each] = getattr(module, each)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
