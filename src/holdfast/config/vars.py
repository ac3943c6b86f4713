"""`${VAR}` in strings of a configuration.  Looked up where the supervisor is started, not in the service's `env`.

`${VAR}` is the variable's value, `${VAR:-default}` the default where it is unset or empty, `$$` one dollar sign.  An
unset variable without default is an error.  `$VAR` is an error, too: shells would replace it, this does not, and
nobody sees which was meant.  Any other `$` (`$1`, `$?`, one at the end) stands for itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def _starts_name(char: str) -> bool:
    return char.isascii() and (char.isalpha() or char == "_")


def _name_end(text: str, at: int) -> int:
    """Where the name that begins there ends: at itself, if none does."""
    if at < len(text) and _starts_name(text[at]):
        at += 1
        while at < len(text) and (_starts_name(text[at]) or text[at] in "0123456789"):
            at += 1
    return at


def expand(text: str, environ: Mapping[str, str]) -> str:
    """The text with its variables replaced.  ValueError says which variable, and what to write."""
    result = []
    at = 0
    while True:
        dollar = text.find("$", at)
        if dollar < 0:
            result.append(text[at:])
            return "".join(result)
        result.append(text[at:dollar])
        following = text[dollar + 1 : dollar + 2]
        at = dollar + 2
        if following == "$":
            result.append("$")
        elif following == "{":
            end = text.find("}", at)
            if end < 0:
                raise ValueError("`${` without `}`: write $${ for the text itself, or quote what has spaces")
            result.append(_value(text[at:end], environ))
            at = end + 1
        elif _starts_name(following):
            name = text[dollar + 1 : _name_end(text, dollar + 1)]
            raise ValueError(f"`${name}` has no braces: write ${{{name}}}, or $${name} for the text itself")
        else:
            result.append("$")
            at = dollar + 1


def _value(inside: str, environ: Mapping[str, str]) -> str:
    # The text itself is not shown, beyond the name: it may be a secret that was not meant as a variable.
    end = _name_end(inside, 0)
    name, colon, default = inside[:end], inside[end : end + 2], inside[end + 2 :]
    if not name or colon not in ("", ":-"):
        raise ValueError(
            f"`${{{name}…}}` is no variable: ${{VAR}} and ${{VAR:-default}} are; write $${{ for the text itself"
        )
    if "${" in default:
        raise ValueError(f"the default of ${{{name}}} has a variable of its own: it cannot")
    value = environ.get(name, "")
    if value == "" and colon:
        return default
    if name not in environ:
        raise ValueError(f"the variable {name} is not set: set it, or write ${{{name}:-default}}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the value of the variable {name} is not UTF-8") from None
    return value
