"""`weft yank` and `weft delete`: what a registry's keeper does to versions."""

from __future__ import annotations

import click

from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import echo_json, size
from weft_client.cli.sources import opened
from weft_client.cli.views import version_json


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
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@registry_option
def delete(reference: str, yes: bool, as_json: bool, registry_target: str | None) -> None:
    """Remove a version for ever: its tags, and the bytes that no other version has, at the next `weft gc`.

    Refused, with their names, while aliases point at it or a fusion is made of it. Histories keep its digest. What
    should only not be used any more is better yanked (`weft yank`), which keeps it readable by digest.

    \b
    Example:
      weft delete acme/topics:v1
    """
    with opened(registry_target) as registry:
        version = registry.resolve(reference)
        # By digest from here on: an alias may move while somebody thinks about the answer.
        exactly = f"{version.adapter}@{version.digest}"
        if not yes:
            tags = f" (tags {', '.join(version.tags)})" if version.tags else ""
            click.confirm(f"delete {exactly}{tags}, {size(version.size_bytes)}, for ever?", abort=True, err=True)
        deleted = registry.delete_version(exactly)
    if as_json:
        echo_json({"adapter": str(version.adapter), "digest": deleted.digest, "freed_bytes": deleted.freed_bytes})
        return
    click.echo(f"deleted {exactly}; the next collection frees {size(deleted.freed_bytes)}")
