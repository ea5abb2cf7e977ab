"""`weft base requantize`: a stored base again with fewer bits, to the nearest or calibrated, with or without an adapter
merged into it first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weft_adapters.base.gptq import gptq
from weft_adapters.base.load import StoredBase
from weft_adapters.base.quantize import check_options, quantize
from weft_adapters.base.requantize import requantized
from weft_adapters.base.store import save_base
from weft_adapters.binding import bind
from weft_adapters.int4 import Int4Weight
from weft_adapters.kinds.kind import Adapter
from weft_registry import artifact
from weft_registry.base import BaseSpec, BaseStore
from weft_registry.errors import AlreadyExistsError, InvalidInputError
from weft_registry.home import Home
from weft_trainer.data.rows import choose, read_rows
from weft_trainer.data.tokenization import BaseTokenizer, tokenize
from weft_trainer.methods.worn import open_base
from weft_trainer.modeling.calibration import calibrate
from weft_trainer.progress import Reporter


def requantize(
    source: str,
    name: str,
    report: Reporter,
    *,
    bits: int,
    group_size: int,
    calibration: Path | None = None,
    samples: int = 128,
    length: int = 256,
    merge: Path | None = None,
    home: Home | None = None,
) -> BaseSpec:
    """Stores base `source`, dequantized and quantized again, as base `name`.

    With `calibration` (data in any form that training takes) by GPTQ over `samples` sequences of at most `length`
    tokens, else to the nearest. With `merge` (an artifact's directory) the merged weights are what is quantized, and
    biases that the merge changes are stored in float32; where the grid stays, modules that the adapter leaves alone
    keep their very codes.

    Raises `InvalidInputError` and `UnsupportedError` for options that are not offered, `AlreadyExistsError` if the name
    is taken, and what reading, binding and merging raise; nothing is stored then.
    """
    home = home or Home.from_environment()
    check_options(bits, group_size)
    if name in BaseStore(home.bases).names():
        raise AlreadyExistsError(f"base {name!r} exists, and a base never changes: choose another name")
    stored = open_base(source, home)
    adapter: Adapter[object] | None = None
    if merge is not None:
        adapter = bind(merge, artifact.read(merge), stored.spec, dtype=torch.float32)

    biases = {} if adapter is None else merged_biases(stored, adapter)
    quant = stored.spec.fingerprint.quant
    same_grid = (quant.bits, quant.group_size) == (bits, group_size)

    def dense(module: str) -> Tensor | None:
        """What is to be quantized; None for what is kept as it is."""
        weight = stored.int4(module)
        merged = None if adapter is None else adapter.kind.overlay(module, weight, adapter)
        if merged is None and adapter is not None and same_grid:
            return None
        if isinstance(merged, Tensor):
            return merged
        return (merged or weight).dequantize()

    def nearest() -> Iterator[tuple[str, Int4Weight]]:
        for module in stored.spec.linears:
            weight_NK = dense(module)
            if weight_NK is None:
                yield module, stored.int4(module)
            else:
                yield module, quantize(weight_NK, group_size, module, bits)

    def calibrated() -> Iterator[tuple[str, Int4Weight]]:
        assert calibration is not None
        ids = sequences(stored, calibration, samples, length, report)

        def choose_codes(module: str, weight_NK: Tensor, hessian_KK: Tensor) -> Int4Weight:
            return gptq(weight_NK, hessian_KK, group_size, module, bits)

        return calibrate(stored, ids, dense, choose_codes, report, biases)

    weights = nearest if calibration is None else calibrated
    checkpoint = requantized(stored, weights, bits=bits, group_size=group_size, biases=biases)
    how = "to the nearest" if calibration is None else "by GPTQ"
    merged = "" if merge is None else f" with {merge.name} merged"
    report.message(f"{source}{merged}, quantized {how} to {bits} bits in groups of {group_size}")
    fingerprint = stored.spec.fingerprint
    return save_base(home, name, checkpoint, fingerprint.id, fingerprint.revision, report.message)


def merged_biases(stored: StoredBase, adapter: Adapter[object]) -> dict[str, Tensor]:
    """The biases that are others once the adapter is merged, by module."""
    stored_biases = {module: bias_N for module in stored.spec.linears if (bias_N := stored.bias(module)) is not None}
    merged = {module: adapter.kind.overlay_bias(module, bias_N, adapter) for module, bias_N in stored_biases.items()}
    return {module: bias_N for module, bias_N in merged.items() if bias_N is not stored_biases[module]}


def sequences(stored: StoredBase, path: Path, samples: int, length: int, report: Reporter) -> Sequence[Sequence[int]]:
    """At most `samples` rows of `length` tokens of a data set, its examples one after the other."""
    tokenizer = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    dataset = tokenize(choose(read_rows(path, "train"), None, seed=0), tokenizer, length)
    flat = [token for example in dataset.examples for token in example.ids]
    rows = [flat[start : start + length] for start in range(0, len(flat), length)][:samples]
    if not rows:
        raise InvalidInputError(f"{path}: no tokens to calibrate on")
    report.message(f"{path.name}: {sum(map(len, rows)):,} tokens in {len(rows)} sequences to calibrate on")
    return rows
