"""The options that many commands share, spelled once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class FiniteRange(click.FloatRange):
    """A number between bounds; `nan` and `inf`, which pass click's own range, are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As the parent, or `click.BadParameter`."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def quiet_option(function: F) -> F:
    """`--quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress bar.")(function)


def dtype_option(function: F) -> F:
    """`--dtype` of what scores with a base."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "bfloat16", "float32"]),
        default="auto",
        show_default=True,
        help="What the base computes in; auto: what is fastest here.",
    )(function)


def storage_options(function: F) -> F:
    """`--database` and `--blobs`."""
    database = click.option(
        "--database",
        envvar="WEFT_REGISTRY_DATABASE",
        metavar="URL",
        help="The catalog (or WEFT_REGISTRY_DATABASE): postgresql://USER@HOST/NAME, sqlite:////PATH. Default: a file "
        "under WEFT_HOME. Give the password as PGPASSWORD.",
    )
    blobs = click.option(
        "--blobs",
        envvar="WEFT_REGISTRY_BLOBS",
        metavar="URL",
        help="The adapters' files (or WEFT_REGISTRY_BLOBS): s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
        "az://CONTAINER/PREFIX, file:///DIRECTORY. Default: a directory under WEFT_HOME.",
    )
    return database(blobs(function))


def expect_option(function: F) -> F:
    """`--expect`."""
    return click.option(
        "--expect",
        "expected_etag",
        default="",
        metavar="ETAG",
        help='Move only if the alias is still at this etag; "none": only if it does not exist.',
    )(function)


def registry_option(function: F) -> F:
    """`--registry`."""
    return click.option(
        "--registry",
        "registry_target",
        envvar="WEFT_REGISTRY",
        callback=_for_all_of_the_command,
        metavar="HOST:PORT",
        help="A registry server (or WEFT_REGISTRY). Without it: the embedded registry under WEFT_HOME.",
    )(function)


def _for_all_of_the_command(context: click.Context, parameter: click.Parameter, target: str | None) -> str | None:
    """WEFT_REGISTRY is what the option says while the command runs: the parts of a fusion are looked up deep below it,
    and by the processes that it starts, and must not come from another registry."""
    if target is not None:
        before = os.environ.get("WEFT_REGISTRY")
        os.environ["WEFT_REGISTRY"] = target

        def restore() -> None:
            if before is None:
                del os.environ["WEFT_REGISTRY"]
            else:
                os.environ["WEFT_REGISTRY"] = before

        context.call_on_close(restore)
    return target


def server_option(function: F) -> F:
    """`--server`."""
    return click.option(
        "--server",
        "server_target",
        envvar="WEFT_SERVER",
        metavar="HOST:PORT",
        help="The inference server (or WEFT_SERVER; default: 127.0.0.1:50051).",
    )(function)
