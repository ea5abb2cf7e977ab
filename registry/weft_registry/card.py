"""The model card's front matter: YAML that clients read, looked at as a stream of events before anybody builds it.

A few hundred bytes of YAML can stand for gigabytes (aliases of aliases) or for a call into Python (tags), and the
readers of Hub clients build whatever they are given. A card says its licence and its base without either.
"""

from __future__ import annotations

import re

from weft_registry.errors import InvalidInputError

MAX_BYTES = 1 << 20
"""Of the whole card."""
MAX_FRONT_MATTER_BYTES = 256 << 10
MAX_DEPTH = 16
# What `huggingface_hub` takes for front matter: the lines between a first line of three hyphens and the next such line.
_BEGIN = re.compile(rb"\s*---[\r\n]")
_END = re.compile(rb"[\r\n]---(?=[\r\n]|\Z)")
# Clients look for the end with an expression that takes the square of this many steps.
_LINE_BREAKS = re.compile(rb"[\r\n]{1000}")


def check(data: bytes, what: str = "README.md") -> None:
    """Raises `InvalidInputError` for a card that is too large or not UTF-8, or whose front matter is not plain YAML."""
    if len(data) > MAX_BYTES:
        raise InvalidInputError(f"{what}: more than {MAX_BYTES} bytes")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{what}: not UTF-8: {error}") from error
    begin = _BEGIN.match(data)
    if begin is None:
        return
    end = _END.search(data, begin.end() - 1)
    if _LINE_BREAKS.search(data):
        problem: str | None = "is looked for among a thousand line breaks in a row"
    else:
        problem = _problem(data[begin.end() : end.start()]) if end else None
    if problem:
        raise InvalidInputError(f"{what}: its front matter {problem}")


def _problem(front_matter: bytes) -> str | None:
    """What is wrong with it, if anything."""
    if len(front_matter) > MAX_FRONT_MATTER_BYTES:
        return f"has {len(front_matter)} bytes; at most {MAX_FRONT_MATTER_BYTES}"
    # Imported here: only a publish needs it.
    import yaml

    depth, first = 0, True
    # The C parser where there is one: it is fifty times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for event in yaml.parse(front_matter, Loader=loader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                return "has an anchor or an alias (& or *): write the value out"
            if isinstance(event, yaml.NodeEvent):
                if getattr(event, "tag", None) is not None:
                    return "has a tag (!): only plain values are read"
                if first and not isinstance(event, yaml.MappingStartEvent):
                    return "is not a mapping of keys to values"
                first = False
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    return f"nests deeper than {MAX_DEPTH} levels"
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError as error:
        return f"is not YAML: {' '.join(str(error).split())[:200]}"
    return None
