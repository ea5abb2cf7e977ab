"""A key that is unknown where it stands: where else in the configuration it is known, or nearly so.

Knows the dataclasses' fields, and no key by name.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from weft_registry.names import nearest


def paths(cls: type[Any], blocks: Mapping[str, type[Any]], where: str = "") -> Iterator[str]:
    """The dotted paths of all that a `cls` may say, within what are dataclasses themselves too. `blocks` has, by its
    path, the dataclass of a block that may be one of several."""
    kinds = typing.get_type_hints(cls)
    for field in fields(cls):
        path = f"{where}.{field.name}" if where else field.name
        yield path
        kind = blocks.get(path, kinds[field.name])
        if is_dataclass(kind) and isinstance(kind, type):
            yield from paths(kind, blocks, path)


def hint(wrong: str, known: Sequence[str]) -> str | None:
    """What to do about the key at the path `wrong`, which is not `known` there; None where no other place is nearer."""
    if wrong in known:
        *blocks, text = f"{wrong}: ...".split(".", wrong.count("."))
        for block in reversed(blocks):
            text = f"{block}: {{{text}}}"
        return f"dots reach inside on the command line alone; write {text}"
    here, _, key = wrong.rpartition(".")
    places = [path if "." in path else f"{path} at the top" for path in known if _last(path) == key]
    if places:
        return f"its place is {' or '.join(places)}"
    beside = [_last(path) for path in known if path.rpartition(".")[0] == here]
    near = nearest(key, [_last(path) for path in known], most=1)
    if not near or not beside or near[0] in beside:
        return None
    return f"nearest: {', '.join(path for path in known if _last(path) == near[0])}"


def _last(path: str) -> str:
    return path.rpartition(".")[2]
