"""Quotas hold to the byte, whoever races whom."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.registry.access.lab import Asking
from tests.registry.lab import upload_all
from weft_registry import artifact
from weft_registry.admin_api import Quota
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import ExhaustedError, ForbiddenError, InvalidInputError
from weft_registry.principal import Principal, Scope
from weft_registry.reference import AdapterName
from weft_registry.transfer import push

NewArtifact = Callable[..., Path]
NAME = AdapterName("team", "support")


def test_a_version_too_many_is_refused_with_limit_use_and_way_out(
    registry: EmbeddedRegistry, new_artifact: NewArtifact
) -> None:
    registry.set_quota(Quota("team", max_versions=1))
    directory = new_artifact(seed=1)
    push(registry, directory, NAME)
    with pytest.raises(ExhaustedError, match=r"versions: 1 of 1 used.*weft quota set") as caught:
        push(registry, new_artifact(seed=2), NAME, tags=["v2"])
    assert caught.value.metadata == {"namespace": "team", "quota": "versions", "limit": "1", "used": "1"}
    assert [len(registry.list_versions(NAME)), registry.usage("team").used_versions] == [1, 1]
    assert registry.resolve(str(NAME)).tags == ()
    # What is there already takes nothing more; elsewhere there is no such limit.
    assert push(registry, directory, NAME, tags=["again"]).existing
    push(registry, new_artifact(seed=2), AdapterName("other", "x"))


def test_bytes_are_those_of_distinct_blobs(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    first, second = new_artifact(seed=1), new_artifact(seed=2)
    distinct = {file.sha256: file.size for each in (first, second) for file in artifact.read(each).files}
    registry.set_quota(Quota("team", max_bytes=sum(distinct.values())))
    push(registry, first, NAME)
    push(registry, second, AdapterName("team", "other"))
    push(registry, first, AdapterName("team", "third"))
    assert registry.usage("team").used_bytes == sum(distinct.values())
    registry.set_quota(Quota("team", max_bytes=sum(distinct.values()) - 1))
    with pytest.raises(ExhaustedError, match="bytes"):
        push(registry, second, AdapterName("team", "fourth"))
    assert registry.usage("*").used_bytes == sum(distinct.values())


def test_the_rule_of_all_holds_where_there_is_no_other(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> None:
    registry.set_quota(Quota("*", max_versions=0))
    registry.set_quota(Quota("free"))
    with pytest.raises(ExhaustedError):
        push(registry, new_artifact(seed=1), NAME)
    push(registry, new_artifact(seed=1), AdapterName("free", "x"))
    assert registry.usage("team").quota == Quota("*", max_versions=0)
    assert registry.usage("free").quota == Quota("free")


def test_open_uploads_are_counted_and_room_comes_back(registry: EmbeddedRegistry) -> None:
    from weft_registry import digest as digests

    us = registry.acting_as(Principal("us", frozenset({Scope.PUBLISH}), frozenset({"team"})))
    registry.set_quota(Quota("team", max_open_uploads=2))
    data = [b"0", b"1", b"2"]
    first, _ = (us.start_upload(digests.of_bytes(each), 1, NAME) for each in data[:2])
    assert us.start_upload(first.upload_id and digests.of_bytes(data[0]), 1, NAME) == first
    with pytest.raises(ExhaustedError, match="open uploads: 2 of 2"):
        us.start_upload(digests.of_bytes(data[2]), 1, NAME)
    assert registry.usage("team").open_uploads == 2
    us.write_upload(first.upload_id, 0, data[0])
    us.finish_upload(first.upload_id)
    us.start_upload(digests.of_bytes(data[2]), 1, NAME)
    assert registry.usage("team").open_uploads == 2


def test_bytes_that_could_not_be_published_are_not_received(registry: EmbeddedRegistry) -> None:
    us = registry.acting_as(Principal("us", frozenset({Scope.PUBLISH}), frozenset({"team"})))
    registry.set_quota(Quota("team", max_bytes=100))
    with pytest.raises(ExhaustedError, match="bytes: 0 of 100 used, 101 more"):
        us.start_upload("sha256:" + "0" * 64, 101, NAME)
    assert registry.usage("team").open_uploads == 0


def test_eight_publishers_at_once_overshoot_no_quota(server: Asking, new_artifact: NewArtifact) -> None:
    server.registry.set_quota(Quota("team", max_versions=3))
    token = server.token("us", "publish", "read")
    directories = [new_artifact(seed=seed) for seed in range(8)]

    def publish(directory: Path) -> bool:
        client = server.client(token)
        try:
            client.publish(NAME, upload_all(client, directory))
        except ExhaustedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(publish, directories)) == 3
    assert server.registry.usage("team").used_versions == 3


def test_eight_uploads_at_once_overshoot_no_quota(server: Asking) -> None:
    server.registry.set_quota(Quota("team", max_open_uploads=3))
    us = server.registry.acting_as(Principal("us", frozenset({Scope.PUBLISH}), frozenset({"team"})))

    def start(index: int) -> bool:
        try:
            us.start_upload("sha256:" + f"{index:064x}", 10, NAME)
        except ExhaustedError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(start, range(8))) == 3


def test_a_quota_is_not_lifted_by_those_it_holds_for(registry: EmbeddedRegistry) -> None:
    lead = registry.acting_as(Principal("lead", frozenset({Scope.ADMIN}), frozenset({"team"})))
    registry.set_quota(Quota("team", max_versions=1))
    with pytest.raises(ForbiddenError, match="whole registry"):
        lead.set_quota(Quota("team"))
    assert lead.usage("team").quota.max_versions == 1


@pytest.mark.parametrize("quota", [Quota("team", max_bytes=-1), Quota("a/b"), Quota(""), Quota("team", 1 << 63)])
def test_what_is_no_quota_is_refused(registry: EmbeddedRegistry, quota: Quota) -> None:
    with pytest.raises(InvalidInputError):
        registry.set_quota(quota)


def test_quotas_over_the_wire_are_those_of_the_registry(server: Asking) -> None:
    admin = server.admin(server.token("root", "admin", namespaces=["*"]))
    assert admin.set_quota(Quota("team", 5, None, 7)) == Quota("team", 5, None, 7)
    assert admin.usage("team") == server.registry.usage("team")
    assert admin.usage("team").quota.max_versions is None
