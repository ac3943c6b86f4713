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


def _is_name(text: str) -> bool:
    return text != "" and _starts_name(text[0]) and all(c.isascii() and (c.isalnum() or c == "_") for c in text)


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
            end = at
            while end < len(text) and (_starts_name(text[end]) or text[end] in "0123456789"):
                end += 1
            name = text[dollar + 1 : end]
            raise ValueError(f"`${name}` has no braces: write ${{{name}}}, or $${name} for the text itself")
        else:
            result.append("$")
            at = dollar + 1


def _value(inside: str, environ: Mapping[str, str]) -> str:
    name, colon, default = inside.partition(":")
    if not _is_name(name) or (colon and not default.startswith("-")):
        raise ValueError(f"`${{{inside}}}` is no variable: ${{VAR}} and ${{VAR:-default}} are")
    if "${" in default:
        raise ValueError(f"`${{{inside}}}`: a default cannot have variables of its own")
    value = environ.get(name, "")
    if value == "" and colon:
        return default[1:]
    if name not in environ:
        raise ValueError(f"the variable {name} is not set: set it, or write ${{{name}:-default}}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the value of the variable {name} is not UTF-8") from None
    return value
