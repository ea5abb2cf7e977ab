"""A base in the format of others: stock vLLM loads it, and computes with what the export says it wrote."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from tests.vllm.bases import VLLM_SIZES, Reference, running
from weft_adapters.base.export_compressed import export_compressed_tensors, exported_weight
from weft_adapters.base.store import MODEL_FILE
from weft_server.vllm_engine import versions

pytestmark = pytest.mark.timeout(300)


def test_stock_vllm_computes_with_the_weights_that_were_exported(
    tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    if versions.cpu_build_lacks_int4():
        pytest.skip("vLLM has no int4 product for this processor")
    base = tiny_base("llama", **VLLM_SIZES).stored
    directory = tmp_path / "exported"
    directory.mkdir()
    export_compressed_tensors(base, directory)
    change = {
        module: exported_weight(base.int4(module)).dequantize().double() - base.int4(module).dequantize().double()
        for module in base.spec.linears
    }
    # Its kernel on a CPU takes no float32.
    with running(directory, tmp_path, dtype="bfloat16", worker_extension_cls="") as engine:
        answers = engine.answers(new=1)
    allowed = 2.5 * Reference(base, change).rounding()
    Reference(base, change).agrees(answers, tolerance=allowed)


def test_compressed_tensors_unpacks_what_was_packed(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    base = tiny_base("llama", **VLLM_SIZES).stored
    export_compressed_tensors(base, tmp_path)
    tensors = load_file(tmp_path / MODEL_FILE)
    arguments = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    unpacker = BaseCompressor.get_value_from_registry("pack-quantized")
    for module in base.spec.linears:
        own = {name.removeprefix(module + "."): t for name, t in tensors.items() if name.startswith(module + ".")}
        own["weight_scale"] = own["weight_scale"].float()
        found = unpacker.decompress(own, scheme)["weight"]
        torch.testing.assert_close(found, exported_weight(base.int4(module)).dequantize(), rtol=1e-6, atol=1e-6)
