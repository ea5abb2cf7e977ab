"""Stock huggingface_hub writes to the registry: repositories, commits, branches, tags. What is whole is a version."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.oracles.adapterhub_subjects import ADAPTERS
from tests.registry.lab import BASE, add_base, random_tensors, safetensors_bytes
from tests.registry.test_adapterhub_format import HUB_BASE, saved
from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import NotFoundError
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.reference import AdapterName
from weft_registry.workspaces.branch_state import MAIN

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
REPO = "acme/topics"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def port(registry: EmbeddedRegistry, home: Home) -> Iterator[HubPort]:
    add_base(home)
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    yield port
    port.close()


@pytest.fixture
def api(port: HubPort) -> HfApi:
    api = HfApi(endpoint=f"http://{port.address}", token=False)
    api.create_repo(REPO)
    return api


def plain(directory: Path) -> Path:
    """A PEFT directory: no manifest."""
    (directory / artifact.MANIFEST).unlink()
    return directory


def adds(directory: Path, *names: str) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name, directory / name) for name in names or sorted(p.name for p in directory.iterdir())]


def commit(api: HfApi, operations: list[Any], **options: Any) -> str:
    return str(api.create_commit(REPO, operations, commit_message="test", **options).oid)


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(HfHubHTTPError) as caught:
        call()
    return caught.value.response.status_code, caught.value.response.headers["x-error-message"]


def test_a_folder_is_a_version_at_once(
    registry: EmbeddedRegistry, api: HfApi, port: HubPort, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    directory = plain(new_artifact(seed=1))
    done = api.upload_folder(repo_id=REPO, folder_path=directory)
    version = registry.resolve(REPO)
    assert done.oid == version.digest[7:47] == api.model_info(REPO).sha
    assert version.manifest.kind == "lora"
    assert version.manifest.base == BASE.fingerprint
    assert version.manifest.name == "topics"
    found = Path(snapshot_download(REPO, endpoint=f"http://{port.address}", cache_dir=tmp_path / "cache"))
    assert {path.name for path in found.iterdir()} == {path.name for path in directory.iterdir()} | {artifact.MANIFEST}
    for path in directory.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes()
    # The same once more is the same version, whether the client notices or not.
    assert api.upload_folder(repo_id=REPO, folder_path=directory).oid == done.oid
    assert commit(api, adds(directory)) == done.oid
    assert len(registry.list_versions(NAME)) == 1
    assert registry.verify(REPO).problems == ()


def test_our_own_artifact_keeps_its_manifest(registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact) -> None:
    for kind in ("lora", "prefix", "qalora"):
        directory = new_artifact(kind=kind)
        digest = artifact.read(directory).digest()
        done = api.upload_folder(repo_id=REPO, folder_path=directory)
        assert (done.oid, registry.resolve(REPO).digest) == (digest[7:47], digest)


def test_a_folder_in_several_commits_is_published_by_the_last_one(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact, caplog: pytest.LogCaptureFixture
) -> None:
    """As `upload_folder` splits what is more than 100 MB."""
    directory = new_artifact(seed=1)
    digest = artifact.read(directory).digest()
    heads = []
    for name in (artifact.CARD, artifact.CONFIG, artifact.MANIFEST, artifact.WEIGHTS):
        caplog.clear()
        heads.append(commit(api, adds(directory, name)))
        if name != artifact.WEIGHTS:
            # People are told by the client.
            assert "not published yet" in caplog.text
            assert artifact.WEIGHTS in caplog.text
            assert registry.list_versions(NAME) == []
            assert api.model_info(REPO).sha == heads[-1]
    assert len(set(heads)) == 4
    assert heads[-1] == digest[7:47]
    assert registry.resolve(REPO).digest == digest
    # Nothing of the workspace is left.
    assert registry.workspaces.heads(NAME) == {}
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision=heads[0])


def test_upload_folder_splits_and_the_version_is_whole(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pytest.importorskip("huggingface_hub._upload_pipeline")
    monkeypatch.setattr(pipeline, "REGULAR_CONTENT_BYTES_BUDGET", 1)
    seen: list[str] = []
    original = registry.workspaces.__class__.commit

    def counted(self: Any, adapter: AdapterName, branch: str, received: Any) -> Any:
        seen.extend(operation.path for operation in received.operations)
        return original(self, adapter, branch, received)

    monkeypatch.setattr(registry.workspaces.__class__, "commit", counted)
    directory = plain(new_artifact(seed=1))
    api.upload_folder(repo_id=REPO, folder_path=directory)
    assert seen == [artifact.CARD, artifact.CONFIG, artifact.WEIGHTS]
    assert {file.path for file in registry.resolve(REPO).manifest.files} == set(seen)
    assert len(registry.list_versions(NAME)) == 1


def test_readers_see_no_half_upload(
    registry: EmbeddedRegistry,
    api: HfApi,
    port: HubPort,
    new_artifact: NewArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the next version is on its way, `main` is the last one; between two files of a download too."""
    first, second = new_artifact(seed=1, readme="One.\n"), new_artifact(seed=2, readme="Two.\n")
    before = api.upload_folder(repo_id=REPO, folder_path=first).oid
    parts = [adds(second, artifact.MANIFEST), adds(second, artifact.CARD), adds(second, artifact.WEIGHTS)]
    original = registry.resolve_prefix

    def committing(adapter: AdapterName, prefix: str) -> object:
        if parts:
            commit(api, parts.pop(0))
        return original(adapter, prefix)

    url = f"http://{port.address}"
    monkeypatch.setattr(registry, "resolve_prefix", committing)
    found = Path(snapshot_download(REPO, endpoint=url, cache_dir=tmp_path / "cache", max_workers=1))
    assert not parts
    assert found.name == before
    for path in first.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name
    assert registry.resolve(REPO).digest == artifact.read(second).digest()
    card = Path(hf_hub_download(REPO, artifact.CARD, endpoint=url, cache_dir=tmp_path / "cache"))
    assert (card.read_text(), card.parent.name) == ("Two.\n", artifact.read(second).digest()[7:47])


def test_a_branch_is_a_workspace_until_a_tag_freezes_it(
    registry: EmbeddedRegistry, api: HfApi, port: HubPort, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    first, second = plain(new_artifact(seed=1)), plain(new_artifact(seed=2))
    on_main = api.upload_folder(repo_id=REPO, folder_path=first).oid
    api.create_branch(REPO, branch="trial")
    api.create_branch(REPO, branch="trial", exist_ok=True)
    assert refused(lambda: api.create_branch(REPO, branch="trial"))[0] == 409
    head = api.upload_folder(repo_id=REPO, folder_path=second, revision="trial").oid
    # Readers of the branch get its files, by the branch's commit id; nothing was published.
    assert api.model_info(REPO, revision="trial").sha == head
    weights = hf_hub_download(
        REPO, artifact.WEIGHTS, revision="trial", endpoint=f"http://{port.address}", cache_dir=tmp_path / "cache"
    )
    assert Path(weights).read_bytes() == (second / artifact.WEIGHTS).read_bytes()
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs(REPO).branches} == {
        "latest": on_main,
        "main": on_main,
        "trial": head,
    }
    assert len(registry.list_versions(NAME)) == 1
    assert registry.resolve(REPO).digest[7:47] == on_main
    api.create_tag(REPO, tag="v2", revision="trial")
    tagged = registry.resolve(f"{REPO}:v2")
    assert {file.path for file in tagged.manifest.files} == {path.name for path in second.iterdir()}
    # No alias moved.
    assert registry.resolve(REPO).digest[7:47] == on_main
    assert tagged.aliases == ()
    # The branch goes on; the tag stays.
    api.upload_file(path_or_fileobj=b"Three.\n", path_in_repo="README.md", repo_id=REPO, revision="trial")
    assert registry.resolve(f"{REPO}:v2") == tagged
    assert refused(lambda: api.create_tag(REPO, tag="v2", revision="trial"))[0] == 409
    api.create_tag(REPO, tag="v3", revision="trial")
    third = registry.resolve(f"{REPO}:v3")
    assert third.digest != tagged.digest
    assert b"".join(registry.read_blob(_digest(third, "README.md"))) == b"Three.\n"
    api.delete_branch(REPO, branch="trial")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="trial")
    assert registry.resolve(f"{REPO}:v3") == third


def _digest(version: Any, path: str) -> str:
    return str(next(file.sha256 for file in version.manifest.files if file.path == path))


def test_tags_name_versions_for_ever(registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact) -> None:
    oid = api.upload_folder(repo_id=REPO, folder_path=new_artifact(seed=1)).oid
    api.create_tag(REPO, tag="v1")
    api.create_tag(REPO, tag="release", revision=oid)
    api.create_tag(REPO, tag="release-2", revision="v1")
    assert registry.resolve(REPO).tags == ("release", "release-2", "v1")
    api.create_tag(REPO, tag="v1", exist_ok=True)
    assert refused(lambda: api.create_tag(REPO, tag="v1"))[0] == 409
    status, message = refused(lambda: api.delete_tag(REPO, tag="v1"))
    assert (status, "for ever" in message) == (403, True)
    status, message = refused(lambda: api.create_tag(REPO, tag="a b"))
    assert (status, "not a tag" in message) == (400, True)
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(REPO, tag="v9", revision="nothing")
    status, message = refused(lambda: api.upload_folder(repo_id=REPO, folder_path=new_artifact(), revision="v1"))
    assert (status, "is a tag" in message) == (422, True)


def test_a_first_version_made_by_a_tag_is_latest(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact
) -> None:
    api.create_branch(REPO, branch="trial")
    status, message = refused(lambda: api.create_tag(REPO, tag="v1", revision="trial"))
    assert (status, artifact.CONFIG in message) == (422, True)
    api.upload_folder(repo_id=REPO, folder_path=plain(new_artifact()), revision="trial")
    api.create_tag(REPO, tag="v1", revision="trial")
    assert registry.resolve(REPO).tags == ("v1",)


def test_a_commit_to_an_alias_publishes_and_moves_it(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact
) -> None:
    api.upload_folder(repo_id=REPO, folder_path=new_artifact(seed=1))
    registry.set_alias(NAME, "production", "latest")
    oid = api.upload_folder(repo_id=REPO, folder_path=new_artifact(seed=2), revision="production").oid
    assert registry.resolve(f"{REPO}:production").digest[7:47] == oid
    assert registry.resolve(REPO).digest[7:47] == oid
    assert refused(lambda: api.create_branch(REPO, branch="production"))[0] == 409
    status, message = refused(lambda: api.delete_branch(REPO, branch="production"))
    assert (status, "weft alias rm" in message) == (422, True)
    assert refused(lambda: api.delete_branch(REPO, branch=MAIN))[0] == 422
    status, message = refused(
        lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="README.md", repo_id=REPO, revision="latest")
    )
    assert (status, "commit to 'main'" in message) == (400, True)


def test_a_stale_parent_is_412_and_changes_nothing(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact
) -> None:
    first = api.upload_folder(repo_id=REPO, folder_path=new_artifact(seed=1)).oid
    second = commit(api, adds(new_artifact(seed=2)), parent_commit=first)
    status, message = refused(lambda: commit(api, adds(new_artifact(seed=3)), parent_commit=first))
    assert (status, second in message) == (412, True)
    assert registry.resolve(REPO).digest[7:47] == second
    assert len(registry.list_versions(NAME)) == 2
    # The first digits are enough.
    commit(api, [CommitOperationAdd("README.md", b"Other.\n")], parent_commit=second[:8])


def test_concurrent_commits_lose_nothing(registry: EmbeddedRegistry, api: HfApi) -> None:
    """Without a parent each is applied to what the others left; with one, one wins."""
    count = 8
    api.create_branch(REPO, branch="trial")
    start = api.model_info(REPO, revision="trial").sha
    results: list[int | str] = []

    def send(number: int, parent: str | None) -> None:
        operation = CommitOperationAdd(f"file{number}.txt", f"{number}\n".encode())
        try:
            results.append(commit(api, [operation], revision="trial", parent_commit=parent))
        except HfHubHTTPError as error:
            results.append(error.response.status_code)

    def together(parent: str | None) -> list[int | str]:
        results.clear()
        threads = [threading.Thread(target=send, args=(number, parent)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return list(results)

    answers = together(start)
    assert answers.count(412) == count - 1, answers
    assert len(api.list_repo_files(REPO, revision="trial")) == 1
    assert 412 not in together(None)
    assert api.list_repo_files(REPO, revision="trial") == [f"file{number}.txt" for number in range(count)]


def test_files_are_deleted_and_copied(registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact) -> None:
    directory = new_artifact(seed=1)
    (directory / "notes.txt").write_text("Notes.\n")
    (directory / artifact.MANIFEST).unlink()
    api.upload_folder(repo_id=REPO, folder_path=directory)
    before = registry.resolve(REPO)
    api.delete_file("notes.txt", REPO)
    after = registry.resolve(REPO)
    assert {file.path for file in after.manifest.files} == {file.path for file in before.manifest.files} - {"notes.txt"}
    commit(api, [CommitOperationCopy("README.md", "again.md")])
    assert _digest(registry.resolve(REPO), "again.md") == _digest(after, "README.md")
    with pytest.raises(EntryNotFoundError):
        commit(api, [CommitOperationDelete("notes.txt")])
    # All of a version's files, as `--delete "*"` names them, and other ones instead.
    other = plain(new_artifact(kind="prefix"))
    api.upload_folder(repo_id=REPO, folder_path=other, delete_patterns="*")
    assert {file.path for file in registry.resolve(REPO).manifest.files} == {path.name for path in other.iterdir()}
    # Without its weights it is no version any more: what was published last stays.
    last = registry.resolve(REPO)
    api.delete_file(artifact.WEIGHTS, REPO)
    assert registry.resolve(REPO) == last
    assert api.model_info(REPO).sha == last.digest[7:47]
    assert list(registry.workspaces.heads(NAME)) == [MAIN]
    api.delete_branch(REPO, branch=MAIN)
    assert registry.workspaces.heads(NAME) == {}


def test_a_new_card_keeps_what_the_manifest_says(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact
) -> None:
    """Not only of kinds that PEFT has."""
    for kind in ("lora", "qalora"):
        transfer.push(registry, new_artifact(kind=kind), NAME)
        before = registry.resolve(REPO).manifest
        api.upload_file(path_or_fileobj=b"Better.\n", path_in_repo="README.md", repo_id=REPO)
        after = registry.resolve(REPO).manifest
        assert (after.kind, after.license, after.adapter) == (kind, "apache-2.0", before.adapter)
        assert after.tensors == before.tensors
        assert after.digest() != before.digest()


def test_a_base_that_is_not_known_is_named_with_the_way_out(
    registry: EmbeddedRegistry, api: HfApi, home: Home, new_artifact: NewArtifact
) -> None:
    directory = plain(new_artifact())
    config = directory / artifact.CONFIG
    said = config.read_text()
    for wrong in ("someone/else", "", "/models/tiny"):
        config.write_text(said.replace('"tiny/base"', f'"{wrong}"'))
        status, message = refused(lambda: api.upload_folder(repo_id=REPO, folder_path=directory))
        assert status == 422
        assert "weft base add" in message
        assert "tiny (tiny/base)" in message
        assert wrong in message
    assert registry.list_versions(NAME) == []
    # By the name that it has here.
    config.write_text(said.replace('"tiny/base"', '"tiny"'))
    api.upload_folder(repo_id=REPO, folder_path=directory)
    assert registry.resolve(REPO).manifest.base == BASE.fingerprint
    # Two bases of one id: which one is meant has to be said.
    (home.bases / "other").mkdir()
    text = (home.bases / "tiny" / "base.json").read_text()
    (home.bases / "other" / "base.json").write_text(text.replace("sha256:" + "1" * 64, "sha256:" + "9" * 64))
    config.write_text(said)
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(random_tensors("lora", 7)))
    status, message = refused(lambda: api.upload_folder(repo_id=REPO, folder_path=directory))
    assert (status, "other, tiny" in message) == (422, True)


def test_what_is_no_artifact_is_refused_with_all_that_is_wrong(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact
) -> None:
    tensors = random_tensors("lora", 1)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = float("nan")
    directory = plain(new_artifact())
    (directory / artifact.WEIGHTS).write_bytes(safetensors_bytes(tensors))
    status, message = refused(lambda: api.upload_folder(repo_id=REPO, folder_path=directory))
    assert (status, name in message, "NaN" in message) == (400, True, True)
    assert registry.list_versions(NAME) == []
    assert registry.workspaces.heads(NAME).keys() == {MAIN}
    for path in ("adapter_model.bin", "sub/README.md", "evil.py", "other.safetensors", "..json", "ADAPTER_CONFIG.JSON"):
        operations = [*adds(plain(new_artifact())), CommitOperationAdd(path, b"{}")]
        assert refused(partial(commit, api, operations))[0] == 400, path
    assert registry.list_versions(NAME) == []


def test_what_clients_always_send_along_is_left_out(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact, caplog: pytest.LogCaptureFixture
) -> None:
    directory = plain(new_artifact())
    (directory / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (directory / "training_args.bin").write_bytes(b"\x80\x04.")
    api.upload_folder(repo_id=REPO, folder_path=directory)
    assert "training_args.bin" in caplog.text
    names = {file.path for file in registry.resolve(REPO).manifest.files}
    assert names == {artifact.CARD, artifact.CONFIG, artifact.WEIGHTS}


def test_repositories_come_and_go(registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact) -> None:
    url = api.create_repo("acme/other")
    assert (url.repo_id, url.endpoint) == ("acme/other", api.endpoint)
    assert api.create_repo("acme/other", exist_ok=True).repo_id == "acme/other"
    assert refused(lambda: api.create_repo("acme/other"))[0] == 409
    assert api.repo_exists("acme/other")
    assert api.list_repo_files("acme/other") == []
    assert [model.id for model in api.list_models()] == []
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("acme/other", "README.md", endpoint=api.endpoint)
    api.delete_repo("acme/other")
    assert not api.repo_exists("acme/other")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/other")
    api.delete_repo("acme/other", missing_ok=True)
    api.upload_folder(repo_id=REPO, folder_path=new_artifact())
    status, message = refused(lambda: api.delete_repo(REPO))
    assert (status, "weft delete" in message) == (422, True)
    assert registry.resolve(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.upload_folder(repo_id="acme/none", folder_path=new_artifact())
    for call, words in (
        (lambda: api.create_repo("acme/secret", private=True), "no private repositories"),
        (lambda: api.create_repo("acme/data", repo_type="dataset"), "adapters"),
        (lambda: api.move_repo(REPO, "acme/elsewhere"), "keeps its name"),
        (lambda: api.super_squash_history(REPO), "no history"),
        (lambda: api.update_repo_settings(REPO, private=True), "no settings"),
        (lambda: api.create_pull_request(REPO, "please"), "no pull requests"),
        (lambda: commit(api, adds(new_artifact(seed=9)), create_pr=True), "no pull requests"),
    ):
        status, message = refused(call)
        assert (status, words in message) == (501, True), message
    for name in ("topics", "Acme/Topics"):
        with pytest.raises(BadRequestError):
            api.create_repo(name)
    with pytest.raises(NotFoundError):
        registry.resolve("acme/secret")


def test_a_card_with_broken_metadata_is_refused_before_the_upload(api: HfApi) -> None:
    def upload(text: str) -> None:
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=REPO)

    with pytest.raises(ValueError, match="Invalid metadata"):
        upload("---\nlicense: [mit\n---\nA card.\n")
    with pytest.raises(ValueError, match="Invalid metadata"):
        upload("---\n- mit\n---\n")
    bomb = "a: &a {x: 1}\n" + "".join(
        f"{chr(ord(above) + 1)}: &{chr(ord(above) + 1)} {{<<: [{', '.join(['*' + above] * 9)}]}}\n"
        for above in "abcdefghi"
    )
    with pytest.raises(ValueError, match="Invalid metadata"):
        upload(f"---\n{bomb}---\n")
    with pytest.raises(ValueError, match="more than"):
        upload("x" * (1 << 20) + "x")
    upload("---\nlicense: mit\n---\nA card.\n")


def test_what_was_uploaded_is_what_is_stored(registry: EmbeddedRegistry, api: HfApi) -> None:
    """Contents of every length around the decoder's pieces."""
    sizes = [0, 1, 2, 3, 4, 767, 768, 769, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20]
    contents = {f"file{size}.txt": bytes(range(256)) * (size // 256) + b"x" * (size % 256) for size in sizes}
    api.create_branch(REPO, branch="trial")
    commit(api, [CommitOperationAdd(name, data) for name, data in contents.items()], revision="trial")
    workspace = registry.workspaces.find(NAME, "trial")
    assert workspace is not None
    found = {file.path: (file.size_bytes, file.sha256[7:]) for file in workspace.files}
    assert found == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    for name, data in contents.items():
        assert b"".join(registry.read_blob(f"sha256:{found[name][1]}")) == data
    # What was received on the way is gone.
    assert list(registry.scratch.iterdir()) == []
    shutil.rmtree(registry.scratch)


def test_what_adapterhub_saved_is_imported_and_the_card_kept(
    registry: EmbeddedRegistry, api: HfApi, home: Home, tmp_path: Path
) -> None:
    (home.bases / "hub").mkdir()
    fingerprint = replace(HUB_BASE.fingerprint, id="hub/base", weights_sha256="sha256:" + "8" * 64)
    spec = replace(HUB_BASE, fingerprint=fingerprint)
    (home.bases / "hub" / "base.json").write_text(json.dumps(spec.as_json()))

    def named(config: dict[str, Any]) -> None:
        config["model_name"] = "hub/base"

    name = sorted(ADAPTERS)[0]
    directory = saved(tmp_path / "saved", name, named)
    (directory / "README.md").write_text("Saved by AdapterHub.\n")
    oid = api.upload_folder(repo_id=REPO, folder_path=directory).oid
    version = registry.resolve(REPO)
    assert (version.digest[7:47], version.manifest.kind) == (oid, "bottleneck")
    assert version.manifest.base == fingerprint
    assert {file.path for file in version.manifest.files} == {artifact.WEIGHTS, "README.md"}
    assert registry.verify(REPO).problems == ()
    # Of a kind that has no configuration, too, a new card makes a new version of the same weights.
    api.upload_file(path_or_fileobj=b"Better.\n", path_in_repo="README.md", repo_id=REPO)
    assert registry.resolve(REPO).manifest.tensors == version.manifest.tensors
    assert registry.resolve(REPO).digest != version.digest
    # And the next one takes the place of the last one's weights.
    other = saved(tmp_path / "other", sorted(ADAPTERS)[1], named)
    api.upload_folder(repo_id=REPO, folder_path=other)
    assert registry.resolve(REPO).manifest.tensors != version.manifest.tensors
    assert {file.path for file in registry.resolve(REPO).manifest.files} == {artifact.WEIGHTS, "README.md"}
