"""`weft import`, `weft export --oci`, `weft sign`, `weft verify --key`: commands as people call them."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from huggingface_hub import constants

from weft_registry.base import BaseSpec
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

Weft = Callable[..., Result]
PeftDirectory = Callable[..., Path]


@pytest.fixture
def hub(
    tmp_path: Path, base: BaseSpec, peft_directory: PeftDirectory, monkeypatch: pytest.MonkeyPatch
) -> Generator[EmbeddedRegistry]:
    """Another registry, as the hub that HF_ENDPOINT names: acme/topics with the tags v1 and v2, `latest` at v2."""
    from weft_registry.peft_format import import_directory

    registry = EmbeddedRegistry(Home(tmp_path / "hub"))
    for seed, tag in ((1, "v1"), (2, "v2")):
        made = import_directory(peft_directory(seed), base, tmp_path / f"made{seed}", name="topics")
        push(registry, made, AdapterName("acme", "topics"), tags=[tag])
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    monkeypatch.setenv("HF_ENDPOINT", f"http://{port.address}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield registry
    port.close()
    registry.close()


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pair = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(pair.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def document(result: Result) -> dict[str, object]:
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_an_adapter_comes_from_a_hub_once(weft: Weft, hub: EmbeddedRegistry) -> None:
    first = weft("import", "hf:acme/topics@v1", "mine/topics", "--tag", "v1")
    assert first.stdout.startswith("imported mine/topics@sha256:")
    again = document(weft("import", "hf:acme/topics@v1", "mine/topics", "--json"))
    assert again["existing"] is True
    assert again["digest"] == hub.resolve("acme/topics:v1").digest
    assert again["tags"] == ["v1"]


def test_all_tags_come_from_a_hub_and_latest_is_the_default_branch(weft: Weft, hub: EmbeddedRegistry) -> None:
    hub.set_alias(AdapterName("acme", "topics"), "latest", "v1")
    found = json.loads(weft("import", "hf:acme/topics", "mine/topics", "--all-tags", "--json").stdout)
    assert [one["existing"] for one in found] == [False, False, True]
    for tag in ("v1", "v2"):
        shown = document(weft("show", f"mine/topics:{tag}", "--json"))
        assert shown["digest"] == hub.resolve(f"acme/topics:{tag}").digest
    assert document(weft("show", "mine/topics", "--json"))["digest"] == hub.resolve("acme/topics:v1").digest


def test_what_is_not_on_the_hub_is_said_in_a_line(weft: Weft, hub: EmbeddedRegistry) -> None:
    refused = weft("import", "hf:acme/nothing", "mine/topics", status=1)
    assert "there is no repository" in refused.stderr
    assert "HF_TOKEN" in refused.stderr
    assert "no revision 'v9'" in weft("import", "hf:acme/topics@v9", "mine/topics", status=1).stderr
    assert "expected hf:ORG/REPO" in weft("import", "s3:bucket", "mine/topics", status=2).stderr
    assert "leave @REVISION out" in weft("import", "hf:acme/topics@v1", "mine/topics", "--all-tags", status=2).stderr


def test_a_version_goes_to_a_layout_and_comes_back_the_same(
    weft: Weft, base: BaseSpec, peft_directory: PeftDirectory, tmp_path: Path
) -> None:
    pushed = document(weft("push", peft_directory(), "acme/topics", "--base", "tiny", "--tag", "v1", "--json"))
    exported = document(weft("export", "acme/topics:v1", "--oci", tmp_path / "layout", "--json"))
    assert (exported["tag"], exported["digest"]) == ("v1", pushed["digest"])
    assert str(exported["oci_digest"]).startswith("sha256:")
    back = document(weft("import", f"oci:{tmp_path / 'layout'}:v1", "other/topics", "--json"))
    assert (back["digest"], back["existing"]) == (pushed["digest"], False)
    only = document(weft("import", f"oci:{tmp_path / 'layout'}", "other/topics", "--json"))
    assert only["existing"] is True
    assert {path.name for path in tmp_path.iterdir()} == {"home", "layout", "adapter-0"}, "nothing is left beside it"


def test_where_an_export_goes_has_to_be_said_once(weft: Weft, tmp_path: Path) -> None:
    for arguments in ((), ("--to", tmp_path / "a", "--oci", tmp_path / "b")):
        assert "say where to" in weft("export", "acme/topics", *arguments, status=2).stderr
    assert (
        "goes with --oci" in weft("export", "acme/topics", "--to", tmp_path / "a", "--oci-tag", "v1", status=2).stderr
    )


def test_a_version_is_signed_and_its_signature_verified(
    weft: Weft, base: BaseSpec, peft_directory: PeftDirectory, keys: tuple[Path, Path], registry_server: str
) -> None:
    """Embedded, and over gRPC."""
    private, public = keys
    for where in ((), ("--registry", registry_server)):
        weft("push", peft_directory(len(where)), "acme/topics", "--base", "tiny", *where)
        unsigned = weft("verify", "acme/topics", "--key", public, *where, status=1)
        assert "no signature in the registry" in unsigned.stderr
        assert "weft sign" in unsigned.stderr
        assert "as published" in weft("verify", "acme/topics", *where).stdout
        assert weft("sign", "acme/topics", "--key", private, *where).stdout.startswith("signed acme/topics@sha256:")
        assert f"as published, signed by {public}" in weft("verify", "acme/topics", "--key", public, *where).stdout
        report = document(weft("verify", "acme/topics", "--key", public, "--json", *where))
        assert (report["ok"], str(report["signed_by"])[:7]) == (True, "sha256:")


def test_keys_that_are_none_are_refused_before_anything_is_asked(weft: Weft, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert "holds a public key" in weft("sign", "acme/topics", "--key", public, status=1).stderr
    assert "holds a private key" in weft("verify", "acme/topics", "--key", private, status=1).stderr


def test_damage_shows_in_spite_of_a_good_signature(
    weft: Weft, base: BaseSpec, peft_directory: PeftDirectory, keys: tuple[Path, Path], home: Home
) -> None:
    private, public = keys
    weft("push", peft_directory(), "acme/topics", "--base", "tiny")
    weft("sign", "acme/topics", "--key", private)
    blob = max(
        (path for path in (home.registry / "blobs").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    blob.chmod(0o600)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "is damaged" in weft("verify", "acme/topics", "--key", public, status=1).stderr
