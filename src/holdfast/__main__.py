"""`python -m holdfast`: the same as the `holdfast` command."""

import sys

from .cli.main import main

sys.exit(main(sys.argv))
