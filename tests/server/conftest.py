"""Shared by the server's tests."""

from collections.abc import Callable

import pytest

from tests.tiny_models import AddedBase
from weft_server.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base: Callable[..., AddedBase]) -> Tokenizer:
    """The tokenizer of a tiny base."""
    return Tokenizer(tiny_base().stored.tokenizer_dir)
