"""The options that many commands share."""

import os

import click
import pytest
from click.testing import CliRunner

from weft_client.cli.options import FiniteRange, registry_option
from weft_client.cli.reference import commands


@click.command()
@registry_option
def where(registry_target: str | None) -> None:
    """Prints the registry that the option names, and the one that whatever is called below would take."""
    click.echo(f"{registry_target} {os.environ.get('WEFT_REGISTRY')}")


@pytest.mark.parametrize("before", [None, "there:1"])
def test_registry_holds_for_all_that_a_command_calls_and_only_as_long(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEFT_REGISTRY", raising=False)
    if before is not None:
        monkeypatch.setenv("WEFT_REGISTRY", before)
    assert CliRunner().invoke(where, ["--registry", "here:2"]).output == "here:2 here:2\n"
    assert os.environ.get("WEFT_REGISTRY") == before
    assert CliRunner().invoke(where, []).output == f"{before} {before}\n"
    assert os.environ.get("WEFT_REGISTRY") == before


@click.command()
@click.option("--share", type=FiniteRange(0, 1))
def take(share: float | None) -> None:
    """Prints a number."""
    click.echo(share)


@pytest.mark.parametrize(("text", "status"), [("0.5", 0), ("1", 0), ("2", 2), ("nan", 2), ("inf", 2), ("-inf", 2)])
def test_a_number_between_bounds_is_finite(text: str, status: int) -> None:
    result = CliRunner().invoke(take, ["--share", text])
    assert result.exit_code == status, result.output
    assert result.output == f"{float(text)}\n" if status == 0 else "Invalid value for '--share'" in result.output


def test_no_option_takes_a_number_that_is_not_finite() -> None:
    for name, command in commands():
        for option in command.params:
            assert not isinstance(option.type, click.types.FloatParamType) or isinstance(option.type, FiniteRange), (
                f"{name} {option.name}: FiniteRange refuses nan and inf"
            )
