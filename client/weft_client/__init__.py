"""Python clients for Weft's services, sync and asyncio; and, in `weft_client.cli`, the `weft` command line.

The names are loaded on first use, so that importing one client costs nothing of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft_client.async_inference import AsyncInferenceClient
    from weft_client.async_registry import AsyncRegistryClient
    from weft_client.inference import InferenceClient
    from weft_client.registry import RegistryClient
    from weft_client.results import Completion

_MODULES = {
    "AsyncInferenceClient": "weft_client.async_inference",
    "AsyncRegistryClient": "weft_client.async_registry",
    "Completion": "weft_client.results",
    "InferenceClient": "weft_client.inference",
    "RegistryClient": "weft_client.registry",
}

__all__ = ["AsyncInferenceClient", "AsyncRegistryClient", "Completion", "InferenceClient", "RegistryClient"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
