"""An artifact that is named by a directory, or by a reference: whoever mistyped one hears of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.named import directory_of, or_directory


def test_a_directory_that_is_there_wins_over_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs" / "topics").mkdir(parents=True)
    assert directory_of("runs/topics") == Path("runs/topics")
    assert directory_of("~/runs/topics") == tmp_path / "runs" / "topics"
    assert directory_of("acme/topics:v1") is None


@pytest.mark.parametrize("text", ["./runs/none", "/none", "~/none", "~nobody-here/none"])
def test_what_can_only_be_a_path_is_never_looked_up(text: str) -> None:
    with pytest.raises(NotFoundError, match=f"^no artifact directory at {text}$"):
        directory_of(text)


@pytest.mark.parametrize("text", ["runs/x/y", "none", "runs/None"])
def test_what_is_neither_is_told_both(text: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^no artifact directory is at {text}, and a published .* it is not: "):
        directory_of(text)


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("runs/none", "ADAPTER_NOT_FOUND", "not there; and no directory runs/none is here"),
        # Written so, nobody means a directory.
        ("acme/topics:v1", "VERSION_NOT_FOUND", "not there"),
        # It is there.
        ("acme/topics", "YANKED", "not there"),
    ],
)
def test_a_version_that_is_not_there_may_be_a_directory_that_is_not(text: str, reason: str, said: str) -> None:
    with pytest.raises(NotFoundError) as caught, or_directory(text):
        raise NotFoundError("not there", reason=reason, metadata={"nearest": "acme/topic"})
    assert (caught.value.message, caught.value.reason) == (said, reason)
    assert caught.value.metadata == {"nearest": "acme/topic"}
