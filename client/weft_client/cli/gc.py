"""`weft gc`: removes the bytes that nothing needs any more."""

from __future__ import annotations

import click

from weft_client.cli.ages import Span
from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import echo_json, size
from weft_client.cli.sources import administered


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--grace-period",
    "grace_s",
    type=Span(),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Keep what came so lately, whether or not anything needs it: 0s, 30m, 12h, 7d.",
)
@json_option
@registry_option
def gc(dry_run: bool, grace_s: float, as_json: bool, registry_target: str | None) -> None:
    """Remove the bytes that no version, branch or upload needs: those of deleted versions, and of pushes that were
    never finished.

    Safe while others push and pull, and to be broken off. Yanked versions keep their bytes; `weft delete` gives them
    up. Waits for no backup: while one is taken, this is refused.

    \b
    Example:
      weft gc --dry-run
      weft gc --grace-period 7d
    """
    with administered(registry_target) as admin:
        report = admin.collect_garbage(dry_run=dry_run, grace_s=grace_s)
    if as_json:
        echo_json(
            {
                "dry_run": dry_run,
                "removed_blobs": report.removed_blobs,
                "removed_bytes": report.removed_bytes,
                "kept_blobs": report.kept_blobs,
                "dropped_uploads": report.dropped_uploads,
            }
        )
        return
    done = "would remove" if dry_run else "removed"
    click.echo(
        f"{done} {report.removed_blobs} blobs, {size(report.removed_bytes)}, and {report.dropped_uploads} idle "
        f"uploads; {report.kept_blobs} blobs stay"
    )
