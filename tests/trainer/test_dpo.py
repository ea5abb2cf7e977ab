from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.hub_base import add_hub_base
from tests.oracles.trl_subjects import ALPHA, CASES, EXPECTED, MODULES, RANK, SHOWN, lora_tensors
from tests.tiny_models import AddedBase
from tests.trainer.oracles import dense_model
from tests.trainer.results import resumed
from weft_adapters.base import StoredBase
from weft_registry import artifact
from weft_registry.errors import InvalidInputError
from weft_trainer.config import run as configs
from weft_trainer.config.adapter import LoraOptions
from weft_trainer.data.batches import TokenBatches
from weft_trainer.data.dataset import Example
from weft_trainer.data.formats import RowError
from weft_trainer.data.pairs import read_pair, read_pairs, tokenize_pairs
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.methods import METHODS
from weft_trainer.modeling.adapted import AdaptedModel, BareModel
from weft_trainer.modeling.base import build
from weft_trainer.objectives.dpo import Dpo, PairBatches, completion_logps, score_pairs
from weft_trainer.progress import QuietReporter, Task

Make = Callable[..., configs.TrainConfig]
Run = Callable[[configs.TrainConfig, AddedBase], Path]

EXAMPLES = (
    Example((5, 9, 200, 31, 77, 2), 3),
    Example((5, 9, 200, 8, 2), 3),
    Example((4, 60, 61, 62, 63, 2), 1),
    Example((4, 90, 91, 2), 1),
)
"""Two pairs."""


def lora(stored: StoredBase, r: int, alpha: float, modules: tuple[str, ...]) -> AdaptedModel:
    options, encoder = LoraOptions(r=r, alpha=alpha, target_modules=modules), Silent()
    method = METHODS["lora"]
    return method.bare(build(stored, torch.float32), method.params(options, stored.spec, encoder))


class Silent:
    """LoRA's parameters need no text."""

    eos = 2

    def prompt(self, row: Any) -> list[int]:
        raise AssertionError

    def completion(self, text: str) -> list[int]:
        raise AssertionError


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> StoredBase:
    return add_hub_base(tmp_path_factory.mktemp("hub")).stored


@pytest.mark.parametrize("name", CASES)
def test_loss_rewards_and_gradient_are_trls(hub: StoredBase, name: str) -> None:
    case, expected = CASES[name], json.loads(EXPECTED.read_text())[name]
    model = lora(hub, RANK, ALPHA, tuple(MODULES))
    model.restore({key: torch.from_numpy(values.copy()) for key, values in lora_tensors().items()})
    examples = [
        Example((*pair.prompt, *answer), len(pair.prompt))
        for pair in case.pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    source = TokenBatches(examples, 2)
    base = BareModel(build(hub, torch.float32))
    pairs = PairBatches(source, completion_logps(base, source, examples, QuietReporter(), ""))
    model.objective = objective = Dpo(case.beta, case.label_smoothing)
    batch = pairs(range(len(case.pairs)))
    loss = model(**batch)["loss"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-4)
    found = score_pairs(model, objective, pairs, examples, QuietReporter())
    assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert found.reward_margin == pytest.approx(expected["reward_margin"], rel=1e-4, abs=1e-5)
    assert found.reward_accuracy == pytest.approx(expected["reward_accuracy"])
    ours = SHOWN.replace(".weight", ".default.weight")
    gradient = next(p.grad for key, p in model.named_parameters() if key.endswith(ours.partition("layers.")[2]))
    assert gradient is not None
    torch.testing.assert_close(gradient.flatten(), torch.tensor(expected["gradient"]), rtol=1e-3, atol=1e-6)


def test_progress_counts_pairs(deep_base: AddedBase) -> None:
    class Counting(QuietReporter):
        @contextmanager
        def task(self, label: str, total: int) -> Iterator[Task]:
            tasks.append([total, 0])
            with super().task(label, total):
                yield self  # type: ignore[misc]

        def advance(self, steps: int = 1, note: str | None = None) -> None:
            tasks[-1][1] += steps

    tasks: list[list[int]] = []
    # More than one batch, and not the same number in each.
    examples = EXAMPLES * 19
    source, base = TokenBatches(examples, 2), BareModel(build(deep_base.stored, torch.float32))
    reference = completion_logps(base, source, examples, Counting(), "reference, training pairs")
    score_pairs(base, Dpo(0.5), PairBatches(source, reference), examples, Counting())
    assert tasks == [[38, 38], [38, 38]]


def test_the_loss_is_that_of_a_loop_in_float64(deep_base: AddedBase) -> None:
    model = lora(deep_base.stored, 4, 8, ("all",))
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.normal_(std=0.1)
    source, dpo = TokenBatches(EXAMPLES, 2), Dpo(0.7, 0.15)
    base = BareModel(build(deep_base.stored, torch.float32))
    reference = completion_logps(base, source, EXAMPLES, QuietReporter(), "")
    for logp, example in zip(reference.tolist(), EXAMPLES, strict=True):
        # The reference, one token after another, by transformers' own model.
        assert logp == pytest.approx(alone(dense_model(deep_base), example), abs=2e-4)
    batch = PairBatches(source, reference)([0, 1])
    logits_CV, tokens_C = model.completion_logits(batch)
    found = float(dpo.total(logits_CV, tokens_C, batch).detach()) / dpo.items(batch)
    logps = by_row(logits_CV, tokens_C, [3, 5, 2, 3])
    total = 0.0
    for chosen, rejected in ((0, 2), (1, 3)):
        ratio = logps[chosen] - float(batch["reference_logps"][chosen])
        margin = 0.7 * (ratio - (logps[rejected] - float(batch["reference_logps"][rejected])))
        total += 0.85 * math.log1p(math.exp(-margin)) + 0.15 * math.log1p(math.exp(margin))
    assert found == pytest.approx(total / 2, rel=1e-5)


def alone(model: Any, example: Example) -> float:
    with torch.no_grad():
        logps_TV = model(input_ids=torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
    return sum(float(logps_TV[at - 1, example.ids[at]]) for at in range(example.prompt_length, len(example.ids)))


def by_row(logits_CV: Tensor, tokens_C: Tensor, lengths: list[int]) -> list[float]:
    logps_CV = logits_CV.detach().double().log_softmax(-1)
    each = [float(logps_CV[c, token]) for c, token in enumerate(tokens_C.tolist())]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [sum(each[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def test_the_gradient_is_that_of_small_differences_in_float64() -> None:
    labels = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    reference = torch.tensor([-3.0, -2.0])
    batch = {"labels": labels, "reference_logps": reference}
    tokens, logits = torch.tensor([1, 2, 3]), torch.randn(3, 5, requires_grad=True)
    Dpo(0.4, 0.1).total(logits, tokens, batch).backward()
    assert logits.grad is not None

    def loss(values: Tensor) -> float:
        chosen, rejected = by_row(values, tokens, [2, 1])
        margin = 0.4 * ((chosen + 3) - (rejected + 2))
        return 0.9 * math.log1p(math.exp(-margin)) + 0.1 * math.log1p(math.exp(margin))

    step, values = 1e-5, logits.detach().double()
    for row in range(3):
        for column in range(5):
            up, down = values.clone(), values.clone()
            up[row, column] += step
            down[row, column] -= step
            slope = (loss(up) - loss(down)) / (2 * step)
            assert float(logits.grad[row, column]) == pytest.approx(slope, abs=1e-5)


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs of a preference that a tiny model can learn: a word decides which answer is chosen."""
    answers = {"oil": " energy", "film": " culture", "bank": " money", "ship": " trade"}
    words = list(answers)
    rows = [
        {
            "prompt": f"Note {i}: the {word} report came in.\nTopic:",
            "chosen": answers[word],
            "rejected": answers[words[(i + 1 + i // 4 % 3) % 4]],
        }
        for i, word in enumerate(words * 10)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def preferring(make_config: Make, pair_file: Path) -> Make:
    """As `make_config`, over pairs: `objective` replaces settings of the objective."""

    def make(base: AddedBase, method: str, adapter: Any = None, objective: Any = None, **training: Any) -> Any:
        document = make_config(base, method, adapter, **training).as_json()
        document["data"]["train"] = str(pair_file)
        return configs.parse(document | {"objective": {"kind": "dpo", **(objective or {})}})

    return make


def log(config: configs.TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.checkpoints / "log.jsonl").read_text().splitlines()]


OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "ia3": {},
    "qalora": {"r": 2, "layers": "top:2"},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "pfeiffer": {},
    "full": {"extract": {"rank": 64}},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_comes_to_prefer_what_was_chosen(
    deep_base: AddedBase, preferring: Make, run: Run, method: str
) -> None:
    rate = {"full": 1e-3, "ia3": 3e-2, "prompt_tuning": 3e-2}.get(method, 1e-2)
    config = preferring(
        deep_base, method, OPTIONS[method], {"beta": 0.5}, steps=24, save_every=24, eval_every=12, learning_rate=rate
    )
    metrics = {metric.name: float(metric.value) for metric in artifact.read(run(config, deep_base)).metrics}
    assert metrics["reward_accuracy"] >= 0.75
    assert metrics["reward_margin"] > 0.1
    assert metrics["loss"] < math.log(2)
    assert metrics["examples"] == 8
    lines = [line for line in log(config) if "eval_loss" in line]
    assert [line["step"] for line in lines] == [12, 24]
    assert {"eval_reward_accuracy", "eval_reward_margin"} <= lines[-1].keys()


def test_training_begins_at_log_2_whatever_the_reference(deep_base: AddedBase, preferring: Make, run: Run) -> None:
    # LoRA begins at the base, a prompt elsewhere: only its own start gives it a margin of zero.
    for method, reference in (("lora", "base"), ("prompt_tuning", "start")):
        config = preferring(
            deep_base, method, OPTIONS[method], {"reference": reference}, steps=1, save_every=1, eval_every=1
        )
        run(config, deep_base)
        assert log(config)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    config = preferring(deep_base, "prompt_tuning", OPTIONS["prompt_tuning"], steps=1, save_every=1)
    run(config, deep_base)
    assert log(config)[0]["loss"] != pytest.approx(math.log(2), abs=1e-2)


def test_accumulated_steps_are_those_of_one_batch(deep_base: AddedBase, preferring: Make, run: Run) -> None:
    norms = []
    for size, accumulation in ((12, 1), (3, 4)):
        config = preferring(
            deep_base, "lora", {"r": 4}, steps=2, batch_size=size, gradient_accumulation=accumulation, save_every=2
        )
        run(config, deep_base)
        norms.append([line["grad_norm"] for line in log(config) if "grad_norm" in line])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_a_run_that_resumes_ends_bit_for_bit_where_an_uninterrupted_one_does(
    deep_base: AddedBase, preferring: Make, run: Run
) -> None:
    config = preferring(
        deep_base, "lora", {"r": 4}, steps=6, save_every=3, eval_every=2, early_stopping_patience=3, keep_checkpoints=9
    )
    whole = (run(config, deep_base) / artifact.WEIGHTS).read_bytes()
    for path in (config.checkpoints / "checkpoint-6").iterdir():
        path.unlink()
    assert (run(resumed(config), deep_base) / artifact.WEIGHTS).read_bytes() == whole


CHAT = [{"role": "user", "content": "Which?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": CHAT, "chosen": answer("oil"), "rejected": answer("film")},
        {"chosen": [*CHAT, *answer("oil")], "rejected": [*CHAT, *answer("film")]},
        {"prompt": "Which?", "chosen": [*CHAT, *answer("oil")], "rejected": [*CHAT, *answer("film")]},
    ],
)
def test_every_form_of_a_conversation_is_the_same_pair(record: dict[str, Any]) -> None:
    (chosen, rejected), unused = read_pair(record)
    assert [(turn.role, turn.content) for turn in chosen.prompt] == [("user", "Which?")]  # type: ignore[union-attr]
    assert chosen.prompt == rejected.prompt
    assert (chosen.completion, rejected.completion) == ("oil", "film")
    assert unused == (["prompt"] if record.get("prompt") == "Which?" else [])
    record["chosen"][-1]["name"] = record["rejected"][-1]["name"] = "Ann"
    assert read_pair(record)[1] == [*unused, "messages[].name"]
    record["rejected"][-1]["weight"] = 0
    with pytest.raises(InvalidInputError, match=r"^rejected: messages: weight: turns are not weighted one by one"):
        read_pair(record)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"prompt": "a", "completion": "b"}, r'expected \{"prompt", "chosen", "rejected"\}, found the keys'),
        ({"chosen": "a", "rejected": "b"}, "prompt: missing"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "chosen: expected text that is not empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
        ({"prompt": "a", "chosen": "b", "rejected": answer("c")}, "rejected: expected text"),
        ({"chosen": [*CHAT, *answer("a")], "rejected": CHAT}, "rejected: messages: expected a list of at least two"),
        (
            {"chosen": [*CHAT, *answer("a")], "rejected": [*CHAT, *CHAT, *answer("b")]},
            "the same conversation up to the last message",
        ),
    ],
)
def test_a_record_that_is_no_pair_is_refused_by_its_key(record: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        read_pair(record)


def test_a_malformed_pair_is_named_by_its_line_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = {"prompt": "a", "chosen": "b", "rejected": "c", "source": "x"}
    path.write_text(json.dumps(good) + "\n" + json.dumps({"prompt": "a"}) + "\n")
    with pytest.raises(InvalidInputError, match=r"pairs\.jsonl:2: expected"):
        read_pairs(path, "train")
    kept = read_pairs(path, "train", "drop")
    assert len(kept) == 1
    assert kept.reading.left_out[0].numbers == (2,)
    assert kept.reading.unused == (("source", 1),)


def test_a_pair_that_the_base_cannot_read_is_named_or_left_out(tmp_path: Path) -> None:
    class Plain(Silent):
        def prompt(self, row: Any) -> list[int]:
            if not isinstance(row.prompt, str):
                raise RowError("no chat here")
            return [7] * len(row.prompt)

        def completion(self, text: str) -> list[int]:
            return [8] * len(text)

    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "a", "chosen": "bb", "rejected": "c"},
        {"chosen": [*CHAT, *answer("oil")], "rejected": [*CHAT, *answer("film")]},
        {"prompt": "a", "chosen": "b" * 9, "rejected": "c"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidInputError, match=r"pairs\.jsonl:2: no chat here; data\.invalid=drop"):
        tokenize_pairs(read_pairs(path, "train"), Plain(), 8, "error")
    found = tokenize_pairs(read_pairs(path, "train"), Plain(), 8, "drop")
    assert "1 left out, no chat here: line 2" in found.describe()
    # What was left out is not counted among the forms.
    assert (len(found.examples), found.rows.forms) == (2, {"chosen": 1, "rejected": 1})


def test_both_answers_of_a_pair_follow_the_same_tokens(deep_base: AddedBase, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "one two three four five six", "chosen": " yes, of course it is", "rejected": " no"},
        {"prompt": "a", "chosen": " yes" * 40, "rejected": " no"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = deep_base.stored
    encoder = BaseTokenizer(stored.tokenizer_dir, stored.config.eos_token_ids)
    prompt, longest = len(encoder.completion(rows[0]["prompt"])), len(encoder.completion(rows[0]["chosen"])) + 1
    found = tokenize_pairs(read_pairs(path, "train"), encoder, prompt + longest - 2)
    chosen, rejected = found.examples
    assert chosen.prompt_length == rejected.prompt_length == prompt - 2
    assert chosen.ids[: prompt - 2] == rejected.ids[: prompt - 2]
    assert (found.truncated, found.dropped, found.dropped_at) == (1, 1, (2,))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"packing": True}, "data.packing: a pair is two rows"),
        ({"mixing_maximum": 3}, "data.mixing_maximum"),
        ({"format": "alpaca"}, "data.format: with dpo a record is a pair"),
        ({"loss_on": "last"}, "data.loss_on"),
        ({"train": [{"path": "t.jsonl", "weight": 2}]}, r"data.train\[0\].weight: without effect on pairs"),
        ({"train": [{"path": "t.jsonl", "templates": "t.yaml"}]}, r"data.train\[0\].templates: without effect"),
    ],
)
def test_what_pairs_cannot_have_is_refused_by_its_key(data: dict[str, Any], says: str) -> None:
    document = {"base": "b", "method": "lora", "output": "o", "data": {"train": "t.jsonl", **data}}
    with pytest.raises(InvalidInputError, match=says):
        configs.parse(document | {"objective": {"kind": "dpo"}})


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_take_the_steps_of_one(deep_base: AddedBase, preferring: Make, run: Run) -> None:
    found = []
    for size, devices in ((8, 1), (4, 2)):
        config = preferring(deep_base, "lora", {"r": 4}, steps=3, batch_size=size, devices=devices, save_every=3)
        run(config, deep_base)
        found.append([(line["loss"], line["grad_norm"]) for line in log(config) if "grad_norm" in line])
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-3)
