"""A stored base with other linears: what `weft base requantize` stores. Everything else is copied as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from weft_adapters.base import layout
from weft_adapters.base.checkpoint import Checkpoint
from weft_adapters.base.load import StoredBase
from weft_adapters.base.quantize import check_groups
from weft_adapters.base.tokenizer_files import TOKENIZER, TOKENIZER_CONFIG
from weft_adapters.int4 import Int4Weight

Requantized = Callable[[], Iterable[tuple[str, Int4Weight]]]
"""Every linear module of the base, once, with its new weight."""


def requantized(
    base: StoredBase,
    weights: Requantized,
    *,
    bits: int,
    group_size: int,
    biases: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """`base` with new weights in its linears, ready to be stored; and with new `biases` (N,), by module, where a merge
    has changed those that it has, in the dtype in which they are given.

    Raises `InvalidInputError` for a group size that does not divide a linear.
    """
    changed = {module + layout.BIAS: bias_N for module, bias_N in (biases or {}).items()}
    names = _kept(base)
    if missing := changed.keys() - set(names):
        raise ValueError(f"the base has no {', '.join(sorted(missing))}")

    def kept() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name, changed[name] if name in changed else base.tensor(name)

    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in kept()}
    for module, (n_out, n_in) in base.spec.linears.items():
        check_groups(n_in, group_size, module)
        plan[module + layout.CODES] = (torch.uint8, (n_out, n_in // 2))
        plan[module + layout.SCALE] = plan[module + layout.MINIMUM] = (torch.float16, (n_out, n_in // group_size))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from kept()
        for module, weight in weights():
            yield module + layout.CODES, weight.codes_NH
            yield module + layout.SCALE, weight.scale_NG
            yield module + layout.MINIMUM, weight.minimum_NG

    def write_tokenizer(target: Path) -> None:
        for name in (TOKENIZER, TOKENIZER_CONFIG):
            shutil.copyfile(base.tokenizer_dir / name, target / name)

    return Checkpoint(
        config_json=json.loads((base.path / "config.json").read_text(encoding="utf-8")),
        config=base.config,
        group_size=group_size,
        bits=bits,
        plan=plan,
        tensors=tensors,
        write_tokenizer=write_tokenizer,
        default_id=base.spec.fingerprint.id,
    )


def _kept(base: StoredBase) -> list[str]:
    """The names of the tensors that are not a linear's codes, scales or minima."""
    linear = {m + part for m in base.spec.linears for part in (layout.CODES, layout.SCALE, layout.MINIMUM)}
    return sorted(base.tensor_names - linear)
