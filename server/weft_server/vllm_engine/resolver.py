"""Stock `vllm serve` with adapters from a Weft registry: a client names a version where it names the model.

    WEFT_VLLM_CACHE=/var/cache/weft WEFT_REGISTRY=registry:8471 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 \\
        vllm serve MODEL --enable-lora

A name is resolved once, to a digest; what arrives is verified by digest before vLLM sees it. vLLM asks once for a name
and from then on serves what it got, for as long as it runs, without asking again: so a name that may come to mean
another version (an alias, or none at all, which is "latest") is refused, with the name that does not move.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from fastapi import HTTPException
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from weft_registry.api import RegistryApi, Version
from weft_registry.errors import (
    CorruptionError,
    DeadlineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
    WeftError,
)
from weft_registry.home import Home
from weft_registry.kinds.lora import LoraSchema
from weft_registry.kinds.qalora import QaLoraSchema
from weft_registry.reference import Reference
from weft_registry.transfer import open_registry, pull
from weft_server.vllm_engine.resolver_base import check_base

_log = logging.getLogger(__name__)
NAME = "Weft"
CACHE, REGISTRY, UPDATING = "WEFT_VLLM_CACHE", "WEFT_REGISTRY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
# Clients of this protocol try again after 409 and after every 5xx: only what may pass by itself is among those.
_STATUS: tuple[tuple[type[WeftError], HTTPStatus], ...] = (
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ExhaustedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeadlineError, HTTPStatus.GATEWAY_TIMEOUT),
    (CorruptionError, HTTPStatus.INTERNAL_SERVER_ERROR),
    (WeftError, HTTPStatus.BAD_REQUEST),
)


def register() -> None:
    """Adds the resolver to vLLM's, if `WEFT_VLLM_CACHE` asks for it. May be called again."""
    cache = os.environ.get(CACHE)
    if not cache or NAME in LoRAResolverRegistry.get_supported_resolvers():
        return
    if os.environ.get(UPDATING, "0").strip().lower() not in ("1", "true"):
        _log.warning("%s is set, but vLLM asks for adapters only with %s=1", CACHE, UPDATING)
    LoRAResolverRegistry.register_resolver(NAME, WeftResolver(registry_of_environment, Path(cache).expanduser()))


def registry_of_environment() -> RegistryApi:
    """What `WEFT_REGISTRY` names: a server (HOST:PORT) or a home (a directory). Without it, the home of `WEFT_HOME`."""
    named = os.environ.get(REGISTRY, "")
    if named[:1] in ("/", "~", "."):
        from weft_registry.embedded import EmbeddedRegistry

        return EmbeddedRegistry(Home(Path(named).expanduser()))
    return open_registry(Home.from_environment())


class WeftResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not there for mypy.
    """Lives in the processes that serve HTTP. Pulled versions stay in `cache`: vLLM reads one again whenever it had to
    leave memory."""

    def __init__(self, open_: Callable[[], RegistryApi], cache: Path) -> None:
        """`open_` is called at the first request: vLLM loads its plugins in processes that never have one."""
        self._open = open_
        self._cache = cache
        self._lock = threading.Lock()
        self._opened: RegistryApi | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The version that `lora_name` names, ready to be loaded on the model in the directory `base_model_name`.

        None for a name that this registry does not have: another resolver may, and if not, vLLM answers 404 itself.
        What cannot be served is an `HTTPException` that says why.
        """
        try:
            return await asyncio.to_thread(self._resolve, base_model_name, lora_name)
        except WeftError as error:
            status = next(status for kind, status in _STATUS if isinstance(error, kind))
            _log.warning("%s: %s", lora_name, error)
            raise HTTPException(status, f"{lora_name}: {error.message}") from error

    def _resolve(self, model: str, name: str) -> LoRARequest | None:
        try:
            reference = Reference.parse(name)
        except InvalidInputError:
            return None
        plain = name == str(reference.adapter)
        try:
            version = self._registry().resolve(name)
        except NotFoundError:
            if plain:
                return None
            raise
        _check_name(reference, version)
        _check_kind(version)
        check_base(version.manifest, model)
        directory = self._cache / version.digest.removeprefix("sha256:")
        directory.parent.mkdir(parents=True, exist_ok=True)
        pull(self._registry(), version, directory)
        # A LoRA artifact is a PEFT directory as it is. The name must be the one that was asked for: vLLM takes two
        # requests for the same adapter if their names are equal, and numbers adapters by the name that was asked for.
        # It names one version for ever, and the directory, which is in the keys of cached blocks, is its digest.
        return LoRARequest(lora_name=name, lora_int_id=1 + int(version.digest[-15:], 16), lora_path=str(directory))

    def _registry(self) -> RegistryApi:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened


def _check_name(reference: Reference, version: Version) -> None:
    if reference.digest is not None or reference.label in version.tags:
        return
    fixed = [f"{version.adapter}@{tag}" for tag in version.tags[:1]] + [f"{version.adapter}@{version.digest}"]
    raise PreconditionError(
        f"{reference.label!r} moves from version to version, and vLLM would go on serving the one that it names now; "
        f"ask for {' or '.join(fixed)}, or serve with `weft serve`, which follows aliases",
        reason="MOVING_ALIAS",
    )


def _check_kind(version: Version) -> None:
    kind = version.manifest.kind
    if kind == LoraSchema.name:
        return
    if kind == QaLoraSchema.name:
        raise UnsupportedError(
            f"{version.adapter} is a QA-LoRA adapter, which vLLM cannot read; `weft export` writes it as the LoRA that "
            "computes the same on the same base, or serve it with `weft serve`"
        )
    raise UnsupportedError(f"{version.adapter} is of kind {kind!r}; `vllm serve` serves lora only, `weft serve` all")
