"""Who may do what over HTTP: tokens as Hub clients send them, and what is not there for those who may not read it."""

from __future__ import annotations

import hashlib
import http.client
import json
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from tests.registry.access.lab import Authority
from tests.registry.hub_lab import Reply, ask, ask_json, environment, hf, ndjson
from tests.registry.lab import add_base
from weft_registry import artifact, transfer
from weft_registry.admin_api import Quota
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.port import HubPort
from weft_registry.principal import NOBODY, anonymous_reader
from weft_registry.reference import AdapterName
from weft_registry.wire.tls import TlsFiles

NewArtifact = Callable[..., Path]
NAME, OTHER = AdapterName("acme", "topics"), AdapterName("globex", "secret")


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def _base(home: Home) -> None:
    add_base(home)


@pytest.fixture
def closed(registry: EmbeddedRegistry) -> Iterator[str]:
    """A registry in which everybody has to say who they are."""
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0, authenticator=registry.authenticator(NOBODY))
    yield port.address
    port.close()


@pytest.fixture
def readable(registry: EmbeddedRegistry) -> Iterator[str]:
    """A registry that anybody may read."""
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0, authenticator=registry.authenticator(anonymous_reader()))
    yield port.address
    port.close()


def token(registry: EmbeddedRegistry, name: str, *scopes: str, namespace: str = "acme") -> str:
    return registry.create_token(name, scopes, [namespace]).secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def commit(address: str, headers: dict[str, str], repo: str = "acme/topics", content: bytes = b"A card.\n") -> Reply:
    body = ndjson(("README.md", content))
    kind = {"Content-Type": "application/x-ndjson", **headers}
    return ask(address, f"/api/models/{repo}/commit/main", "POST", kind, body)


def test_nobody_is_told_anything(registry: EmbeddedRegistry, closed: str, new_artifact: NewArtifact) -> None:
    """Every page, with no token or a wrong one, of what is there and of what is not."""
    commit_id = transfer.push(registry, new_artifact(), NAME).version.digest[7:47]
    wrong = "weft_" + "0" * 16 + "_" + "0" * 64
    for headers in ({}, bearer("hf_something"), bearer(wrong), {"Authorization": "Basic eDp5"}):
        answers = set()
        for repo in ("acme/topics", "acme/none"):
            for path in (
                "/api/models",
                f"/api/models/{repo}",
                f"/api/models/{repo}/refs",
                f"/api/models/{repo}/auth-check",
                f"/{repo}/resolve/main/README.md",
                f"/{repo}/resolve/{commit_id}/README.md",
                "/api/whoami-v2",
            ):
                reply = ask(closed, path, headers=headers)
                assert reply.headers["www-authenticate"] == 'Bearer realm="weft"'
                answers.add((reply.status, reply.body))
            reply = commit(closed, headers, repo)
            answers.add((reply.status, reply.body))
            reply = ask_json(closed, "/api/repos/create", {"name": repo}, headers=headers)
            answers.add((reply.status, reply.body))
        assert len(answers) == 1
        assert answers.pop()[0] == 401


def test_what_one_may_not_read_is_not_there(registry: EmbeddedRegistry, closed: str, new_artifact: NewArtifact) -> None:
    version = transfer.push(registry, new_artifact(), OTHER, tags=["v1"]).version
    headers = bearer(token(registry, "ci", "read", "publish"))
    commit_id = version.digest[7:47]

    def answers(repo: str) -> list[tuple[int, str]]:
        found = []
        for path in (
            f"/api/models/{repo}",
            f"/api/models/{repo}/revision/v1",
            f"/api/models/{repo}/tree/{commit_id}",
            f"/api/models/{repo}/refs",
            f"/api/models/{repo}/commits/main",
            f"/api/models/{repo}/auth-check",
            f"/{repo}/resolve/{commit_id}/README.md",
            f"/{repo}/resolve/v1/README.md",
        ):
            reply = ask(closed, path, headers=headers)
            found.append((reply.status, reply.body.decode().replace(repo, "REPO")))
        for path, document in (
            (f"/api/models/{repo}/branch/x", {}),
            (f"/api/models/{repo}/tag/main", {"tag": "x"}),
            (f"/api/models/{repo}/preupload/main", {"files": []}),
            (f"/{repo}.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}),
        ):
            reply = ask_json(closed, path, document, headers=headers)
            found.append((reply.status, reply.body.decode().replace(repo, "REPO")))
        reply = commit(closed, headers, repo)
        return [*found, (reply.status, reply.body.decode().replace(repo, "REPO"))]

    there = answers("globex/secret")
    assert there == answers("globex/absent")
    assert {status for status, _ in there} == {404}
    assert json.loads(ask(closed, "/api/models", headers=headers).body) == []
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=f"http://{closed}", token=headers["Authorization"][7:]).model_info("globex/secret")


def test_scopes_hold(registry: EmbeddedRegistry, closed: str, new_artifact: NewArtifact) -> None:
    transfer.push(registry, new_artifact(seed=1), NAME, aliases=["production"])
    reader = HfApi(endpoint=f"http://{closed}", token=token(registry, "reader", "read"))
    writer = HfApi(endpoint=f"http://{closed}", token=token(registry, "writer", "read", "publish"))
    mover = HfApi(endpoint=f"http://{closed}", token=token(registry, "mover", "read", "publish", "alias"))
    assert reader.model_info("acme/topics").sha
    for call in (
        lambda: reader.upload_folder(repo_id="acme/topics", folder_path=new_artifact(seed=2)),
        lambda: reader.create_repo("acme/new"),
        lambda: reader.create_tag("acme/topics", tag="v1"),
        lambda: reader.create_branch("acme/topics", branch="b"),
        lambda: reader.delete_repo("acme/topics"),
        # Publishing is one thing, and moving an alias another.
        lambda: writer.upload_folder(repo_id="acme/topics", folder_path=new_artifact(seed=2), revision="production"),
    ):
        with pytest.raises(HfHubHTTPError) as caught:
            call()
        assert caught.value.response.status_code == 403
    reader.auth_check("acme/topics")
    writer.auth_check("acme/topics", write=True)
    with pytest.raises(HfHubHTTPError):
        reader.auth_check("acme/topics", write=True)
    writer.upload_folder(repo_id="acme/topics", folder_path=new_artifact(seed=2))
    assert registry.resolve("acme/topics").published_by == "writer"
    oid = mover.upload_folder(repo_id="acme/topics", folder_path=new_artifact(seed=3), revision="production").oid
    assert registry.resolve("acme/topics:production").digest[7:47] == oid
    # One whose token is of one namespace need not say it.
    assert writer.create_repo("short").repo_id == "acme/short"
    actors = {(entry.actor, entry.action) for entry in registry.audit_entries("acme")}
    assert {("writer", "publish"), ("writer", "repo.create"), ("mover", "publish")} <= actors


def test_anybody_reads_where_that_is_allowed_and_writes_nothing(
    registry: EmbeddedRegistry, readable: str, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    transfer.push(registry, new_artifact(), NAME)
    found = hf_hub_download(
        "acme/topics", "README.md", endpoint=f"http://{readable}", token=False, cache_dir=tmp_path / "cache"
    )
    assert Path(found).read_text() == "A card.\n"
    reply = commit(readable, {})
    assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="weft"')
    # A wrong token is not as good as none.
    assert ask(readable, "/api/models", headers=bearer("hf_x")).status == 401
    secret = token(registry, "writer", "read", "publish")
    assert commit(readable, bearer(secret)).status == 200
    registry.revoke_token("writer")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(endpoint=f"http://{readable}", token=secret).model_info("acme/topics")


def test_private_is_what_a_closed_registry_is_and_an_open_one_is_not(
    registry: EmbeddedRegistry, closed: str, readable: str
) -> None:
    secret = token(registry, "writer", "read", "publish")
    api = HfApi(endpoint=f"http://{closed}", token=secret)
    api.create_repo("acme/closed", private=True)
    assert api.model_info("acme/closed").private
    assert not HfApi(endpoint=f"http://{readable}", token=secret).model_info("acme/closed").private
    with pytest.raises(HfHubHTTPError, match="no private repositories"):
        HfApi(endpoint=f"http://{readable}", token=secret).create_repo("acme/open", private=True)


def test_another_tenants_bytes_are_not_there(
    registry: EmbeddedRegistry, closed: str, new_artifact: NewArtifact
) -> None:
    """Neither by LFS nor by naming their digest in a commit."""
    directory = new_artifact()
    transfer.push(registry, directory, OTHER)
    theirs = hashlib.sha256((directory / artifact.WEIGHTS).read_bytes()).hexdigest()
    absent = hashlib.sha256(b"nobody has these").hexdigest()
    headers = bearer(token(registry, "ci", "read", "publish"))
    assert ask_json(closed, "/api/repos/create", {"name": "acme/topics"}, headers=headers).status == 200
    size = (directory / artifact.WEIGHTS).stat().st_size

    def answers(oid: str) -> list[tuple[int, str]]:
        said = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": size}]}
        batch = ask_json(closed, "/acme/topics.git/info/lfs/objects/batch", said, headers=headers)
        (entry,) = json.loads(batch.body)["objects"]
        verify = ask_json(closed, "/acme/topics.git/info/lfs/verify", {"oid": oid, "size": size}, headers=headers)
        named = {"path": "notes.txt", "oid": oid, "size": size}
        kind = {"Content-Type": "application/x-ndjson", **headers}
        path = "/api/models/acme/topics/commit/main"
        reply = ask(closed, path, "POST", kind, ndjson(("lfsFile", named)))
        return [
            (batch.status, ",".join(sorted(entry.get("actions", {})))),
            (verify.status, verify.body.decode().replace(oid, "OID")),
            (reply.status, reply.body.decode().replace(oid, "OID")),
        ]

    found = answers(theirs)
    assert found == answers(absent)
    assert (found[0], found[2][0]) == ((200, "upload,verify"), 404)


def test_a_branch_counts_for_its_namespace(registry: EmbeddedRegistry, closed: str) -> None:
    registry.set_quota(Quota("acme", max_bytes=1000))
    headers = bearer(token(registry, "ci", "read", "publish"))
    assert ask_json(closed, "/api/repos/create", {"name": "acme/topics"}, headers=headers).status == 200
    assert commit(closed, headers, content=b"x" * 600).status == 200
    # The same file anew takes the place of the old one.
    assert commit(closed, headers, content=b"y" * 900).status == 200
    body = ndjson(("notes.txt", b"z" * 200))
    kind = {"Content-Type": "application/x-ndjson", **headers}
    reply = ask(closed, "/api/models/acme/topics/commit/main", "POST", kind, body)
    assert (reply.status, "weft quota" in reply.headers["x-error-message"]) == (413, True)
    found = registry.workspaces.find(NAME, "main")
    assert found is not None
    assert [file.path for file in found.files] == ["README.md"]


def test_the_command_line_logs_in(
    registry: EmbeddedRegistry, closed: str, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    secret = token(registry, "laptop", "read", "publish")
    home = tmp_path / "hf"
    hf("auth", "login", "--token", secret, address=closed, home=home)
    assert "laptop" in hf("auth", "whoami", address=closed, home=home)
    hf("upload", "acme/topics", str(new_artifact()), address=closed, home=home)
    assert registry.resolve("acme/topics").published_by == "laptop"
    hf("download", "acme/topics", "--local-dir", str(tmp_path / "out"), address=closed, home=home)
    assert (tmp_path / "out" / artifact.WEIGHTS).is_file()
    # HF_TOKEN comes before what was logged in with, and a wrong one is called wrong.
    command = [str(Path(sys.executable).parent / "hf"), "auth", "whoami"]
    env = {**environment(closed, home), "HF_TOKEN": "weft_wrong"}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode != 0
    assert "invalid" in (ran.stdout + ran.stderr).lower()


def test_over_tls_the_command_line_works_and_plain_http_does_not(
    registry: EmbeddedRegistry, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    """With client certificates asked for, who shows none is not heard."""
    authority = Authority.make(tmp_path / "ca")
    cert, key = authority.issue("registry")
    directory = new_artifact()
    for client_ca in (None, authority.path):
        tls = TlsFiles(cert, key, client_ca)
        port = HubPort(
            registry, "127.0.0.1", 0, grace_s=0, tls=tls, authenticator=registry.authenticator(anonymous_reader())
        )
        try:
            number = int(port.address.rpartition(":")[2])
            context = ssl.create_default_context(cafile=str(authority.path))
            if client_ca is None:
                secret = token(registry, "laptop", "read", "publish")
                env = {
                    **environment(port.address, tmp_path / "hf"),
                    "HF_ENDPOINT": f"https://{port.address}",
                    "SSL_CERT_FILE": str(authority.path),
                    "HF_TOKEN": secret,
                }
                command = [str(Path(sys.executable).parent / "hf"), "upload", "acme/topics", str(directory)]
                ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
                assert ran.returncode == 0, ran.stdout + ran.stderr
                assert registry.resolve("acme/topics").published_by == "laptop"
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    asked(number, context)
                context.load_cert_chain(*authority.issue("client"))
            assert asked(number, context) == 200
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                ask(port.address, "/api/models")
        finally:
            port.close()


def asked(port: int, context: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        connection.request("GET", "/api/models/acme/topics")
        return connection.getresponse().status
    finally:
        connection.close()
