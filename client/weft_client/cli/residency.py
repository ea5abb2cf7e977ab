"""`weft ps`, `weft load`, `weft unload`, `weft merge`, `weft unmerge`: what a server has in memory."""

from __future__ import annotations

import click

from weft_client.cli.options import json_option, server_option
from weft_client.cli.output import Column, duration, echo_json, echo_table, printable, share, short, size
from weft_client.cli.sources import connected


@click.command()
@click.option("--disk", "include_disk", is_flag=True, help="List what is pulled and not in memory, too.")
@json_option
@server_option
def ps(include_disk: bool, as_json: bool, server_target: str | None) -> None:
    """List the adapters in a server's memory, most recently used first.

    TIER says where one is: bound on the `host` or on a `device`, or pulled to `disk`. What is under quarantine, and
    why an alias was not followed to its new version, is said below the list.

    TOKENS is its share of the tokens that the server has generated, since it came into memory.

    MERGED says `merged` for the one that is merged, and `hot` for one whose merged weights are kept ready.

    \b
    Example:
      weft ps
    """
    with connected(server_target) as client:
        residency = client.resident(include_disk=include_disk)
    if as_json:
        echo_json({**vars(residency), "adapters": [vars(adapter) for adapter in residency.adapters]})
        return
    columns = (
        Column("REFERENCE", folds=True),
        Column("KIND"),
        Column("DIGEST"),
        Column("TIER"),
        Column("SIZE", right=True),
        Column("LEASES", right=True),
        Column("REQUESTS", right=True),
        Column("TOKENS", right=True),
        Column("IDLE", right=True),
        Column("MERGED"),
    )
    rows = [
        (
            adapter.reference,
            adapter.kind,
            short(adapter.digest),
            adapter.tier,
            size(adapter.resident_bytes),
            str(adapter.lease_count),
            str(adapter.requests_served),
            share(adapter.generated_tokens, residency.generated_tokens),
            duration(adapter.idle_s),
            "merged" if adapter.merged else "hot" if adapter.hot else "",
        )
        for adapter in residency.adapters
    ]
    echo_table(columns, rows, "no adapter is resident; the first request for one, or `weft load`, brings it in")
    for adapter in residency.adapters:
        if adapter.quarantined:
            click.echo(
                printable(f"quarantined: {adapter.reference} ({adapter.digest}) {adapter.quarantined}"), err=True
            )
        if adapter.reload_problem:
            click.echo(printable(f"not reloaded: {adapter.reload_problem}"), err=True)
    click.echo(
        f"adapters {size(residency.resident_bytes)} of {size(residency.limit_bytes)}, merged weights "
        f"{size(residency.overlay_bytes)} of {size(residency.overlay_limit_bytes)}, on disk "
        f"{size(residency.disk_bytes)} of {size(residency.disk_limit_bytes)}",
        err=True,
    )


@click.command()
@click.argument("reference")
@json_option
@server_option
def load(reference: str, as_json: bool, server_target: str | None) -> None:
    """Bring an adapter, or several worn together, into a server's memory before the first request.

    \b
    Example:
      weft load acme/topics:production
      weft load "acme/topics:production+acme/style*0.5"
    """
    with connected(server_target) as client:
        adapter = client.load(reference)
    if as_json:
        echo_json(vars(adapter))
        return
    click.echo(f"loaded {printable(reference)} ({adapter.kind}, {size(adapter.resident_bytes)}, {adapter.digest})")


@click.command()
@click.argument("reference")
@json_option
@server_option
def unload(reference: str, as_json: bool, server_target: str | None) -> None:
    """Free an adapter, or several worn together, that no request is using, and lift its quarantine.

    \b
    Example:
      weft unload acme/topics:production
    """
    with connected(server_target) as client:
        freed = client.unload(reference)
    if as_json:
        echo_json({"reference": reference, "freed_bytes": freed})
        return
    click.echo(f"unloaded {printable(reference)}: {size(freed)} freed")


@click.command()
@click.argument("reference")
@json_option
@server_option
def merge(reference: str, as_json: bool, server_target: str | None) -> None:
    """Serve one adapter, or several worn together, from merged weights, in place of any other that was merged.

    The base is never changed; requests for other adapters and for the base stay right.

    \b
    Example:
      weft merge acme/topics:production
      weft merge "acme/topics:production+acme/style*0.5"
    """
    with connected(server_target) as client:
        merged = client.merge(reference)
    if as_json:
        echo_json(vars(merged))
        return
    click.echo(
        f"merged {printable(reference)} ({merged.adapter_digest}): {size(merged.overlay_bytes)} beside the base, "
        f"{'kept ready' if merged.hot else f'built in {duration(merged.build_s)}'}, switched in "
        f"{duration(merged.switch_s)}"
    )


@click.command()
@json_option
@server_option
def unmerge(as_json: bool, server_target: str | None) -> None:
    """Take the merged weights out of use. What remains is the base, bit for bit.

    \b
    Example:
      weft unmerge
    """
    with connected(server_target) as client:
        dropped = client.unmerge()
    if as_json:
        echo_json(vars(dropped))
        return
    click.echo(f"unmerged {dropped.adapter_digest}, switched in {duration(dropped.switch_s)}")
