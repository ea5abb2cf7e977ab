from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_models import AddedBase
from weft_trainer.config.run import TrainConfig
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.rows import read_rows
from weft_trainer.data.tokenization import BaseTokenizer, tokenize
from weft_trainer.modeling import cached_layers
from weft_trainer.modeling.adapted import BareModel
from weft_trainer.modeling.base import build
from weft_trainer.modeling.cached_layers import cache_states
from weft_trainer.progress import QuietReporter

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("limit", [cached_layers.MEMORY_LIMIT_BYTES, 0])
def test_the_upper_layers_give_the_whole_models_loss(
    deep_base: AddedBase, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(cached_layers, "MEMORY_LIMIT_BYTES", limit)
    tokenizer = BaseTokenizer(deep_base.stored.tokenizer_dir)
    examples = tokenize(read_rows(task_file, "train"), tokenizer, 64).examples
    splits = [examples[:30], examples[30:]]
    caches = cache_states(deep_base.stored, 2, torch.float32, splits, tokenizer.pad, tmp_path, QuietReporter())
    assert len(list(tmp_path.iterdir())) == (0 if limit else 2), "only what is over the limit goes to disk"
    whole = BareModel(build(deep_base.stored, torch.float32))
    upper = BareModel(build(deep_base.stored, torch.float32, layers=range(2, 4)))
    with torch.no_grad():
        for part, cache in zip(splits, caches, strict=True):
            indices = [7, 0, 3]
            wanted = whole(**TokenBatches(part, tokenizer.pad)(indices))["loss"]
            torch.testing.assert_close(upper(**cache(indices))["loss"], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["lora", "qalora"])
def test_training_the_top_layers_is_the_same_with_and_without_the_cache(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    config = make_config(deep_base, method, {"r": 2, "layers": "top:2"}, learning_rate=1e-3)
    cached = load_file(str(run(config, deep_base) / WEIGHTS))
    assert {int(name.split(".")[4]) for name in cached} == {2, 3}, "the base's layer numbers, not the short model's"
    from weft_trainer.methods.lora import LoraMethod
    from weft_trainer.methods.qalora import QaLoraMethod

    monkeypatch.setattr({"lora": LoraMethod, "qalora": QaLoraMethod}[method], "first_layer", lambda self, params: 0)
    uncached = load_file(str(run(config, deep_base) / WEIGHTS))
    assert cached.keys() == uncached.keys()
    for name, tensor in cached.items():
        torch.testing.assert_close(tensor, uncached[name], atol=2e-4, rtol=1e-3)
