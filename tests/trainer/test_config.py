from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from weft_client.cli.app import app
from weft_registry import canonical
from weft_registry.errors import InvalidInputError, NotFoundError
from weft_trainer.config import adapter as adapter_config
from weft_trainer.config import data as data_config
from weft_trainer.config import misplaced, yaml_source
from weft_trainer.config import objective as objective_config
from weft_trainer.config import run as configs
from weft_trainer.config.adapter import LoraOptions, LowRankOptions, PrefixOptions
from weft_trainer.data import judging, templates

MINIMAL = "base: b\nmethod: lora\noutput: out/x\ndata: {train: t.jsonl}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_fill_what_the_file_leaves_out(file: Path) -> None:
    config = configs.load(file)
    assert (config.adapter_name, config.adapter, config.training.batch_size) == ("x", LoraOptions(), 16)
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
        ("training.learning_rat=1", "training.learning_rat: unknown key; nearest: learning_rate"),
        ("trainin.steps=1", "trainin: unknown key; nearest: training"),
        ("training.steps=0", "training.steps: 0, but at least 1"),
        ("training.steps=many", "training.steps: expected a whole number"),
        ("training.learning_rate=.nan", "training.learning_rate: expected a number"),
        ("training.dtype=bfloat17", "nearest: bfloat16"),
        ("training.resume=1", "training.resume: expected true or false"),
        ("method=lorra", "method: 'lorra' is not one of lora"),
        ("data.train=", "data.train: expected a path"),
        ("base=[1", "the value is not YAML"),
        ("name=2024-13-41", "a value is not what it looks like, or its tag says (month must be"),
        ("training.steps=!!int foo", "override 'training.steps=!!int foo': a value is not what it looks like"),
        ("name=!!timestamp foo", "put it into quotes"),
        ("training.resume=!!bool foo", "put it into quotes"),
        ("training.steps=" + "9" * 5000, "put it into quotes"),
        ("training.learning_rate=1" + "0" * 400, "training.learning_rate: expected a number"),
        ("training.seed=4294967296", "training.seed: 4294967296, but at most 4294967295"),
        ("nonsense", "expected KEY=VALUE"),
        ("base.x=1", "'base' is not a group"),
        ("adapter.alpha=0", "adapter.alpha: 0.0, but it must be above 0"),
        ("adapter.rank_pattern={q_proj: 0}", "adapter.rank_pattern.q_proj: 0; a rank is from 1"),
        ("adapter.alpha_pattern={q_proj: -1}", "adapter.alpha_pattern.q_proj: -1.0, but it must be above 0"),
        ("adapter=[]", "adapter: expected a mapping"),
    ],
)
def test_a_wrong_override_is_refused_by_name(file: Path, override: str, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        configs.load(file, [override])
    assert says in caught.value.message
    assert "override" in caught.value.message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["steps=5"], "steps: unknown key; its place is training.steps"),
        (["epochs=2"], "epochs: unknown key; its place is training.epochs"),
        (["batch_size=2"], "batch_size: unknown key; its place is training.batch_size"),
        (["train=x.jsonl"], "train: unknown key; its place is data.train"),
        (["r=4"], "r: unknown key; its place is adapter.r"),
        (["target_modules=q_proj"], "target_modules: unknown key; its place is adapter.target_modules"),
        (["method=prefix", "num_virtual_tokens=4"], "unknown key; its place is adapter.num_virtual_tokens"),
        (["method=fusion", "parts=[n/a@v1]"], "parts: unknown key; its place is adapter.parts"),
        (["method=galore", "rank=4"], "rank: unknown key; its place is adapter.extract.rank or adapter.rank"),
        (["objective.kind=dpo", "beta=1"], "beta: unknown key; its place is objective.beta"),
        (["kind=dpo"], "kind: unknown key; its place is objective.kind"),
        (["method=lorra", "steps=5"], "steps: unknown key; its place is training.steps"),
        (["training.r=4"], "training.r: unknown key; its place is adapter.r"),
        (["training.name=x"], "training.name: unknown key; its place is name at the top"),
        (["data.train=[{path: a, loss_on: last}]"], "data.train[0].loss_on: unknown key; its place is data.loss_on"),
        (["lerning_rate=1"], "lerning_rate: unknown key; nearest: training.learning_rate"),
        (["lr=1"], "lr: unknown key; that is training.learning_rate"),
        (["training.lr=1"], "training.lr: unknown key; that is training.learning_rate"),
        (["adapter.rank=3"], "adapter.rank: unknown key; that is adapter.r"),
        (["base_model=smol"], "base_model: unknown key; that is base at the top"),
        (["training.q=1"], "training.q: unknown key; known: steps, "),
        (["metod=lora"], "metod: unknown key; nearest: method"),
        (["xyzzy=1"], "xyzzy: unknown key; known: base, method, output"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_own(file: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        configs.load(file, overrides)
    assert caught.value.message.startswith(f"override {overrides[-1]}: ")
    assert says in caught.value.message


def test_dots_in_a_file_are_answered_with_how_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "training.steps: 5\n")
    with pytest.raises(InvalidInputError, match=r"run\.yaml:5:1: .* write training: \{steps: \.\.\.\}$"):
        configs.load(path)
    path.write_text(MINIMAL.replace("lora", "full") + "adapter.extract.rank: 5\n")
    with pytest.raises(InvalidInputError, match=r"write adapter: \{extract: \{rank: \.\.\.\}\}$"):
        configs.load(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("null: 3\n", "5:1: None: expected a key that is text, found None; known: base"),
        ("3: x\n", "5:1: 3: expected a key that is text, found 3; known: base"),
        ("yes: x\n", "5:1: True: expected a key that is text, found True; known: base"),
        ("training:\n  0x10: x\n", "6:3: training.16: expected a key that is text, found 16; known: steps"),
        ("adapter:\n  rank_pattern: {~: 4}\n", "6:18: adapter.rank_pattern.None: expected a key that is text"),
    ],
)
def test_keys_that_are_no_text_are_refused_with_their_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + text)
    with pytest.raises(InvalidInputError) as caught:
        configs.load(path)
    assert caught.value.message.startswith(f"{path}:{says}")


@pytest.mark.parametrize(
    "key", ["output", "data.train", "data.eval", "start", "name", "training.tensorboard", "adapter.original"]
)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('"runs/\\0x"', r"'runs/\x00x' holds a null character; take it out"),
        ('"runs/\\ud800"', r"\ud800 is half of a character, without its other half; take it out"),
    ],
)
def test_what_no_file_can_be_called_is_refused_by_its_key(file: Path, key: str, value: str, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        configs.load(file, ["adapter.init=loftq", "adapter.original=x", f"{key}={value}"])
    assert caught.value.message == f"override {key}={value}: {key}: {says}"


def test_a_null_character_is_refused_inside_of_lists_and_mappings_too(file: Path) -> None:
    for override, says in (
        ('data.train=[{path: "a\\0"}]', "data.train[0].path: 'a\\x00' holds a null character"),
        ('adapter.target_modules=["a\\0"]', "adapter.target_modules[0]: 'a\\x00' holds a null character"),
        ('adapter.rank_pattern={"a\\0": 4}', "adapter.rank_pattern: 'a\\x00' holds a null character"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            configs.load(file, [override])
        assert says in caught.value.message


@pytest.mark.parametrize("key", ["output", "data.train", "objective.teacher"])
def test_the_home_of_nobody_is_refused_by_its_key(file: Path, key: str) -> None:
    value = "~nobody-here/x"
    overrides = [f"{key}={value}"]
    if key == "objective.teacher":
        overrides = ["objective={kind: distill, teacher: smol}", f"{key}=smol+{value}"]
    with pytest.raises(InvalidInputError, match=rf"{key}: {value}: there is no such home directory; write the whole"):
        configs.load(file, overrides)


WRONG = """base: b
method: lora
output: out/x
data:
  train:
    - {path: a.jsonl, weight: 1}
    - path: b.jsonl
      wieght: 2
training:
  steps: 3
  learnin_rate: 1e-3
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("wieght", "weight"), "run.yaml:11:3: training.learnin_rate: unknown key; nearest: learning_rate"),
        (("learnin_rate", "learning_rate"), "run.yaml:8:7: data.train[1].wieght: unknown key; nearest: weight"),
        (("steps: 3", "steps: -3"), "run.yaml:10:3: training.steps: -3, but at least 1"),
        (("method: lora", "method: lorra"), "run.yaml:2:1: method: 'lorra' is not one of"),
        (("base: b\n", ""), "run.yaml: base: missing"),
        (
            ("    - path: b.jsonl\n      wieght: 2\n", "    - {weight: 2}\n"),
            "run.yaml:7:7: data.train[1].path: missing",
        ),
        (("steps: 3", "steps: 3\n  steps: 4"), "run.yaml:11:3: steps: said already in line 10; keep one of the two"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_line_and_column(
    tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    path, text = tmp_path / "run.yaml", WRONG.replace(*change)
    for fixed, right in (("wieght", "weight"), ("learnin_rate", "learning_rate")):
        if fixed not in says:
            text = text.replace(fixed, right)
    path.write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        configs.load(path)
    assert f"{tmp_path}/{says}" in caught.value.message


def test_a_key_that_a_dataclass_refuses_has_its_line_too(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL.replace("lora", "p_tuning") + "adapter:\n  encoder: mlp\n  encoder_num_layers: 3\n")
    with pytest.raises(InvalidInputError, match=r"run\.yaml:7:3: adapter\.encoder_num_layers"):
        configs.load(path)


def test_an_override_takes_the_place_of_the_line_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "training: {steps: 3, seed: x}\n")
    with pytest.raises(InvalidInputError, match=r"^override training\.seed=-1: training\.seed: -1"):
        configs.load(path, ["training.seed=-1"])
    with pytest.raises(InvalidInputError, match=r"^override training=\{sed: 1\}: training\.sed: unknown key"):
        configs.load(path, ["training={sed: 1}"])
    assert configs.load(path, ["training={seed: 1}"]).training.seed == 1


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL.replace("t.jsonl", "[{path: a.jsonl, weight: 1}, {path: b.jsonl, weight: 2}]"))
    config = configs.load(path, ["data.train.1.weight=5"])
    assert [dataset.weight for dataset in config.data.training_sets] == [1, 5]
    with pytest.raises(InvalidInputError, match="a list of 2, and '2' is no index"):
        configs.load(path, ["data.train.2.weight=5"])


def test_merge_keys_and_anchors_are_read_and_located(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "training:\n  <<: &common {steps: 3, seed: 1}\n  seed: 2\n")
    assert (configs.load(path).training.steps, configs.load(path).training.seed) == (3, 2)
    path.write_text(path.read_text().replace("steps: 3", "steps: 0"))
    with pytest.raises(InvalidInputError, match=r"run\.yaml:6:\d+: training\.steps: 0"):
        configs.load(path)


WHOLE = {
    "lora": ["adapter.r=4", "adapter.layers=[1, 2]", "adapter.rank_pattern={q_proj: 4}", "adapter.dropout=1e-5"],
    "qalora": ["adapter.layers=top:8", "training.learning_rate=3e-7", "training.steps=5", "name=yes it is"],
    "prefix": ["adapter.init_text='a: b\\n- é'", "data.eval=held.jsonl", "training.tensorboard=logs/x"],
    "dora": ["training.epochs=2.5"],
    "p_tuning_v2": ["data.train=[{path: a, weight: 0.25}, {path: b, weight: 1e-3}]", "data.packing=true"],
}


@pytest.mark.parametrize("method", WHOLE)
def test_the_printed_configuration_loads_to_the_same_run(file: Path, tmp_path: Path, method: str) -> None:
    config = configs.load(file, [f"method={method}", *WHOLE[method]])
    (tmp_path / "printed.yaml").write_text(config.as_yaml())
    again = configs.load(tmp_path / "printed.yaml")
    assert again == config
    assert again.digest() == config.digest()
    assert "learning_rate" in config.as_yaml(), "defaults are printed"


def test_the_command_prints_the_configuration_and_trains_nothing(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", str(file), "training.seed=4", "--print-config"])
    assert (done.exit_code, done.stdout) == (0, configs.load(file, ["training.seed=4"]).as_yaml())
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    as_json = CliRunner().invoke(app, ["train", str(file), "--print-config", "--json"])
    assert json.loads(as_json.stdout) == configs.load(file).as_json()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("[]", "data.train: no file at all"),
        ("[{path: a, weight: 1}, {path: b}]", "data.train: b has no weight, and others have"),
        ("[{path: a, weight: 0}]", "data.train[0].weight: 0.0, but it must be above 0"),
        ("[{path: a, templates: t.yaml, format: alpaca}]", "data.train[0].format: templates decide"),
        ("[{path: a, phrasings: 2}]", "data.train[0].phrasings: it counts templates"),
        ("[{path: a, format: alpacca}]", "nearest: alpaca"),
        ("5", "data.train: expected a path or a mapping, found 5"),
    ],
)
def test_files_that_cannot_be_mixed_are_refused(file: Path, data: str, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        configs.load(file, [f"data.train={data}"])
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.train=[{path: a, weight: 1}]", "data.mixing_maximum=5"], "data.mixing_maximum: without effect"),
        (["data.train=[{path: a, format: alpaca}]", "data.format=alpaca"], "data.format: without effect"),
        (["data.eval=[{path: a, weight: 1}]"], "data.eval[0].weight: without effect on evaluation"),
        (["data.eval=e", "data.train=[{path: a, eval_fraction: 0.5}]"], "data.train[0].eval_fraction: without effect"),
        (["method=fusion", "adapter.parts=[n/a@v1, n/b@v1]", "data.packing=true"], "data.packing: fusion is not known"),
        (
            ["method=prefix", "adapter.encoder_hidden_size=32"],
            "adapter.encoder_hidden_size: without effect: it is the width of the MLP that adapter.prefix_projection",
        ),
        (
            ["method=prefix", "adapter.init_text=hello", "adapter.init_scale=0.2"],
            "adapter.init_scale: without effect: adapter.init_text decides the first values; leave it out",
        ),
        (
            ["method=prefix", "adapter.prefix_projection=true", "adapter.init_scale=0.2"],
            "adapter.init_scale: without effect: adapter.prefix_projection decides the first values; leave it out",
        ),
        (
            ["method=fusion", "adapter.parts=[n/a@v1]", "adapter.value=false", "adapter.regularization=0.1"],
            "adapter.regularization: without effect: it draws the value matrices",
        ),
        (
            ["training.schedule=constant", "training.warmup=0.1"],
            "training.warmup: 0.1, but training.schedule: constant has no warm-up; take constant_with_warmup",
        ),
        (
            ["data.eval_fraction=0", "training.eval_every=5"],
            "training.eval_every: without effect: no examples are held out; give data.eval",
        ),
        (
            ["training.steps=5", "training.eval_every=6"],
            "training.eval_every: without effect: 6, and training.steps is 5, so that none comes before the evaluation",
        ),
        (
            ["training.steps=5", "training.eval_every=6", "training.early_stopping_patience=2"],
            "training.eval_every: without effect: 6, and training.steps is 5",
        ),
        (
            ["training.keep_checkpoints=3"],
            "training.keep_checkpoints: without effect: checkpoints come with training.save_every; give that too",
        ),
        (["training.early_stopping_patience=2"], "it counts evaluations; give training.eval_every too"),
        (
            ["data.train=[{path: a, eval_fraction: 0}]", "data.eval_rows=5"],
            "data.eval_rows: without effect: no examples are held out; give data.eval",
        ),
        (["data.eval=e", "data.eval_fraction=0.2"], "data.eval_fraction: without effect: data.eval is what is held"),
        (
            ["data.train=[{path: a, eval_fraction: 0.2}]", "data.eval_fraction=0.3"],
            "data.eval_fraction: without effect: every file has one of its own; leave it out",
        ),
    ],
)
def test_settings_without_effect_are_refused(file: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        configs.load(file, overrides)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=prefix", "adapter.prefix_projection=true", "adapter.encoder_hidden_size=32", "adapter.init_scale=0.1"],
        ["method=fusion", "adapter.parts=[n/a@v1]", "adapter.value=false", "adapter.regularization=0.01"],
        ["training.schedule=constant", "training.warmup=0"],
        ["training.steps=5", "training.eval_every=5"],
        ["training.eval_every=1000"],
        ["training.keep_checkpoints=2"],
        ["training.keep_checkpoints=3", "training.save_every=10"],
        ["training.keep_checkpoints=3", "training.resume=true"],
        ["training.schedule=constant_with_warmup", "training.warmup=0.1"],
        ["data.eval=e", "data.eval_fraction=0.1", "data.eval_rows=5", "training.eval_every=5"],
        ["data.eval_fraction=0", "data.train=[{path: a, eval_fraction: 0.2}, {path: b}]", "training.eval_every=5"],
    ],
)
def test_settings_that_say_what_is_so_are_taken(file: Path, overrides: list[str], tmp_path: Path) -> None:
    """A default that is written out is no mistake: a printed configuration has them all."""
    config = configs.load(file, overrides)
    (tmp_path / "printed.yaml").write_text(config.as_yaml())
    assert configs.load(tmp_path / "printed.yaml") == config


def test_a_directory_is_no_yaml_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{tmp_path}: cannot be read: Is a directory; give a YAML file$"):
        configs.load(tmp_path)


def test_an_override_takes_a_key_of_the_file_back_with_null(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    prefix = "adapter: {prefix_projection: true, encoder_hidden_size: 64}\n"
    path.write_text(MINIMAL.replace("lora", "prefix") + prefix)
    words = 'adapter.init_text="Name it."'
    says = (
        r"run\.yaml:5:36: adapter\.encoder_hidden_size: without effect.* \(on the command line adapter\.encoder_hidden"
    )
    with pytest.raises(InvalidInputError, match=rf"{says}_size=null takes it back\)$"):
        configs.load(path, ["adapter.prefix_projection=false", words])
    # Even what has a default that is not null.
    taken_back = ["adapter.prefix_projection=null", "adapter.encoder_hidden_size=null"]
    assert configs.load(path, [*taken_back, words]).adapter == PrefixOptions(init_text="Name it.")
    with pytest.raises(InvalidInputError, match=r"^override base=null: base: missing$"):
        configs.load(path, ["base=null"])
    # Without overrides the file is what is edited, and one override does not take back another.
    path.write_text(MINIMAL.replace("lora", "prefix") + prefix.replace("true", "false"))
    for overrides in ([], [*taken_back, "adapter.encoder_hidden_size=4"]):
        with pytest.raises(InvalidInputError, match=r"adapter\.encoder_hidden_size: .*give that too, or leave it out$"):
            configs.load(path, overrides)


def test_steps_and_epochs_together_are_refused_with_the_line_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL + "training:\n  steps: 30\n  epochs: 2\n")
    with pytest.raises(InvalidInputError, match=r"run\.yaml:7:3: training\.epochs: without effect.*is 30; keep one"):
        configs.load(path)
    assert configs.load(path, ["training.epochs=null"]).training.steps == 30
    assert configs.load(path, ["training.steps=null"]).training.passes == 2
    path.write_text(MINIMAL)
    assert configs.load(path).training.passes == 3
    with pytest.raises(InvalidInputError, match=r"^override training\.epochs=2: training\.epochs: without effect"):
        configs.load(path, ["training.steps=30", "training.epochs=2"])


def test_a_prefix_cannot_start_at_a_text_and_be_an_mlp(file: Path) -> None:
    with pytest.raises(InvalidInputError, match="give one of the two"):
        configs.load(file, ["method=prefix", "adapter.init_text=hello", "adapter.prefix_projection=true"])


def test_a_file_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        configs.load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InvalidInputError, match="not YAML"):
        configs.load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: b\n\tmethod: lora\n", r"bad\.yaml:2:1: not YAML: .*'\\t'"),
        ("a: [", r"bad\.yaml:1:5: not YAML: "),
        ("a: !!python/object/apply:os.getcwd []\n", r"bad\.yaml:1:4: not YAML: .*python/object"),
        ("a: &a {b: *a}\n", r"bad\.yaml:1:4: an alias within what it stands for"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("", r"bad\.yaml: nothing is in it; write keys and values, one `KEY: VALUE` a line"),
        ("# later\n", r"bad\.yaml: nothing is in it"),
        ("- a\n", r"bad\.yaml:1:1: expected a mapping of keys to values, found a list; write keys and values"),
        ("\n  lora\n", r"bad\.yaml:2:3: expected a mapping of keys to values, found text"),
        ("a: b\nc: d\0e\n", r"bad\.yaml:2:5: not YAML: the character U\+0000 may not be in it; take it out"),
        ("name: 2024-13-41\n", r"bad\.yaml: a value is not what it looks like.*put it into quotes"),
    ],
)
def test_what_is_not_yaml_is_one_line_that_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=says) as caught:
        configs.load(path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("utf-16", 1)])
def test_a_file_that_is_not_utf_8_is_refused_with_the_line(tmp_path: Path, encoding: str, line: int) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes("base: b\nname: café\n".encode(encoding))
    with pytest.raises(InvalidInputError, match=rf"bad\.yaml:{line}: not UTF-8: byte 0x..; save the file in that enco"):
        configs.load(path)


def bomb(levels: int, width: int = 10) -> str:
    """Aliases of aliases, which stand for width ** levels values."""
    rows = ["a0: &a0 x"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels + 1)]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_stand_for_too_much_are_refused_before_they_are_followed(tmp_path: Path, merge: bool) -> None:
    path = tmp_path / "run.yaml"
    text = bomb(6)
    if merge:
        text = text.replace("&a0 x", "&a0 {k: v}").replace("[", "{<<: [").replace("]", "]}")
    path.write_text(MINIMAL + text)
    with pytest.raises(InvalidInputError, match=r"run\.yaml:1\d:\d+: this stands for .* at most 100,000"):
        configs.load(path)


def test_a_values_size_is_what_its_aliases_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.yaml"
    # The mapping, two keys, and twice a list of four with itself.
    path.write_text("a: &a [1, 2, 3, 4]\nb: *a\n")
    monkeypatch.setattr(yaml_source, "MAX_VALUES", 13)
    assert yaml_source.YamlSource(path).document == {"a": [1, 2, 3, 4], "b": [1, 2, 3, 4]}
    monkeypatch.setattr(yaml_source, "MAX_VALUES", 12)
    with pytest.raises(InvalidInputError, match=r"x\.yaml:1:1: this stands for 13 keys and values"):
        yaml_source.YamlSource(path)


def test_an_override_that_stands_for_too_much_is_refused(file: Path) -> None:
    text = f"[{', '.join(row.partition(': ')[2] for row in bomb(6).splitlines())}]"
    with pytest.raises(InvalidInputError, match=r"^override .*this stands for .* at most 100,000"):
        configs.load(file, [f"base={text}"])
    with pytest.raises(InvalidInputError, match=r"^override .*an alias within what it stands for"):
        configs.load(file, ["base=&a [*a]"])


def test_a_network_that_is_multiplied_by_zero_is_refused(file: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"adapter\.scaling: 0"):
        configs.load(file, ["method=houlsby", "adapter.scaling=0"])


def test_the_digest_follows_the_configuration(file: Path) -> None:
    config = configs.load(file)
    assert canonical.loads(canonical.dumps(config.as_json()), "config")["training"]["learning_rate"] == "0.001"
    assert configs.load(file).digest() == config.digest()
    assert configs.load(file, ["training.seed=1"]).digest() != config.digest()


@pytest.mark.parametrize("module", [configs, data_config, adapter_config, objective_config, judging, templates])
def test_every_field_is_documented(module: object) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())  # type: ignore[attr-defined]
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert documented, f"{cls.name}.{ast.unparse(node.target)} has no docstring"


def test_every_name_of_other_programs_is_a_setting_of_ours() -> None:
    known = {path.rpartition(".")[2] for path in misplaced.paths(configs.TrainConfig, {"adapter": LoraOptions})}
    assert set(misplaced._NAMED_THERE.values()) <= known


def test_brackets_in_an_override_are_answered_with_how_it_is_written(file: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"without brackets: data\.train\.0\.path$"):
        configs.load(file, ["data.train[0].path=x"])
