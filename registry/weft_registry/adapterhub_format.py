"""Directories that the AdapterHub library saves: a bottleneck adapter in one becomes an artifact.

Only names change: of the tensors, and of what the configuration says. What would change the result and Weft does not
compute is refused by name; a key that nobody knows is refused too. Written against `adapters` 1.3.0 on a Llama or
Mistral. Needs neither that library nor torch.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weft_registry import artifact, headers, peft_format
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from weft_registry.headers import Header
from weft_registry.kinds.bottleneck import NON_LINEARITIES, PLACES, BottleneckParams, BottleneckSchema, sublayer_prefix

WEIGHTS = "adapter.safetensors"
PICKLED = "pytorch_adapter.bin"
FUSION_CONFIG = "adapter_fusion_config.json"
# Whose layers the library gives the places and residuals that `weft_registry.kinds.bottleneck` states.
_MODEL_TYPES = ("llama", "mistral")
_TENSOR = re.compile(
    r"(?:model\.)?layers\.(\d+)\.(attention_adapters|output_adapters)\.adapters\.([^.]+)"
    r"\.(adapter_down\.0|adapter_up)\.(weight|bias)"
)
_PLACE = {"attention_adapters": "attention", "output_adapters": "mlp"}
# What only training used.
_TRAINING = {"dropout", "init_weights", "init_weights_seed", "stochastic_depth"}
# Read from the tensors, or without meaning where the keys below say what they must.
_UNUSED = {
    "architecture",
    "mh_adapter",
    "output_adapter",
    "cross_adapter",
    "reduction_factor",
    "leave_out",
    "inv_adapter_reduction_factor",
    "adapter_residual_before_ln",
}
# Only so does the library compute what the kind says.
_FIXED: Mapping[str, Any] = {
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "use_gating": False,
    "inv_adapter": None,
    "phm_layer": False,
}
# Those of `phm_layer`, which is off.
_PHM = re.compile(r"phm_\w+|\w+_phm|\w+_phm_\w+|\w+_phm_rule|factorized_phm_W|hypercomplex_nonlinearity")
_READ = {"non_linearity", "is_parallel", "original_ln_before", "residual_before_ln", "scaling"}


def is_saved_by_adapterhub(directory: Path) -> bool:
    """Whether `directory` is one of the library's, and not PEFT's, which has a file of the same name."""
    if _is_fusion(directory):
        return True
    try:
        with (directory / artifact.CONFIG).open("rb") as file:
            config = peft_format.parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))
    except (OSError, InvalidInputError):
        return False
    return "peft_type" not in config and isinstance(config.get("config"), dict) and "model_type" in config


def import_adapterhub(
    directory: Path,
    base: BaseSpec,
    destination: Path,
    *,
    name: str,
    license: str = "",
    provenance: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> Path:
    """Writes the adapter that the library saved in `directory` to `destination` as an artifact; the source is left as
    it is.

    Raises `UnsupportedError` for another kind of adapter or model and for a fusion, `InvalidInputError` naming the key
    or tensor that is refused, `NotFoundError` without weights in safetensors.
    """
    if _is_fusion(directory):
        raise UnsupportedError(
            f"{directory} holds a fusion as AdapterHub saves it ({FUSION_CONFIG}), which is not imported: push each "
            "of the adapters that it fuses, then train a fusion over them with method: fusion and adapter.parts",
            reason="UNKNOWN_KIND",
        )
    weights = directory / WEIGHTS
    if not weights.is_file():
        pickled = f" ({PICKLED} is a pickle, which can run code)" if (directory / PICKLED).exists() else ""
        raise NotFoundError(
            f"{directory} has no {WEIGHTS}{pickled}: save it with model.save_adapter(..., use_safetensors=True)"
        )
    with (directory / artifact.CONFIG).open("rb") as file:
        document = peft_format.parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))
    with weights.open("rb") as file:
        header = headers.read_header(file, weights.stat().st_size, WEIGHTS)
    names = {entry.name: _renamed(entry.name) for entry in header.entries}
    params = _params(document, {names[old]: shape for old, shape in header.shapes.items()}, base)
    destination.mkdir(parents=True, exist_ok=True)
    _rename(weights, destination / artifact.WEIGHTS, header, names)
    manifest = artifact.describe(
        destination,
        kind=BottleneckSchema.name,
        adapter_block=BottleneckSchema().block(params),
        base=base.fingerprint,
        name=name,
        license=license,
        provenance=provenance,
        created=created,
    )
    artifact.write_manifest(destination, manifest)
    return destination


def _is_fusion(directory: Path) -> bool:
    return (directory / FUSION_CONFIG).is_file() and not (directory / artifact.CONFIG).exists()


def _params(document: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: BaseSpec) -> BottleneckParams:
    config: Mapping[str, Any] = document["config"]
    if config.get("architecture") is not None:
        raise UnsupportedError(
            f"{artifact.CONFIG}: architecture {str(config['architecture'])[:40]!r}: of AdapterHub's adapters only "
            "bottlenecks are read here; save others with PEFT",
            reason="UNKNOWN_KIND",
        )
    if document["model_type"] not in _MODEL_TYPES:
        raise UnsupportedError(
            f"{artifact.CONFIG}: model_type {str(document['model_type'])[:40]!r}: bottlenecks are read for "
            f"{', '.join(_MODEL_TYPES)}; elsewhere the library puts them at other places",
            reason="UNKNOWN_MODEL",
        )
    for key, value in config.items():
        _check_key(key, value)
    for key in _READ - config.keys():
        raise InvalidInputError(f"{artifact.CONFIG}: config.{key}: missing")
    if config["non_linearity"] not in NON_LINEARITIES:
        raise InvalidInputError(
            f"{artifact.CONFIG}: config.non_linearity {str(config['non_linearity'])[:40]!r}: supported are "
            f"{', '.join(NON_LINEARITIES)}"
        )
    scaling = config["scaling"]
    if type(scaling) not in (int, float):
        raise InvalidInputError(f"{artifact.CONFIG}: config.scaling {str(scaling)[:40]!r}: only a number is supported")
    if not config["is_parallel"] and config["residual_before_ln"] is not True:
        raise InvalidInputError(f"{artifact.CONFIG}: config.residual_before_ln: only true is supported")
    found = {tuple(name.split(".")[2:4]) for name in shapes}
    sizes = sorted({shape[0] for name, shape in shapes.items() if name.endswith("adapter_down.bias")})
    if len(sizes) != 1:
        raise InvalidInputError(f"{WEIGHTS}: bottlenecks of the sizes {sizes}: all layers must have one size")
    params = BottleneckParams(
        bottleneck_size=sizes[0],
        non_linearity=config["non_linearity"],
        reads="residual" if config["is_parallel"] else "sum" if config["original_ln_before"] else "output",
        places=tuple(place for place in PLACES if any(place == there for _, there in found)),
        layers=tuple(sorted({int(layer) for layer, _ in found})),
        scaling=float(scaling),
    )
    expected = BottleneckSchema().tensors(params, base)
    for name in sorted(expected.keys() ^ shapes.keys()):
        raise InvalidInputError(f"{WEIGHTS}: {name}: {'missing' if name in expected else 'unexpected'}")
    return params


def _check_key(key: str, value: Any) -> None:
    if key in _FIXED:
        if value != _FIXED[key]:
            raise InvalidInputError(
                f"{artifact.CONFIG}: config.{key} is {str(value)[:40]!r}: only {_FIXED[key]!r} is supported",
                metadata={"key": key},
            )
    elif key not in _TRAINING | _UNUSED | _READ and not _PHM.fullmatch(key):
        raise InvalidInputError(f"{artifact.CONFIG}: config.{key[:60]}: unknown key", metadata={"key": key[:60]})


def _renamed(name: str) -> str:
    match = _TENSOR.fullmatch(name)
    if match is None:
        raise InvalidInputError(f"{WEIGHTS}: {name}: no tensor of a bottleneck adapter; save the adapter alone")
    return f"{sublayer_prefix(int(match[1]), _PLACE[match[2]])}{match[4].removesuffix('.0')}.{match[5]}"


def _rename(source: Path, destination: Path, header: Header, names: Mapping[str, str]) -> None:
    """Copies a safetensors file under other names; the tensors' bytes stay as they are."""
    start = min(entry.start for entry in header.entries)
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for entry in header.entries:
        offsets = [entry.start - start, entry.end - start]
        document[names[entry.name]] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    if len(document) != len(header.entries) + 1:
        raise InvalidInputError(f"{WEIGHTS}: more than one adapter; save the adapter alone")
    raw = json.dumps(document, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with source.open("rb") as file, destination.open("wb") as sink:
        sink.write(struct.pack("<Q", len(raw)) + raw)
        for entry in header.entries:
            for chunk in headers.read_tensor(file, entry):
                sink.write(chunk)
