"""Both inference clients against a scripted server: one contract, run over sync and asyncio alike."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from tests_client_support import DIGEST
from weft_client import AsyncInferenceClient, InferenceClient
from weft_client.results import Completion
from weft_registry.errors import (
    DeadlineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    Violation,
)
