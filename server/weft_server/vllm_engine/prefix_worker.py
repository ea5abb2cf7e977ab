"""What vLLM's workers can be asked about prefixes, by `collective_rpc`. To be mixed into the worker extension."""

from __future__ import annotations

from typing import Any

from weft_server.vllm_engine.prefix_request import PrefixAdapter


class PrefixWorker:
    """Every worker runs these, between two steps."""

    def weft_load_prefix(self, adapter: dict[str, Any]) -> int:
        """Reads a prefix before its first request does; answers its bytes here. `adapter` is `vars(PrefixAdapter)`.

        Raises what `PrefixStore.get` raises.
        """
        return int(_store().get(PrefixAdapter(**adapter)).nbytes)

    def weft_forget_prefix(self, digest: str) -> int:
        """Frees a prefix that no request uses any more; answers the bytes of those that remain."""
        store = _store()
        store.forget(digest)
        return int(store.size_bytes)


def _store() -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group().store
