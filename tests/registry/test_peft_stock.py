"""Against the real PEFT: what it saves means what we say it means, and what we write loads to the same logits."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from weft_registry import artifact, peft_format, validation
from weft_registry.base import BaseFingerprint, BaseSpec, QuantSpec
from weft_registry.errors import UnsupportedError
from weft_registry.kinds import kind_schema
from weft_registry.kinds.low_rank import PEFT_PREFIX
from weft_registry.kinds.qalora import QaLoraParams

TOKENS = torch.arange(2 * 9).reshape(2, 9) % 64


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


@pytest.fixture(scope="module")
def base(model: LlamaForCausalLM) -> BaseSpec:
    linears = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    quant = QuantSpec("groupwise-affine", 4, 8, False, "float", "sha256:" + "0" * 64)
    fingerprint = BaseFingerprint("tiny", "main", "sha256:" + "1" * 64, "sha256:" + "2" * 64, "LlamaForCausalLM", quant)
    return BaseSpec(fingerprint, 32, 2, 4, 2, 8, 64, 128, linears)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


def saved(model: LlamaForCausalLM, config: peft.PeftConfig, directory: Path) -> Tensor:
    """Saves a randomly filled adapter with PEFT, and returns the logits that PEFT computes with it."""
    torch.manual_seed(1)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "prompt_encoder" in name:
                parameter.normal_(std=0.3)
            if "magnitude" in name or "ia3_" in name:
                parameter.normal_(mean=1, std=0.3)
    adapted.save_pretrained(directory)
    result = logits(adapted)
    assert not torch.allclose(result[:, -TOKENS.shape[1] :], logits(model), atol=1e-3)
    return result


def written_back(model: LlamaForCausalLM, base: BaseSpec, directory: Path, other: Path) -> Tensor:
    """The logits of stock PEFT with OUR configuration beside the same tensors."""
    made = peft_format.import_directory(directory, base, other, name="x")
    manifest = validation.validate_directory(made, base)
    params = kind_schema(manifest.kind).parse(manifest.adapter)
    config = peft_format.to_peft(manifest.kind, params, base)
    (made / artifact.CONFIG).write_bytes(peft_format.config_bytes(config))
    return logits(peft.PeftModel.from_pretrained(copy.deepcopy(model), str(made)).eval())


CONFIGS: dict[str, Callable[[], peft.LoraConfig]] = {
    "a list": lambda: peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]),
    "all-linear": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear"),
    "an expression": lambda: peft.LoraConfig(r=4, target_modules=r".*layers\.1\..*(q|v)_proj"),
    "rsLoRA": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["o_proj", "up_proj"]),
    "patterns": lambda: peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, "^model.layers.0.mlp.up_proj": 7, r"layers\.1\.self_attn\.[kv]_proj": 5},
        alpha_pattern={"down_proj": 3, "layers.1.mlp.down_proj": 99, r"model\.layers\.0\.self_attn\..*": 20},
    ),
    "patterns with rsLoRA": lambda: peft.LoraConfig(
        r=8,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "k_proj"],
        rank_pattern={"k_proj": 3},
        alpha_pattern={"layers.1.self_attn.q_proj": 31},
    ),
    "chosen layers": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1]),
    "fractional alpha": lambda: peft.LoraConfig(r=4, lora_alpha=0.7, target_modules=["q_proj"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", CONFIGS)
def test_lora_means_the_same_here_and_there(case: str, model: LlamaForCausalLM, base: BaseSpec, tmp_path: Path) -> None:
    config = CONFIGS[case]()
    config.task_type = "CAUSAL_LM"
    theirs = saved(model, config, tmp_path / "peft")
    manifest = peft_format.derive_manifest(tmp_path / "peft", base, name="x")
    kind, params = peft_format.from_peft(
        json.loads((tmp_path / "peft" / artifact.CONFIG).read_text()),
        {tensor.name: tensor.shape for tensor in manifest.tensors},
        base,
    )
    assert kind == manifest.kind == "lora"

    # Ours, by the definition: W + s B A.
    tensors = load_file(tmp_path / "peft" / artifact.WEIGHTS)
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for module in params.target_modules:
            a = tensors[f"{PEFT_PREFIX}{module}.lora_A.weight"]
            b = tensors[f"{PEFT_PREFIX}{module}.lora_B.weight"]
            merged.get_submodule(module).weight += params.scaling(module) * b @ a
    torch.testing.assert_close(logits(merged), theirs, rtol=1e-4, atol=1e-4)

    assert torch.equal(written_back(model, base, tmp_path / "peft", tmp_path / "ours"), theirs)


@pytest.mark.parametrize("case", ["a list", "patterns", "patterns with rsLoRA"])
def test_dora_means_the_same_here_and_there(case: str, model: LlamaForCausalLM, base: BaseSpec, tmp_path: Path) -> None:
    config = CONFIGS[case]()
    config.task_type, config.use_dora = "CAUSAL_LM", True
    theirs = saved(model, config, tmp_path / "peft")
    manifest = peft_format.derive_manifest(tmp_path / "peft", base, name="x")
    assert manifest.kind == "dora"

    # Ours, by the definition: m (W + s B A) / ||W + s B A||.
    params = kind_schema("dora").parse(manifest.adapter)
    tensors = load_file(tmp_path / "peft" / artifact.WEIGHTS)
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for module in params.target_modules:
            key = f"{PEFT_PREFIX}{module}"
            weight = merged.get_submodule(module).weight
            weight += params.scaling(module) * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
            weight *= (tensors[f"{key}.lora_magnitude_vector"] / weight.norm(dim=1))[:, None]
    torch.testing.assert_close(logits(merged), theirs, rtol=1e-4, atol=1e-4)

    assert torch.equal(written_back(model, base, tmp_path / "peft", tmp_path / "ours"), theirs)


VECTORS: dict[str, Callable[[], peft.IA3Config]] = {
    "the paper's": lambda: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "PEFT's defaults": lambda: peft.IA3Config(),
    "outputs only": lambda: peft.IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=[]),
    "expressions": lambda: peft.IA3Config(
        target_modules=r".*layers\.1\..*(o|gate)_proj", feedforward_modules=r".*o_proj"
    ),
}


@pytest.mark.parametrize("case", VECTORS)
def test_ia3_means_the_same_here_and_there(case: str, model: LlamaForCausalLM, base: BaseSpec, tmp_path: Path) -> None:
    config = VECTORS[case]()
    config.task_type = "CAUSAL_LM"
    theirs = saved(model, config, tmp_path / "peft")
    manifest = peft_format.derive_manifest(tmp_path / "peft", base, name="x")
    assert manifest.kind == "ia3"
    params = kind_schema("ia3").parse(manifest.adapter)
    tensors = load_file(tmp_path / "peft" / artifact.WEIGHTS)
    assert len(tensors) == len(params.target_modules)

    # Ours, by the definition: rows of the weight, or columns of a feedforward module's, times the vector.
    merged = copy.deepcopy(model)
    with torch.no_grad():
        for module in params.target_modules:
            vector = tensors[f"{PEFT_PREFIX}{module}.ia3_l"]
            assert vector.shape[0 if module in params.feedforward_modules else 1] == 1
            weight: Any = merged.get_submodule(module).weight
            weight *= vector
    torch.testing.assert_close(logits(merged), theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(written_back(model, base, tmp_path / "peft", tmp_path / "ours"), theirs)


@pytest.mark.parametrize("projection", [False, True])
def test_prefix_means_the_same_here_and_there(
    projection: bool, model: LlamaForCausalLM, base: BaseSpec, tmp_path: Path
) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=projection, encoder_hidden_size=16
    )
    theirs = saved(model, config, tmp_path / "peft")
    manifest = peft_format.derive_manifest(tmp_path / "peft", base, name="x")
    assert manifest.kind == "prefix"
    assert manifest.adapter == {"num_virtual_tokens": 5, "num_layers": 2, "num_kv_heads": 2, "head_dim": 8}
    torch.testing.assert_close(written_back(model, base, tmp_path / "peft", tmp_path / "ours"), theirs)


PROMPTS: dict[str, Callable[[], peft.PromptLearningConfig]] = {
    "random": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "sampled": lambda: peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB"
    ),
    "mlp": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=24),
    "lstm": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=16,
        encoder_num_layers=1,
    ),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_soft_prompts_mean_the_same_here_and_there(
    case: str, model: LlamaForCausalLM, base: BaseSpec, tmp_path: Path
) -> None:
    """P-tuning too: what PEFT saves of it is the prompt, and prompt tuning with that prompt computes the same."""
    theirs = saved(model, PROMPTS[case](), tmp_path / "peft")
    manifest = peft_format.derive_manifest(tmp_path / "peft", base, name="x")
    assert manifest.kind == "prompt"
    assert manifest.adapter == {"num_virtual_tokens": 5, "hidden_size": 32}
    torch.testing.assert_close(written_back(model, base, tmp_path / "peft", tmp_path / "ours"), theirs)
    config = json.loads((tmp_path / "ours" / artifact.CONFIG).read_text())
    assert config["peft_type"] == "PROMPT_TUNING"


def test_the_methods_of_peft_that_are_listed_are_those_that_are_read() -> None:
    def is_read(peft_type: str) -> bool:
        try:
            return bool(peft_format.kind_of({"peft_type": peft_type}))
        except UnsupportedError:
            return False

    assert [name for name in sorted(peft.PeftType.__members__) if is_read(name)] == list(peft_format.PEFT_TYPES)


def test_qalora_scales_as_pefts_own_forward() -> None:
    """PEFT runs QA-LoRA on GPTQ layers only, so its forward is called by itself, on one layer."""
    torch.manual_seed(2)
    group, n_in, n_out, rank = 8, 64, 32, 4
    config = peft.LoraConfig(
        r=rank, lora_alpha=6, use_rslora=True, use_qalora=True, qalora_group_size=group, target_modules=["x"]
    )
    plain = copy.deepcopy(config)
    plain.use_qalora = False
    layer: Any = peft.tuners.lora.Linear(torch.nn.Linear(n_in, n_out), "default", plain, r=rank, lora_alpha=6)
    QALoraLinearVariant.init(layer, "default", config)
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    x = torch.randn(3, n_in)
    theirs = QALoraLinearVariant.forward(layer, "default", x, torch.zeros(3, n_out))

    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    names = [f"{PEFT_PREFIX}m.x.lora_{half}.weight" for half in "AB"]
    shapes = dict(zip(names, (tuple(a.shape), tuple(b.shape)), strict=True))
    saved_config = {key: list(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    kind, params = peft_format.from_peft(json.loads(json.dumps(saved_config)), shapes)
    assert (kind, type(params)) == ("qalora", QaLoraParams)
    assert layer.scaling["default"] == 6 / math.sqrt(rank)
    ours = params.scaling("m.x") * x.view(3, -1, group).sum(-1) @ a.T @ b.T
    torch.testing.assert_close(ours, theirs)
