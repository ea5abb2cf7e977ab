"""The synchronous registry client: `RegistryApi` over gRPC, and whole directories both ways."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from weft_client.channel import server_address
from weft_registry import transfer
from weft_registry.api import Progress, Published, Version
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import TIMEOUT_S, TRANSFER_TIMEOUT_S, RemoteRegistry


class RegistryClient(RemoteRegistry):
    """One registry server. Owns its channel; safe to use from several threads.

    `target` is HOST:PORT. By default it is WEFT_REGISTRY; else an inference server hosts the registry too, so it is
    WEFT_SERVER, or 127.0.0.1:50051. `timeout_s` bounds each short call, `transfer_timeout_s` whatever reads whole
    files. `token` is by default WEFT_TOKEN, else what `weft login` stored for this registry.

    Every method raises the errors of `weft_registry.errors`, with the statuses that registry.proto states.
    """

    def __init__(
        self,
        target: str | None = None,
        timeout_s: float | None = None,
        transfer_timeout_s: float | None = None,
        token: str | None = None,
    ) -> None:
        self.target = registry_address(target)
        super().__init__(
            self.target,
            timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
            transfer_timeout_s=TRANSFER_TIMEOUT_S if transfer_timeout_s is None else transfer_timeout_s,
            token=token,
        )

    def push(
        self,
        directory: Path | str,
        adapter: AdapterName | str,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Published:
        """Publishes an artifact directory. `progress` is called with each further number of bytes done."""
        name = AdapterName.parse(adapter) if isinstance(adapter, str) else adapter
        return transfer.push(self, Path(directory), name, tags=tags, aliases=aliases, progress=progress)

    def pull(self, reference: str | Version, directory: Path | str, progress: Progress | None = None) -> Version:
        """Brings one version to `directory`, every byte verified. See `weft_registry.transfer.pull`."""
        return transfer.pull(self, reference, Path(directory), progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def registry_address(target: str | None) -> str:
    """`target`, or WEFT_REGISTRY, or the inference server, which hosts a registry unless it is told otherwise."""
    return target or os.environ.get("WEFT_REGISTRY") or server_address(None)
