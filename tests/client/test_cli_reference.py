"""The help is complete, and docs/cli.md says what the program says."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from weft_client.cli.app import SECTIONS, app
from weft_client.cli.reference import commands, page
from weft_client.cli.serve import memory, serve
from weft_server.options import ServeOptions

COMMANDS = dict(commands())
LISTINGS = {"list", "versions", "show", "verify", "base list", "base show", "ps", "version"}


def test_the_page_is_fresh() -> None:
    path = Path(__file__).parents[2] / "docs" / "cli.md"
    assert path.read_text() == page(), "run: python -m weft_client.cli.reference docs/cli.md"


def test_the_page_has_every_command() -> None:
    for name in COMMANDS:
        assert f"## weft {name}\n" in page()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    text = COMMANDS[name].help or ""
    before, _, after = text.partition("Example:")
    assert before.strip(), "no description"
    assert f"weft {name}" in after


def options() -> Iterator[tuple[str, click.Option]]:
    for name, command in COMMANDS.items():
        yield from ((name, option) for option in command.params if isinstance(option, click.Option))


def test_every_option_has_help_or_a_telling_name() -> None:
    telling = {"--host", "--max-batch-size", "--min-new-tokens", "--dtype", "--timeout"}
    bare = {(name, option.opts[0]) for name, option in options() if not option.help and option.opts[0] not in telling}
    assert bare == set()


def test_whatever_answers_answers_in_json_too() -> None:
    silent = {"serve", "registry serve"}  # They print `ready on`.
    for name, command in COMMANDS.items():
        if isinstance(command, click.Group):
            continue
        has = any("--json" in option.opts for option in command.params)
        assert has == (name not in silent), name
    assert set(COMMANDS) >= LISTINGS


def test_both_servers_offer_every_setting_of_access() -> None:
    wanted = {"auth", "anonymous_read", "tls_cert", "tls_key", "tls_client_ca"}
    for name in ("serve", "registry serve"):
        assert wanted <= {option.name for option in COMMANDS[name].params}, name


def test_an_option_means_one_thing_everywhere() -> None:
    seen: dict[str, tuple[str, str | None]] = {}
    for name, option in options():
        # `serve` hosts a registry where others use one; `push` needs a base where `eval` may be told one; a token has
        # several namespaces where a listing shows one; a base is written in a format, and examples are read in another.
        apart = ("--registry", "--base", "--to", "--dtype", "--namespace", "--format")
        if option.opts[0] in apart or not option.help:
            continue
        help_text = seen.setdefault(option.opts[0], (name, option.help))[1]
        assert option.help == help_text, (option.opts[0], name, seen[option.opts[0]][0])


def test_serve_offers_every_setting_with_its_default() -> None:
    offered = {option.name: option.default for option in serve.params}
    for field in dataclasses.fields(ServeOptions):
        if field.name in ("home", "access"):  # WEFT_HOME says one; the other is five options together.
            continue
        assert field.name in offered, field.name
        if field.default is not dataclasses.MISSING and field.default is not None:
            assert offered[field.name] == field.default, field.name


def test_every_command_of_the_table_exists() -> None:
    context = click.Context(app, info_name="weft")
    names = [name for section in SECTIONS.values() for name in section]
    assert app.list_commands(context) == names
    assert app.get_command(context, "ls") is app.get_command(context, "list")
    assert app.get_command(context, "nothing") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512", 512), ("1k", 1024), ("800MiB", 800 << 20), ("2GiB", 2 << 30), ("1.5g", 3 << 29), ("1 TB", 1 << 40)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, expected: int) -> None:
    assert memory(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1", "1e9", "12 parsecs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a size"):
        memory(text)
