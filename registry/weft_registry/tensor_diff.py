"""How far the tensors of two artifacts are apart, tensor by tensor and, for low-rank adapters, product by product.

A and B of a low-rank adapter are defined only up to an invertible matrix: `B A = (B M)(M^-1 A)`. So their own
differences say little, and the difference of the products `s B A` is what the model feels. It is

    D = s' B' A' - s B A = [s' B', -s B] [A'; A] = P Q

and with the triangular factors of `P = U R` and `Q^T = V S`, `|D| = |R S^T|` (Frobenius norms): exact to float64's
precision, in 2r by 2r numbers, whatever the size of D. Computes in float64; holds two tensors, or two pairs, at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from weft_registry.headers import HeaderEntry, read_header, read_tensor
from weft_registry.kinds import KIND_SCHEMAS
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_registry.manifest import Manifest

Matrix = npt.NDArray[np.float64]
_DTYPES: Mapping[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "<u1",
}


@dataclass(frozen=True)
class TensorDiff:
    """One tensor of either artifact."""

    name: str
    old_shape: tuple[int, ...] | None
    """None: only the new artifact has it."""
    new_shape: tuple[int, ...] | None
    """None: only the old artifact has it."""
    relative: float | None
    """|new - old| / |old|, in Frobenius norms; None where the shapes differ or one lacks it, `inf` where old is zero
    and new is not."""

    @property
    def changed(self) -> bool:
        """Whether the two differ in any way."""
        return self.relative != 0.0


@dataclass(frozen=True)
class ProductDiff:
    """The products of one module that both adapt, with inputs and outputs of the same number."""

    module: str
    old_norm: float
    """|s B A| of the old one."""
    difference: float
    """|s' B' A' - s B A|."""

    @property
    def relative(self) -> float:
        """`difference / old_norm`; `inf` where the old product is zero and the new one is not."""
        return ratio(self.difference, self.old_norm)


class Weights:
    """The tensors of one artifact: its open safetensors file, which the caller closes, and its manifest."""

    def __init__(self, file: BinaryIO, size_bytes: int, manifest: Manifest) -> None:
        self._file = file
        self.manifest = manifest
        self.entries = {entry.name: entry for entry in read_header(file, size_bytes).entries}
        self.digests = {tensor.name: tensor.sha256 for tensor in manifest.tensors}

    def read(self, name: str) -> Matrix:
        """One tensor, as float64."""
        return decode(b"".join(read_tensor(self._file, self.entries[name])), self.entries[name])

    def same(self, name: str, other: Weights) -> bool:
        """Whether a tensor has the same bytes and type in both."""
        ours, theirs = self.entries[name], other.entries[name]
        equal = self.digests.get(name) is not None and self.digests.get(name) == other.digests.get(name)
        return equal and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)


def decode(data: bytes, entry: HeaderEntry) -> Matrix:
    """A tensor's bytes as float64."""
    if entry.dtype == "BF16":
        # The upper half of a float32.
        found: npt.NDArray[Any] = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    else:
        found = np.frombuffer(data, _DTYPES[entry.dtype])
    return found.astype(np.float64).reshape(entry.shape)


def diff_tensors(old: Weights, new: Weights) -> list[TensorDiff]:
    """Every tensor of either, by name."""
    found = []
    for name in sorted(old.entries.keys() | new.entries.keys()):
        shapes = [w.entries[name].shape if name in w.entries else None for w in (old, new)]
        relative = None
        if shapes[0] is not None and shapes[0] == shapes[1]:
            relative = 0.0 if old.same(name, new) else _relative(old.read(name), new.read(name))
        found.append(TensorDiff(name, shapes[0], shapes[1], relative))
    return found


def diff_products(old: Weights, new: Weights) -> list[ProductDiff]:
    """The products of the modules that both adapt, in the old one's order; none unless both are low-rank and of one
    kind."""
    before, after = _low_rank(old.manifest), _low_rank(new.manifest)
    if before is None or after is None or old.manifest.kind != new.manifest.kind:
        return []
    found = []
    for module in before.target_modules:
        a_name, b_name = _factor_names(module)
        if module not in after.target_modules or not {a_name, b_name} <= old.entries.keys() & new.entries.keys():
            continue
        a_old, b_old, a_new, b_new = (w.entries[n].shape for w in (old, new) for n in (a_name, b_name))
        if a_old[1] != a_new[1] or b_old[0] != b_new[0]:
            continue
        s_old, s_new = before.scaling(module), after.scaling(module)
        a_rK, b_Nr = old.read(a_name), s_old * old.read(b_name)
        norm = product_norm(b_Nr, a_rK)
        if s_old == s_new and old.same(a_name, new) and old.same(b_name, new):
            difference = 0.0
        else:
            p_NR = np.concatenate([s_new * new.read(b_name), -b_Nr], axis=1)
            q_RK = np.concatenate([new.read(a_name), a_rK], axis=0)
            difference = product_norm(p_NR, q_RK)
        found.append(ProductDiff(module, norm, difference))
    return found


def product_norm(p_NR: Matrix, q_RK: Matrix) -> float:
    """|P Q|, without the product: R is small."""
    return float(np.linalg.norm(_triangle(p_NR) @ _triangle(q_RK.T).T))


def overall(products: list[ProductDiff]) -> float | None:
    """The relative difference of all products together; None of none."""
    if not products:
        return None
    return ratio(math.sqrt(sum(p.difference**2 for p in products)), math.sqrt(sum(p.old_norm**2 for p in products)))


def ratio(difference: float, norm: float) -> float:
    """`difference / norm`; 0 of nothing, `inf` where only the norm is zero."""
    if norm:
        return difference / norm
    return math.inf if difference else 0.0


def _triangle(matrix: Matrix) -> Matrix:
    """The triangular factor of a matrix, which has its norms."""
    factor: Any = np.linalg.qr(matrix, mode="r")
    return np.asarray(factor, np.float64)


def _relative(old: Matrix, new: Matrix) -> float:
    return ratio(float(np.linalg.norm((new - old).ravel())), float(np.linalg.norm(old.ravel())))


def _low_rank(manifest: Manifest) -> LowRankParams | None:
    schema = KIND_SCHEMAS.get(manifest.kind)
    params = schema.parse(manifest.adapter) if schema is not None else None
    return params if isinstance(params, LowRankParams) else None


def _factor_names(module: str) -> tuple[str, str]:
    return f"{PEFT_PREFIX}{module}.lora_A.weight", f"{PEFT_PREFIX}{module}.lora_B.weight"
