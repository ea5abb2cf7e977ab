"""What quantization lost of a model's float weights; another model's are told by how much that is."""

from __future__ import annotations

import math

from torch import Tensor

from weft_adapters.base.load import StoredBase
from weft_adapters.base.quantize import quantize
from weft_registry.errors import InvalidInputError


def lost(stored: StoredBase, module: str, original_NK: Tensor, where: str) -> Tensor:
    """(N, K) in float32: `original_NK`, of the base's shape, minus what the base holds of it.

    Raises `InvalidInputError` beginning with `where` for weights that the base was not quantized from: they differ from
    the base's by more than rounding to its bits and groups can explain.
    """
    weight_NK = stored.int4(module).dequantize()
    quant = stored.spec.fingerprint.quant
    original_NK = original_NK.float()
    try:
        nearest_NK = quantize(original_NK, quant.group_size, where, quant.bits).dequantize()
    except InvalidInputError as error:
        raise InvalidInputError(f"{error.message}: give the model that the base was quantized from") from error
    lost_NK = original_NK - weight_NK
    off, least, size = (float(tensor.norm()) for tensor in (lost_NK, original_NK - nearest_NK, original_NK))
    # As far off are the weights of a model that has nothing to do with the base's, for nothing cancels.
    unrelated = math.hypot(size, float(weight_NK.norm()))
    # How much is lost depends on bits, group and weights: a twelfth at 4 bits, half or even all at 2. A calibrated base
    # lost a tenth more than the nearest codes do, and another model is 1.7 to 17 times as far off: the border is midway
    # between, as factors go.
    if off > math.sqrt(least * unrelated):
        raise InvalidInputError(
            f"{where} differs from the base's by {_share(off, size)} of its size, where quantizing it to "
            f"{quant.bits} bits in groups of {quant.group_size} loses {_share(least, size)}: give the model that the "
            "base was quantized from"
        )
    return lost_NK


def _share(part: float, whole: float) -> str:
    # Of a weight of zeros, nothing is a share.
    return f"{part / whole:.0%}" if whole else f"{part:.2g}"
