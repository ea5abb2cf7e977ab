"""The options that many commands share, spelled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def quiet_option(function: F) -> F:
    """`--quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress bar.")(function)


def registry_option(function: F) -> F:
    """`--registry`."""
    return click.option(
        "--registry",
        "registry_target",
        envvar="WEFT_REGISTRY",
        metavar="HOST:PORT",
        help="A registry server (or WEFT_REGISTRY). Without it: the embedded registry under WEFT_HOME.",
    )(function)


def server_option(function: F) -> F:
    """`--server`."""
    return click.option(
        "--server",
        "server_target",
        envvar="WEFT_SERVER",
        metavar="HOST:PORT",
        help="The inference server (or WEFT_SERVER; default: 127.0.0.1:50051).",
    )(function)
