"""`weft quota show|set`: what a namespace may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import echo_fields, echo_json, size
from weft_client.cli.serve import memory
from weft_client.cli.sources import administered

if TYPE_CHECKING:
    from weft_registry.admin_api import Quota


@click.group()
def quota() -> None:
    """Show and set what namespaces may hold.

    \b
    Example:
      weft quota show acme
      weft quota set acme --bytes 50GiB --versions 1000
    """


@quota.command()
@click.argument("namespace")
@json_option
@registry_option
def show(namespace: str, as_json: bool, registry_target: str | None) -> None:
    """Show what a namespace holds, and may; "*": the registry, and the rule for namespaces without their own.

    \b
    Example:
      weft quota show acme
    """
    with administered(registry_target) as admin:
        usage = admin.usage(namespace)
    if as_json:
        used = {"bytes": usage.used_bytes, "versions": usage.used_versions, "open_uploads": usage.open_uploads}
        echo_json({"namespace": namespace, "used": used, "quota": _quota_json(usage.quota)})
        return
    limits = usage.quota
    rule = "" if limits.namespace == namespace else f" (the rule of {limits.namespace})"
    echo_fields(
        [
            ("bytes", f"{size(usage.used_bytes)} of {_limit(limits.max_bytes, bytes_=True)}{rule}"),
            ("versions", f"{usage.used_versions} of {_limit(limits.max_versions)}{rule}"),
            ("open uploads", f"{usage.open_uploads} of {_limit(limits.max_open_uploads)}{rule}"),
        ]
    )


@quota.command("set")
@click.argument("namespace")
@click.option("--bytes", "max_bytes", metavar="SIZE", help="Of distinct files, as 50GiB; `none` for no limit.")
@click.option("--versions", "max_versions", metavar="COUNT", help="`none` for no limit.")
@click.option("--uploads", "max_open_uploads", metavar="COUNT", help="Open at once; `none` for no limit.")
@json_option
@registry_option
def set_quota(
    namespace: str,
    max_bytes: str | None,
    max_versions: str | None,
    max_open_uploads: str | None,
    as_json: bool,
    registry_target: str | None,
) -> None:
    """Set what a namespace may hold; "*": each namespace without limits of its own.

    What is not named stays as it is. What a namespace holds already stays, too.

    \b
    Example:
      weft quota set acme --bytes 50GiB --versions 1000
      weft quota set "*" --uploads 20
    """
    given = {
        "max_bytes": None if max_bytes in (None, "none") else memory(str(max_bytes)),
        "max_versions": _count("--versions", max_versions),
        "max_open_uploads": _count("--uploads", max_open_uploads),
    }
    said = {"max_bytes": max_bytes, "max_versions": max_versions, "max_open_uploads": max_open_uploads}
    if all(value is None for value in said.values()):
        raise click.UsageError("name at least one of --bytes, --versions and --uploads")
    from weft_registry.admin_api import Quota

    with administered(registry_target) as admin:
        before = admin.usage(namespace).quota
        # A namespace that followed the rule of all so far keeps it for what is not said now.
        limits = {field: given[field] if said[field] is not None else getattr(before, field) for field in given}
        changed = admin.set_quota(Quota(namespace, **limits))
    if as_json:
        echo_json(_quota_json(changed))
        return
    click.echo(
        f"{changed.namespace}: {_limit(changed.max_bytes, bytes_=True)} of bytes, {_limit(changed.max_versions)} of "
        f"versions, {_limit(changed.max_open_uploads)} of open uploads"
    )


def _count(option: str, value: str | None) -> int | None:
    if value in (None, "none"):
        return None
    if not str(value).isascii() or not str(value).isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number nor `none`", param_hint=option)
    return int(str(value))


def _limit(limit: int | None, *, bytes_: bool = False) -> str:
    if limit is None:
        return "no limit"
    return size(limit) if bytes_ else str(limit)


def _quota_json(quota: Quota) -> dict[str, Any]:
    return {
        "namespace": quota.namespace,
        "max_bytes": quota.max_bytes,
        "max_versions": quota.max_versions,
        "max_open_uploads": quota.max_open_uploads,
    }
