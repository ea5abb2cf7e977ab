"""What is refused before anything is computed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import AddedBase
from tests.trainer.prompts import save_prompt
from tests.trainer.reporters import Heard
from weft_registry.errors import InvalidInputError, NotFoundError, WeftError
from weft_trainer.config.data import DatasetConfig
from weft_trainer.config.run import TrainConfig
from weft_trainer.evaluate import evaluate
from weft_trainer.progress import QuietReporter
from weft_trainer.setup import set_up

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("method", "adapter", "training", "says", "kind"),
    [
        ("p_tuning_v2", {"num_virtual_tokens": 60000}, {}, "leaves nothing of the base's context", InvalidInputError),
        ("prompt_tuning", {"num_virtual_tokens": 60000}, {}, "leaves nothing of the base's context", InvalidInputError),
        ("houlsby", {"reduction_factor": 1e-6}, {}, r"adapter\.reduction_factor: 1e-06 makes", InvalidInputError),
        ("lora", {}, {"resume": True}, "no checkpoint in", NotFoundError),
    ],
)
def test_what_training_would_fail_for_at_its_end_is_refused(
    method: str,
    adapter: dict[str, Any],
    training: dict[str, Any],
    says: str,
    kind: type[WeftError],
    deep_base: AddedBase,
    make_config: MakeConfig,
) -> None:
    with pytest.raises(kind, match=says):
        set_up(
            make_config(deep_base, method, adapter, **training), QuietReporter(), deep_base.home, torch.device("cpu")
        )


def test_a_place_that_cannot_be_written_is_refused(
    deep_base: AddedBase, make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = replace(make_config(deep_base, "lora"), output=tmp_path / "file" / "below" / "artifact")
    with pytest.raises(InvalidInputError, match=r"output: .*file/below cannot be made"):
        set_up(config, QuietReporter(), deep_base.home, torch.device("cpu"))


CONVERSATION = {"messages": [{"role": r, "content": "hi"} for r in ("user", "assistant", "user", "assistant")]}


def test_the_last_answer_is_asked_for_only_where_there_may_be_others(
    deep_base: AddedBase, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(deep_base, "lora", {"r": 4})
    pairs, chats, phrased = (tmp_path / f"{name}.jsonl" for name in ("pairs", "chats", "phrased"))
    pairs.write_text('{"prompt": "a", "completion": " b"}\n' * 4)
    chats.write_text(f"{json.dumps(CONVERSATION)}\n" * 4)
    phrased.write_text('{"text": "a", "label": "b"}\n' * 4)
    templates = tmp_path / "templates.yaml"
    templates.write_text('chat: true\ntemplates: [{name: one, prompt: "{text}", completion: " {label}"}]\n')
    written = DatasetConfig(phrased, templates=templates)

    def learnt(*train: DatasetConfig) -> int:
        data = replace(config.data, train=train, eval_fraction=0.5, loss_on="last")
        setup = set_up(replace(config, data=data), QuietReporter(), deep_base.home, torch.device("cpu"))
        return sum(len(example.spans) for example in setup.data.train_examples)

    # Two of each file are trained on, and of a conversation one answer.
    assert learnt(DatasetConfig(pairs), written, DatasetConfig(chats)) == 6
    with pytest.raises(InvalidInputError, match=r"^data\.loss_on: last is without effect: no training file has conver"):
        learnt(DatasetConfig(pairs), written)


def test_an_example_beyond_the_context_is_refused_and_virtual_tokens_count(
    deep_base: AddedBase, make_config: MakeConfig
) -> None:
    def longest(virtual: int) -> int:
        config = make_config(deep_base, "prompt_tuning", {"num_virtual_tokens": virtual})
        setup = set_up(config, QuietReporter(), deep_base.home, torch.device("cpu"))
        held_out = setup.data.held_out or ()
        return max(len(example.ids) for example in (*setup.data.train_examples, *held_out))

    room = deep_base.stored.spec.context_length - longest(1)
    assert longest(room) == longest(1)
    message = rf"data\.max_length: .* virtual tokens; set it to .*, or adapter\.num_virtual_tokens to at most {room}$"
    with pytest.raises(InvalidInputError, match=message):
        longest(room + 1)


def test_scoring_an_adapter_reads_no_more_than_a_server_would(deep_base: AddedBase, tmp_path: Path) -> None:
    context = deep_base.stored.spec.context_length
    wide = save_prompt(deep_base, tmp_path / "wide", room=60)
    data = tmp_path / "held-out.jsonl"

    def score(prompt: str, completion: str, directory: Path | None = wide, **options: Any) -> list[str]:
        data.write_text(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
        heard = Heard()
        evaluate(directory, data, heard, base=deep_base.name, dtype=torch.float32, home=deep_base.home, **options)
        return heard.messages

    assert "lost the start" not in score("Short.", " a")[0]
    holds = f"what the base's context holds after {context - 60} virtual tokens (60"
    assert f"1 over {holds}) lost the start of their prompt: line 1" in score("word " * 30, " a")[0]
    assert "lost the start" not in score("word " * 30, " a", None)[0]
    assert "1 over max_length (9) lost the start" in score("word " * 20, " a", max_length=9)[0]
    with pytest.raises(InvalidInputError) as caught:
        score("a", " word" * 80)
    assert caught.value.message == (
        f"{data}: every completion is over {holds} tokens); shorten the answers, or take a base with a longer "
        "context, or an adapter with fewer virtual tokens"
    )
    with pytest.raises(InvalidInputError, match=rf"over what the base's context holds \({context} tokens\); shorten"):
        score("a", " word" * (context + 1), None)


def test_an_adapter_that_leaves_no_room_for_an_example_is_not_scored(deep_base: AddedBase, tmp_path: Path) -> None:
    directory = save_prompt(deep_base, tmp_path / "wide", room=1)
    data = tmp_path / "text.jsonl"
    data.write_text('{"text": "a b c"}\n')
    with pytest.raises(InvalidInputError, match=r"^adapter 'wide': the context of this base holds 1 tokens after"):
        evaluate(directory, data, QuietReporter(), home=deep_base.home)


@pytest.mark.parametrize(("said", "fastest"), [("auto", "bfloat16"), ("auto", "float32"), ("bfloat16", "float32")])
def test_a_run_computes_in_what_it_says_or_in_what_is_fastest(
    said: str, fastest: str, deep_base: AddedBase, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft_trainer.modeling.base.fast_dtype", lambda device: getattr(torch, fastest))
    config = make_config(deep_base, "lora", dtype=said)
    setup = set_up(config, QuietReporter(), deep_base.home, torch.device("cpu"))
    wanted = fastest if said == "auto" else said
    # The manifest and the checkpoints say it.
    assert setup.config.training.dtype == setup.identity["training.dtype"] == wanted
    assert setup.base().dtype == getattr(torch, wanted)
