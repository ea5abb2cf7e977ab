"""A YAML file and `key=value` overrides as nested mappings that know where each key came from.

Knows nothing of what the keys mean. A place is a dotted path: "training.steps", "data.train[0].weight".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from weft_registry.errors import InvalidInputError, NotFoundError, WeftError
from weft_trainer.config.strict import ConfigError

_MERGE = "tag:yaml.org,2002:merge"
# What PyYAML's constructors raise of values that have a form and no meaning, such as the 41st of a month.
_NO_VALUE = (ValueError, AttributeError, KeyError)
_LEAVE_OUT = re.compile(r"leave \w+ out|(?:give|keep) one of the two")
_LEADING_PATH = re.compile(r"([A-Za-z_][\w.\[\]-]*): ")
_OVERRIDE = "override "
MAX_VALUES = 100_000
"""Keys and values of a document, whatever an alias stands for counted wherever it stands. A few hundred bytes, aliases
of aliases, can stand for billions."""


class YamlSource:
    """One document, and the origin of every key in it."""

    def __init__(self, path: Path) -> None:
        """Raises `NotFoundError` if there is no such file, `InvalidInputError` if it is no YAML mapping, or says a key
        twice in one place."""
        self._path = path
        self._origins: dict[str, str] = {"": str(path)}
        """Dotted path to "file:line:column" or "override KEY=VALUE"."""
        self._overridden = False
        text = _text(path)
        try:
            loader = yaml.SafeLoader(text)
        except ReaderError as error:
            line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
            raise InvalidInputError(
                f"{path}:{line}:{column}: not YAML: the character U+{error.character:04X} may not be in it; take it out"
            ) from error
        try:
            root = loader.get_single_node()
            if not isinstance(root, MappingNode):
                raise InvalidInputError(f"{path}{_no_mapping(root)}; write keys and values, one `KEY: VALUE` a line")
            check_size(root, str(path))
            self._refuse_twice(root)
            self.document: dict[str, Any] = loader.construct_document(root)
            self._record(loader, root, "")
        except yaml.YAMLError as error:
            raise InvalidInputError(f"{path}{_problem(error)}") from error
        except _NO_VALUE as error:
            raise InvalidInputError(f"{path}: {_no_value(error)}") from error
        except RecursionError:
            raise InvalidInputError(f"{path}: nested too deeply") from None
        finally:
            loader.dispose()

    def override(self, overrides: Sequence[str]) -> None:
        """Replaces or adds what each `dotted.key=value` says; the value is YAML, a number reaches into a list, and null
        takes a key back, as if nobody had said it."""
        for text in overrides:
            self._override(text)
        self._overridden = bool(overrides)

    def locate(self, error: InvalidInputError) -> InvalidInputError:
        """The same error, beginning with the file, line and column, or the override, that it is about."""
        path = path_of(error)
        message = f"{self.origin(path)}: {error.message}{self.way_back(path, error.message)}"
        return InvalidInputError(message, reason=error.reason)

    def way_back(self, path: str, message: str) -> str:
        """How to leave out what the file says where overrides are given, to end a message that asks for it with; empty
        where it does not."""
        said_here = path in self._origins and not self._origins[path].startswith(_OVERRIDE)
        if not (self._overridden and said_here and _LEAVE_OUT.search(message)) or f"{path}=null" in message:
            return ""
        return f" (on the command line {path}=null takes it back)"

    def origin(self, path: str) -> str:
        """Where a dotted path is said, or what holds it: file, line and column, or the override."""
        while path not in self._origins:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._origins[path]

    def _refuse_twice(self, root: Node) -> None:
        for node in _nodes(root):
            if isinstance(node, MappingNode):
                seen: dict[str, int] = {}
                for key, _ in node.value:
                    if isinstance(key, ScalarNode) and key.tag != _MERGE:
                        line = key.start_mark.line + 1
                        if key.value in seen:
                            where = f"{self._path}:{line}:{key.start_mark.column + 1}"
                            raise InvalidInputError(
                                f"{where}: {key.value}: said already in line {seen[key.value]}; keep one of the two"
                            )
                        seen[key.value] = line

    def _record(self, loader: yaml.SafeLoader, node: Node, path: str) -> None:
        if isinstance(node, MappingNode):
            # After construction the keys that `<<` brings stand before the mapping's own, which win.
            for key, value in node.value:
                at = f"{path}.{key.value}" if path else str(key.value)
                self._mark(at, key)
                self._record(loader, value, at)
                # As the document has it: `yes` is True there.
                name = loader.construct_object(key, deep=True)
                self._mark(f"{path}.{name}" if path else str(name), key)
        elif isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                self._mark(f"{path}[{index}]", item)
                self._record(loader, item, f"{path}[{index}]")

    def _mark(self, path: str, node: Node) -> None:
        self._origins[path] = f"{self._path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def _override(self, override: str) -> None:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise InvalidInputError(f"override {override!r}: expected KEY=VALUE, such as training.learning_rate=5e-4")
        if "[" in key:
            instead = key.strip().replace("[", ".").replace("]", "")
            raise InvalidInputError(f"override {override!r}: a number reaches into a list without brackets: {instead}")
        value = _load(text, override)
        origin, path = f"{_OVERRIDE}{override}", ""
        at: Any = self.document
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if isinstance(at, list):
                if not part.isdigit() or int(part) >= len(at):
                    raise InvalidInputError(
                        f"override {override!r}: {path} is a list of {len(at)}, and {part!r} is no index of it"
                    )
                index: Any = int(part)
                path = f"{path}[{part}]"
            elif isinstance(at, dict):
                index = part
                path = f"{path}.{part}" if path else part
                if not last and at.get(part) is None:
                    at[part] = {}
                    self._origins[path] = origin
            else:
                raise InvalidInputError(f"override {override!r}: {parts[number - 1]!r} is not a group of keys")
            if not last:
                at = at[index]
            elif value is None and text.strip() and isinstance(at, dict):
                # Written out: an empty value is a shell's variable that is not there.
                at.pop(index, None)
            else:
                at[index] = value
        # What lay below is gone, with its lines.
        for old in [known for known in self._origins if known.startswith((f"{path}.", f"{path}["))]:
            del self._origins[old]
        self._origins[path] = origin


def path_of(error: WeftError) -> str:
    """The dotted path that an error is about; empty where it names none."""
    if isinstance(error, ConfigError):
        return error.path
    # What refuses a combination of values, or what needs more than the document, names the key in its message.
    match = _LEADING_PATH.match(error.message)
    return match[1] if match else ""


def check_size(root: Node, what: str) -> None:
    """Raises `InvalidInputError` for a document that stands for more than `MAX_VALUES`, or for no end of them. Takes as
    long as the document is, not as what it stands for."""
    sizes: dict[int, int] = {}

    def where(node: Node) -> str:
        return f"{what}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def count(node: Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise InvalidInputError(f"{where(node)}: an alias within what it stands for")
            return sizes[id(node)]
        sizes[id(node)] = 0
        total = 1
        if isinstance(node, MappingNode):
            total += sum(count(part) for pair in node.value for part in pair)
        elif isinstance(node, SequenceNode):
            total += sum(count(item) for item in node.value)
        if total > MAX_VALUES:
            raise InvalidInputError(
                f"{where(node)}: this stands for {total:,} keys and values, its aliases (*) written out; at most "
                f"{MAX_VALUES:,}"
            )
        sizes[id(node)] = total
        return total

    count(root)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no YAML file at {path}") from None
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}; give a YAML file") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(
            f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x}; save the file in that encoding"
        ) from error


def _no_mapping(root: Node | None) -> str:
    """Where and what."""
    if root is None:
        return ": nothing is in it"
    found = "a list" if isinstance(root, SequenceNode) else "text"
    return (
        f":{root.start_mark.line + 1}:{root.start_mark.column + 1}: expected a mapping of keys to values, found {found}"
    )


def _no_value(error: Exception) -> str:
    return f"a value is not what it looks like, or its tag says ({error}); put it into quotes to mean text"


def _load(text: str, override: str) -> Any:
    """The value of an override."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        check_size(node, f"override {override!r}")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"override {override!r}: the value is not YAML: {_what(error)}") from error
    except _NO_VALUE as error:
        raise InvalidInputError(f"override {override!r}: {_no_value(error)}") from error
    except RecursionError:
        raise InvalidInputError(f"override {override!r}: the value is nested too deeply") from None
    finally:
        loader.dispose()


def _what(error: yaml.YAMLError) -> str:
    """What is wrong, in one line: PyYAML takes several, with an excerpt."""
    found = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in found if part) or str(error).partition("\n")[0]


def _problem(error: yaml.YAMLError) -> str:
    """Where and what: ":3:1: not YAML: ..."."""
    mark = getattr(error, "problem_mark", None)
    place = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
    return f"{place}: not YAML: {_what(error)}"


def _nodes(root: Node) -> Iterator[Node]:
    """Every node once, aliases included."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            waiting += node.value
