"""`weft sign` and `weft verify`: who stands for a version, and whether it is what was published."""

from __future__ import annotations

import os
from pathlib import Path

import click

from weft_client.cli.failure import Failure
from weft_client.cli.options import json_option, registry_option
from weft_client.cli.output import echo_json, short, size, timestamp
from weft_client.cli.sources import opened
from weft_client.cli.views import report_json, version_json
from weft_registry.errors import Violation

PASSWORD_VARIABLE = "WEFT_KEY_PASSWORD"
_KEY_HELP = (
    f"An elliptic curve key in PEM: a private one to sign ({PASSWORD_VARIABLE} unlocks it), a public one to verify."
)


@click.command()
@click.argument("reference")
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    help=_KEY_HELP,
)
@json_option
@registry_option
def sign(reference: str, key: Path, as_json: bool, registry_target: str | None) -> None:
    """Sign a version, and keep the signature beside it in the registry.

    The signature is over the digests of all files of the version, its manifest included, and so over the version's
    digest; nothing is downloaded. The version and its digest stay as they are. Needs the extra: weft[sign].

    \b
    Example:
      openssl ecparam -name prime256v1 -genkey -noout -out key.pem
      openssl ec -in key.pem -pubout -out key.pub
      weft sign acme/topics:v2 --key key.pem
    """
    from weft_registry.signing.keys import digest_of_private
    from weft_registry.signing.sign import sign as make

    password = os.environ.get(PASSWORD_VARIABLE, "").encode() or None
    key_digest = digest_of_private(key, password)
    with opened(registry_target) as registry:
        version = registry.resolve(reference)
        bundle = make(version, key, password)
        signature = registry.put_signature(f"{version.adapter}@{version.digest}", key_digest, bundle)
    if as_json:
        document = {"key_digest": signature.key_digest, "added_at": timestamp(signature.added_at)}
        echo_json({**version_json(version), "signature": {**document, "bundle_bytes": len(bundle)}})
        return
    click.echo(f"signed {version.adapter}@{version.digest} with the key {short(key_digest)}")


@click.command()
@click.argument("reference")
@click.option(
    "--key",
    "keys",
    type=click.Path(path_type=Path),
    multiple=True,
    help=_KEY_HELP,
)
@json_option
@registry_option
def verify(reference: str, keys: tuple[Path, ...], as_json: bool, registry_target: str | None) -> None:
    """Re-hash the manifest and every file of a version, and check its signature. Status 1 if anything is not right.

    Without --key only hashes are looked at. With it (it may be repeated) the version must have a valid signature by one
    of these keys, which proves its digest, and so every file of it. Needs the extra for that: weft[sign].

    \b
    Example:
      weft verify acme/topics:production
      weft verify acme/topics:production --key key.pub
    """
    signer = None
    with opened(registry_target) as registry:
        if keys:
            from weft_registry.signing.keys import read_public
            from weft_registry.signing.sign import require

            public = [read_public(key) for key in keys]
            version = registry.resolve(reference)
            signer = require(registry, version, public)
            # What was signed, and not what the reference names by now.
            reference = f"{version.adapter}@{version.digest}"
        report = registry.verify(reference)
    if as_json:
        document = report_json(report)
        echo_json({**document, "signed_by": signer.digest} if signer else document)
    elif not report.problems:
        by = f", signed by {signer.path}" if signer else ""
        click.echo(f"{report.digest}: {report.checked_files} files, {size(report.checked_bytes)}, as published{by}")
    if report.problems:
        problems = tuple(Violation("", problem) for problem in report.problems)
        raise Failure(f"{report.digest} is damaged; publish it again from a good copy", problems)
