"""The artifact of an (IA)^3 adapter: one vector for every target module, as PEFT saves them.

Source: (IA)^3 (Liu et al. 2022, arXiv:2205.05638), section 3.3: keys, values and the inner activations of the MLP are
multiplied element by element by learned vectors. The first two are scales of a linear module's output; the last is a
scale of the input of the module that reads those activations, which PEFT calls a feedforward module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_registry.kinds.low_rank import PEFT_PREFIX, module_shape
from weft_registry.kinds.peft_keys import MAX_MODULE_CHARACTERS, check_keys, check_targets, in_model_order
from weft_registry.kinds.schema import BlockReader, Shapes, TensorSpec

VECTOR = ".ia3_l"
OWN_INPUT = ("o_proj", "down_proj")
"""The last parts of the modules whose input nobody shares."""

_TENSOR = re.compile(re.escape(PEFT_PREFIX) + r"([A-Za-z0-9_.\-]+)" + re.escape(VECTOR))
_KNOWN = frozenset(
    {
        "target_modules",
        "feedforward_modules",
        # Selecting modules, and the values that training began with.
        "exclude_modules",
        "init_ia3_weights",
    }
)
_REFUSED = {
    "modules_to_save": "fully trained modules are not adapters; train without them",
    "fan_in_fan_out": "transposed weights (GPT-2's Conv1D) are not supported",
}


@dataclass(frozen=True)
class Ia3Params:
    """Which modules have a vector, and on which side of them. Full module names."""

    target_modules: tuple[str, ...]
    """All of them."""
    feedforward_modules: tuple[str, ...]
    """Those whose INPUT is scaled; the output of every other one is."""


class Ia3Schema:
    """The vector is (out, 1) at a module whose output it scales, and (1, in) at a feedforward module."""

    name = "ia3"

    def parse(self, block: Mapping[str, Any]) -> Ia3Params:
        """See `KindSchema.parse`."""
        reader = BlockReader(block)
        params = Ia3Params(reader.names("target_modules"), reader.names("feedforward_modules", least=0))
        reader.end()
        for module in params.feedforward_modules:
            if module not in params.target_modules:
                raise InvalidInputError(f"adapter.feedforward_modules: {module!r} is not one of target_modules")
            check_input(module, "adapter.feedforward_modules")
        return params

    def block(self, params: Ia3Params) -> dict[str, Any]:
        """See `KindSchema.block`."""
        return {
            "target_modules": list(params.target_modules),
            "feedforward_modules": list(params.feedforward_modules),
        }

    def tensors(self, params: Ia3Params, base: BaseSpec | None) -> dict[str, TensorSpec]:
        """See `KindSchema.tensors`. A vector scales whole activations, so it is never rounded to an engine's dtype."""
        specs: dict[str, TensorSpec] = {}
        for module in params.target_modules:
            n_out, n_in = module_shape(module, base)
            shape = (1, n_in) if module in params.feedforward_modules else (n_out, 1)
            specs[f"{PEFT_PREFIX}{module}{VECTOR}"] = TensorSpec(shape, wide=True)
        return specs

    def reads_peft(self, config: Mapping[str, Any]) -> bool:
        """See `KindSchema.reads_peft`."""
        return config.get("peft_type") == "IA3"

    def from_peft(
        self, config: Mapping[str, Any], shapes: Shapes, base: BaseSpec | None = None, pooling: str = "peft"
    ) -> Ia3Params:
        """See `KindSchema.from_peft`. The side of a module is read from its vector's shape, and a list of feedforward
        modules must say the same."""
        check_keys(config, _KNOWN, _REFUSED)
        sides: dict[str, bool] = {}
        for name, shape in shapes.items():
            match = _TENSOR.fullmatch(name)
            if match is None or len(match[1]) > MAX_MODULE_CHARACTERS:
                raise InvalidInputError(
                    f"tensor {name[:120]!r}: it is no (IA)^3 vector", metadata={"tensor": name[:120]}
                )
            if len(shape) != 2 or 1 not in shape:
                raise InvalidInputError(f"{name}: shape {shape}; expected (out, 1), or (1, in) at a feedforward module")
            sides[match[1]] = shape[0] == 1
        modules = in_model_order(sides, base)
        check_targets(config.get("target_modules"), modules)
        _check_feedforward(config.get("feedforward_modules"), sides)
        feedforward = [module for module in modules if sides[module]]
        for module in feedforward:
            check_input(module, f"tensor {PEFT_PREFIX}{module}{VECTOR}")
        return self.parse(self.block(Ia3Params(tuple(modules), tuple(feedforward))))

    def to_peft(self, params: Ia3Params, base: BaseSpec) -> dict[str, Any]:
        """See `KindSchema.to_peft`."""
        return {
            "peft_type": "IA3",
            "target_modules": list(params.target_modules),
            "feedforward_modules": list(params.feedforward_modules),
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
            "modules_to_save": None,
        }

    def differences(self, declared: Ia3Params, found: Ia3Params) -> list[str]:
        """See `KindSchema.differences`: another set of modules, or another side of one."""
        here, there = set(declared.target_modules), set(found.target_modules)
        result = [f"{module} is adapted in only one of file and manifest" for module in sorted(here ^ there)]
        sides = set(declared.feedforward_modules) ^ set(found.feedforward_modules)
        result += [f"{m}: a feedforward module in only one of file and manifest" for m in sorted(sides & here & there)]
        return result


def check_input(module: str, where: str) -> None:
    """Raises `InvalidInputError` where the input of `module` cannot be scaled for it alone."""
    if module.rpartition(".")[2] not in OWN_INPUT:
        raise InvalidInputError(
            f"{where}: the input of {module} cannot be scaled: modules beside it read the same input, and are computed "
            f"with it in one product; only {' and '.join(OWN_INPUT)} have an input of their own. Scale the output of "
            "the module that makes that input instead"
        )


def _check_feedforward(named: Any, sides: Mapping[str, bool]) -> None:
    """A list decides in PEFT which side of a module is scaled: the shapes must be those of the same sides. An
    expression is not evaluated, and PEFT's defaults depend on the model; there a wrong shape could not be loaded at
    all."""
    if named is None or isinstance(named, str):
        return
    if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
        raise InvalidInputError("adapter_config.json: feedforward_modules: expected a list of names, or a string")
    for module, is_input in sides.items():
        # PEFT compares ends of names here, and not of their parts.
        if any(module.endswith(name) for name in named) != is_input:
            side = "input" if is_input else "output"
            raise InvalidInputError(
                f"adapter_config.json: feedforward_modules and the shape of {PEFT_PREFIX}{module}{VECTOR} disagree: "
                f"the vector scales the module's {side}"
            )
