"""The names of capabilities(7), in the order of their numbers, and sets of them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    Capabilities: TypeAlias = Iterable[str] | Mapping[str, Iterable[str]]

NAMES = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
SETS = ("ambient", "bounding")


def plain_name(name: str) -> str:
    """ "CAP_NET_RAW", "net_raw" -> "net_raw".  ValueError, TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"a capability is a name, not {name!r}")
    plain = (name.lower() if name.isupper() else name).removeprefix("cap_")
    if plain not in NAMES:
        raise ValueError(f"no such capability: {name!r}")
    return plain


def capability_sets(given: Capabilities) -> dict[str, tuple[str, ...]]:
    """Which set shall have which, by the words of SETS; a set that is not named stays as it is.  ValueError, TypeError.

    A list of names is meant for both sets."""
    if isinstance(given, str):
        raise TypeError(f"capabilities must be a list of names, not {given!r}")
    if not hasattr(given, "items"):
        names = tuple(given)
        given = dict.fromkeys(SETS, names)
    sets = {}
    for word, names in given.items():
        if word not in SETS:
            raise ValueError(f"capabilities has the sets {' and '.join(SETS)}, not {word!r}")
        if isinstance(names, str):
            raise TypeError(f"capabilities must be a list of names, not {names!r}")
        sets[word] = tuple(dict.fromkeys(map(plain_name, names)))
    if "bounding" in sets and (beyond := set(sets.get("ambient", ())) - set(sets["bounding"])):
        raise ValueError(f"ambient has what bounding has not: {', '.join(sorted(beyond))}")
    return sets


def as_bits(names: Iterable[str]) -> int:
    """Names that `capability_sets` gave, as the kernel has them: bit n is number n."""
    return sum(1 << NAMES.index(name) for name in names)
