"""`weft alias`, `weft yank`, `weft verify`: what a registry's keeper does to versions."""

from __future__ import annotations

import click

from weft_client.cli.failure import Failure
from weft_client.cli.options import expect_option, json_option, registry_option
from weft_client.cli.output import echo_json, short, size
from weft_client.cli.sources import opened
from weft_client.cli.views import alias_json, report_json, version_json
from weft_registry.errors import Violation
from weft_registry.reference import AdapterName


@click.command()
@click.argument("adapter", metavar="NAMESPACE/NAME")
@click.argument("alias")
@click.argument("target", metavar="REFERENCE")
@expect_option
@json_option
@registry_option
def alias(
    adapter: str, alias: str, target: str, expected_etag: str, as_json: bool, registry_target: str | None
) -> None:
    """Point an alias at a version.

    REFERENCE is a tag, an alias or a digest of this adapter, or a whole reference to it. The answer has the alias's
    etag: with --expect, nobody else's move is lost.

    \b
    Example:
      weft alias acme/topics production v2
      weft alias acme/topics production v3 --expect 5f0c
    """
    name = AdapterName.parse(adapter)
    with opened(registry_target) as registry:
        moved = registry.set_alias(name, alias, target, expected_etag)
    if as_json:
        echo_json({"adapter": adapter, **alias_json(moved)})
        return
    before = f" (before: {short(moved.previous_digest)})" if moved.previous_digest else ""
    click.echo(f"{name}:{moved.name} is {moved.digest}{before}, etag {moved.etag}")


@click.command()
@click.argument("reference")
@click.option("--reason", default="", help="Why; shown to whoever still has the digest.")
@json_option
@registry_option
def yank(reference: str, reason: str, as_json: bool, registry_target: str | None) -> None:
    """Hide a version from new resolves and listings. By digest it stays readable.

    \b
    Example:
      weft yank acme/topics:v2 --reason "trained on the wrong split"
    """
    with opened(registry_target) as registry:
        version = registry.yank(reference, reason)
    if as_json:
        echo_json(version_json(version))
        return
    click.echo(f"yanked {version.adapter}@{version.digest}")


@click.command()
@click.argument("reference")
@json_option
@registry_option
def verify(reference: str, as_json: bool, registry_target: str | None) -> None:
    """Re-hash the manifest and every file of a version. Status 1 if anything is not as published.

    \b
    Example:
      weft verify acme/topics:production
    """
    with opened(registry_target) as registry:
        report = registry.verify(reference)
    if as_json:
        echo_json(report_json(report))
    elif not report.problems:
        click.echo(f"{report.digest}: {report.checked_files} files, {size(report.checked_bytes)}, as published")
    if report.problems:
        problems = tuple(Violation("", problem) for problem in report.problems)
        raise Failure(f"{report.digest} is damaged; publish it again from a good copy", problems)
