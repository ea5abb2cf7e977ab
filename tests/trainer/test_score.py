from __future__ import annotations

import torch

from tests.tiny_models import AddedBase
from tests.trainer.oracles import dense_model
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.modeling.adapted import BareModel
from weft_trainer.modeling.base import build
from weft_trainer.objectives.score import score
from weft_trainer.progress import QuietReporter


def test_exact_match_counts_what_greedy_generation_reproduces(deep_base: AddedBase) -> None:
    model = dense_model(deep_base)
    generator = torch.Generator().manual_seed(0)
    examples, expected = [], 0
    for number in range(12):
        length = int(torch.randint(2, 9, (1,), generator=generator))
        prompt = torch.randint(3, 500, (1, length), generator=generator)
        answer = model.generate(prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, length:].tolist()
        if number % 3 == 0:
            # Spoil one token, each time at another place, the last one included.
            answer[number // 3] = (answer[number // 3] + 1) % 500
        expected += number % 3 != 0
        examples.append(Example((*prompt[0].tolist(), *answer), length))
    found = score(
        BareModel(build(deep_base.stored, torch.float32)),
        TokenBatches(examples, 2),
        examples,
        QuietReporter(),
        batch_size=5,
    )
    assert found.exact_match == expected / 12
    assert found.examples == 12


def test_the_loss_is_the_mean_over_completion_tokens(deep_base: AddedBase) -> None:
    examples = [Example((5, 6, 7, 8, 2), 3), Example((9, 10, 2), 1), Example((11, 12, 13, 14, 15, 2), 5)]
    base = BareModel(build(deep_base.stored, torch.float32))
    found = score(base, TokenBatches(examples, 2), examples, QuietReporter())
    model, total = dense_model(deep_base), 0.0
    with torch.no_grad():
        for example in examples:
            logits = model(torch.tensor([example.ids])).logits[0].log_softmax(-1)
            total -= sum(float(logits[i - 1, example.ids[i]]) for i in range(example.prompt_length, len(example.ids)))
    assert abs(found.loss - total / 5) < 1e-4
