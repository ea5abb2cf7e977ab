"""The root of the command line: which commands there are, and what becomes of their errors.

A command's module is imported when the command is run, or when the help lists it; never before.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from weft_client.cli.failure import Failure
from weft_registry.errors import WeftError
from weft_registry.names import nearest

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Registry": {
        "push": "publish:push",
        "list": "listing:list_adapters",
        "versions": "browse:versions",
        "show": "browse:show",
        "pull": "pull:pull",
        "import": "import_:import_adapter",
        "export": "pull:export",
        "diff": "compare:diff",
        "alias": "alias:alias",
        "promote": "promote:promote",
        "yank": "curate:yank",
        "delete": "curate:delete",
        "sign": "sign:sign",
        "verify": "sign:verify",
        "gc": "gc:gc",
        "registry": "registry:registry",
    },
    "Access": {
        "login": "login:login",
        "logout": "login:logout",
        "whoami": "login:whoami",
        "token": "token:token",
        "quota": "quota:quota",
        "audit": "audit:audit",
    },
    "Base models": {"base": "base:base"},
    "Training": {
        "train": "train:train",
        "eval": "train:evaluate",
        "label": "label:label",
        "extract": "extract:extract",
        "combine": "combine:combine",
    },
    "Serving": {
        "serve": "serve:serve",
        "generate": "generate:generate",
        "ps": "residency:ps",
        "stats": "stats:stats",
        "load": "residency:load",
        "unload": "residency:unload",
        "merge": "residency:merge",
        "unmerge": "residency:unmerge",
    },
    "Other": {"kinds": "kinds:kinds", "version": "version:version"},
}
ALIASES = {"ls": "list"}
_TARGETS = {name: target for commands in SECTIONS.values() for name, target in commands.items()}


class WeftGroup(click.Group):
    """Loads commands by name and turns the errors a person can do something about into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the help."""
        return list(_TARGETS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command of this name, if there is one."""
        target = _TARGETS.get(ALIASES.get(cmd_name, cmd_name))
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(import_module(f"weft_client.cli.{module}"), attribute)
        assert isinstance(command, click.Command), target
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown name is answered with the nearest ones."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = ", ".join(nearest(args[0], _TARGETS))
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean: {hint}?" if hint else "; see `weft --help`"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, by section."""
        for title, names in SECTIONS.items():
            rows = [
                (name, command.get_short_help_str(90)) for name in names if (command := self.get_command(ctx, name))
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command. Raises `click.ClickException` for what is an answer rather than a bug."""
        try:
            return super().invoke(ctx)
        except WeftError as error:
            raise Failure(error.message, error.violations) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(130) from None
        except UnicodeEncodeError as error:
            # Bytes of the command line or of stdin that are not UTF-8 are lone surrogates in Python; elsewhere this
            # error is nobody's input.
            if error.reason != "surrogates not allowed":
                raise
            raise Failure(f"{error.object[:200]!r} is not UTF-8 text") from error
        except OSError as error:
            # A closed pipe is click's to handle; an error without a file is nobody's input.
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            raise Failure(f"{error.filename}: {error.strerror}") from error


@click.group(
    cls=WeftGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="WEFT_HOME is where Weft keeps its files (default: ~/.weft). `weft COMMAND --help` shows an example.",
)
def app() -> None:
    """Adapters trained, versioned and served over one quantized base model."""
