"""Bottleneck adapters and their fusion in training, against AdapterHub's own logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.oracles import Oracle
from benchmarks.subjects import RandomAdapter
from tests.oracles.adapterhub_subjects import ADAPTERS, CASES, SHOWN, TOKENS
from tests.oracles.hub_base import add_hub_base, expected, hub_adapter, hub_fusion
from tests.tiny_models import AddedBase
from tests.trainer.oracles import BATCH, LABELS
from weft_adapters.kinds.kind import MergeRefusedError
from weft_registry import artifact
from weft_registry.errors import InvalidInputError, NotFoundError, PreconditionError, UnavailableError
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import open_registry, push
from weft_trainer.config.adapter import BottleneckOptions, FusionOptions
from weft_trainer.config.run import TrainConfig
from weft_trainer.config.strict import ConfigError
from weft_trainer.data.tokenization import BaseTokenizer
from weft_trainer.evaluate import evaluate
from weft_trainer.methods import METHODS, method_of_kind, over
from weft_trainer.methods.parts import Part, find_parts
from weft_trainer.modeling.base import build
from weft_trainer.progress import QuietReporter

BOTTLENECKS = ("houlsby", "pfeiffer", "parallel")
FUSIONS = [name for name, case in CASES.items() if case.fusion]


@pytest.fixture(scope="module")
def hub_base(tmp_path_factory: pytest.TempPathFactory) -> AddedBase:
    return add_hub_base(tmp_path_factory.mktemp("hub"))


def shown(model: Any) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.tensor([TOKENS])
        states = model.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        logits: torch.Tensor = model.base.logits(states)[0, :, :SHOWN]
    return logits


def restored(adapter: RandomAdapter, base: AddedBase) -> Any:
    parts = [
        Part(Reference(AdapterName("hub", "part"), digest=part.digest), part.bound(torch.float32))
        for part in adapter.parts
    ]
    method = over(method_of_kind(adapter.kind), parts)
    model = method.bare(build(base.stored, torch.float32), adapter.params)
    model.restore(adapter.tensors)
    return model.eval()


def attach(base: AddedBase, method: str, options: Any, parts: list[Part] | None = None) -> Any:
    torch.manual_seed(0)
    tokenizer = BaseTokenizer(base.stored.tokenizer_dir)
    chosen = over(METHODS[method], parts or [])
    params = chosen.params(options, base.stored.spec, tokenizer)
    return chosen.attach(build(base.stored, torch.float32), params, options, tokenizer)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapters_logits_are_adapterhubs(name: str, hub_base: AddedBase) -> None:
    model = restored(hub_adapter(name), hub_base)
    torch.testing.assert_close(shown(model), expected(name), atol=2e-4, rtol=1e-4)
    assert (expected(name) - expected("base")).abs().max() > 0.1


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusions_logits_are_adapterhubs(name: str, hub_base: AddedBase) -> None:
    model = restored(hub_fusion(name), hub_base)
    torch.testing.assert_close(shown(model), expected(name), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", BOTTLENECKS)
def test_the_methods_defaults_are_adapterhubs(method: str, hub_base: AddedBase) -> None:
    tokenizer = BaseTokenizer(hub_base.stored.tokenizer_dir)
    assert METHODS[method].params(BottleneckOptions(), hub_base.stored.spec, tokenizer) == hub_adapter(method).params


@pytest.mark.parametrize("method", BOTTLENECKS)
@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_training_begins_near_the_base(method: str, arch: str, tiny_base: Callable[..., AddedBase]) -> None:
    model = attach(tiny_base(arch), method, BottleneckOptions())
    base = build(tiny_base(arch).stored, torch.float32)
    with torch.no_grad():
        found, bare = model.hidden(BATCH), base.hidden(BATCH)
    near = float((found - bare).norm() / bare.norm())
    assert near == 0 if method == "parallel" else 0 < near < 0.1


@pytest.mark.parametrize("method", BOTTLENECKS)
def test_gradients_are_those_of_the_equation(method: str, hub_base: AddedBase) -> None:
    adapter = hub_adapter(method)
    model = restored(adapter, hub_base)
    assert model.trainable().keys() == {f"networks.{name}" for name, _ in model.networks.named_parameters()}
    model(**BATCH, labels=LABELS)["loss"].backward()
    name, parameter = next((n, p) for n, p in model.trainable().items() if n.endswith("adapter_down.weight"))
    step = torch.zeros_like(parameter)
    step.view(-1)[int(parameter.grad.abs().argmax())] = 1e-2
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step
            losses.append(model(**BATCH, labels=LABELS)["loss"].item())
            parameter -= sign * step
    slope = (losses[0] - losses[1]) / 2e-2
    assert slope == pytest.approx(
        float(parameter.grad.abs().max() * parameter.grad.flatten()[step.argmax()].sign()), rel=0.05
    )
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.trainable().values()), name


ADAPTER_OPTIONS: dict[str, dict[str, Any]] = {
    "houlsby": {"reduction_factor": 8, "non_linearity": "gelu"},
    "pfeiffer": {"bottleneck_size": 6, "layers": "top:2"},
    "parallel": {"reads": "input", "scaling": 2, "leave_out": [1], "dropout": 0.1},
}


@pytest.mark.parametrize("method", BOTTLENECKS)
def test_a_trained_adapter_is_an_artifact_that_learned_and_computes_the_equation(
    method: str,
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
) -> None:
    config = make_config(deep_base, method, ADAPTER_OPTIONS[method], steps=25, learning_rate=2e-2)
    directory = run(config, deep_base)
    manifest = artifact.read(directory)
    assert manifest.kind == "bottleneck"
    assert not (directory / artifact.CONFIG).exists()
    scored = evaluate(directory, config.data.train, QuietReporter(), home=deep_base.home, dtype=torch.float32)
    bare = evaluate(
        None, config.data.train, QuietReporter(), base=deep_base.name, home=deep_base.home, dtype=torch.float32
    )
    assert scored.loss < 0.5 * bare.loss
    tensors = load_file(directory / artifact.WEIGHTS)
    adapter = RandomAdapter("bottleneck", _params(directory), tensors)
    model = restored(adapter, deep_base)
    wanted = Oracle(deep_base.stored, [adapter]).logits(adapter.digest, TOKENS)
    with torch.no_grad():
        ids = torch.tensor([TOKENS])
        states = model.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        torch.testing.assert_close(model.base.logits(states)[0].double(), wanted, atol=1e-3, rtol=1e-3)
    with pytest.raises(MergeRefusedError, match="non-linearity"):
        evaluate(directory, config.data.train, QuietReporter(), merged=True, home=deep_base.home)


def _params(directory: Path) -> Any:
    from weft_registry.kinds import kind_schema

    manifest = artifact.read(directory)
    return kind_schema(manifest.kind).parse(manifest.adapter)


def test_a_fusion_is_trained_over_published_parts_and_directories_and_leaves_the_parts_alone(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    parts = []
    for number, seed in enumerate((3, 4)):
        config = make_config(deep_base, "pfeiffer", {"layers": "top:2"}, seed=seed, steps=8)
        parts.append(run(config, deep_base).rename(tmp_path / f"part-{number}"))
    registry = open_registry(deep_base.home)
    try:
        published = push(registry, parts[0], AdapterName.parse("acme/first"))
        wanted = ["acme/first", f"acme/second={parts[1]}"]
        config = make_config(deep_base, "fusion", {"parts": wanted}, steps=12)
        directory = run(config, deep_base)
        manifest = artifact.read(directory)
        second = artifact.read(parts[1]).digest()
        assert manifest.adapter["parts"] == [f"acme/first@{published.version.digest}", f"acme/second@{second}"]
        assert manifest.adapter["layers"] == [2, 3]
        unpushed = rf"adapter\.parts: acme/second@{second}: no adapter acme/second.*; push it first, for"
        with pytest.raises(NotFoundError, match=unpushed):
            evaluate(directory, config.data.train, QuietReporter(), home=deep_base.home)
        with pytest.raises(NotFoundError, match="push it first"):
            push(registry, directory, AdapterName.parse("acme/fused"))
        push(registry, parts[1], AdapterName.parse("acme/second"))
        push(registry, directory, AdapterName.parse("acme/fused"))
        fused = evaluate(directory, config.data.train, QuietReporter(), home=deep_base.home, dtype=torch.float32)
        one = evaluate(parts[0], config.data.train, QuietReporter(), home=deep_base.home, dtype=torch.float32)
        assert fused.loss < one.loss
        registry.yank("acme/second:latest", "withdrawn")
        with pytest.raises(PreconditionError, match="yanked"):
            run(make_config(deep_base, "fusion", {"parts": [f"acme/second@{second}"]}), deep_base)
        with pytest.raises(PreconditionError, match=r"it is yanked \(withdrawn\): no fusion goes without one of its"):
            evaluate(directory, config.data.train, QuietReporter(), home=deep_base.home)
    finally:
        registry.close()


def test_a_part_that_is_yanked_or_of_another_base_is_refused_by_its_name_with_a_way_out(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    directory = run(make_config(deep_base, "pfeiffer", {"layers": "top:2"}), deep_base).rename(tmp_path / "part")
    base = deep_base.stored.spec
    other = replace(base, fingerprint=replace(base.fingerprint, id="other/base", weights_sha256="0" * 64))
    with closing(open_registry(deep_base.home)) as registry:
        digest = push(registry, directory, AdapterName("parts", "gone"), tags=["v1"]).version.digest
        for part in ("parts/gone", "parts/gone:v1", f"parts/gone={directory}"):
            assert [found.reference.digest for found in find_parts([part], base, deep_base.home)] == [digest]
            message = rf"adapter\.parts: {part}: .*other/base.*: choose a part that was trained on this base"
            with pytest.raises(PreconditionError, match=message) as caught:
                find_parts([part], other, deep_base.home)
            assert caught.value.reason == "BASE_MISMATCH"
        with pytest.raises(InvalidInputError, match=rf"adapter\.parts: {directory}: .* NAMESPACE/NAME={directory}$"):
            find_parts([str(directory)], base, deep_base.home)
        missing = rf"adapter\.parts: parts/x={tmp_path}/none: no artifact directory at {tmp_path}/none$"
        with pytest.raises(NotFoundError, match=missing):
            find_parts([f"parts/x={tmp_path}/none"], base, deep_base.home)
        registry.yank("parts/gone", "withdrawn")
        # However it is named, it is refused at once, and not after the advice of naming it another way.
        # The directory would be refused when the whole is pushed.
        for part in ("parts/gone", "parts/gone:v1", f"parts/gone@{digest}", f"parts/gone={directory}"):
            message = rf"adapter\.parts: {part}: it is yanked \(withdrawn\): .* choose another"
            with pytest.raises(PreconditionError, match=message) as caught:
                find_parts([part], base, deep_base.home)
            assert (caught.value.reason, caught.value.metadata["digest"]) == ("YANKED", digest)
            assert "stays readable" not in caught.value.message
        # Nobody has yanked it under another name.
        assert find_parts([f"parts/other={directory}"], base, deep_base.home)


def test_a_directory_is_a_part_where_no_registry_answers(
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = run(make_config(deep_base, "pfeiffer", steps=1), deep_base)
    monkeypatch.setattr("weft_trainer.methods.parts.open_registry", lambda home: Away())
    assert find_parts([f"acme/part={directory}"], deep_base.stored.spec, deep_base.home)
    with pytest.raises(UnavailableError, match=r"^adapter\.parts: acme/part: no registry at nowhere"):
        find_parts(["acme/part"], deep_base.stored.spec, deep_base.home)


class Away:
    """A registry that does not answer."""

    def resolve(self, reference: str) -> object:
        raise UnavailableError("no registry at nowhere")

    def close(self) -> None:
        """Nothing is open."""


def test_a_fusion_and_a_lora_are_no_parts(
    deep_base: AddedBase, make_config: Callable[..., TrainConfig], run: Callable[..., Path], tmp_path: Path
) -> None:
    part = run(make_config(deep_base, "pfeiffer", {"layers": "top:2"}, steps=1), deep_base).rename(tmp_path / "part")
    lora = run(make_config(deep_base, "lora", {"r": 4}, steps=1), deep_base).rename(tmp_path / "lora")
    with closing(open_registry(deep_base.home)) as registry:
        push(registry, part, AdapterName("acme", "part"))
        fusion = run(make_config(deep_base, "fusion", {"parts": ["acme/part"]}, steps=1), deep_base)
        push(registry, fusion, AdapterName("acme", "fusion"))
        push(registry, lora, AdapterName("acme", "lora"))
    for kind, named in (
        ("fusion", "acme/fusion"),
        ("fusion", f"acme/x={fusion}"),
        ("lora", "acme/lora"),
        ("lora", f"acme/x={lora}"),
    ):
        says = (
            rf"^adapter\.parts: {named}: it is an adapter of the kind {kind}: a fusion is made over bottleneck adapters"
        )
        with pytest.raises(InvalidInputError, match=says) as caught:
            find_parts(["acme/part", named], deep_base.stored.spec, deep_base.home)
        assert caught.value.reason == "PART_REFUSED"


def test_the_value_matrices_are_drawn_to_the_identity_once_a_step(hub_base: AddedBase) -> None:
    fusion = hub_fusion("dynamic fusion")
    named = [
        Part(reference, part.bound(torch.float32))
        for reference, part in zip(fusion.params.parts, fusion.parts, strict=True)
    ]
    options = FusionOptions(parts=(), regularization=0.5)
    model = attach(hub_base, "fusion", options, named)
    assert float(model.distance().detach()) < 1e-3
    model.restore(fusion.tensors)
    distance = float(model.distance().detach())
    plain = model.eval()(**BATCH, labels=LABELS)["loss"].item()
    assert model.train()(**BATCH, labels=LABELS)["loss"].item() == pytest.approx(plain + 0.5 * distance, rel=1e-4)
    # Half of a step's tokens bring half of the regularization.
    counted = {"labels": LABELS, "num_items_in_batch": 8}
    half = model(**BATCH, **counted)["loss"].item() - model.eval()(**BATCH, **counted)["loss"].item()
    assert half == pytest.approx(0.25 * distance, rel=1e-4)


def test_parts_that_do_not_stand_alike_are_refused_by_name(hub_base: AddedBase) -> None:
    parts = [
        Part(
            Reference.parse(f"hub/{name.replace('_', '-')}@{hub_adapter(name).digest}"),
            hub_adapter(name).bound(torch.float32),
        )
        for name in ("pfeiffer", "houlsby")
    ]
    says = r"^adapter\.parts: hub/houlsby@.*: its reads are output.*; leave it out, or train it as hub/pfeiffer is$"
    with pytest.raises(ConfigError, match=says):
        attach(hub_base, "fusion", FusionOptions(parts=()), parts)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"reduction_factor": 4, "bottleneck_size": 4}, "bottleneck_size"),
        ({"non_linearity": "relu6"}, "non_linearity"),
        ({"places": ["head"]}, "places"),
        ({"leave_out": [9]}, "leave_out: no layer 9"),
        ({"layers": "top:2", "leave_out": [0]}, r"adapter\.leave_out: without effect: layer 0 is none of .* 'top:2'"),
        ({"layers": [1, 2], "leave_out": [3]}, r"adapter\.leave_out: without effect: layer 3 is none of .* \(1, 2\)"),
        ({"leave_out": [0, 1, 2, 3]}, "no layer is left"),
        ({"layers": "top:9"}, "layers"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    adapter: dict[str, Any],
    message: str,
    deep_base: AddedBase,
    make_config: Callable[..., TrainConfig],
    run: Callable[..., Path],
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        run(make_config(deep_base, "pfeiffer", adapter), deep_base)
