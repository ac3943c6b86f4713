"""Kills the supervisor that it is loaded into, from inside, at a named point: before its n-th call of a kind.

The file CHAOS_POINT names says "EVENT TEXT N": an audit event of Python, a part of its first argument, and how many
of those may pass.  It is taken by the first supervisor that finds it.  Programs other than supervisors ignore it.
"""

import os
import sys


def arm(event, text, left):
    def hook(name, arguments):
        nonlocal left
        if name == event and (text == "-" or text in str(arguments)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)  # ourselves

    sys.addaudithook(hook)


if "holdfast.cli.supervise" in sys.orig_argv and "CHAOS_POINT" in os.environ:
    try:
        with open(os.environ["CHAOS_POINT"]) as _file:
            _event, _text, _left = _file.read().split()
        os.unlink(os.environ["CHAOS_POINT"])
    except (OSError, ValueError):
        pass
    else:
        arm(_event, _text, int(_left))
