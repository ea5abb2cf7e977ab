"""How a command says that it could not do what it was asked: one line, the violations, and a status. No traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import IO, Any, ParamSpec, TypeVar

import click

from weft_client.cli.output import printable
from weft_registry.errors import Violation

P = ParamSpec("P")
R = TypeVar("R")


class Failure(click.ClickException):
    """Ends the command with status 1 and `error: ...` on stderr."""

    exit_code = 1

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    def show(self, file: IO[Any] | None = None) -> None:
        """Writes the message and the violations, one a line."""
        click.echo(f"error: {printable(self.message)}", file=file, err=file is None)
        for violation in self.violations:
            # The message of an error with few violations has said them already.
            if violation.description not in self.message:
                field = f"{violation.field}: " if violation.field else ""
                click.echo(printable(f"  - {field}{violation.description}"), file=file, err=file is None)


def needs_extra(extra: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Marks a command that runs what `pip install weft` alone does not bring: it says which extra is needed instead of
    failing on an import.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except ModuleNotFoundError as error:
                module = (error.name or "").partition(".")[0]
                # One of our own that is missing is a broken installation, which no extra mends.
                if not module or module.startswith("weft"):
                    raise
                raise Failure(
                    f'{module} is not installed, and this command needs it: pip install "weft[{extra}]"'
                ) from error

        return run

    return decorate
