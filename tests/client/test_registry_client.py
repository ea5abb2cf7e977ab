"""The registry clients, and the registry's commands with `--registry`, against a real registry server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from weft_client import AsyncRegistryClient, RegistryClient
from weft_registry.base import BaseSpec
from weft_registry.errors import ConflictError, InvalidInputError, NotFoundError, UnavailableError
from weft_registry.home import Home
from weft_registry.peft_format import import_directory
from weft_registry.reference import AdapterName

Weft = Callable[..., Result]
NAME = AdapterName("acme", "topics")


@pytest.fixture
def artifact(base: BaseSpec, peft_directory: Callable[..., Path], tmp_path: Path) -> Path:
    """An artifact of the tiny base, and another one beside it."""
    for seed in (1, 2):
        import_directory(peft_directory(seed), base, tmp_path / f"artifact-{seed}", name="topics")
    return tmp_path / "artifact-1"


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_pushed_is_what_is_pulled(registry_server: str, artifact: Path, tmp_path: Path) -> None:
    sent: list[int] = []
    received: list[int] = []
    with RegistryClient(registry_server) as client:
        published = client.push(artifact, "acme/topics", tags=["v1"], aliases=["production"], progress=sent.append)
        version = client.pull("acme/topics:production", tmp_path / "pulled", received.append)
    assert not published.existing
    assert version.digest == published.version.digest
    assert files(tmp_path / "pulled") == files(artifact)
    assert sum(sent) == sum(received) == version.size_bytes


def test_every_call_answers_over_the_wire_as_the_embedded_registry_does(registry_server: str, artifact: Path) -> None:
    with RegistryClient(registry_server) as client:
        first = client.push(artifact, NAME, tags=["v1"]).version
        second = client.push(artifact.with_name("artifact-2"), NAME, tags=["v2"]).version
        assert [version.digest for version in client.list_versions(NAME)] == [second.digest, first.digest]
        (summary,) = client.list_adapters("acme")
        assert (summary.adapter, summary.version_count) == (NAME, 2)
        assert client.resolve("acme/topics:v1").manifest_bytes == first.manifest_bytes
        moved = client.set_alias(NAME, "production", "v1", "none")
        with pytest.raises(ConflictError):
            client.set_alias(NAME, "production", "v2", "none")
        assert client.set_alias(NAME, "production", "v2", moved.etag).previous_digest == first.digest
        assert client.verify("acme/topics:v1").problems == ()
        assert client.yank("acme/topics:v1", "old").yank_reason == "old"
        weights = first.manifest.files[-1]
        assert b"".join(client.read_blob(weights.sha256)) == (artifact / weights.path).read_bytes()


def test_errors_keep_class_reason_and_metadata(registry_server: str, artifact: Path, tmp_path: Path) -> None:
    with RegistryClient(registry_server) as client:
        client.push(artifact, NAME)
        with pytest.raises(NotFoundError, match="acme/topics") as caught:
            client.resolve("acme/topcs")
        assert "acme/topics" in caught.value.metadata["nearest"]
        with pytest.raises(InvalidInputError):
            client.list_adapters("Not A Namespace")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InvalidInputError):
            client.push(tmp_path / "empty", "not-a-name")


def test_the_environment_names_the_registry_and_the_server_hosts_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RegistryClient() as client:
        assert client.target == "127.0.0.1:50051"
    monkeypatch.setenv("WEFT_SERVER", "127.0.0.1:7")
    with RegistryClient() as client:
        assert client.target == "127.0.0.1:7"
    monkeypatch.setenv("WEFT_REGISTRY", "127.0.0.1:8")
    with RegistryClient() as client:
        assert client.target == "127.0.0.1:8"


async def test_the_asyncio_client_does_the_same(registry_server: str, artifact: Path, tmp_path: Path) -> None:
    async with AsyncRegistryClient(registry_server) as client:
        published = await client.push(artifact, "acme/topics", tags=["v1"])
        assert (await client.resolve("acme/topics")).digest == published.version.digest
        version = await client.pull(published.version, tmp_path / "pulled")
        assert files(tmp_path / "pulled") == files(artifact)
        (file,) = (file for file in version.manifest.files if file.path == "adapter_model.safetensors")
        chunks = [chunk async for chunk in client.read_blob(file.sha256, 8, 100)]
        assert b"".join(chunks) == (artifact / file.path).read_bytes()[8:108]
        with pytest.raises(NotFoundError):
            await client.resolve("acme/nothing")
        assert [s.adapter for s in await client.list_adapters()] == [NAME]
        assert len(await client.list_versions(NAME)) == 1
        assert (await client.set_alias(NAME, "production", "v1")).digest == version.digest
        assert (await client.verify("acme/topics")).problems == ()
        assert await client.find_missing([file.sha256]) == []


def test_both_clients_offer_the_same() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(RegistryClient) == public(AsyncRegistryClient)


def test_commands_reach_the_named_registry_and_leave_the_embedded_one_alone(
    weft: Weft, home: Home, registry_server: str, artifact: Path, tmp_path: Path
) -> None:
    remote = ("--registry", registry_server)
    weft("push", artifact, "acme/topics", "--tag", "v1", *remote)
    assert [a["adapter"] for a in json.loads(weft("list", "--json", *remote).stdout)] == ["acme/topics"]
    weft("alias", "acme/topics", "production", "v1", *remote)
    weft("pull", "acme/topics:production", "--to", tmp_path / "pulled", *remote)
    assert files(tmp_path / "pulled") == files(artifact)
    assert not home.registry.exists()
    assert json.loads(weft("list", "--json").stdout) == []


def test_the_registry_of_the_environment_is_used(
    weft: Weft, registry_server: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_REGISTRY", registry_server)
    weft("push", artifact, "acme/topics")
    monkeypatch.delenv("WEFT_REGISTRY")
    assert json.loads(weft("list", "--json").stdout) == []
    assert len(json.loads(weft("list", "--json", "--registry", registry_server).stdout)) == 1


def test_violations_found_by_a_server_are_listed(
    weft: Weft, registry_server: str, base: BaseSpec, peft_directory: Callable[..., Path]
) -> None:
    directory = peft_directory(target_modules=["q_proj"])
    answer = weft("push", directory, "acme/topics", "--base", "tiny", "--registry", registry_server, status=1)
    assert answer.stderr.startswith("error: ")
    assert "v_proj" in answer.stderr


def test_a_registry_that_is_not_there_is_an_error_with_the_way_out(home: Home) -> None:
    # A compare-and-swap is the one call that is never repeated.
    with RegistryClient("127.0.0.1:1") as client, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        client.set_alias(NAME, "production", "v1", "none")
