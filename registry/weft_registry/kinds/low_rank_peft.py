"""PEFT's LoRA configuration and the parameters that follow from it. Written against PEFT 0.21.2; needs no PEFT.

Which modules are adapted is read from the tensors' names, never from `target_modules`: PEFT saves exactly the modules
that it matched, and a file cannot adapt a module without tensors.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX, LowRankParams
from weft_registry.kinds.peft_keys import (
    MAX_MODULE_CHARACTERS,
    check_keys,
    check_targets,
    in_model_order,
    mapping,
    number,
    whole,
)
from weft_registry.kinds.schema import Shapes
from weft_registry.patterns import ModulePatterns

_TENSOR = re.compile(re.escape(PEFT_PREFIX) + r"([A-Za-z0-9_.\-]+)\.lora_([AB])\.weight")

_READ = frozenset(
    {
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "use_qalora",
        "qalora_group_size",
    }
)
# Selecting modules, training, initialising, running on other hardware: none of it changes what saved tensors compute.
_NEUTRAL = frozenset(
    {
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_dropout",
        "init_lora_weights",  # Read below: some initialisations changed the base.
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",  # Only another backward pass.
        "megatron_core",
        "runtime_config",
        "bias",  # Read below.
    }
)
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA over pooled inputs is not supported; train one of the two",
    "lora_bias": "biases beside B are not supported",
    "modules_to_save": "fully trained modules are not adapters; train without them",
    "trainable_token_indices": "trained token embeddings are not supported",
    "target_parameters": "LoRA on bare parameters is not supported",
    "fan_in_fan_out": "transposed weights (GPT-2's Conv1D) are not supported",
    "layer_replication": "it changes the base model's layers",
    "alora_invocation_tokens": "activated LoRA is not supported",
    "monteclora_config": "sampled LoRA is not supported",
    "arrow_config": "routing between adapters is not supported",
    "kasa_config": "KaSA changes the base's weights",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "megatron_config": "Megatron layers are not supported",
    "ensure_weight_tying": "adapters on tied embeddings are not supported",
}
# These moved a part of the base's weights into A and B, so that the file belongs to a base changed in the same way.
_MOVED = ("pissa", "olora", "corda", "lora_ga")
# This quantized the base's weights. PEFT's conversion subtracts the first A and B, which are only near what was lost.
_QUANTIZED = "loftq"
_SAVED_ENDS = (
    "PEFT saved the base's own embedding or head beside the adapter: save it with "
    "save_pretrained(..., save_embedding_layers=False), and train with neither of them in target_modules"
)
_TENSOR_HINTS = (
    ("lora_magnitude_vector", "it belongs to DoRA, but adapter_config.json does not set use_dora"),
    ("lora_embedding_", "LoRA on embeddings is not supported"),
    ("lora_B.bias", "biases beside B are not supported"),
    ("modules_to_save", "fully trained modules are not adapters"),
    ("trainable_tokens", "trained token embeddings are not supported"),
    ("embed_tokens.", _SAVED_ENDS),
    ("lm_head.", _SAVED_ENDS),
)


def low_rank_from_peft(config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None) -> LowRankParams:
    """The parameters, alpha as PEFT has it. Raises `InvalidInputError` naming the key or tensor that is refused."""
    check_keys(config, _READ | _NEUTRAL, _REFUSED)
    if config.get("bias", "none") != "none":
        raise InvalidInputError(f"adapter_config.json: bias {str(config['bias'])[:40]!r}: only 'none' is supported")
    initial = config.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower().startswith(_QUANTIZED):
        raise InvalidInputError(
            f"adapter_config.json: init_lora_weights {initial[:40]!r} quantized the base's weights, and what was "
            "trained belongs to those; PEFT has no conversion for it: train over this base instead, in Weft with "
            "adapter: {init: loftq, original: DIRECTORY}, or in PEFT with init_lora_weights=True"
        )
    if isinstance(initial, str) and initial.lower().startswith(_MOVED):
        raise InvalidInputError(
            f"adapter_config.json: init_lora_weights {initial[:40]!r} changed the base's weights; save the adapter for "
            "the original base, with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if type(config.get("use_rslora", False)) is not bool:
        raise InvalidInputError("adapter_config.json: use_rslora: expected true or false")
    modules = _modules(shapes, base)
    check_targets(config.get("target_modules"), modules)
    r, alpha = whole(config, "r"), number(config.get("lora_alpha"), "lora_alpha")
    ranks = ModulePatterns("adapter_config.json: rank_pattern", mapping(config, "rank_pattern"))
    alphas = ModulePatterns("adapter_config.json: alpha_pattern", mapping(config, "alpha_pattern"))
    for module in modules:
        rank = ranks.get(module, r)
        for name, axis in ((f"{PEFT_PREFIX}{module}.lora_A.weight", 0), (f"{PEFT_PREFIX}{module}.lora_B.weight", 1)):
            shape = shapes[name]
            if len(shape) != 2 or shape[axis] != rank:
                raise InvalidInputError(f"{name}: shape {shape}, but adapter_config.json gives it rank {rank!r}")
    params = LowRankParams(
        r=r,
        alpha=alpha,
        use_rslora=config.get("use_rslora", False),
        target_modules=tuple(modules),
        rank_pattern={m: ranks.get(m, r) for m in modules if ranks.get(m, r) != r},
        alpha_pattern={},
    )
    return with_alphas(params, {m: number(alphas.get(m, alpha), f"alpha_pattern, at {m}") for m in modules})


def low_rank_to_peft(params: LowRankParams) -> dict[str, Any]:
    """The keys of a stock LoRA configuration. The caret makes PEFT match the whole name, not any name's end."""
    return {
        "peft_type": "LORA",
        "r": params.r,
        "lora_alpha": _plain(params.alpha),
        "lora_dropout": 0.0,
        "use_rslora": params.use_rslora,
        "target_modules": list(params.target_modules),
        "rank_pattern": {f"^{module}": rank for module, rank in params.rank_pattern.items()},
        "alpha_pattern": {f"^{module}": _plain(alpha) for module, alpha in params.alpha_pattern.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def with_alphas(params: LowRankParams, alphas: Mapping[str, float]) -> LowRankParams:
    """`params` with these alphas by module: the commonest becomes `alpha`, the others the pattern."""
    common = Counter(alphas.values()).most_common(1)[0][0]
    pattern = {module: alpha for module, alpha in alphas.items() if alpha != common}
    return replace(params, alpha=common, alpha_pattern=pattern)


def low_rank_differences(declared: LowRankParams, found: LowRankParams) -> list[str]:
    """See `KindSchema.differences`: another set of modules, another rank or another scaling."""
    here, there = set(declared.target_modules), set(found.target_modules)
    result = [f"{module} is adapted in only one of file and manifest" for module in sorted(here ^ there)]
    for module in sorted(here & there):
        if declared.rank(module) != found.rank(module):
            result.append(f"{module}: rank {found.rank(module)}, in the manifest {declared.rank(module)}")
        # Alphas of QA-LoRA were multiplied and divided on their way into PEFT's form: the last bits may differ.
        if not math.isclose(declared.scaling(module), found.scaling(module), rel_tol=1e-12):
            result.append(f"{module}: scaling {found.scaling(module)}, in the manifest {declared.scaling(module)}")
    return result


def _modules(shapes: Shapes, base: BaseSpec | None) -> list[str]:
    """The adapted modules, in model order where the base is known. Both A and B must be there for each."""
    found: dict[str, set[str]] = {}
    for name in shapes:
        match = _TENSOR.fullmatch(name)
        if match is None or len(match[1]) > MAX_MODULE_CHARACTERS:
            hint = next((text for part, text in _TENSOR_HINTS if part in name), "it is no LoRA tensor")
            raise InvalidInputError(f"tensor {name[:120]!r}: {hint}", metadata={"tensor": name[:120]})
        found.setdefault(match[1], set()).add(match[2])
    for module, halves in found.items():
        for half in {"A", "B"} - halves:
            raise InvalidInputError(f"tensor {PEFT_PREFIX}{module}.lora_{half}.weight: missing")
    return in_model_order(found, base)


def _plain(value: float) -> int | float:
    return int(value) if value.is_integer() else value
