"""`weft registry check|backup|restore`: proves a registry whole, copies it elsewhere, and makes one of such a copy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weft_client.cli.failure import Failure
from weft_client.cli.options import json_option, quiet_option, registry_option, storage_options
from weft_client.cli.output import echo_json, size
from weft_client.cli.progress import transfer_bar
from weft_client.cli.sources import administered, home
from weft_registry.errors import Violation

if TYPE_CHECKING:
    from weft_registry.admin_api import CheckProgress
    from weft_registry.api import Progress
    from weft_registry.embedded import EmbeddedRegistry


@click.command()
@json_option
@quiet_option
@registry_option
def check(as_json: bool, quiet: bool, registry_target: str | None) -> None:
    """Prove every version complete and every blob right, by reading all of them.

    Changes nothing, and may run beside everything else. Status 1 if anything is wrong; what is wrong is named with the
    versions concerned. Bytes that nothing needs are no fault: they are counted, and `weft gc` removes them.

    \b
    Example:
      weft registry check
      weft registry check --registry registry.example.org:50052
    """
    with administered(registry_target) as admin:
        last = _checked(admin.check(), quiet)
        orphans = admin.collect_garbage(dry_run=True, grace_s=0.0)
    if as_json:
        echo_json(
            {
                "checked_versions": last.checked_versions,
                "checked_bytes": last.checked_bytes,
                "problems": list(last.problems),
                "orphan_blobs": orphans.removed_blobs,
                "orphan_bytes": orphans.removed_bytes,
            }
        )
    else:
        outcome = "" if last.problems else ": all as published"
        click.echo(f"checked {last.checked_versions} versions, {size(last.checked_bytes)} of blobs{outcome}")
        if orphans.removed_blobs:
            click.echo(
                f"{orphans.removed_blobs} blobs, {size(orphans.removed_bytes)}, are needed by nothing: `weft gc` "
                "removes them"
            )
    if not last.done:
        raise Failure("the check did not reach its end: run it again")
    if last.problems:
        Failure(
            f"{len(last.problems)} problems: restore what is damaged from a backup, or push it again",
            [Violation("", problem) for problem in last.problems],
        ).show()
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("to", type=click.Path(path_type=Path), metavar="DIR|FILE.tar")
@storage_options
@json_option
@quiet_option
def backup(to: Path, database: str | None, blobs: str | None, as_json: bool, quiet: bool) -> None:
    """Copy everything to a directory, or to one new file whose name ends in .tar.

    Versions, tags, aliases and their history, tokens (as hashes), quotas, signatures, the audit log, unpublished
    branches; all of one moment, while the registry is in use. Again into the same directory, it copies only what is
    new. Bytes are hashed as they are copied: damage is an error, and the earlier backup stays.

    \b
    Example:
      weft registry backup /mnt/backup/registry
      weft registry backup --database postgresql://weft@db/weft --blobs s3://acme-weft/blobs registry.tar
    """
    with _opened(database, blobs) as registry, ExitStack() as stack:
        report = registry.backup(to, _watch(stack, "backing up", quiet))
    if as_json:
        echo_json({"to": str(to), **vars(report)})
        return
    click.echo(
        f"backed up {report.blobs} blobs, {size(report.blob_bytes)}, to {to}; {report.copied_blobs} of them, "
        f"{size(report.copied_bytes)}, were new"
    )


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="DIR|FILE.tar")
@click.option("--replace", is_flag=True, help="Forget what the registry has, its audit log included.")
@storage_options
@json_option
@quiet_option
def restore(source: Path, replace: bool, database: str | None, blobs: str | None, as_json: bool, quiet: bool) -> None:
    """Make a registry of a backup: an empty one, or, with --replace, over the one that is there.

    The database and the blob store may be others than those that the backup was taken of: a backup moves a registry
    from SQLite to PostgreSQL, or from a disk to a bucket. Every blob is hashed as it is copied, and the whole registry
    is checked in the end (status 1 if anything is wrong).

    \b
    Example:
      weft registry restore /mnt/backup/registry
      weft registry restore registry.tar --database postgresql://weft@db/weft --blobs s3://acme-weft/blobs
    """
    with _opened(database, blobs) as registry:
        with ExitStack() as stack:
            report = registry.restore(source, replace=replace, watch=_watch(stack, "restoring", quiet))
        last = _checked(registry.check(), quiet)
    if as_json:
        echo_json({"from": str(source), **vars(report), "problems": list(last.problems)})
    else:
        click.echo(
            f"restored {report.rows} rows and {report.blobs} blobs, {size(report.blob_bytes)}; {report.copied_blobs} "
            f"of the blobs were not there; checked {last.checked_versions} versions"
        )
    if last.problems:
        Failure(
            f"{len(last.problems)} problems in what the backup holds",
            [Violation("", problem) for problem in last.problems],
        ).show()
        raise click.exceptions.Exit(1)


@contextmanager
def _opened(database: str | None, blobs: str | None) -> Generator[EmbeddedRegistry]:
    """The registry with these back ends. It is at hand itself: no server is asked."""
    from weft_registry.embedded import EmbeddedRegistry
    from weft_registry.storage import Storage

    with closing(EmbeddedRegistry(home(), storage=Storage(database, blobs))) as registry:
        yield registry


def _watch(stack: ExitStack, label: str, quiet: bool) -> Callable[[int], Progress | None]:
    return lambda total_bytes: stack.enter_context(transfer_bar(label, total_bytes, quiet))


def _checked(steps: Iterable[CheckProgress], quiet: bool) -> CheckProgress:
    """The outcome of a check, whose progress is shown where somebody watches."""
    from weft_registry.admin_api import CheckProgress

    last = CheckProgress(0, 0, 0)
    with _version_bar(quiet) as show:
        for step in steps:
            show(step)
            last = step
    return last


@contextmanager
def _version_bar(quiet: bool) -> Generator[Callable[[CheckProgress], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda _step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("versions, {task.fields[read]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("checking", total=None, read=size(0))
        yield lambda step: bars.update(
            task, completed=step.checked_versions, total=step.total_versions, read=size(step.checked_bytes)
        )
