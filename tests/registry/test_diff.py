"""Comparing versions: against numpy in float64, with every product written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.registry.lab import PARAMS, make_artifact, random_tensors, safetensors_bytes, seal, serving
from weft_registry import artifact, transfer
from weft_registry.api import Version
from weft_registry.diff import VersionDiff, diff
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import CorruptionError
from weft_registry.headers import HeaderEntry
from weft_registry.kinds.low_rank import LowRankParams
from weft_registry.manifest import Metric
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry
from weft_registry.tensor_diff import TensorDiff, decode, overall, product_norm, ratio

NAME = AdapterName("team", "support")
Arrays = dict[str, np.ndarray[Any, Any]]
Publish = Callable[..., Version]


@pytest.fixture
def publish(registry: EmbeddedRegistry, tmp_path: Path) -> Publish:
    """Publishes an artifact with these tensors."""
    count = iter(range(100))

    def make(tensors: Arrays, kind: str = "lora", **changes: Any) -> Version:
        directory = make_artifact(tmp_path / f"made{next(count)}", kind=kind)
        (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(tensors))
        return transfer.push(registry, seal(directory, kind, **changes), NAME).version

    return make


def compared(registry: EmbeddedRegistry, old: Version, new: Version) -> tuple[VersionDiff, dict[str, TensorDiff]]:
    found = diff(registry, old, new)
    return found, {each.name: each for each in found.tensors}


def names(module: str) -> tuple[str, str]:
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def product(tensors: Arrays, params: LowRankParams, module: str) -> np.ndarray[Any, Any]:
    a, b = (tensors[name].astype(np.float64) for name in names(module))
    return params.scaling(module) * b @ a


def test_tensors_and_products_are_as_numpy_says_with_everything_written_out(
    registry: EmbeddedRegistry, publish: Publish
) -> None:
    old, new = random_tensors("lora", 1), random_tensors("lora", 2)
    found, tensors = compared(registry, publish(old), publish(new))
    for name in old:
        a, b = old[name].astype(np.float64), new[name].astype(np.float64)
        assert tensors[name].relative == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-12)
    params = PARAMS["lora"]
    assert [each.module for each in found.products] == list(params.target_modules)
    squares = [0.0, 0.0]
    for each in found.products:
        before, after = product(old, params, each.module), product(new, params, each.module)
        assert each.difference == pytest.approx(np.linalg.norm(after - before), rel=1e-12)
        assert each.old_norm == pytest.approx(np.linalg.norm(before), rel=1e-12)
        squares[0] += float(np.linalg.norm(after - before)) ** 2
        squares[1] += float(np.linalg.norm(before)) ** 2
    assert overall(list(found.products)) == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-12)


def test_factors_that_say_the_same_differently_differ_and_their_products_do_not(
    registry: EmbeddedRegistry, publish: Publish
) -> None:
    old = random_tensors("lora", 1)
    new: Arrays = {}
    random = np.random.default_rng(3)
    for module in PARAMS["lora"].target_modules:
        a_name, b_name = names(module)
        mix = random.standard_normal((old[a_name].shape[0],) * 2)
        new[a_name] = (np.linalg.inv(mix) @ old[a_name]).astype("<f4")
        new[b_name] = (old[b_name] @ mix).astype("<f4")
    found, tensors = compared(registry, publish(old), publish({name: new[name] for name in old}))
    assert all(each.relative is not None and each.relative > 0.1 for each in tensors.values())
    # Nothing but the rounding of the factors to float32.
    together = overall(list(found.products))
    assert together is not None
    assert 0 < together < 1e-5


def test_small_differences_are_exact_and_not_lost_in_large_norms(registry: EmbeddedRegistry, publish: Publish) -> None:
    """Sums of squares would stop at one part in 10^8."""
    random = np.random.default_rng(0)
    b, a = random.standard_normal((300, 4)), random.standard_normal((4, 500))
    off = 1e-11 * random.standard_normal((300, 4))
    found = product_norm(np.concatenate([b + off, -b], axis=1), np.concatenate([a, a], axis=0))
    exact = np.linalg.norm(((b + off) - b) @ a)
    assert found == pytest.approx(exact, rel=1e-3)
    assert found < 1e-8 * np.linalg.norm(b @ a)


def test_another_scaling_alone_changes_every_product_and_no_tensor(
    registry: EmbeddedRegistry, publish: Publish
) -> None:
    tensors = random_tensors("lora", 1)
    old = publish(tensors)
    # As if published with twice the alpha, and the same bytes.
    changed = replace(old.manifest, adapter={**old.manifest.adapter, "alpha": "16"})
    new = replace(old, manifest_bytes=changed.canonical_bytes(), digest=changed.digest())
    found, compared_tensors = compared(registry, old, new)
    assert not any(each.changed for each in compared_tensors.values())
    assert [each.relative for each in found.products] == pytest.approx([1.0] * len(found.products), rel=1e-12)
    assert [(each.key, each.old, each.new) for each in found.settings] == [("adapter.alpha", "8", "16")]


def test_the_same_weights_are_not_read_twice_and_differ_in_nothing(
    registry: EmbeddedRegistry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = random_tensors("lora", 1)
    old, new = publish(tensors), publish(tensors, created="2026-02-01T00:00:00Z")
    read: list[str] = []
    whole = registry.read_blob

    def counted(digest: str) -> Any:
        read.append(digest)
        return whole(digest)

    monkeypatch.setattr(registry, "read_blob", counted)
    found, compared_tensors = compared(registry, old, new)
    assert len(read) == 1
    assert {each.relative for each in compared_tensors.values()} == {0.0}
    assert {each.difference for each in found.products} == {0.0}
    assert overall(list(found.products)) == 0.0
    assert [each.key for each in found.settings] == ["created"]


def test_tensors_of_one_alone_and_of_other_shapes_are_named_and_not_measured(
    registry: EmbeddedRegistry, publish: Publish, tmp_path: Path
) -> None:
    lora, prefix = publish(random_tensors("lora", 1)), publish(random_tensors("prefix", 1), "prefix")
    found, tensors = compared(registry, lora, prefix)
    assert found.products == ()
    assert {each.relative for each in tensors.values()} == {None}
    assert {name for name, each in tensors.items() if each.new_shape is None} == set(random_tensors("lora", 1))
    assert {name for name, each in tensors.items() if each.old_shape is None} == set(random_tensors("prefix", 1))
    assert all(each.changed for each in tensors.values())
    qalora = publish(random_tensors("qalora", 1), "qalora")
    found, tensors = compared(registry, lora, qalora)
    # The same names; QA-LoRA's A reads fewer inputs.
    a_name, b_name = names(PARAMS["lora"].target_modules[0])
    assert tensors[a_name].relative is None
    assert tensors[a_name].old_shape != tensors[a_name].new_shape
    assert tensors[b_name].relative is not None
    assert found.products == ()


def test_ranks_may_differ_where_the_products_do_not_need_them_to(registry: EmbeddedRegistry, publish: Publish) -> None:
    """A product of rank 2 against one of rank 4: A and B cannot be compared, what they compute can."""
    random = np.random.default_rng(0)
    b4, a4, b2, a2 = (random.standard_normal(shape) for shape in ((32, 4), (4, 64), (32, 2), (2, 64)))
    found = product_norm(np.concatenate([3.0 * b2, -2.0 * b4], axis=1), np.concatenate([a2, a4], axis=0))
    assert found == pytest.approx(np.linalg.norm(3.0 * b2 @ a2 - 2.0 * b4 @ a4), rel=1e-12)


def test_metrics_stand_side_by_side(registry: EmbeddedRegistry, publish: Publish) -> None:
    data = "sha256:" + "1" * 64
    old = publish(random_tensors("lora", 1), metrics=[Metric("loss", "1.5", data, "eval"), Metric("a", "1", data, "")])
    new = publish(random_tensors("lora", 2), metrics=[Metric("loss", "1.2", data, "eval"), Metric("b", "2", data, "")])
    found, _ = compared(registry, old, new)
    assert [(each.name, each.split, each.old, each.new) for each in found.metrics] == [
        ("loss", "eval", "1.5", "1.2"),
        ("a", "", "1", None),
        ("b", "", None, "2"),
    ]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_every_type_is_read_as_the_numbers_that_it_holds(dtype: str) -> None:
    values = np.array([[0, 1, 1, 0], [1, 0, 1, 1]]) if dtype in ("BOOL", "U8") else np.array([[0.0, -1, 2, 96]] * 2)
    raw = {
        "BF16": lambda: (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(),
        "BOOL": lambda: values.astype("<u1").tobytes(),
    }.get(
        dtype, lambda: values.astype({"F": "<f", "I": "<i", "U": "<u"}[dtype[0]] + str(int(dtype[1:]) // 8)).tobytes()
    )()
    assert np.array_equal(decode(raw, HeaderEntry("x", dtype, (2, 4), 0, len(raw))), values.astype(np.float64))


def test_figures_of_nothing() -> None:
    assert (ratio(0.0, 0.0), ratio(1.0, 0.0), ratio(1.0, 2.0)) == (0.0, math.inf, 0.5)
    assert overall([]) is None


def test_a_remote_registry_is_compared_alike_and_wrong_bytes_are_never_measured(
    registry: EmbeddedRegistry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = publish(random_tensors("lora", 1)), publish(random_tensors("lora", 2))
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        assert diff(remote, old, new) == diff(registry, old, new)
    whole = registry.read_blob

    def flipped(digest: str) -> Any:
        data = bytearray(b"".join(whole(digest)))
        data[-1] ^= 1
        return iter([bytes(data)])

    monkeypatch.setattr(registry, "read_blob", flipped)
    with pytest.raises(CorruptionError, match="the registry sent bytes"):
        diff(registry, old, new)
