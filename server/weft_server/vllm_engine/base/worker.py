"""Merging inside vLLM's workers: methods that `collective_rpc` calls between two steps.

vLLM mixes this class into its worker (`worker_extension_cls`). Whoever calls `weft_merge` or `weft_unmerge` first lets
running requests finish, and afterwards resets the prefix cache: keys and values were computed with the weights of
their time, and nothing here looks after them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weft_registry.errors import CorruptionError, PreconditionError
from weft_server.vllm_engine import versions
from weft_server.vllm_engine.base.linear import WeftInt4LinearMethod
from weft_server.vllm_engine.base.names import DENSE, ZERO

SHARDS: Mapping[str, tuple[tuple[str, str | int], ...]] = {
    "qkv_proj": (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v")),
    "gate_up_proj": (("gate_proj", 0), ("up_proj", 1)),
}
"""vLLM's fused layers: the stored modules and vLLM's name for each of their shards."""


class WeftMerging:
    """What a worker can do beyond vLLM's own methods. Has no state: each layer's method owns its merge."""

    vllm_config: Any
    """The worker's."""

    def weft_merge(self, path: str, digest: str, fingerprint: str) -> dict[str, Any]:
        """Computes with the merged weights in the file at `path` from the next step on, in place of what was merged.

        The file is a `merge_file.MergeFile`'s. Answers the number of layers changed, the bytes held beside the base and
        the seconds it took. Raises `PreconditionError` for another base or where layers are compiled and the merge is
        dense, `CorruptionError` for a file that does not fit; the worker then computes with the base alone.
        """
        started = time.perf_counter()
        layers = list(_layers(self))
        expected = layers[0][1].fingerprint
        if fingerprint != expected:
            raise PreconditionError(
                f"the adapter {digest} was merged over weights {fingerprint}; this engine runs {expected}",
                reason="BASE_MISMATCH",
            )
        self.weft_unmerge()
        try:
            with safe_open(path, framework="pt") as file:
                changed, left = _merge(layers, file, versions.runs_eagerly(self.vllm_config))
                if left and self.vllm_config.parallel_config.pipeline_parallel_size == 1:
                    names = ", ".join(sorted(left)[:3])
                    raise CorruptionError(f"merged weights for layers that this model does not have: {names}")
        except (OSError, SafetensorError) as error:
            self.weft_unmerge()
            raise CorruptionError(f"{path}: the merged weights cannot be read: {error}") from error
        except BaseException:
            # Some layers may have changed: half an adapter is worse than none.
            self.weft_unmerge()
            raise
        held = sum(method.merged_bytes for _, method in layers)
        return {"layers": changed, "bytes": held, "seconds": time.perf_counter() - started}

    def weft_unmerge(self) -> dict[str, Any]:
        """The base's own bits again, from the next step on. Answers the seconds it took; harmless when nothing is
        merged."""
        started = time.perf_counter()
        for layer, method in _layers(self):
            method.unmerge(layer)
        return {"seconds": time.perf_counter() - started}

    def weft_zeros_sha256(self) -> str:
        """A digest of every zero in use on this worker, layer by layer: equal before a merge and after unmerging."""
        sha256 = hashlib.sha256()
        for layer, method in _layers(self):
            zeros_NG = method.zeros(layer).contiguous().cpu()
            sha256.update(zeros_NG.view(torch.uint8).numpy().data)
        return sha256.hexdigest()

    def weft_kernels(self) -> dict[str, int]:
        """How many layers of this worker run each kernel."""
        counts: dict[str, int] = {}
        for _, method in _layers(self):
            counts[method.kernel.name] = counts.get(method.kernel.name, 0) + 1
        return counts


def _layers(worker: Any) -> Iterator[tuple[nn.Module, WeftInt4LinearMethod]]:
    found = False
    for module in worker.get_model().modules():
        method = getattr(module, "quant_method", None)
        # A LoRA layer around one shows its inner layer's method as well, and has no weights of its own.
        if isinstance(method, WeftInt4LinearMethod) and not hasattr(module, "base_layer"):
            found = True
            yield module, method
    if not found:
        raise PreconditionError(
            "this engine does not run a weft_int4 model: only a directory made by Weft can have adapters merged",
            reason="NOT_MERGEABLE",
        )


def _merge(layers: list[tuple[nn.Module, WeftInt4LinearMethod]], file: Any, eager: bool) -> tuple[int, set[str]]:
    """The number of layers changed, and the tensors of the file that are for none of `layers`."""
    left = set(file.keys())
    changed = 0
    for layer, method in layers:
        names = _modules(method.prefix)
        for suffix in (ZERO, DENSE):
            present = [name + suffix for name, _ in names if name + suffix in left]
            if not present:
                continue
            if len(present) < len(names):
                raise CorruptionError(f"merged weights of {method.prefix}: {', '.join(present)} and no others")
            if suffix == DENSE and not eager:
                raise PreconditionError(
                    "a LoRA adapter is merged as dense weights, which a compiled or captured model would not see; "
                    "start the engine with enforce_eager, or serve the adapter unmerged",
                    reason="NOT_MERGEABLE",
                )
            parts: dict[str | int | None, Tensor] = {shard: file.get_tensor(name + suffix) for name, shard in names}
            method.merge_zeros(layer, parts) if suffix == ZERO else method.merge_dense(layer, parts)
            left -= set(present)
            changed += 1
    return changed, left


def _modules(prefix: str) -> list[tuple[str, str | int | None]]:
    """The stored modules of a layer and their shards: of `a.qkv_proj`, `a.q_proj` and "q" and so on."""
    parent, _, leaf = prefix.rpartition(".")
    if leaf not in SHARDS:
        return [(prefix, None)]
    return [(f"{parent}.{name}", shard) for name, shard in SHARDS[leaf]]
