"""Stock huggingface_hub reads the registry: files, snapshots, listings, errors. It resumes, and mixes no versions."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.registry.blob_lab import lab_of
from tests.registry.hub_lab import cutting_proxy, environment
from weft_registry import artifact, transfer
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.reference import AdapterName

NewArtifact = Callable[..., Path]
NAME = AdapterName("acme", "topics")
LARGE = "".join(random.Random(0).choices("abcdefgh \n", k=5 << 20))


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are told to be offline; these talk to a server of their own. And the client writes 1 MiB at a time
    instead of 10, so that files of some megabytes are cut and resumed as large ones are."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)


@pytest.fixture
def port(registry: EmbeddedRegistry) -> Iterator[HubPort]:
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    yield port
    port.close()


@pytest.fixture
def url(port: HubPort) -> str:
    return f"http://{port.address}"


@pytest.fixture
def api(url: str) -> HfApi:
    return HfApi(endpoint=url, token=False)


@pytest.fixture
def versions(registry: EmbeddedRegistry, new_artifact: NewArtifact) -> dict[str, Path]:
    """`v1` and `v2`, with `production` at `v1`, as the directories that were published."""
    directories = {"v1": new_artifact(seed=1, readme="One.\n"), "v2": new_artifact(seed=2, readme="Two.\n")}
    for tag, directory in directories.items():
        transfer.push(registry, directory, NAME, tags=[tag])
    registry.set_alias(NAME, "production", "v1")
    return directories


def same_files(found: Path, published: Path) -> None:
    names = sorted(path.name for path in published.iterdir())
    assert sorted(path.name for path in found.iterdir() if path.name != ".cache") == names
    for name in names:
        assert (found / name).read_bytes() == (published / name).read_bytes(), name


def test_a_snapshot_is_exactly_what_was_published(url: str, versions: dict[str, Path], tmp_path: Path) -> None:
    for revision, tag in (("v1", "v1"), ("v2", "v2"), ("production", "v1"), (None, "v2"), ("main", "v2")):
        found = snapshot_download("acme/topics", revision=revision, endpoint=url, cache_dir=tmp_path / "cache")
        same_files(Path(found), versions[tag])


def test_every_kind_serves_its_files(
    registry: EmbeddedRegistry, url: str, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    for kind in ("dora", "ia3", "qalora", "prefix", "prompt"):
        directory = new_artifact(kind=kind)
        transfer.push(registry, directory, AdapterName("acme", kind))
        found = snapshot_download(f"acme/{kind}", endpoint=url, cache_dir=tmp_path / "cache")
        same_files(Path(found), directory)


def test_an_alias_that_moves_between_two_files_of_a_snapshot_mixes_nothing(
    registry: EmbeddedRegistry, url: str, versions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved after every file that the server is asked for."""
    moves = iter(["v2", "v1"] * 100)
    original = registry.resolve_prefix

    def moving(adapter: AdapterName, prefix: str) -> object:
        registry.set_alias(NAME, "production", next(moves))
        return original(adapter, prefix)

    monkeypatch.setattr(registry, "resolve_prefix", moving)
    found = snapshot_download(
        "acme/topics", revision="production", endpoint=url, cache_dir=tmp_path / "cache", max_workers=1
    )
    assert next(moves, None) is not None
    same_files(Path(found), versions["v1"])


def test_a_file_is_of_the_version_that_its_first_answer_named(
    registry: EmbeddedRegistry, url: str, versions: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks for the headers first and for the bytes later: the alias moves in between."""
    original = registry.resolve

    def resolve_then_move(reference: str) -> object:
        version = original(reference)
        registry.set_alias(NAME, "production", "v2")
        return version

    monkeypatch.setattr(registry, "resolve", resolve_then_move)
    found = hf_hub_download(
        "acme/topics", "README.md", revision="production", endpoint=url, cache_dir=tmp_path / "cache"
    )
    assert Path(found).read_text() == "One.\n"
    assert Path(found).parent.name == original("acme/topics:v1").digest.removeprefix("sha256:")[:40]
    assert original("acme/topics:production").tags == ("v2",)


def test_a_download_that_was_cut_goes_on_where_it_was(
    registry: EmbeddedRegistry, port: HubPort, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    transfer.push(registry, new_artifact(notes=LARGE), NAME)
    with cutting_proxy(port.address, cut_after=2 << 20) as proxy:
        found = hf_hub_download(
            "acme/topics", "notes.txt", endpoint=f"http://{proxy.address}", cache_dir=tmp_path / "cache"
        )
        assert proxy.cuts == 1
        ranges = [head for head in proxy.heads if b"range: bytes=" in head.lower()]
    assert Path(found).read_text() == LARGE
    (resumed,) = ranges
    assert b"range: bytes=0-" not in resumed.lower()


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 10 << 20])
def test_bytes_without_their_digest_never_become_a_file(
    home: Home,
    registry: EmbeddedRegistry,
    url: str,
    new_artifact: NewArtifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk_bytes: int,
) -> None:
    """Not even for a client that looks at sizes only, whether it resumes (small chunks) or begins again: the damage is
    in what it would fetch last."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk_bytes)
    version = transfer.push(registry, new_artifact(notes=LARGE), NAME).version
    (digest,) = (file.sha256 for file in version.manifest.files if file.path == "notes.txt")
    lab = lab_of(home)
    lab.replace(digest, lab.held()[digest][:-1] + b"!")
    with pytest.raises(HfHubHTTPError, match="corrupt"):
        hf_hub_download("acme/topics", "notes.txt", endpoint=url, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("notes.txt"))


def test_errors_are_the_clients_own(
    registry: EmbeddedRegistry, api: HfApi, url: str, versions: dict[str, Path], tmp_path: Path
) -> None:
    def download(repo: str, name: str = "README.md", revision: str = "main") -> None:
        hf_hub_download(repo, name, revision=revision, endpoint=url, cache_dir=tmp_path / "cache")

    with pytest.raises(RepositoryNotFoundError, match="nearest: acme/topics"):
        download("acme/topic")
    for repo in ("topics", "Acme/Topics"):
        with pytest.raises(RepositoryNotFoundError):
            download(repo)
    with pytest.raises(RepositoryNotFoundError, match="no datasets"):
        api.dataset_info("acme/topics")
    for revision in ("v3", "refs/pr/1", "0" * 40, "sha256"):
        with pytest.raises(RevisionNotFoundError):
            download("acme/topics", revision=revision)
        with pytest.raises(RevisionNotFoundError):
            api.model_info("acme/topics", revision=revision)
    with pytest.raises(EntryNotFoundError, match=r"it has README\.md"):
        download("acme/topics", "config.json")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("acme/topics", "folder"))
    assert not api.file_exists("acme/topics", "config.json")
    assert api.file_exists("acme/topics", artifact.CONFIG, revision="v1")
    assert not api.repo_exists("acme/topic")


def test_a_yanked_version_is_in_no_listing_and_stays_there_by_commit(
    registry: EmbeddedRegistry, api: HfApi, url: str, versions: dict[str, Path], tmp_path: Path
) -> None:
    commit = api.model_info("acme/topics", revision="v2").sha
    assert commit is not None
    registry.yank("acme/topics:v2", "wrong split")
    assert [entry.commit_id for entry in api.list_repo_commits("acme/topics")] == [
        api.model_info("acme/topics", revision="v1").sha
    ]
    refs = api.list_repo_refs("acme/topics")
    assert [tag.name for tag in refs.tags] == ["v1"]
    assert commit not in {ref.target_commit for ref in [*refs.branches, *refs.tags]}
    with pytest.raises(RevisionNotFoundError, match="wrong split"):
        api.model_info("acme/topics", revision="v2")
    found = snapshot_download("acme/topics", revision=commit, endpoint=url, cache_dir=tmp_path / "cache")
    same_files(Path(found), versions["v2"])
    registry.set_alias(NAME, "production", "v1")
    transfer.push(registry, versions["v1"], AdapterName("acme", "gone"))
    registry.yank("acme/gone")
    assert [model.id for model in api.list_models()] == ["acme/topics"]


def test_listings_filter_and_go_on_page_by_page(
    registry: EmbeddedRegistry, api: HfApi, new_artifact: NewArtifact
) -> None:
    kinds = {"acme/a": "lora", "acme/b": "prefix", "acme/c": "lora", "other/topics": "lora"}
    for name, kind in kinds.items():
        transfer.push(registry, new_artifact(kind=kind), AdapterName.parse(name))
    assert [model.id for model in api.list_models()] == sorted(kinds)
    assert [model.id for model in api.list_models(author="acme")] == ["acme/a", "acme/b", "acme/c"]
    assert [model.id for model in api.list_models(search="TOPIC")] == ["other/topics"]
    assert [model.id for model in api.list_models(filter=["lora", "peft"])] == ["acme/a", "acme/c", "other/topics"]
    assert [model.id for model in api.list_models(filter="base_model:tiny/base", limit=2)] == ["acme/a", "acme/b"]
    assert [model.id for model in api.list_models(author="No_Such")] == []
    with pytest.raises(HfHubHTTPError, match="sort"):
        list(api.list_models(sort="downloads"))


def test_what_is_said_about_a_model_is_what_was_published(
    registry: EmbeddedRegistry, api: HfApi, versions: dict[str, Path]
) -> None:
    version = registry.resolve("acme/topics:v1")
    info = api.model_info("acme/topics", revision="v1", files_metadata=True)
    assert info.sha == version.digest.removeprefix("sha256:")[:40]
    assert (info.author, info.private, info.library_name) == ("acme", False, "peft")
    assert info.card_data is not None
    assert info.card_data.base_model == "tiny/base"
    assert info.last_modified is not None
    assert abs((info.last_modified - version.published_at).total_seconds()) < 0.001
    published = {path.name: path.read_bytes() for path in versions["v1"].iterdir()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in published.items()}
    siblings = info.siblings or []
    assert {file.rfilename: file.size for file in siblings} == {name: len(data) for name, data in published.items()}
    assert {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs} == digests
    tree = list(api.list_repo_tree("acme/topics", revision="v1", recursive=True))
    assert {file.path: file.lfs.sha256 for file in tree if file.lfs} == digests  # type: ignore[union-attr]
    assert [entry.title for entry in api.list_repo_commits("acme/topics")] == ["v2, latest", "v1, production"]
    assert [entry.title for entry in api.list_repo_commits("acme/topics", revision="v1")] == ["v1, production"]
    branches = {branch.name: branch.target_commit for branch in api.list_repo_refs("acme/topics").branches}
    assert branches["production"] == info.sha
    assert branches["main"] == branches["latest"] == api.model_info("acme/topics").sha


def test_the_command_line_downloads_with_nothing_set_but_the_endpoint(
    port: HubPort, versions: dict[str, Path], tmp_path: Path
) -> None:
    hf = shutil.which("hf", path=str(Path(sys.executable).parent))
    assert hf is not None
    command = [hf, "download", "acme/topics", "--revision", "production", "--local-dir", str(tmp_path / "out")]
    ran = subprocess.run(
        command,
        env=environment(port.address, tmp_path / "hf"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    same_files(tmp_path / "out", versions["v1"])
    assert json.loads((tmp_path / "out" / artifact.CONFIG).read_text())["peft_type"] == "LORA"
