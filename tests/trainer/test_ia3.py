"""(IA)^3 over int4 against stock PEFT on the dequantized dense model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel

from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, assert_peft_gradients, dense_model
from weft_registry.errors import InvalidInputError
from weft_trainer.config.adapter import Ia3Options
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("dense", [False, True])
def test_loss_and_gradients_are_stock_pefts(arch: str, dense: bool, tiny_base: Callable[..., AddedBase]) -> None:
    base, options = tiny_base(arch), Ia3Options(("k_proj", "o_proj", "up_proj", "down_proj"), ("o_proj", "down_proj"))
    method, tokenizer = METHODS["ia3"], BaseTokenizer(base.stored.tokenizer_dir)
    params = method.params(options, base.stored.spec, tokenizer)
    ours = method.attach(build(base.stored, torch.float32, dense=dense), params, options, tokenizer)
    theirs: Any = peft.get_peft_model(
        dense_model(base),
        peft.IA3Config(
            task_type="CAUSAL_LM",
            target_modules=list(options.target_modules),
            feedforward_modules=["o_proj", "down_proj"],
        ),
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in ours.export().items()}
    ours.restore(tensors)
    loaded: Any = peft.set_peft_model_state_dict(theirs, tensors)
    assert not loaded.unexpected_keys

    assert_peft_gradients(
        ours, theirs, len(tensors), lambda name: name.removeprefix("base_model.model.").removesuffix(".default")
    )


def test_the_default_is_the_papers_keys_values_and_inner_activations(deep_base: AddedBase) -> None:
    method, tokenizer = METHODS["ia3"], BaseTokenizer(deep_base.stored.tokenizer_dir)
    params = method.params(Ia3Options(layers="top:1"), deep_base.stored.spec, tokenizer)
    prefix = "model.layers.3"
    assert params.target_modules == tuple(
        f"{prefix}.{name}" for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    )
    assert params.feedforward_modules == (f"{prefix}.mlp.down_proj",)
    assert method.first_layer(params) == 3
    plain = build(deep_base.stored, torch.float32)
    wanted = plain.hidden(BATCH)
    assert torch.equal(method.attach(plain, params, Ia3Options(), tokenizer).hidden(BATCH), wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Ia3Options(("q_proj",), ("q_proj",)), "modules beside it"),
        (Ia3Options(("q_proj",), ("down_proj",)), "adapter.feedforward_modules: 'down_proj'"),
        (Ia3Options(("x_proj",)), "adapter.target_modules: 'x_proj'"),
    ],
)
def test_an_input_that_cannot_be_scaled_is_refused_by_name(
    options: Ia3Options, words: str, deep_base: AddedBase
) -> None:
    tokenizer = BaseTokenizer(deep_base.stored.tokenizer_dir)
    with pytest.raises(InvalidInputError, match=words):
        METHODS["ia3"].params(options, deep_base.stored.spec, tokenizer)


def test_a_trained_adapter_is_stock_pefts_and_merges_to_the_same_scores(
    tiny_base: Callable[..., AddedBase],
    make_config: Callable[..., TrainConfig],
    run: Callable[[TrainConfig, AddedBase], Path],
) -> None:
    base = tiny_base("qwen2")
    config = make_config(base, "ia3", {}, steps=12, learning_rate=0.1)
    artifact = run(config, base)
    arguments: dict[str, Any] = {"dtype": torch.float32, "home": base.home}
    unmerged = evaluate(artifact, config.data.train, QuietReporter(), **arguments)
    merged = evaluate(artifact, config.data.train, QuietReporter(), merged=True, **arguments)
    alone = evaluate(None, config.data.train, QuietReporter(), base=base.name, **arguments)
    assert merged.loss == pytest.approx(unmerged.loss, rel=1e-4)
    assert unmerged.loss < 0.9 * alone.loss

    method, tokenizer = METHODS["ia3"], BaseTokenizer(base.stored.tokenizer_dir)
    theirs: Any = PeftModel.from_pretrained(dense_model(base), str(artifact))
    params = method.params(Ia3Options(), base.stored.spec, tokenizer)
    ours = method.bare(build(base.stored, torch.float32), params)
    names = {n.replace(".default", ""): p for n, p in theirs.named_parameters() if "ia3_l" in n}
    ours.restore({name: parameter.detach() for name, parameter in names.items()})
    with torch.no_grad():
        mask = BATCH["attention_mask"].bool()
        logits = ours.base.logits(ours.hidden(BATCH))[mask]
        torch.testing.assert_close(logits, theirs(**BATCH).logits[mask], atol=2e-5, rtol=1e-4)
