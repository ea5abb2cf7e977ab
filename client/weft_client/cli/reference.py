"""Writes docs/cli.md from the commands' own help: `python -m weft_client.cli.reference docs/cli.md`.

The page is generated, so it cannot say anything else than the program does; a test fails when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from weft_client.cli.app import SECTIONS, app

WIDTH = 100
HEADER = """# The command line

Generated from the commands' own help by `python -m weft_client.cli.reference docs/cli.md`; do not edit.

`--registry HOST:PORT` or `WEFT_REGISTRY` names a registry server; without it, commands use the embedded registry under
`WEFT_HOME` (default `~/.weft`). `--server HOST:PORT` or `WEFT_SERVER` names the inference server (default
`127.0.0.1:50051`). `--json` prints JSON on stdout, for programs; messages and progress go to stderr. A command ends
with status 0, 1 for a refusal (`error: ...` on stderr), 2 for wrong usage, 130 on Ctrl-C.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand with its full name, in the order of the help."""
    root = click.Context(app, info_name="weft")
    for names in SECTIONS.values():
        for name in names:
            command = app.get_command(root, name)
            assert command is not None
            yield name, command
            if isinstance(command, click.Group):
                for child in command.list_commands(root):
                    nested = command.get_command(root, child)
                    assert nested is not None
                    yield f"{name} {child}", nested


def page() -> str:
    """The whole page, in Markdown."""
    parts = [HEADER, _help("weft", app)]
    for name, command in commands():
        parts += [f"## weft {name}\n", _help(f"weft {name}", command)]
    return "\n".join(parts)


def _help(name: str, command: click.Command) -> str:
    # A fixed width: the page must not depend on the terminal it is made in.
    context = click.Context(
        command, info_name=name, help_option_names=["-h", "--help"], terminal_width=WIDTH, max_content_width=WIDTH
    )
    return f"```text\n{context.get_help().rstrip()}\n```\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
