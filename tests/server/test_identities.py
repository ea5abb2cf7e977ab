"""A real inference server that asks who is calling: an adapter is used only by those who may read it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.subjects import random_adapter
from tests.registry.access.lab import Authority
from tests.server.homes import prepare
from tests.server.registries import Counting, publish_fusion, residency
from tests.tiny_models import AddedBase
from weft.v1 import inference_pb2 as pb
from weft_client import AsyncInferenceClient, RegistryClient
from weft_registry.access.options import AccessOptions
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.reference import AdapterName
from weft_registry.serve.options import RegistryServeOptions
from weft_registry.serve.serving import running as registry_running
from weft_registry.transfer import pull, push
from weft_registry.wire.tls import TlsFiles
from weft_server.admin_service import AdapterAdminServicer
from weft_server.merge_control import MergeControl
from weft_server.options import ServeOptions
from weft_server.recorder import RequestRecorder
from weft_server.server_stats import Statistics
from weft_server.serving import Running, running
from weft_server.torch_engine.engine import TorchEngine

PRIVATE, OURS = "acme/lora:v1", "test/lora:v1"
REQUIRED = AccessOptions(required=True)


class World(NamedTuple):
    """A server, and tokens of its registry."""

    server: Running
    tokens: dict[str, str]
    registry: EmbeddedRegistry

    def client(self, name: str | None) -> AsyncInferenceClient:
        metadata = {"authorization": f"Bearer {self.tokens[name]}"} if name else None
        return AsyncInferenceClient(self.server.address, timeout_s=120, metadata=metadata)


def furnish(home: Home, base: AddedBase, tmp_path: Path) -> dict[str, str]:
    """The base, adapters in the namespaces "test" and "acme", and tokens."""
    prepare(home, base)
    registry = EmbeddedRegistry(home)
    pull(registry, OURS, tmp_path / "copied")
    push(registry, tmp_path / "copied", AdapterName("acme", "twin"), tags=["v1"])
    random_adapter("lora", base.stored.spec, 7, strength=0.3).write(tmp_path / "own", base.stored.spec, "acme/lora")
    push(registry, tmp_path / "own", AdapterName("acme", "lora"), tags=["v1"])
    rights = {
        "acme": (["read"], ["acme"]),
        "test": (["read"], ["test"]),
        "lead": (["admin"], ["test"]),
        "server": (["read"], ["*"]),
        "root": (["admin"], ["*"]),
    }
    tokens = {name: registry.create_token(name, *each).secret for name, each in rights.items()}
    registry.close()
    return tokens


def options(base: AddedBase, home: Home, access: AccessOptions, registry: str | None = None) -> ServeOptions:
    return ServeOptions(
        base.name, port=0, dtype="float32", grace_s=0, home=home, registry=registry, access=access, threads=1
    )


@pytest.fixture
async def world(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> AsyncIterator[World]:
    """A server over its own registry."""
    base, home = tiny_base(), Home(tmp_path / "home")
    tokens = furnish(home, base, tmp_path)
    registry = EmbeddedRegistry(home)
    async with running(options(base, home, REQUIRED)) as server:
        yield World(server, tokens, registry)
    registry.close()


@asynccontextmanager
async def apart(
    base: AddedBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registry_access: AccessOptions,
    access: AccessOptions,
) -> AsyncIterator[World]:
    """A server whose registry is elsewhere, with a token of its own."""
    far, near = Home(tmp_path / "far"), Home(tmp_path / "near")
    tokens = furnish(far, base, tmp_path)
    prepare(near, base)
    monkeypatch.setenv("WEFT_TOKEN", tokens["server"])
    async with AsyncExitStack() as stack:
        serving = RegistryServeOptions(port=0, http_port=0, grace_s=0, access=registry_access, home=far)
        registry = await stack.enter_async_context(registry_running(serving))
        server = await stack.enter_async_context(running(options(base, near, access, registry.address)))
        # From here on the environment is that of callers.
        monkeypatch.delenv("WEFT_TOKEN")
        opened = EmbeddedRegistry(far)
        stack.callback(opened.close)
        yield World(server, tokens, opened)


async def generate(client: AsyncInferenceClient, adapter: str) -> str:
    return (await client.generate("fox", adapter, max_new_tokens=2)).adapter_digest


async def refusal(client: AsyncInferenceClient, adapter: str) -> tuple[type[WeftError], str, str]:
    with pytest.raises(WeftError) as caught:
        await client.generate("fox", adapter, max_new_tokens=2)
    return type(caught.value), caught.value.reason, caught.value.message


async def test_an_adapter_in_memory_is_not_there_for_who_may_not_read_it(world: World) -> None:
    async with world.client("acme") as theirs, world.client("test") as ours:
        digest = await generate(theirs, PRIVATE)
        assert world.server.residency.is_resident(digest)
        version = world.registry.resolve(PRIVATE)
        nobodys = await refusal(ours, "nobody/lora:v1")
        assert nobodys[:2] == (NotFoundError, "ADAPTER_NOT_FOUND")
        for reference in (PRIVATE, "acme/lora", f"acme/lora@{version.digest}"):
            kind, reason, message = await refusal(ours, reference)
            assert (kind, reason, message.replace("acme", "nobody")) == nobodys
        # Neither in a stream, nor worn beside another.
        with pytest.raises(NotFoundError):
            async for _ in ours.stream("fox", PRIVATE, max_new_tokens=2):
                pass
        with pytest.raises(NotFoundError):
            await ours.generate("fox", [OURS, PRIVATE], max_new_tokens=2)
        assert await generate(ours, OURS)
        assert await generate(ours, "") == ""


async def test_nobody_in_particular_is_answered_nothing(world: World) -> None:
    async with world.client(None) as client:
        for call in (
            lambda: client.generate("fox", max_new_tokens=1),
            lambda: client.generate("fox", OURS, max_new_tokens=1),
            client.model_info,
            client.resident,
            client.stats,
        ):
            with pytest.raises(UnauthenticatedError):
                await call()
    wrong = {"authorization": "Bearer weft_" + "0" * 16 + "_" + "0" * 64}
    async with AsyncInferenceClient(world.server.address, timeout_s=60, metadata=wrong) as client:
        with pytest.raises(UnauthenticatedError):
            await client.generate("fox", max_new_tokens=1)


async def test_a_revoked_token_stops_at_once(world: World) -> None:
    async with world.client("acme") as client:
        await generate(client, PRIVATE)
        world.registry.revoke_token("acme")
        with pytest.raises(UnauthenticatedError, match="revoked"):
            await generate(client, PRIVATE)


async def test_lists_show_what_one_may_read_and_switches_need_an_administrator(world: World) -> None:
    async with world.client("acme") as theirs, world.client("test") as ours, world.client("root") as root:
        await generate(theirs, PRIVATE)
        await generate(ours, OURS)
        assert [each.reference for each in (await ours.resident(include_disk=True)).adapters] == [OURS]
        assert {each.reference for each in (await root.resident()).adapters} == {OURS, PRIVATE}
        for call in (ours.stats, ours.unmerge, lambda: ours.merge(OURS), lambda: ours.unload(OURS)):
            with pytest.raises(ForbiddenError):
                await call()
        with pytest.raises(NotFoundError, match="no adapter acme/lora"):
            await ours.load(PRIVATE)
        with pytest.raises(NotFoundError, match="no adapter acme/lora"):
            await ours.unload(PRIVATE)
        assert (await ours.load("test/prefix:v1")).reference == "test/prefix:v1"
        await root.stats()
        async with world.client("lead") as lead:
            assert await lead.unload("test/prefix:v1") > 0
            # Worn together: what one may do with each of them.
            both, worn = "test/lora:v1*0.5+test/qalora:v1", f"{OURS}+{PRIVATE}"
            assert (await ours.load(both)).reference == both
            for client in (ours, lead):
                with pytest.raises(NotFoundError, match="no adapter acme/lora"):
                    await client.load(worn)
                with pytest.raises(NotFoundError, match="no adapter acme/lora"):
                    await client.unload(worn)
            with pytest.raises(ForbiddenError):
                await ours.unload(both)
            assert await lead.unload(both) > 0
            with pytest.raises(ForbiddenError):
                await lead.merge(OURS)


async def test_a_fusion_over_what_one_may_not_read_is_neither_worn_nor_loaded(
    world: World, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    publish_fusion(world.registry, tiny_base().stored.spec, tmp_path / "made", parts_in="acme")
    async with world.client("test") as ours, world.client("root") as root:
        with pytest.raises(NotFoundError, match="no adapter acme/part-"):
            await ours.load("test/fused")
        with pytest.raises(NotFoundError, match="no adapter acme/part-"):
            await generate(ours, "test/fused")
        assert await generate(root, "test/fused")


@pytest.mark.parametrize(("reference", "parts"), [("test/a0", 1), ("test/a0*0.5+test/a1", 2)])
async def test_a_reference_is_resolved_once_so_that_rights_are_asked_for_what_is_loaded(
    reference: str, parts: int, engine: TorchEngine, registry: Counting, tmp_path: Path
) -> None:
    held, _ = residency(engine, registry, tmp_path)
    statistics = Statistics(engine, held, RequestRecorder(), overlay_limit_bytes=0)
    service = AdapterAdminServicer(held, engine, 0, MergeControl(held, engine), statistics)
    before = registry.resolved
    loaded = await service.Load(pb.LoadRequest(reference=reference), None)
    assert loaded.adapter.reference == reference
    assert registry.resolved == before + parts
    assert held.is_resident(loaded.adapter.digest)
    await held.close()


async def test_who_else_has_the_same_content_is_not_said(world: World) -> None:
    async with world.client("acme") as theirs, world.client("test") as ours:
        digest = await generate(theirs, "acme/twin:v1")
        loaded = await ours.load(OURS)
        assert (loaded.digest, loaded.reference) == (digest, OURS)
        assert (await ours.resident()).adapters == ()


async def test_a_registry_elsewhere_says_who_may_use_what(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        apart(tiny_base(), tmp_path, monkeypatch, REQUIRED, REQUIRED) as world,
        world.client("acme") as theirs,
        world.client("test") as ours,
        world.client(None) as nobody,
    ):
        assert await generate(theirs, PRIVATE)
        assert (await refusal(ours, PRIVATE))[0] is NotFoundError
        assert await generate(ours, OURS)
        with pytest.raises(UnauthenticatedError):
            await generate(nobody, "")


async def test_adapters_of_a_registry_that_asks_are_not_for_everybody_without_auth_either(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        apart(tiny_base(), tmp_path, monkeypatch, REQUIRED, AccessOptions()) as world,
        world.client("acme") as theirs,
        world.client(None) as nobody,
    ):
        assert await generate(theirs, PRIVATE)
        assert (await refusal(nobody, PRIVATE))[0] is NotFoundError
        assert await generate(nobody, "") == ""


async def test_a_registry_that_asks_nobody_leaves_all_as_it_was(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        apart(tiny_base(), tmp_path, monkeypatch, AccessOptions(), AccessOptions()) as world,
        world.client(None) as nobody,
    ):
        assert await generate(nobody, PRIVATE)
        await nobody.stats()


async def test_auth_over_a_registry_that_asks_nobody_is_refused_at_the_start(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInputError, match="asks nobody"):
        async with apart(tiny_base(), tmp_path, monkeypatch, AccessOptions(), REQUIRED):
            pass


async def test_requests_and_adapters_go_over_tls(
    tiny_base: Callable[..., AddedBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    tokens = furnish(home, base, tmp_path)
    authority = Authority.make(tmp_path / "authority")
    monkeypatch.setenv("WEFT_TLS_CA", str(authority.path))
    access = AccessOptions(required=True, tls=TlsFiles(*authority.issue("server")))
    async with running(options(base, home, access)) as server:
        target = f"grpcs://{server.address}"
        monkeypatch.setenv("WEFT_TOKEN", tokens["test"])
        async with AsyncInferenceClient(target, timeout_s=60) as client:
            assert await generate(client, OURS)
            assert (await refusal(client, PRIVATE))[0] is NotFoundError
        with RegistryClient(target) as registry:
            assert (await asyncio.to_thread(registry.who_am_i)).name == "test"
        async with AsyncInferenceClient(server.address, timeout_s=60) as client:
            with pytest.raises(UnavailableError):
                await generate(client, OURS)


async def test_while_nobody_can_say_who_one_is_the_base_model_answers_alone(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base, home = tiny_base(), Home(tmp_path / "home")
    prepare(home, base)
    async with (
        running(options(base, home, AccessOptions(), "127.0.0.1:1")) as server,
        AsyncInferenceClient(server.address, timeout_s=60) as client,
    ):
        assert await generate(client, "") == ""
        with pytest.raises(UnavailableError):
            await generate(client, OURS)
