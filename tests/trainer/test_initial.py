"""The first A and B: what training starts at, and that the artifact is what was learned over the served base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, backward_as_peft, dense_model
from weft_registry import artifact, peft_format
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_registry.kinds.low_rank import LowRankParams
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.config.run import TrainConfig, parse
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS, initial, targets
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter
from weft_trainer.setup import set_up

SHARED: dict[str, Any] = {
    "r": 4,
    "alpha": 6.0,
    "layers": (1,),
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"up_proj": 3.0},
}


def attached(base: AddedBase, options: LoraOptions, method: str = "lora") -> Any:
    made, tokenizer = METHODS[method], BaseTokenizer(base.stored.tokenizer_dir)
    params = made.params(options, base.stored.spec, tokenizer)
    return made.attach(build(base.stored, torch.float32), params, options, tokenizer)


def stock_peft(base: AddedBase, trained: LowRankParams, init: str, use_rslora: bool) -> Any:
    return peft.get_peft_model(
        dense_model(base),
        peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            lora_alpha=6,
            use_rslora=use_rslora,
            init_lora_weights=init,
            target_modules=list(trained.target_modules),
            rank_pattern=dict(trained.rank_pattern),
            alpha_pattern=dict(trained.alpha_pattern),
        ),
    )


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_first_factors_are_stock_pefts(init: str, use_rslora: bool, tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    options = LoraOptions(init=init, use_rslora=use_rslora, **SHARED)
    trained = targets.resolve(options, base.stored.spec)
    theirs = stock_peft(base, trained, init, use_rslora)
    found = dict(initial.starts(options, base.stored, trained))
    assert found.keys() == set(trained.target_modules)
    for module, start in found.items():
        layer = theirs.get_submodule(f"base_model.model.{module}")
        wanted = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert start.a_rK.shape == layer.lora_A["default"].weight.shape
        # Signs of singular vectors are anybody's; the product is not, nor is what is left of the weight.
        torch.testing.assert_close(start.b_Nr @ start.a_rK, wanted, atol=1e-5, rtol=1e-4)
        rest = base.stored.int4(module).dequantize() - trained.scaling(module) * start.b_Nr @ start.a_rK
        torch.testing.assert_close(rest, layer.base_layer.weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_training_is_stock_pefts_beside_the_rest_of_the_weight(
    init: str, use_rslora: bool, tiny_base: Callable[..., AddedBase]
) -> None:
    """Stock PEFT trains on a base without the first factors; here the same gradients come from the whole base."""
    base = tiny_base()
    ours = attached(base, LoraOptions(init=init, use_rslora=use_rslora, **SHARED))
    trained = targets.resolve(LoraOptions(use_rslora=use_rslora, **SHARED), base.stored.spec)
    theirs = stock_peft(base, trained, init, use_rslora)
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            pairs[name] = (parameter, theirs.get_parameter(name.removeprefix("peft.")))
    assert len(pairs) == 2 * len(trained.target_modules)
    with torch.no_grad():
        for parameter, other in pairs.values():
            step = 0.1 * torch.randn(parameter.shape, generator=generator)
            # From one and the same start: LAPACK may turn singular vectors round.
            parameter.copy_(other + step)
            other.add_(step)
        for module, layer in ours._layers.items():
            peft_layer = theirs.get_submodule(f"base_model.model.{module}")
            weight = base.stored.int4(module).dequantize() - peft_layer.base_layer.weight
            start = layer.started
            product = layer.scaling["default"] * start.get_buffer("b_Nr") @ start.get_buffer("a_rK")
            torch.testing.assert_close(product, weight, atol=1e-5, rtol=1e-4)
    backward_as_peft(ours, theirs, rtol=1e-4, atol=1e-4)
    for parameter, other in pairs.values():
        torch.testing.assert_close(parameter.grad, other.grad, atol=2e-5, rtol=1e-2)


@pytest.mark.parametrize("method", ["lora", "qlora", "dora"])
@pytest.mark.parametrize("init", ["default", "gaussian", "pissa", "olora"])
def test_training_starts_at_the_base_exactly(method: str, init: str, tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    wanted = build(base.stored, torch.float32).hidden(BATCH)
    made = parse({**DOCUMENT, "method": method, "adapter": {**SHARED, "init": init}}).adapter
    assert isinstance(made, LoraOptions)
    model = attached(base, made, method)
    torch.testing.assert_close(model.hidden(BATCH), wanted, atol=2e-6 if method == "dora" else 0, rtol=0)


DOCUMENT: dict[str, Any] = {"base": "b", "output": "o", "data": {"train": "t.jsonl"}}


def test_gaussian_draws_a_with_a_deviation_of_one_over_the_rank(tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    model = attached(base, LoraOptions(init="gaussian", r=32))
    drawn = torch.cat([t.flatten() for name, t in model.export().items() if "lora_A" in name])
    assert float(drawn.std()) == pytest.approx(1 / 32, rel=0.02)
    # Uniform numbers would end at 1.7 deviations.
    assert float(drawn.abs().max()) > 3 / 32
    assert not any(t.any() for name, t in model.export().items() if "lora_B" in name)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_artifact_is_twice_the_rank_and_survives_bfloat16(init: str, tiny_base: Callable[..., AddedBase]) -> None:
    base = tiny_base()
    options = LoraOptions(init=init, **SHARED)
    model = attached(base, options)
    first = {name: p.detach().clone() for name, p in model.trainable().items()}
    with torch.no_grad():
        for parameter in model.trainable().values():
            # A little of what was there, as training changes it.
            parameter.add_(1e-3 * parameter.abs().mean() * torch.randn(parameter.shape))
    found = model.export()
    params = METHODS["lora"].params(options, base.stored.spec, BaseTokenizer(base.stored.tokenizer_dir))
    trained = targets.resolve(options, base.stored.spec)
    now = model.trainable()
    for module in params.target_modules:
        assert params.rank(module) == 2 * trained.rank(module)
        assert params.scaling(module) == pytest.approx(trained.scaling(module), rel=1e-12)
        key = f"base_model.model.{module}.lora_"
        (a,) = [name for name in now if f"{module}.lora_A." in name]
        b = a.replace("lora_A", "lora_B")
        learned = (now[b].double() @ now[a].double() - first[b].double() @ first[a].double()).detach()
        stored = found[f"{key}B.weight"].double() @ found[f"{key}A.weight"].double()
        assert float((stored - learned).norm() / learned.norm()) < 1e-3
        rounded = found[f"{key}B.weight"].bfloat16().double() @ found[f"{key}A.weight"].bfloat16().double()
        assert float((rounded - learned).norm() / learned.norm()) < 0.01
        # As a difference of large products it would not.
        large = [
            torch.cat(p, d).detach().bfloat16().double() for p, d in (((now[b], -first[b]), 1), ((now[a], first[a]), 0))
        ]
        assert float((large[0] @ large[1] - learned).norm() / learned.norm()) > 0.1


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_trained_artifact_is_stock_pefts_over_the_base_that_is_served(
    method: str,
    init: str,
    tiny_base: Callable[..., AddedBase],
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    base = tiny_base()
    config = make_config(base, method, {"r": 4, "init": init, "layers": "top:1"}, learning_rate=3e-3)
    made = run(config, base)
    manifest = artifact.read(made)
    assert (manifest.kind, manifest.adapter["r"], manifest.adapter["alpha"]) == (method, 8, "32")
    settings = peft_format.parse_config((made / "adapter_config.json").read_bytes())
    assert settings["init_lora_weights"] is True
    score = evaluate(made, config.data.train, QuietReporter(), home=base.home, dtype=torch.float32)
    alone = evaluate(None, config.data.train, QuietReporter(), base=base.name, home=base.home, dtype=torch.float32)
    assert score.loss < 0.9 * alone.loss
    theirs: Any = PeftModel.from_pretrained(dense_model(base), str(made))
    options = LoraOptions(r=4, init=init, layers="top:1")
    tokenizer = BaseTokenizer(base.stored.tokenizer_dir)
    ours = METHODS[method].bare(
        build(base.stored, torch.float32), METHODS[method].params(options, base.stored.spec, tokenizer)
    )
    again = attached(base, options, method)
    tensors = load_file(str(made / "adapter_model.safetensors"))
    mask = BATCH["attention_mask"].bool()
    with torch.no_grad():
        wanted = theirs(**BATCH).logits[mask]
        for model in (ours, again):
            model.restore(tensors)
            logits = model.base.logits(model.hidden(BATCH))[mask]
            torch.testing.assert_close(logits, wanted, atol=2e-4, rtol=1e-3)


def test_a_resumed_run_goes_on_from_the_same_factors(
    tiny_base: Callable[..., AddedBase],
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    base = tiny_base()
    adapter = {"r": 4, "init": "pissa"}
    whole = run(make_config(base, "lora", adapter, save_every=3), base) / "adapter_model.safetensors"
    expected = whole.read_bytes()
    checkpoints = make_config(base, "lora", adapter).checkpoints
    shutil.rmtree(checkpoints / "checkpoint-6")
    assert run(make_config(base, "lora", adapter, save_every=3, resume=True), base)
    assert whole.read_bytes() == expected


def test_loftq_starts_nearer_to_the_original_than_the_base_is(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path]
) -> None:
    base, original = tiny_base(), tiny_source()
    options = LoraOptions(init="loftq", original=original, **SHARED)
    trained = targets.resolve(options, base.stored.spec)
    model = attached(base, options)
    tensors = model.export()
    float_weights = load_file(str(original / "model.safetensors"))
    for module in trained.target_modules:
        lost = float_weights[f"{module}.weight"] - base.stored.int4(module).dequantize()
        key = f"base_model.model.{module}.lora_"
        delta = trained.scaling(module) * tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
        left = torch.linalg.svdvals(lost.double())[trained.rank(module) :].norm()
        # The best that this rank can do, by Eckart and Young.
        assert float((lost - delta).norm()) == pytest.approx(float(left), rel=1e-4)


# Two bits in wide groups lose half of a weight.
GRIDS = [(4, 32), (4, 64), (3, 32), (3, 64), (2, 32), (2, 64), (2, 128)]
WIDE = {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 1}


@pytest.mark.parametrize(("bits", "group_size"), GRIDS)
def test_loftq_takes_the_original_of_a_base_of_any_bits_and_no_other(
    bits: int, group_size: int, tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path]
) -> None:
    base = tiny_base(bits=bits, group_size=group_size, **WIDE)
    taken = attached(base, LoraOptions(init="loftq", original=tiny_source(**WIDE), r=4)).export()
    assert all(bool(tensor.any()) for tensor in taken.values())
    words = rf"differs from the base's by 1\d\d% of .* to {bits} bits in groups of {group_size} loses \d+%:"
    with pytest.raises(InvalidInputError, match=words):
        attached(base, LoraOptions(init="loftq", original=tiny_source(seed=5, **WIDE), r=4))


def test_loftq_trains_from_nearer_to_the_original_and_its_artifact_is_stock_pefts(
    tiny_base: Callable[..., AddedBase],
    tiny_source: Callable[..., Path],
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    base, original = tiny_base(bits=2), tiny_source()
    adapter = {"r": 16, "alpha": 8.0, "init": "loftq", "original": str(original)}
    config = make_config(base, "lora", adapter, batch_size=64, steps=12, save_every=12, learning_rate=3e-3)
    made = run(config, base)
    log = [json.loads(line) for line in (config.checkpoints / "log.jsonl").read_text().splitlines()]
    # A batch of all examples: the first loss is of the first values, over everything.
    first, *_, last = [line["loss"] for line in log if "loss" in line]
    setup = set_up(config, QuietReporter(), base.home, torch.device("cpu"))
    batch = TokenBatches(setup.data.train_examples, setup.tokenizer.pad)(range(len(setup.data.train_examples)))

    exact = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    rounded, begun = dense_model(base), dense_model(base)
    for module in base.stored.spec.linears:
        weight = begun.get_submodule(module).weight
        u, s, v = torch.linalg.svd((exact.get_submodule(module).weight - weight).detach().double(), full_matrices=False)
        weight.data += (u[:, :16] * s[:16] @ v[:16]).float()
    with torch.no_grad():
        answers = {name: m(**batch) for name, m in (("exact", exact), ("rounded", rounded), ("begun", begun))}
    assert first == pytest.approx(float(answers["begun"].loss), rel=1e-3)
    assert abs(float(answers["rounded"].loss) - first) > 0.01 * first, "the base itself would be seen"
    learnt = batch["labels"].roll(-1, 1) != -100
    logits = {name: torch.log_softmax(answer.logits[learnt], -1) for name, answer in answers.items()}
    away = {name: float((logits[name] - logits["exact"]).norm()) for name in ("begun", "rounded")}
    assert away["begun"] < 0.8 * away["rounded"]

    assert last < 0.9 * first
    theirs: Any = PeftModel.from_pretrained(dense_model(base), str(made))
    ours = attached(base, LoraOptions(r=16, alpha=8.0))
    ours.restore(load_file(str(made / "adapter_model.safetensors")))
    mask = BATCH["attention_mask"].bool()
    with torch.no_grad():
        logits_of_ours = ours.base.logits(ours.hidden(BATCH))[mask]
        torch.testing.assert_close(logits_of_ours, theirs(**BATCH).logits[mask], atol=2e-4, rtol=1e-3)


def test_loftq_without_the_bases_original_is_refused_by_name(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base()
    for options, words in (
        (LoraOptions(init="loftq", original=tiny_source(seed=5), **SHARED), "adapter.original: .* differs"),
        (LoraOptions(init="loftq", original=tiny_source(hidden_size=32), **SHARED), r"adapter.original: .*\(.*32\)"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            attached(base, options)
    quantized, empty = tmp_path / "quantized", tmp_path / "empty"
    empty.mkdir()
    shutil.copytree(tiny_source(), quantized)
    codes = {name: t.to(torch.int8) for name, t in load_file(str(quantized / "model.safetensors")).items()}
    save_file(codes, quantized / "model.safetensors")
    needed = (
        rf"needs the float weights of {base.stored.spec.fingerprint.id}: the directory .* take another adapter\.init"
    )
    for path, words in ((empty, "no tensor"), (tmp_path / "none", "no directory at"), (quantized, "not in floats")):
        options = LoraOptions(init="loftq", original=path, **SHARED)
        with pytest.raises(InvalidInputError, match=rf"^adapter\.original: .*{words}.*; LoftQ .* {needed}"):
            attached(base, options)
    with pytest.raises(InvalidInputError, match=r"adapter.init: loftq .* adapter.original"):
        LoraOptions(init="loftq")
    with pytest.raises(InvalidInputError, match=r"adapter\.original: without effect"):
        LoraOptions(original=Path("x"))


def test_loftqs_original_is_looked_at_before_the_data_is_read(
    tiny_base: Callable[..., AddedBase], tiny_source: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_base()

    def config(original: Path) -> TrainConfig:
        adapter = {"init": "loftq", "original": str(original), "r": 4}
        document = {"base": base.name, "method": "lora", "output": str(tmp_path / "out"), "adapter": adapter}
        return parse({**document, "data": {"train": str(tmp_path / "none.jsonl")}})

    for path, words in (
        (tmp_path / "none", "no directory at"),
        (tiny_source(hidden_size=32), r"is \(64, 32\) in .*, and \(64, 64\) in the base"),
    ):
        with pytest.raises(InvalidInputError, match=rf"^adapter\.original: .*{words}"):
            set_up(config(path), QuietReporter(), base.home, torch.device("cpu"))
    with pytest.raises(NotFoundError, match=r"none\.jsonl"):
        set_up(config(tiny_source()), QuietReporter(), base.home, torch.device("cpu"))
    # Another model of the same shape takes a look at the values: at those of one module.
    initial.check_values(LoraOptions(init="loftq", original=tiny_source(), r=4), base.stored)
    initial.check_values(LoraOptions(), base.stored)
    with pytest.raises(
        InvalidInputError, match=r"^adapter\.original: model\.layers\.0\.self_attn\.q_proj in .* differs"
    ):
        initial.check_values(LoraOptions(init="loftq", original=tiny_source(seed=5), r=4), base.stored)


def test_a_rank_whose_double_no_adapter_may_have_is_refused() -> None:
    trained = LowRankParams(600, 600.0, False, ("model.layers.0.mlp.up_proj",), {}, {})
    assert initial.stored_params(LoraOptions(r=600, init="loftq", original=Path("x")), trained) is trained
    with pytest.raises(InvalidInputError, match=r"adapter\.r: 600, but adapter\.init: pissa .* 1024"):
        initial.stored_params(LoraOptions(r=600, init="pissa"), trained)
