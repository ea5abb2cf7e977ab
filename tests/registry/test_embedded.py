"""The embedded registry: versions never change, names move only as they may."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registry.blob_lab import lab_of
from tests.registry.lab import add_base, python, upload_all
from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
)
from weft_registry.home import Home
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "support")


def push(registry: EmbeddedRegistry, directory: Path, name: AdapterName = NAME, **options: list[str]) -> str:
    return transfer.push(registry, directory, name, **options).version.digest


def test_a_published_version_is_found_by_every_name(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    published = transfer.push(registry, new_artifact(), NAME, tags=["v1"], aliases=["production"])
    version = published.version
    assert not published.existing
    assert (version.tags, version.aliases) == (("v1",), ("latest", "production"))
    for reference in ("team/support", "team/support:v1", "team/support@v1", "team/support:production"):
        assert registry.resolve(reference) == version
    assert registry.resolve(f"team/support@{version.digest}") == version
    assert registry.resolve(f"team/support:v1@{version.digest}") == version
    assert version.manifest.digest() == version.digest
    assert registry.verify("team/support").problems == ()


@pytest.mark.parametrize("kind", ["lora", "qalora", "prefix"])
def test_every_kind_publishes_against_a_known_base(
    kind: str, home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    add_base(home)
    assert transfer.push(registry, new_artifact(kind=kind), NAME).version.manifest.kind == kind


def test_the_same_content_again_is_existing(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    directory = new_artifact()
    first = transfer.push(registry, directory, NAME, tags=["v1"])
    second = transfer.push(registry, directory, NAME, tags=["v1", "v1.0"], aliases=["production"])
    assert second.existing
    assert second.version.digest == first.version.digest
    assert second.version.published_at == first.version.published_at
    assert (second.version.tags, second.version.aliases) == (("v1", "v1.0"), ("latest", "production"))
    assert len(registry.list_versions(NAME)) == 1


def test_the_same_content_under_another_name_is_a_version_of_that(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    push(registry, directory)
    assert not transfer.push(registry, directory, AdapterName("team", "other")).existing


def test_a_request_id_publishes_once_and_answers_the_same(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    manifest = upload_all(registry, new_artifact())
    request_id = str(uuid.uuid4())
    first = registry.publish(NAME, manifest, tags=["v1"], request_id=request_id)
    second = registry.publish(NAME, manifest, tags=["v1"], request_id=request_id.upper())
    assert second == first
    assert not second.existing
    with pytest.raises(InvalidInputError, match="another publish"):
        registry.publish(NAME, manifest, tags=["v2"], request_id=request_id)
    with pytest.raises(InvalidInputError, match="UUID"):
        registry.publish(NAME, manifest, request_id="again")


def test_a_repeated_request_is_answered_as_the_first_whatever_happened_since(
    home: Home, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    manifest = upload_all(registry, directory)
    request_id = str(uuid.uuid4())
    first = registry.publish(NAME, manifest, request_id=request_id)
    registry.blobs.delete_blobs([blob.digest for blob in registry.blobs.list_blobs()])
    assert lab_of(home).held() == {}
    assert registry.publish(NAME, manifest, request_id=request_id) == first


def test_two_of_the_same_request_at_once_publish_once(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = upload_all(registry, new_artifact())
    request_id = str(uuid.uuid4())
    # Both look for an earlier answer before either has one: what is left is what the transaction itself sees.
    monkeypatch.setattr(registry, "_earlier", lambda request_id, content: None)
    first = registry.publish(NAME, manifest, request_id=request_id)
    assert registry.publish(NAME, manifest, request_id=request_id) == first
    assert not first.existing


def test_a_tag_names_one_version_for_ever(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    first = push(registry, new_artifact(seed=1), tags=["v1"])
    with pytest.raises(AlreadyExistsError, match="for ever"):
        push(registry, new_artifact(seed=2), tags=["v1"])
    assert registry.resolve("team/support:v1").digest == first
    # The refused publish left nothing: no version, and "latest" where it was.
    assert [version.digest for version in registry.list_versions(NAME)] == [first]
    assert registry.resolve("team/support").digest == first


def test_no_word_is_both_a_tag_and_an_alias(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    push(registry, new_artifact(seed=1), tags=["v1"], aliases=["production"])
    other = new_artifact(seed=2)
    with pytest.raises(AlreadyExistsError, match="is a tag"):
        push(registry, other, aliases=["v1"])
    with pytest.raises(AlreadyExistsError, match="is an alias"):
        push(registry, other, tags=["production"])
    with pytest.raises(AlreadyExistsError, match="is a tag"):
        registry.set_alias(NAME, "v1", "latest")
    for labels in ({"tags": ["latest"]}, {"tags": ["x"], "aliases": ["x"]}, {"tags": ["a b"]}, {"aliases": ["../x"]}):
        with pytest.raises(InvalidInputError):
            push(registry, other, **labels)


def test_versions_are_listed_newest_first_and_adapters_by_name(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    digests = [push(registry, new_artifact(seed=seed)) for seed in range(3)]
    push(registry, new_artifact(seed=9), AdapterName("team", "a"))
    push(registry, new_artifact(seed=9), AdapterName("other", "z"))
    assert [version.digest for version in registry.list_versions(NAME)] == digests[::-1]
    assert [str(summary.adapter) for summary in registry.list_adapters()] == ["other/z", "team/a", "team/support"]
    assert [str(summary.adapter) for summary in registry.list_adapters("team")] == ["team/a", "team/support"]
    support = registry.list_adapters("team")[1]
    assert support.version_count == 3
    latest = registry.resolve("team/support")
    assert support.latest is not None
    assert (support.latest.digest, support.latest.kind) == (latest.digest, "lora")
    assert support.latest.base == latest.manifest.base.id
    for same in ("adapter", "tags", "aliases", "published_at", "size_bytes"):
        assert getattr(support.latest, same) == getattr(latest, same)
    assert registry.list_adapters("nobody") == []


def test_what_is_not_there_is_not_found_with_the_nearest_names(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    digest = push(registry, new_artifact(), tags=["v1"], aliases=["production"])
    with pytest.raises(NotFoundError, match="team/support") as caught:
        registry.resolve("team/suport")
    assert caught.value.metadata["nearest"] == "team/support"
    with pytest.raises(NotFoundError, match="team/support:production") as caught:
        registry.resolve("team/support:producton")
    assert caught.value.metadata["nearest"] == "team/support:production"
    for reference in (f"team/support@sha256:{'0' * 64}", f"team/x@{digest}"):
        with pytest.raises(NotFoundError):
            registry.resolve(reference)
    with pytest.raises(NotFoundError):
        registry.list_versions(AdapterName("team", "nobody"))


def test_a_label_beside_a_digest_must_agree(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    first = push(registry, new_artifact(seed=1), tags=["v1"], aliases=["production"])
    push(registry, new_artifact(seed=2), aliases=["production"])
    assert registry.resolve(f"team/support:v1@{first}").digest == first
    with pytest.raises(PreconditionError, match="does not name"):
        registry.resolve(f"team/support:production@{first}")


def test_an_alias_moves_by_compare_and_swap(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    first = push(registry, new_artifact(seed=1), tags=["v1"])
    second = push(registry, new_artifact(seed=2), tags=["v2"])
    created = registry.set_alias(NAME, "production", "v1", "none")
    assert (created.digest, created.previous_digest) == (first, "")
    with pytest.raises(ConflictError) as caught:
        registry.set_alias(NAME, "production", "v2", "none")
    assert caught.value.metadata["etag"] == created.etag
    moved = registry.set_alias(NAME, "production", f"team/support@{second}", created.etag)
    assert (moved.digest, moved.previous_digest) == (second, first)
    assert moved.etag != created.etag
    with pytest.raises(ConflictError):
        registry.set_alias(NAME, "production", "v1", created.etag)
    assert registry.set_alias(NAME, "production", first).digest == first  # Without an etag: unconditionally.
    assert registry.resolve("team/support:production").digest == first


def test_an_alias_moved_to_where_it_is_did_not_move(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    push(registry, new_artifact(), tags=["v1"])
    first = registry.set_alias(NAME, "production", "v1")
    assert registry.set_alias(NAME, "production", "v1", first.etag) == first


@pytest.mark.parametrize("target", ["v9", "sha256:" + "0" * 64, "team/other:v1", "not a label", ""])
def test_an_alias_cannot_point_at_what_is_not_there(
    target: str, registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    push(registry, new_artifact(), tags=["v1"])
    with pytest.raises((NotFoundError, InvalidInputError)):
        registry.set_alias(NAME, "production", target)
    with pytest.raises(NotFoundError):
        registry.resolve("team/support:production")


def test_a_yanked_version_is_hidden_but_readable_by_digest(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    first = push(registry, new_artifact(seed=1), tags=["v1"])
    second = push(registry, new_artifact(seed=2), tags=["v2"])
    yanked = registry.yank("team/support:v2", "wrong data")
    assert (yanked.digest, yanked.yanked, yanked.yank_reason) == (second, True, "wrong data")
    assert registry.resolve("team/support").digest == first  # "latest" fell back.
    with pytest.raises(NotFoundError, match="wrong data") as caught:
        registry.resolve("team/support:v2")
    assert caught.value.metadata["digest"] == second
    assert [version.digest for version in registry.list_versions(NAME)] == [first]
    assert [v.digest for v in registry.list_versions(NAME, include_yanked=True)] == [second, first]
    assert registry.list_adapters()[0].version_count == 1
    assert transfer.pull(registry, f"team/support@{second}", tmp_path / "out").digest == second
    assert registry.yank(f"team/support@{second}").yank_reason == "wrong data"  # Again: nothing changes.
    with pytest.raises(PreconditionError, match="yanked"):
        registry.set_alias(NAME, "production", second)
    registry.yank("team/support")
    assert registry.list_adapters()[0].latest is None
    with pytest.raises(NotFoundError):
        registry.resolve("team/support")


def test_an_adapter_whose_every_version_is_yanked_says_so_and_names_the_ways_out(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    push(registry, new_artifact(seed=1), tags=["v1"])
    newest = push(registry, new_artifact(seed=2), tags=["v2"])
    registry.yank("team/support:v1", "old split")
    # One of the two is left, and is found.
    assert registry.resolve("team/support").digest == newest
    with pytest.raises(NotFoundError, match=r"no tag or alias 'v3'.*; `weft versions team/support` shows all$"):
        registry.resolve("team/support:v3")
    registry.yank("team/support", "wrong data")
    with pytest.raises(NotFoundError, match=r"every version of team/support was yanked.*: wrong data") as caught:
        registry.resolve("team/support")
    assert "`weft versions team/support --all` shows them: publish another" in caught.value.message
    assert f"team/support@{newest}" in caught.value.message
    assert caught.value.reason == "YANKED"
    assert caught.value.metadata == {"adapter": "team/support", "digest": newest, "yank_reason": "wrong data"}
    with pytest.raises(NotFoundError, match="every version of it was yanked, and `weft versions team/support --all`"):
        registry.resolve("team/support:v3")
    with pytest.raises(NotFoundError, match=r"team/support:v1 was yanked \(old split\)") as caught:
        registry.resolve("team/support:v1")
    assert caught.value.metadata["yank_reason"] == "old split"
    registry.delete_version(f"team/support@{newest}")
    registry.delete_version(f"team/support@{caught.value.metadata['digest']}")
    with pytest.raises(NotFoundError, match="no tag or alias 'latest'; `weft versions team/support` shows all"):
        registry.resolve("team/support")


def test_a_version_that_an_alias_needs_is_not_yanked(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    push(registry, new_artifact(seed=1), tags=["v1"], aliases=["production", "canary"])
    with pytest.raises(PreconditionError, match="'canary', 'production'"):
        registry.yank("team/support:v1")
    assert not registry.resolve("team/support:v1").yanked


def test_a_yanked_version_does_not_come_back_by_publishing_it_again(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    push(registry, directory)
    registry.yank("team/support")
    with pytest.raises(PreconditionError, match="yanked"):
        push(registry, directory)


def test_publish_with_a_missing_blob_is_refused_and_stores_nothing(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    directory = new_artifact()
    with pytest.raises(PreconditionError) as caught:
        registry.publish(NAME, artifact.read(directory).canonical_bytes())
    assert caught.value.reason == "BLOBS_MISSING"
    assert registry.list_adapters() == []


def test_listing_loads_nothing_heavy(home: Home) -> None:
    script = (
        "import sys\n"
        "from weft_registry.transfer import open_registry\n"
        "from weft_registry.home import Home\n"
        "open_registry(Home.from_environment()).list_adapters()\n"
        "print(sorted({'torch', 'numpy', 'grpc', 'transformers', 'peft', 'sqlalchemy.orm'} & set(sys.modules)))\n"
    )
    process = python(script, home=home)
    assert process.communicate(timeout=60) == ("[]\n", "")
