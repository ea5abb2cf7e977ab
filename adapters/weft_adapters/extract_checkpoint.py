"""A fine-tuned model directory becomes a LoRA artifact over a stored base, which says what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import weft
from weft_adapters.base import layout
from weft_adapters.base.huggingface import FloatModel
from weft_adapters.base.load import StoredBase
from weft_adapters.base.original import lost
from weft_adapters.extraction import Extracted, Truncation, extract
from weft_adapters.finetuning import Change, FineTuning, Read, check_same_model, differences
from weft_adapters.saving import check_new, save, tokenizer_block
from weft_registry import digest as digests
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_registry.manifest import Manifest, Metric

_SHOWN = 5
# Of the distance of two models without anything in common. One that was fine-tuned from the base is far nearer, at 2
# bits too.
_NOTHING_IN_COMMON = 0.9


@dataclass(frozen=True)
class Extraction:
    """What was made of a checkpoint."""

    manifest: Manifest
    ranks: tuple[int, ...]
    """Of the adapted modules, in model order."""
    error: float
    """Relative Frobenius error of the adapter against the difference it was taken from."""
    served_error: float
    """Relative Frobenius distance of the served weights, base plus adapter, from the fine-tuned ones."""
    base_error: float
    """The same of the base's weights alone."""
    unrelated: bool
    """Whether the fine-tuned weights have next to nothing in common with the base's."""
    folded: tuple[str, ...]
    """Changed norms that the adapter carries in the linears after them."""
    rest: tuple[Change, ...]
    """Changed tensors that it does not carry."""


def extract_checkpoint(
    stored: StoredBase,
    checkpoint: Path,
    output: Path,
    truncation: Truncation,
    *,
    original: Path | None = None,
    ignore_rest: bool = False,
    name: str | None = None,
    license: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> Extraction:
    """Writes the LoRA artifact at `output`, which must be new.

    `checkpoint` and `original` are directories with config.json and safetensors. Raises `InvalidInputError` for
    another architecture, for an `original` that the base was not quantized from, for two equal models, and, without
    `ignore_rest`, for changes that no LoRA can carry.
    """
    check_new(output)
    tuned = _open(stored, checkpoint)
    before = None if original is None else _open(stored, original)
    if before is not None:
        _check_original(stored, before)
    found = _differences(stored, tuned, before)
    if found.rest and not ignore_rest:
        raise InvalidInputError(
            f"the fine-tuning also changed {_listed(found.rest)}: no LoRA of the linears can carry that. Say "
            "--ignore-rest to leave it behind"
        )
    extracted = extract(_reporting(found, len(stored.spec.linears), report), truncation)
    if not extracted.tensors:
        raise InvalidInputError(f"{checkpoint.name} has the same linear weights: there is nothing to extract")
    distances = _distances(stored, tuned, extracted)
    provenance = {
        "tool": "weft extract",
        "version": weft.__version__,
        "checkpoint": _provenance_of(tuned),
        "original": None if before is None else _provenance_of(before),
        **extraction_provenance(extracted, truncation, found),
        "parent_version": None,
    }
    metrics = [
        Metric("extraction_error", f"{extracted.error:.6f}", "", ""),
        Metric("served_weight_error", f"{distances.served:.6f}", "", ""),
    ]
    manifest = save(
        output,
        stored.spec,
        kind="lora",
        params=extracted.params,
        tensors=extracted.tensors,
        name=name or output.absolute().name,
        license=license,
        tokenizer=tokenizer_block(stored),
        provenance=provenance,
        metrics=metrics,
    )
    ranks = tuple(extracted.params.rank(module) for module in extracted.params.target_modules)
    return Extraction(
        manifest,
        ranks,
        extracted.error,
        distances.served,
        distances.base,
        distances.base > _NOTHING_IN_COMMON * distances.unrelated,
        found.folded,
        found.rest,
    )


def extraction_provenance(extracted: Extracted, truncation: Truncation, found: FineTuning) -> dict[str, Any]:
    """What an artifact's provenance says about an extraction: every module's rank and error, and what was left."""
    return {
        "truncation": truncation.as_json(),
        "relative_error": f"{extracted.error:.6f}",
        "modules": {
            module: {"rank": error.rank, "relative_error": f"{error.relative:.6f}"}
            for module, error in extracted.errors.items()
        },
        "folded_norms": list(found.folded),
        "left_behind": {change.name: f"{change.relative:.6f}" for change in found.rest},
    }


def _open(stored: StoredBase, path: Path) -> FloatModel:
    model = FloatModel(path)
    check_same_model(stored.config, model.config, path.name)
    return model


def _check_original(stored: StoredBase, original: FloatModel) -> None:
    try:
        for module in stored.spec.linears:
            lost(stored, module, original.tensor(f"{module}.weight"), f"--from: {module} in {original.path}")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{error.message}; without --from the difference is taken to the stored base"
        ) from error


def _differences(stored: StoredBase, tuned: FloatModel, original: FloatModel | None) -> FineTuning:
    names = list(layout.dense_tensors(stored.config))
    if any(model is not None and not model.config.tie_word_embeddings for model in (tuned, original)):
        # A head of its own beside a base that has none is compared with the embedding, which stands for it there.
        names = list(dict.fromkeys([*names, layout.HEAD]))
    return differences(stored, _read(tuned), None if original is None else _read(original), others=names)


def _read(model: FloatModel) -> Read:
    tied = {layout.HEAD: layout.EMBEDDING} if model.config.tie_word_embeddings else {}
    return lambda name: model.tensor(tied.get(name, name))


def _reporting(found: FineTuning, count: int, report: Callable[[str], None]) -> Any:
    for done, pair in enumerate(found.deltas(), start=1):
        yield pair
        if done % 50 == 0 or done == count:
            report(f"decomposed {done} of {count} linear layers")


@dataclass(frozen=True)
class _Distances:
    """From the fine-tuned weights, over all linears and relative to those."""

    served: float
    base: float
    unrelated: float
    """Of weights as large as the base's that have nothing to do with them: nothing cancels."""


def _distances(stored: StoredBase, tuned: FloatModel, extracted: Extracted) -> _Distances:
    left = off = base = whole = 0.0
    for module, delta_NK in _differences(stored, tuned, None).deltas():
        weight_NK = stored.int4(module).dequantize().double()
        base += float(weight_NK.square().sum())
        off += float(delta_NK.square().sum())
        whole += float((weight_NK + delta_NK).square().sum())
        a_rK = extracted.tensors.get(f"{PEFT_PREFIX}{module}.lora_A.weight")
        if a_rK is not None:
            delta_NK = delta_NK - extracted.tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"].double() @ a_rK.double()
        left += float(delta_NK.square().sum())
    return _Distances(*(math.sqrt(squares / whole) if whole else 0.0 for squares in (left, off, base + whole)))


def _provenance_of(model: FloatModel) -> Mapping[str, Any]:
    return {
        "name": model.path.absolute().name,
        "files": {file.name: digests.of_file(file) for file in model.files},
    }


def _listed(changes: tuple[Change, ...]) -> str:
    largest = sorted(changes, key=lambda change: -change.relative)
    listed = ", ".join(map(str, largest[:_SHOWN]))
    return listed + (f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
