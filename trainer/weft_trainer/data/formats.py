"""What one record says: the ways in which people write examples. Knows nothing of files or tokens.

    prompt-completion   {"prompt": "...", "completion": "..."}, or both as lists of messages
    messages            {"messages": [{"role": "user", "content": "..."}, ...]}
    alpaca              {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["", ""]]}
    sharegpt            {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}
    text                {"text": "..."}: plain text without a question, all of which is learnt

Records of the other formats often have the whole example as `text` besides, which is then not read. A key whose value
is null counts as absent. Keys that a format does not use are reported, those of a turn too; keys of a turn without
which something else would be learnt (weights, tool calls, images) are refused.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from weft_registry.errors import InvalidInputError

ROLES = ("system", "user", "assistant", "tool")
_ROLES = {role: role for role in ROLES}
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_PLAIN = "text"
# By which other programs say what is learnt of a turn: OpenAI's and Axolotl's, ms-swift's, and relatives.
_WEIGHTS = frozenset(
    {"weight", "loss", "loss_weight", "loss_scale", "loss_mask", "mask", "masked", "train", "trainable", "training"}
    | {"train_detail", "training_detail"}
)
# What a turn says besides its text.
_SAID = frozenset(
    {"tool_calls", "function_call", "reasoning", "reasoning_content", "thinking"}
    | {"image", "images", "audio", "audios", "video", "videos"}
)
# The prompt of Stanford Alpaca, word for word (train.py of tatsu-lab/stanford_alpaca), which models of that kind were
# trained with. Only for a base without a chat template.
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example: what the model reads, and what it is to answer."""

    prompt: str | tuple[Message, ...] | None
    """Plain text, or the conversation before the answer. None: nothing was asked, and all of the completion is learnt
    as a text of its own."""
    completion: str
    plain: str | None = None
    """The prompt for a base without a chat template, where `prompt` is a conversation. None: there is no way."""
    number: int = field(default=0, compare=False)
    """Its line or row in the file."""
    form: str = field(default="", compare=False)
    """Its format, or the template that wrote it."""


class RowError(InvalidInputError):
    """A record cannot be read as an example."""

    def __init__(self, problem: str, found: str = "") -> None:
        super().__init__(f"{problem}, found {found}" if found else problem)
        self.problem = problem
        """What is wrong, the same words for the same mistake in another record."""


def detect(value: Any) -> str:
    """The format of a record, from its keys. Raises `RowError` where none fits, or several do."""
    keys = _present(value) if isinstance(value, dict) else {}
    fitting = [name for name, required in _REQUIRED.items() if required <= keys.keys()]
    if len(fitting) > 1 and _PLAIN in fitting:
        fitting.remove(_PLAIN)
    if fitting == [_PLAIN] and len(keys) > 1:
        others = ", ".join(sorted(keys.keys() - {_PLAIN}))
        raise RowError(
            f"text stands beside {others}: data.format: text learns the text alone, and templates make examples of "
            "several fields"
        )
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise RowError(f"its keys fit {' and '.join(fitting)}; data.format says which is meant")
    wanted = '{"prompt", "completion"}, {"messages"}, {"instruction", "output"}, {"conversations"} or {"text"}'
    raise RowError(f"expected {wanted}", f"the keys {sorted(keys) if keys else 'of no object'}")


def read_row(value: Any, form: str, number: int = 0) -> tuple[Row, list[str]]:
    """(the example in a record of that format, the keys of the record that the format does not use).

    Raises `RowError` naming the key and what is wrong with it.
    """
    if not isinstance(value, dict):
        raise RowError(f"expected {form}", "the keys of no object")
    record = _present(value)
    missing = sorted(_REQUIRED[form] - record.keys())
    if missing:
        raise RowError(f"expected {form}, which has {', '.join(missing)}", f"the keys {sorted(record)}")
    row, of_turns = READERS[form](record)
    unused = sorted(record.keys() - _REQUIRED[form] - _OPTIONAL.get(form, frozenset()))
    return Row(row.prompt, row.completion, row.plain, number, form), [*unused, *sorted(of_turns)]


def _present(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


_Read: TypeAlias = tuple[Row, set[str]]
"""An example, and the keys of its turns that it was not made of."""


def _prompt_completion(record: Mapping[str, Any]) -> _Read:
    if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        (asked, ignored), (answer, more) = (_turns(record, key) for key in ("prompt", "completion"))
        return _conversation([*asked, *answer], "prompt and completion"), ignored | more
    return Row(_text(record, "prompt"), _text(record, "completion")), set()


def _messages(record: Mapping[str, Any]) -> _Read:
    turns, ignored = _turns(record, "messages")
    return _conversation(turns, "messages"), ignored


def _sharegpt(record: Mapping[str, Any]) -> _Read:
    turns, ignored = _turns(record, "conversations", "from", "value", _SPEAKERS)
    system = [Message("system", _text(record, "system"))] if record.get("system") else []
    return _conversation([*system, *turns], "conversations"), ignored


def _alpaca(record: Mapping[str, Any]) -> _Read:
    instruction, answer = _text(record, "instruction"), _text(record, "output")
    given = _text(record, "input") if record.get("input") else ""
    system = _text(record, "system") if record.get("system") else ""
    turns = [Message("system", system)] if system else []
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError("history: expected a list of [instruction, answer]")
    for asked, answered in history:
        turns += [
            Message("user", _text({"history": asked}, "history")),
            Message("assistant", _text({"history": answered}, "history")),
        ]
    turns.append(Message("user", f"{instruction}\n{given}" if given else instruction))
    plain = None
    if not history:
        opening = system or (_ALPACA_INPUT if given else _ALPACA)
        middle = f"\n\n### Input:\n{given}" if given else ""
        plain = f"{opening}\n\n### Instruction:\n{instruction}{middle}\n\n### Response:\n"
    return Row(tuple(turns), answer, plain), set()


def _turns(
    record: Mapping[str, Any],
    key: str,
    who: str = "role",
    what: str = "content",
    roles: Mapping[str, str] = _ROLES,
) -> tuple[list[Message], set[str]]:
    """(the turns under a key of the record, their keys that are not used). `roles` are by what `who` says."""
    if not isinstance(record[key], list):
        raise RowError(f"{key}: expected a list", type(record[key]).__name__)
    turns: list[Message] = []
    ignored: set[str] = set()
    for index, turn in enumerate(record[key]):
        present = _present(turn) if isinstance(turn, dict) else {}
        more = present.keys() - {who, what}
        for name in sorted(more):
            _check_unused(key, name, present[name], what, index)
        ignored |= {f"{key}[].{name}" for name in more}
        if not present.keys() >= {who, what}:
            raise RowError(f'{key}: expected {{"{who}": ..., "{what}": ...}}', f"{turn!r} at {index}")
        said = present[who]
        if not isinstance(said, str) or said not in roles:
            raise RowError(f"{key}: {who}: {said!r} is not one of {', '.join(roles)}")
        turns.append(Message(roles[said], _text(present, what, f"{key}: ")))
    return turns, ignored


def _check_unused(key: str, name: str, value: Any, what: str, index: int) -> None:
    """Raises `RowError` for a key of a turn without which something else would be learnt."""
    found = f"{reprlib.repr(value)} at {index}"
    if name in _WEIGHTS:
        raise RowError(
            f"{key}: {name}: turns are not weighted one by one; data.loss_on learns all of the assistant's, or the "
            "last one: remove the key",
            found,
        )
    if name in _SAID and value:
        raise RowError(f"{key}: {name}: of a turn only {what} is read, a text: write it there, or remove it", found)


def _conversation(turns: Sequence[Message], key: str) -> Row:
    if len(turns) < 2:
        raise RowError(f"{key}: expected a list of at least two, the last one the answer")
    if turns[-1].role != "assistant":
        raise RowError(f"{key}: the last message is {turns[-1].role}'s; expected the assistant's answer")
    return Row(tuple(turns[:-1]), turns[-1].content)


def _plain_text(record: Mapping[str, Any]) -> _Read:
    return Row(None, _text(record, _PLAIN)), set()


def _text(value: Mapping[str, Any], key: str, where: str = "") -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise RowError(f"{where}{key}: expected text that is not empty", repr(text))
    return text


READERS: Mapping[str, Callable[[Mapping[str, Any]], _Read]] = {
    "prompt-completion": _prompt_completion,
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    _PLAIN: _plain_text,
}
_REQUIRED: Mapping[str, frozenset[str]] = {
    "prompt-completion": frozenset({"prompt", "completion"}),
    "messages": frozenset({"messages"}),
    "alpaca": frozenset({"instruction", "output"}),
    "sharegpt": frozenset({"conversations"}),
    _PLAIN: frozenset({"text"}),
}
_OPTIONAL: Mapping[str, frozenset[str]] = {
    "alpaca": frozenset({"input", "system", "history"}),
    "sharegpt": frozenset({"system"}),
}
