"""A stored base as a model directory that vLLM loads from its path: the same codes, scales and minima, renamed.

vLLM finds tensors by its own names and dtypes, hence a second file: eight codes an int32 instead of two a byte, the
same bytes in the same order. Nothing is computed, but for 8-bit embeddings, which become dense. Knows no vLLM.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from weft_adapters.base.export import DTYPE, TensorShapes, write_model_directory
from weft_adapters.base.load import StoredBase
from weft_adapters.int4 import Int4Weight
from weft_registry.errors import UnsupportedError
from weft_server.vllm_engine.base.names import GROUP_SIZES, METHOD, MINIMUM, PACKED, SCALE

_PARTIAL = ".writing-"
_LAYOUT = "1"
"""Counts changes of what is written, so that directories of an older one are not taken for this one's."""


class WeftInt4Format:
    """The tensors of `weft_int4`. Implements `weft_adapters.base.export.LinearFormat`."""

    def shapes(self, module: str, n_out: int, n_in: int, group_size: int) -> TensorShapes:
        """See `LinearFormat`."""
        groups = (n_out, n_in // group_size)
        return {
            f"{module}.{PACKED}": (torch.int32, (n_out, n_in // 8)),
            f"{module}.{SCALE}": (torch.float16, groups),
            f"{module}.{MINIMUM}": (torch.float16, groups),
        }

    def tensors(self, module: str, weight: Int4Weight) -> Mapping[str, Tensor]:
        """See `LinearFormat`. A byte holds the even input low, and int32s are little-endian: the bytes are the same."""
        return {
            f"{module}.{PACKED}": weight.codes_NH.contiguous().view(torch.int32),
            f"{module}.{SCALE}": weight.scale_NG,
            f"{module}.{MINIMUM}": weight.minimum_NG,
        }


def vllm_directory(base: StoredBase, cache: Path) -> Path:
    """The directory of `base` for vLLM under `cache`, written if it is not there: about the base's own size.

    It is whole or absent; who asks while another writes it waits. Raises `UnsupportedError` for a base whose groups
    vLLM's int4 kernels do not take.
    """
    fingerprint = base.spec.fingerprint
    group_size = fingerprint.quant.group_size
    if group_size not in GROUP_SIZES:
        raise UnsupportedError(
            f"base {base.path.name!r} has groups of {group_size} inputs, and vLLM's int4 kernels take "
            f"{', '.join(map(str, GROUP_SIZES))}: add it again with such a --group-size, or use the torch engine"
        )
    short = [digest.removeprefix("sha256:")[:16] for digest in (fingerprint.weights_sha256, fingerprint.config_sha256)]
    target = cache / "vllm" / "-".join(["base", *short, _LAYOUT])
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    quantization = {"quant_method": METHOD, "group_size": group_size, "fingerprint": fingerprint.weights_sha256}
    # One writer at a time: what another began and did not finish is then a leftover.
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        for leftover in target.parent.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
        try:
            write_model_directory(base, partial, WeftInt4Format(), quantization, DTYPE)
            # Made for its owner alone; servers of other users may share the cache.
            partial.chmod(0o755)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return target
