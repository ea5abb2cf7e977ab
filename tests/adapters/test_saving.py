"""What is saved is an artifact of its kind: read, bound and published as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.subjects import RandomAdapter, random_adapter
from tests.tiny_models import AddedBase
from weft_adapters.binding import bind
from weft_adapters.kinds import KINDS
from weft_adapters.saving import save, tokenizer_block
from weft_registry import artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import AlreadyExistsError
from weft_registry.home import Home
from weft_registry.reference import AdapterName, Reference
from weft_registry.transfer import push


def saved(directory: Path, subject: RandomAdapter, base: AddedBase) -> Path:
    save(
        directory,
        base.stored.spec,
        kind=subject.kind,
        params=subject.params,
        tensors=subject.tensors,
        name="test/saved",
        tokenizer=tokenizer_block(base.stored),
        provenance={},
    )
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_of_every_kind_is_bound_and_published(
    kind: str, tiny_base: Callable[..., AddedBase], tmp_path: Path
) -> None:
    base = tiny_base()
    subject = random_adapter(kind, base.stored.spec, 1)
    registry = EmbeddedRegistry(Home(tmp_path / "home"))
    names: list[Reference] = []
    for number, part in enumerate(subject.parts):
        name = AdapterName("test", f"part-{number}")
        version = push(registry, saved(tmp_path / name.name, part, base), name).version
        names.append(Reference(name, digest=version.digest))
    if names:
        subject = replace(subject, params=replace(subject.params, parts=tuple(names)))
    directory = saved(tmp_path / "saved", subject, base)
    assert (directory / artifact.CONFIG).exists() == artifact.has_config(kind) == (kind not in ("bottleneck", "fusion"))
    if not names:
        manifest = artifact.read(directory)
        bound = bind(directory, manifest, base.stored.spec, dtype=torch.float32)
        assert bound.tensors.keys() == subject.tensors.keys()
    assert push(registry, directory, AdapterName("test", "saved")).version.digest
    registry.close()


def test_nothing_that_is_there_is_overwritten(tiny_base: Callable[..., AddedBase], tmp_path: Path) -> None:
    base = tiny_base()
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(AlreadyExistsError, match="is there already"):
        saved(tmp_path, random_adapter("lora", base.stored.spec, 1), base)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
