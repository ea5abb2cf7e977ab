"""`weft ps`, `weft load`, `weft unload`, `weft merge`, `weft unmerge`: what a server has in memory."""

from __future__ import annotations

import click

from weft_client.cli.options import json_option, server_option
from weft_client.cli.output import Column, duration, echo_json, echo_table, printable, short, size
from weft_client.cli.sources import connected


@click.command()
@json_option
@server_option
def ps(as_json: bool, server_target: str | None) -> None:
    """List the adapters in a server's memory, most recently used first.

    \b
    Example:
      weft ps
    """
    with connected(server_target) as client:
        residency = client.resident()
    if as_json:
        echo_json({**vars(residency), "adapters": [vars(adapter) for adapter in residency.adapters]})
        return
    columns = (
        Column("REFERENCE", folds=True),
        Column("KIND"),
        Column("DIGEST"),
        Column("SIZE", right=True),
        Column("LEASES", right=True),
        Column("REQUESTS", right=True),
        Column("IDLE", right=True),
        Column("MERGED"),
    )
    rows = [
        (
            adapter.reference,
            adapter.kind,
            short(adapter.digest),
            size(adapter.resident_bytes),
            str(adapter.lease_count),
            str(adapter.requests_served),
            duration(adapter.idle_s),
            "merged" if adapter.merged else "",
        )
        for adapter in residency.adapters
    ]
    echo_table(columns, rows, "no adapter is resident; the first request for one, or `weft load`, brings it in")
    overlay = f", merged weights {size(residency.overlay_bytes)} of {size(residency.overlay_limit_bytes)}"
    click.echo(
        f"adapters {size(residency.resident_bytes)} of {size(residency.limit_bytes)}{overlay}",
        err=True,
    )


@click.command()
@click.argument("reference")
@json_option
@server_option
def load(reference: str, as_json: bool, server_target: str | None) -> None:
    """Bring an adapter into a server's memory before its first request.

    \b
    Example:
      weft load acme/topics:production
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
    """Free an adapter that no request is using.

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
    """Serve one adapter from merged weights, in place of any other that was merged.

    The base is never changed; requests for other adapters and for the base stay right.

    \b
    Example:
      weft merge acme/topics:production
    """
    with connected(server_target) as client:
        merged = client.merge(reference)
    if as_json:
        echo_json(vars(merged))
        return
    click.echo(
        f"merged {printable(reference)} ({merged.adapter_digest}): {size(merged.overlay_bytes)} beside the base, "
        f"built in {duration(merged.build_s)}, switched in {duration(merged.switch_s)}"
    )


@click.command()
@json_option
@server_option
def unmerge(as_json: bool, server_target: str | None) -> None:
    """Drop the merged weights. What remains is the base, bit for bit.

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
