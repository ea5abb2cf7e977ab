"""Older clients, each in an environment of its own, write and read as the newest does. Needs a package registry, so it
is not part of `make test`: `make test-install` runs it, and so does CI."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry.hub_lab import environment
from tests.registry.lab import add_base
from weft_registry import artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.port import HubPort

pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]
NewArtifact = Callable[..., Path]
VERSIONS = ("1.16.4", "1.33.0")
SCRIPT = """
import sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

first, second, third = map(Path, sys.argv[1:])
api, repo = HfApi(), "acme/topics"

def status(call):
    try:
        call()
    except HfHubHTTPError as error:
        return error.response.status_code, str(error)
    raise AssertionError("not refused")

def same(found, directory):
    for path in directory.iterdir():
        assert (Path(found) / path.name).read_bytes() == path.read_bytes(), path.name

assert api.create_repo(repo).repo_id == repo
assert api.create_repo(repo, exist_ok=True).repo_id == repo
assert status(lambda: api.create_repo(repo))[0] == 409
assert api.whoami(token="anything")["name"] == "local"
one = api.upload_folder(repo_id=repo, folder_path=first)
assert api.model_info(repo).sha == one.oid
same(snapshot_download(repo), first)
api.create_tag(repo, tag="v1")
api.create_branch(repo, branch="trial")
assert status(lambda: api.create_branch(repo, branch="trial"))[0] == 409
two = api.upload_folder(repo_id=repo, folder_path=second, revision="trial")
assert api.model_info(repo).sha == one.oid
api.create_tag(repo, tag="v2", revision="trial")
same(snapshot_download(repo, revision="v2"), second)
api.upload_file(path_or_fileobj=b"Better.", path_in_repo="README.md", repo_id=repo)
assert Path(hf_hub_download(repo, "README.md")).read_text() == "Better."
code, message = status(lambda: api.create_commit(
    repo, [CommitOperationAdd("README.md", b"x")], commit_message="late", parent_commit=one.oid))
assert code == 412, code
# A file after the other, as what is too much for one commit is sent: published by the last one.
api.create_repo("acme/parts")
for path in sorted(third.iterdir()):
    api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id="acme/parts")
same(snapshot_download("acme/parts"), third)
refs = api.list_repo_refs(repo)
assert {tag.name for tag in refs.tags} == {"v1", "v2"}
assert {branch.name for branch in refs.branches} == {"main", "latest", "trial"}
api.delete_branch(repo, branch="trial")
code, message = status(lambda: api.delete_tag(repo, tag="v1"))
assert code == 403 and "for ever" in message, (code, message)
code, message = status(lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="evil.py", repo_id=repo))
assert code == 400 and "evil.py" in message, (code, message)
for call, kind in (
    (lambda: api.model_info("acme/none"), RepositoryNotFoundError),
    (lambda: api.model_info(repo, revision="none"), RevisionNotFoundError),
    (lambda: hf_hub_download(repo, "none"), EntryNotFoundError),
):
    try:
        call()
        raise AssertionError(kind)
    except kind:
        pass
print(huggingface_hub.__version__)
"""


@pytest.fixture(scope="module", params=VERSIONS)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A version, and the bin directory of an environment with it alone."""
    directory = tmp_path_factory.mktemp("client")
    venv.create(directory, with_pip=True)
    command = [directory / "bin" / "python", "-m", "pip", "install", "-q", f"huggingface_hub=={request.param}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return request.param, directory / "bin"


@pytest.fixture
def port(registry: EmbeddedRegistry, home: Home) -> Iterator[HubPort]:
    add_base(home)
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    yield port
    port.close()


def run(command: list[str | Path], port: HubPort, home: Path) -> str:
    inherited = {key: value for key, value in environment(port.address, home).items() if key != "PYTHONPATH"}
    ran = subprocess.run(command, env=inherited, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_an_older_client_writes_and_reads(
    registry: EmbeddedRegistry,
    client: tuple[str, Path],
    port: HubPort,
    new_artifact: NewArtifact,
    tmp_path: Path,
) -> None:
    version, bin_directory = client
    directories = [new_artifact(seed=seed) for seed in range(3)]
    said = run([bin_directory / "python", "-c", SCRIPT, *map(str, directories)], port, tmp_path / "hf")
    assert said.split()[-1] == version
    assert registry.resolve("acme/parts").digest == artifact.read(directories[2]).digest()
    hf = bin_directory / "hf"
    other = new_artifact(seed=7)
    run([hf, "upload", "acme/cli", str(other)], port, tmp_path / "hf")
    run([hf, "download", "acme/cli", "--local-dir", str(tmp_path / "out")], port, tmp_path / "hf")
    assert (tmp_path / "out" / artifact.WEIGHTS).read_bytes() == (other / artifact.WEIGHTS).read_bytes()
