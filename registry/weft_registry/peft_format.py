"""Between PEFT's adapter_config.json and ours: only the configuration is converted, tensors never change.

What alters the result and is not supported is refused by name; what only trained or selected is let through by name;
a key that neither list knows is refused unless it is empty. Written against PEFT 0.21.2. Needs neither PEFT nor torch.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weft_registry import artifact, headers
from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError, UnsupportedError
from weft_registry.kinds import KIND_SCHEMAS, kind_schema, peft_schema
from weft_registry.kinds.schema import PeftSchema, Shapes
from weft_registry.manifest import Manifest, Metric
from weft_registry.patterns import check_selector

POOLINGS = ("peft", "mean", "sum")
"""How the inputs of a QA-LoRA file are pooled: as PEFT does (the mean times the number of groups), by the mean (as the
paper's repository does), or by the sum (as Weft stores it)."""

PEFT_TYPES = ("IA3", "LORA", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
"""The values of `peft_type` that are read; what else the configuration says decides the kind."""

# PEFT evaluates them as regular expressions where they are strings, and `layers_pattern` in a list, too.
_SELECTORS = ("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules")
_TRANSFORMERS_MODEL = re.compile(r"transformers\.models(\.[a-z0-9_]+)+")


def parse_config(data: bytes) -> dict[str, Any]:
    """Parses adapter_config.json, strictly. Raises `InvalidInputError`."""
    what = artifact.CONFIG

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise InvalidInputError(f"{what}: a key appears twice")
        return result

    def no_constant(text: str) -> Any:
        raise InvalidInputError(f"{what}: {text} is not JSON")

    def finite(text: str) -> float:
        number = float(text)
        if math.isinf(number):
            raise InvalidInputError(f"{what}: {text[:40]} is not a finite number")
        return number

    if len(data) > artifact.MAX_CONFIG_BYTES:
        raise InvalidInputError(f"{what}: more than {artifact.MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(
            data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant, parse_float=finite
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{what}: not UTF-8 JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInputError(f"{what}: expected an object")
    return config


def kind_of(config: Mapping[str, Any], pooling: str = "peft") -> str:
    """The kind of adapter that a PEFT configuration describes. Raises `UnsupportedError` naming its `peft_type`.

    A pooling other than PEFT's says that a file that looks like LoRA is QA-LoRA: the paper's repository saves such.
    """
    if pooling not in POOLINGS:
        raise InvalidInputError(f"pooling: {pooling!r}; expected one of {', '.join(POOLINGS)}")
    schemas = [schema for schema in KIND_SCHEMAS.values() if isinstance(schema, PeftSchema)]
    for schema in schemas:
        if schema.reads_peft({**config, "use_qalora": True} if pooling != "peft" else config):
            return schema.name
    raise UnsupportedError(
        f"{artifact.CONFIG}: peft_type {str(config.get('peft_type'))[:60]!r} is not supported; supported are "
        f"{', '.join(PEFT_TYPES)}, as the kinds {', '.join(sorted(schema.name for schema in schemas))}: train with one "
        "of those",
        reason="UNKNOWN_KIND",
        metadata={"peft_type": str(config.get("peft_type"))[:60]},
    )


def from_peft(
    config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
) -> tuple[str, Any]:
    """(kind, parameters) of a PEFT adapter: its configuration, and the shapes of its tensors by name.

    Raises `UnsupportedError` for another peft_type, `InvalidInputError` naming the key or tensor that is refused.
    """
    kind = kind_of(config, pooling)
    _check_common(config)
    if pooling != "peft" and kind != "qalora":
        raise InvalidInputError(f"pooling: only QA-LoRA pools its inputs; this is {kind}")
    return kind, peft_schema(kind).from_peft(config, shapes, base, pooling)


def to_peft(kind: str, params: Any, base: BaseSpec) -> dict[str, Any]:
    """The adapter_config.json with which stock PEFT loads the same tensors to the same effect.

    Raises `UnsupportedError` for a kind that PEFT does not have.
    """
    return {
        "base_model_name_or_path": base.fingerprint.id,
        "revision": base.fingerprint.revision or None,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        **peft_schema(kind).to_peft(params, base),
    }


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """adapter_config.json as PEFT writes it."""
    return json.dumps(config, indent=2, sort_keys=True).encode()


def config_differences(
    config: Mapping[str, Any], shapes: Shapes, kind: str, params: Any, base: BaseSpec | None
) -> list[str]:
    """Where adapter_config.json says something else than the manifest's parameters. Empty when they agree.

    Raises what `from_peft` raises.
    """
    found_kind, found = from_peft(config, shapes, base)
    if found_kind != kind:
        return [f"describes a {found_kind} adapter, the manifest a {kind} one"]
    return peft_schema(kind).differences(params, found)


def derive_manifest(
    directory: Path,
    base: BaseSpec,
    *,
    name: str,
    pooling: str = "peft",
    license: str = "",
    tokenizer: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Sequence[Metric] = (),
    created: str | None = None,
) -> Manifest:
    """The manifest of a plain PEFT directory, trained on `base`; nothing is written.

    `base_model_name_or_path` is not compared with anything: it is a name, and `base` is the caller's word. Raises what
    `from_peft`, `artifact.files_of` and `headers.read_header` raise.
    """
    kind, params = from_peft(_read_config(directory), _read_shapes(directory), base, pooling)
    return artifact.describe(
        directory,
        kind=kind,
        adapter_block=kind_schema(kind).block(params),
        base=base.fingerprint,
        name=name,
        license=license,
        tokenizer=tokenizer,
        provenance=provenance,
        metrics=metrics,
        created=created,
    )


def import_directory(
    directory: Path,
    base: BaseSpec,
    destination: Path,
    *,
    name: str,
    pooling: str = "peft",
    license: str = "",
    provenance: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> Path:
    """Copies a plain PEFT directory to `destination` as an artifact: the same tensors, plus a manifest.

    With another pooling than PEFT's, adapter_config.json is rewritten so that PEFT too computes the right thing. The
    source is left as it is. Raises what `derive_manifest` raises.
    """
    destination.mkdir(parents=True, exist_ok=True)
    for path in artifact.files_of(directory):
        shutil.copyfile(path, destination / path.name)
    if pooling != "peft":
        kind, params = from_peft(_read_config(directory), _read_shapes(directory), base, pooling)
        (destination / artifact.CONFIG).write_bytes(config_bytes(to_peft(kind, params, base)))
    manifest = derive_manifest(destination, base, name=name, license=license, provenance=provenance, created=created)
    artifact.write_manifest(destination, manifest)
    return destination


def _read_config(directory: Path) -> dict[str, Any]:
    artifact.files_of(directory)
    with (directory / artifact.CONFIG).open("rb") as file:
        return parse_config(file.read(artifact.MAX_CONFIG_BYTES + 1))


def _read_shapes(directory: Path) -> Shapes:
    weights = directory / artifact.WEIGHTS
    with weights.open("rb") as file:
        return headers.read_header(file, weights.stat().st_size, artifact.WEIGHTS).shapes


def _check_common(config: Mapping[str, Any]) -> None:
    mapping = config.get("auto_mapping")
    # Stock PEFT writes it for an adapter made without a task_type. It names a module to import, so only transformers'
    # own models pass: what a loader would import anyway.
    if mapping and not (
        isinstance(mapping, dict)
        and mapping.keys() == {"base_model_class", "parent_library"}
        and all(isinstance(value, str) for value in mapping.values())
        and _TRANSFORMERS_MODEL.fullmatch(mapping["parent_library"])
        and mapping["base_model_class"].isidentifier()
    ):
        raise InvalidInputError(
            f"{artifact.CONFIG}: auto_mapping names code to import that is not one of transformers' own models; remove "
            "it and set task_type to CAUSAL_LM"
        )
    for key in _SELECTORS:
        value = config.get(key)
        for selector in value if isinstance(value, list) and key == "layers_pattern" else [value]:
            if isinstance(selector, str):
                check_selector(f"{artifact.CONFIG}: {key}", selector)
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InvalidInputError(
            f"{artifact.CONFIG}: task_type {str(config['task_type'])[:40]!r}: only CAUSAL_LM adapters are served"
        )
