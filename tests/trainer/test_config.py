from __future__ import annotations

import ast
from pathlib import Path

import pytest

from weft_registry import canonical
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_trainer import config as configs
from weft_trainer import options
from weft_trainer.options import LowRankOptions, PrefixOptions

MINIMAL = "base: b\nmethod: lora\noutput: out/x\ndata: {train: t.jsonl}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_fill_what_the_file_leaves_out(file: Path) -> None:
    config = configs.load(file)
    assert (config.adapter_name, config.adapter, config.training.batch_size) == ("x", LowRankOptions(), 16)
    assert config.data.train == Path("t.jsonl")


def test_overrides_are_yaml_and_win_over_the_file(file: Path) -> None:
    adapter = ["adapter.layers=[1, 2]", "adapter.rank_pattern={q_proj: 4}"]
    config = configs.load(file, ["training.learning_rate=5e-4", "training.steps=7", *adapter])
    assert isinstance(config.adapter, LowRankOptions)
    assert config.training.learning_rate == 5e-4
    assert (config.training.steps, config.adapter.layers, config.adapter.rank_pattern) == (7, (1, 2), {"q_proj": 4})


def test_the_method_decides_what_its_block_may_say(file: Path) -> None:
    config = configs.load(file, ["method=prefix", "adapter.num_virtual_tokens=4"])
    assert config.adapter == PrefixOptions(num_virtual_tokens=4)
    with pytest.raises(InvalidInputError, match=r"adapter\.num_virtual_tokens: unknown key"):
        configs.load(file, ["adapter.num_virtual_tokens=4"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.learning_rat=1", "training.learning_rat: unknown key; did you mean 'learning_rate'"),
        ("trainin.steps=1", "trainin: unknown key; did you mean 'training'"),
        ("training.steps=0", "training.steps: 0, but at least 1"),
        ("training.steps=many", "training.steps: expected a whole number"),
        ("training.learning_rate=.nan", "training.learning_rate: expected a number"),
        ("training.dtype=bfloat17", "did you mean 'bfloat16'"),
        ("training.resume=1", "training.resume: expected true or false"),
        ("method=lorra", "method: 'lorra' is not one of lora"),
        ("data.train=", "data.train: expected a path"),
        ("base=[1", "the value is not YAML"),
        ("nonsense", "expected KEY=VALUE"),
        ("base.x=1", "'base' is not a group"),
        ("adapter.alpha=0", "adapter.alpha: 0.0, but it must be above 0"),
    ],
)
def test_a_wrong_override_is_refused_by_name(file: Path, override: str, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        configs.load(file, [override])
    assert says in caught.value.message


def test_a_prefix_cannot_start_at_a_text_and_be_an_mlp(file: Path) -> None:
    with pytest.raises(InvalidInputError, match="give one of the two"):
        configs.load(file, ["method=prefix", "adapter.init_text=hello", "adapter.prefix_projection=true"])


def test_a_file_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        configs.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InvalidInputError, match="not YAML"):
        configs.load(tmp_path / "bad.yaml")


def test_the_digest_follows_the_configuration(file: Path) -> None:
    config = configs.load(file)
    assert canonical.loads(canonical.dumps(config.as_json()), "config")["training"]["learning_rate"] == "0.001"
    assert configs.load(file).digest() == config.digest()
    assert configs.load(file, ["training.seed=1"]).digest() != config.digest()


@pytest.mark.parametrize("module", [configs, options])
def test_every_field_is_documented(module: object) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{cls.name}.{ast.unparse(node.target)} has no docstring"
