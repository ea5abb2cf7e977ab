"""Finding versions: every filter against the manifests themselves, orders, and pages that neither repeat nor hide."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.registry.lab import BASE, add_base, seal, serving
from weft_registry import transfer
from weft_registry.api import AdapterSummary, Version, VersionQuery, VersionSummary
from weft_registry.catalog.quick_listing import line_of, list_lines
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import InvalidInputError
from weft_registry.home import Home
from weft_registry.manifest import Metric
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.remote.registry import RemoteRegistry

NewArtifact = Callable[..., Path]
DATA = "sha256:" + "ab" * 32


def metric(name: str, value: str, split: str = "eval") -> Metric:
    return Metric(name, value, DATA, split)


@pytest.fixture
def publish(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> Callable[..., Version]:
    """Publishes a version with these metrics and this parent."""
    seeds = iter(range(1000))

    def make(
        name: str, *metrics: Metric, kind: str = "lora", parent: str | None = None, tags: tuple[str, ...] = ()
    ) -> Version:
        directory = new_artifact(kind=kind, seed=next(seeds))
        seal(directory, kind, metrics=list(metrics), provenance={"parent_version": parent})
        return transfer.push(registry, directory, AdapterName.parse(name), tags=tags).version

    return make


def found(registry: EmbeddedRegistry, **query: Any) -> list[str]:
    return [version.digest for version in registry.search_versions(VersionQuery(**query))]


def test_only_the_latest_of_each_are_found_unless_all_are_asked_for(
    registry: EmbeddedRegistry, publish: Callable[..., Version]
) -> None:
    first, second, other = publish("team/a"), publish("team/a"), publish("team/b")
    yanked = publish("team/b")
    registry.yank(f"team/b@{yanked.digest}")
    assert found(registry) == [second.digest, other.digest]
    # By name, the newest of each first, and never what is yanked.
    assert found(registry, all_versions=True) == [second.digest, first.digest, other.digest]
    assert registry.search_versions(VersionQuery(namespace="team"))[0] == registry.resolve("team/a")
    assert found(registry, namespace="nobody") == []


def test_versions_are_found_by_kind_base_label_and_digest(
    home: Home, registry: EmbeddedRegistry, publish: Callable[..., Version]
) -> None:
    lora, prefix = publish("team/a", tags=("v1",)), publish("team/b", kind="prefix")
    registry.set_alias(prefix.adapter, "production", prefix.digest)
    fingerprint = BASE.fingerprint.weights_sha256
    assert found(registry, kind="prefix") == [prefix.digest]
    assert found(registry, kind="ia3") == []
    both = [lora.digest, prefix.digest]
    for base in ("tiny/base", "base", fingerprint, fingerprint[:12], fingerprint[7:20]):
        assert found(registry, base=base) == both, base
    for base in ("tin", "tiny", "e", "%", "sha256:2", "1" * 65):
        assert found(registry, base=base) == [], base
    add_base(home)
    assert found(registry, base="tiny") == both  # The name under which this machine stores it.
    assert found(registry, label="v1", all_versions=True) == [lora.digest]
    assert found(registry, label="production") == [prefix.digest]
    assert found(registry, label=lora.digest, all_versions=True) == [lora.digest]
    for query in (
        {"kind": "a\0b"},
        {"base": "b" * 301},
        {"label": "a b"},
        {"base": "sha256:XYZ"},
        {"parent_digest": "sha256:1"},
        {"namespace": "A"},
    ):
        with pytest.raises(InvalidInputError):
            found(registry, **query)


def test_conditions_hold_as_decimals_would_wherever_a_metric_was_measured(
    registry: EmbeddedRegistry, publish: Callable[..., Version]
) -> None:
    good = publish("team/a", metric("exact_match", "0.8"), metric("loss", "1.25"))
    mixed = publish("team/b", metric("exact_match", "0.9"), metric("exact_match", "0.5", "unseen"))
    bare = publish("team/c")
    odd = publish("team/d", metric("exact_match", "not a number"), metric("loss", "inf"))
    cases = {
        ("exact_match >= 0.8",): [good],
        ("exact_match > 0.8",): [],
        ("exact_match == 0.8",): [good],
        ("exact_match != 0.7",): [good, mixed],
        ("exact_match != 0.5",): [good],
        ("exact_match >= 0.5",): [good, mixed],
        ("exact_match < 1 and loss <= 1.25",): [good],
        ("exact_match < 1", "loss < 1.25"): [],
        ("loss > -1e300",): [good],
    }
    for conditions, expected in cases.items():
        assert found(registry, conditions=conditions) == [version.digest for version in expected], conditions
    assert found(registry) == [each.digest for each in (good, mixed, bare, odd)]
    for conditions in (("exact_match",), ("__import__('os')",), ("x >= 1e999",), ("x >= 1",) * 17):
        with pytest.raises(InvalidInputError):
            found(registry, conditions=conditions)


def test_children_and_ages(registry: EmbeddedRegistry, publish: Callable[..., Version]) -> None:
    parent = publish("team/a")
    child, grandchild = publish("team/b", parent=parent.digest), None
    grandchild = publish("team/b", parent=child.digest)
    assert child.parent_digest == parent.digest
    assert found(registry, parent_digest=parent.digest, all_versions=True) == [child.digest]
    assert found(registry, parent_digest=child.digest) == [grandchild.digest]
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    assert len(found(registry, published_after=now - hour)) == 2
    assert found(registry, published_after=now + hour) == []
    assert found(registry, published_before=now - hour) == []
    # The bounds themselves are outside.
    assert found(registry, published_after=child.published_at) == [grandchild.digest]
    assert found(registry, published_before=child.published_at) == [parent.digest]


def test_results_come_in_the_order_asked_for(registry: EmbeddedRegistry, publish: Callable[..., Version]) -> None:
    a = publish("team/a", metric("exact_match", "0.5"), metric("exact_match", "0.9", "unseen"))
    b = publish("team/b", metric("exact_match", "0.7"), kind="prefix")
    c = publish("team/c")
    by_size = sorted((a, b, c), key=lambda version: version.size_bytes)
    cases = {
        "name": [a, b, c],
        "-name": [c, b, a],
        "published": [a, b, c],
        "-published": [c, b, a],
        "size": by_size,
        # By the least, where it was measured several times; without it, not at all.
        "metric:exact_match": [a, b],
        "-metric:exact_match": [b, a],
        "metric:nothing": [],
    }
    for order, expected in cases.items():
        assert {v.digest for v in expected} == set(found(registry, order_by=order)), order
        if order != "size":
            assert found(registry, order_by=order) == [version.digest for version in expected], order
    sizes = [version.size_bytes for version in registry.search_versions(VersionQuery(order_by="size"))]
    assert sizes == sorted(sizes)
    for order in ("names", "metric:", "--name", "metric", "size; DROP TABLE versions"):
        with pytest.raises(InvalidInputError, match="order_by"):
            found(registry, order_by=order)


@pytest.mark.parametrize("order", ["name", "-name", "published", "-published", "size", "metric:m", "-metric:m"])
def test_pages_make_the_whole_even_where_something_is_published_meanwhile(
    order: str, registry: EmbeddedRegistry, publish: Callable[..., Version]
) -> None:
    for i in range(4):
        publish(f"team/{'abab'[i]}", metric("m", f"{i % 2}.5"))
    query = VersionQuery(order_by=order, all_versions=True)
    whole = [version.digest for version in registry.search_versions(query)]
    token, pages = "", []
    while True:
        page, more = registry.page_search(query, token, 1)
        pages += [each.version.digest for each in page]
        if not more:
            break
        token = page[-1].token
        if len(pages) == 2:
            new = publish("team/c", metric("m", "0.7")).digest
    assert len(whole) == 4
    assert [digest for digest in pages if digest != new] == whole
    assert len(set(pages)) == len(pages)


def test_a_token_of_another_search_or_of_nobody_is_refused(
    registry: EmbeddedRegistry, publish: Callable[..., Version]
) -> None:
    for _ in range(3):
        publish("team/a")
    query = VersionQuery(all_versions=True)
    (only,), more = registry.page_search(query, "", 1)
    assert more
    what = json.loads(base64.urlsafe_b64decode(only.token))[0]

    def forged(*keys: object) -> str:
        return base64.urlsafe_b64encode(json.dumps([what, *keys]).encode()).decode()

    bad = ["x", "é", "[]", only.token + "x", forged(), forged("team", "a"), forged("team", "a", "1")]
    bad += [forged("team", "a", 1 << 70), forged("team", 1, 1), forged(None, "a", 1), forged("team", "a", True)]
    for token in bad:
        with pytest.raises(InvalidInputError, match="page_token"):
            registry.page_search(query, token, 1)
    with pytest.raises(InvalidInputError, match="page_token"):
        registry.page_search(VersionQuery(), only.token, 1)


def test_only_what_may_be_read_is_found(registry: EmbeddedRegistry, publish: Callable[..., Version]) -> None:
    ours, _ = publish("team/a"), publish("other/a")
    reader = registry.acting_as(Principal("reader", frozenset({Scope.READ}), frozenset({"team"})))
    assert found(reader) == [ours.digest]
    assert found(reader, namespace="other") == []
    nobody = registry.acting_as(Principal("nobody", frozenset(), frozenset()))
    assert found(nobody) == []


def test_a_search_over_the_wire_finds_the_same_in_pages(
    registry: EmbeddedRegistry, publish: Callable[..., Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        publish(f"team/{i}", metric("m", f"0.{i}"), parent=DATA)
    monkeypatch.setattr("weft_registry.serve.paging.PAGE_BYTES", 1)
    hour = timedelta(hours=1)
    query = VersionQuery(
        namespace="team",
        kind="lora",
        base="tiny/base",
        label="latest",
        conditions=("m >= 0.1",),
        parent_digest=DATA,
        published_after=datetime.now(UTC) - hour,
        published_before=datetime.now(UTC) + hour,
        order_by="-metric:m",
    )
    with serving(registry) as target, closing(RemoteRegistry(target)) as remote:
        assert remote.search_versions(query) == registry.search_versions(query)
        assert len(remote.search_versions(query)) == 4
        assert remote.search_versions(VersionQuery()) == registry.search_versions(VersionQuery())


def test_listings_and_searches_read_no_manifest(registry: EmbeddedRegistry, publish: Callable[..., Version]) -> None:
    """SQLite keeps a manifest in front of most of its row: only an index that has all that is asked is quick."""
    if registry._catalog.dialect != "sqlite":
        pytest.skip("PostgreSQL keeps manifests out of the way")
    publish("team/a", metric("m", "0.5"))
    seen: list[tuple[str, Any]] = []
    engine = registry._catalog._backend.engine

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", record)
    registry.list_adapters()
    registry.page_search(VersionQuery(kind="lora", conditions=("m > 0",), order_by="published"), "", 10)
    registry.page_search(VersionQuery(all_versions=True, order_by="size"), "", 10)
    sa.event.remove(engine, "before_cursor_execute", record)
    whole = "versions.manifest"
    narrow = [(sql, parameters) for sql, parameters in seen if sql.startswith("SELECT") and whole not in sql]
    with registry._catalog.read() as connection:
        for sql, parameters in narrow:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters).all()
            steps = [row[3] for row in plan if " versions" in row[3]]
            assert all("COVERING INDEX" in step for step in steps), (sql, steps)
    assert len(narrow) >= 7


def test_the_quick_listing_says_what_the_registry_says_or_nothing(
    home: Home, registry: EmbeddedRegistry, publish: Callable[..., Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish("team/a", tags=("v1", "v0"))
    publish("team/a", kind="prefix", parent=first.digest)
    registry.set_alias(first.adapter, "production", first.digest)
    registry.yank(f"team/b@{publish('team/b').digest}")
    registry.delete_version(f"team/c@{publish('team/c').digest}")
    publish("other/a", tags=("z", "y"))
    if registry._catalog.dialect == "sqlite":
        for namespace in ("", "team", "nobody"):
            assert list_lines(home, namespace) == [line_of(each) for each in registry.list_adapters(namespace)]
        assert [summary.version_count for summary in registry.list_adapters()] == [1, 2, 0]
        with registry._catalog.write() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))
        assert list_lines(home, "") is None
        with pytest.raises(InvalidInputError):
            list_lines(home, "../x")
        assert list_lines(Home(home.root / "elsewhere"), "") is None
    monkeypatch.setenv("WEFT_REGISTRY_DATABASE", "postgresql://somewhere/else")
    assert list_lines(home, "") is None


def test_the_quick_listing_leaves_a_catalog_without_its_index_to_the_registry(
    home: Home, registry: EmbeddedRegistry, publish: Callable[..., Version]
) -> None:
    if registry._catalog.dialect != "sqlite":
        pytest.skip("the quick listing reads files")
    publish("team/a")
    with registry._catalog.write() as connection:
        connection.execute(sa.text("DROP INDEX versions_shown"))
    assert list_lines(home, "") is None
    assert [summary.version_count for summary in registry.list_adapters()] == [1]


@pytest.mark.parametrize("seed", range(3))
def test_listings_equal_a_count_over_every_version(
    home: Home, registry: EmbeddedRegistry, publish: Callable[..., Version], seed: int
) -> None:
    """Of adapters whose versions were tagged, named, yanked and deleted at random."""
    chance = random.Random(seed)
    names = [AdapterName(namespace, name) for namespace in ("a", "a-b", "a.b", "b") for name in ("x", "x-y", "y")]
    published_names = chance.sample(names, 9)
    for i in range(30):
        name = published_names[i] if i < 9 else chance.choice(published_names)
        kind = chance.choice(("lora", "prefix"))
        published = publish(str(name), kind=kind, tags=tuple(chance.sample((f"v{i}", f"best{i}", f"_{i}"), 2))[: i % 3])
        if i % 3 == 0:
            registry.set_alias(name, "production", published.digest)
    ends = [registry.yank, registry.delete_version, None]
    for i, name in enumerate(published_names):
        for version in registry.list_versions(name):
            # Nothing is left of the first, and nothing to be seen of the second.
            end = registry.delete_version if i == 0 else registry.yank if i == 1 else chance.choice(ends)
            if end is None or ("production" in version.aliases and i > 1):
                continue
            if "production" in version.aliases:
                registry.delete_alias(name, "production")
            end(f"{name}@{version.digest}")
    expected = [
        _counted(name, versions)
        for name in sorted(published_names)
        if (versions := registry.list_versions(name, include_yanked=True))
    ]
    assert registry.list_adapters() == expected
    namespaces = {summary.adapter.namespace for summary in expected}
    for namespace in ("", *sorted(namespaces)):
        of_namespace = [each for each in expected if namespace in ("", each.adapter.namespace)]
        assert registry.list_adapters(namespace) == of_namespace
        assert list_lines(home, namespace) == (
            [line_of(each) for each in of_namespace] if registry._catalog.dialect == "sqlite" else None
        )
    assert len(expected) < len(published_names)
    assert None in [summary.latest for summary in expected]


def _counted(adapter: AdapterName, versions: list[Version]) -> AdapterSummary:
    latest = next((version for version in versions if "latest" in version.aliases), None)
    summary = latest and VersionSummary(
        adapter,
        latest.digest,
        latest.manifest.kind,
        latest.manifest.base.id,
        latest.manifest.base.weights_sha256,
        latest.tags,
        latest.aliases,
        latest.published_at,
        latest.size_bytes,
        latest.published_by,
        latest.parent_digest,
    )
    return AdapterSummary(adapter, sum(not version.yanked for version in versions), summary)
