"""The requests that write: repositories, commits, branches, tags, LFS objects. HTTP in, `Workspaces` out.

Bodies are received in the event loop, and parsed, hashed and written in threads. Everything happens as the caller's
identity: `registry` already is its view.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from weft_registry import artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.errors import (
    AlreadyExistsError,
    CorruptionError,
    ExhaustedError,
    ForbiddenError,
    InvalidInputError,
    UnsupportedError,
)
from weft_registry.hub import lfs, repos, revisions
from weft_registry.hub.answers import Answer, error_answer, json_answer
from weft_registry.hub.bodies import NDJSON
from weft_registry.hub.commits import CommitLimits, CommitReader
from weft_registry.hub.requests import Request, pieces, warnings
from weft_registry.hub.routes import Route
from weft_registry.principal import Principal
from weft_registry.workspaces.paths import check_path, dropped_warning, is_dropped
from weft_registry.workspaces.workspaces import Workspace

MAX_RECEIVING = 16
"""Commits and objects that may arrive at once."""
MAX_SMALL_BYTES = 64 << 10


class Writer:
    """Answers the requests that write. Owns the permissions it has given, and counts what is arriving."""

    def __init__(self, limits: CommitLimits | None = None, receiving: int = MAX_RECEIVING) -> None:
        self._limits = limits or CommitLimits()
        self._permits = lfs.Permits()
        self._free = receiving

    async def answer(self, request: Request) -> Answer:
        """Does what is asked. Raises what `Workspaces` raises."""
        match request.asked.page:
            case "create":
                return await self._create(request)
            case "delete":
                request.only()
                said = await request.body.json(MAX_SMALL_BYTES)
                await asyncio.to_thread(repos.delete, request.registry, request.principal, said)
                return json_answer({})
            case "validate-yaml":
                request.only()
                errors = await asyncio.to_thread(repos.validate_yaml, await request.body.json())
                document = {"errors": [{"message": error} for error in errors], "warnings": []}
                return json_answer(document, status=400 if errors else 200)
            case "preupload":
                return await self._preupload(request)
            case "commit":
                return await self._commit(request)
            case "branch":
                return await self._branch(request)
            case "tag":
                return await self._tag(request)
            case "lfs-batch":
                request.only()
                document = await asyncio.to_thread(
                    lfs.batch,
                    request.registry,
                    request.principal,
                    self._permits,
                    request.adapter,
                    request.origin,
                    await request.body.json(),
                )
                return json_answer(document, {"Content-Type": "application/vnd.git-lfs+json"})
            case "lfs-verify":
                return await self._verify(request)
            case "lfs-object":
                return await self._object(request)
        raise UnsupportedError(_REFUSED[request.asked.page], reason="NOT_DONE_HERE")

    def permitted(self, asked: Route, query: Mapping[str, Sequence[str]]) -> Principal:
        """Who may put the object that is asked for: the address says it, and no token. Raises
        `UnauthenticatedError`."""
        word = query.get("permit", [""])[-1]
        return self._permits.read(word, revisions.adapter_name(asked.repo), asked.path).principal

    async def _create(self, request: Request) -> Answer:
        request.only()
        said = await request.body.json(MAX_SMALL_BYTES)
        arguments = (request.registry, request.principal, request.open_to_all, said)
        try:
            adapter = await asyncio.to_thread(repos.create, *arguments)
        except AlreadyExistsError as error:
            # The client reads the address from this answer too.
            there = repos.named(request.principal, said)
            return error_answer(error, document={"url": f"{request.origin}/{there}", "name": str(there)})
        return json_answer({"url": f"{request.origin}/{adapter}", "name": str(adapter), "id": str(adapter)})

    async def _preupload(self, request: Request) -> Answer:
        request.only()
        said = await request.body.json()
        files = said.get("files")
        if not isinstance(files, list) or not all(
            isinstance(file, dict) and isinstance(file.get("path"), str) for file in files
        ):
            raise InvalidInputError("files: expected a list of objects with a path")
        workspace = await asyncio.to_thread(request.registry.workspaces.target, request.adapter, request.asked.revision)
        entries = await asyncio.to_thread(self._modes, request.registry, workspace, files)
        warning = dropped_warning(file["path"] for file in files)
        if said.get("gitIgnore"):
            warning = "; ".join(filter(None, [warning, ".gitignore is not looked at here: what you name is uploaded"]))
        return json_answer({"files": entries}, warnings(warning))

    def _modes(
        self, registry: EmbeddedRegistry, workspace: Workspace, files: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        there = {file.path: file for file in workspace.files}
        entries: list[dict[str, Any]] = []
        for file in files:
            path, size = file["path"], file.get("size")
            ignored = is_dropped(path)
            if not ignored:
                check_path(path)
                if isinstance(size, int) and size > self._limits.max_file_bytes:
                    raise InvalidInputError(
                        f"{path}: {size} bytes; at most {self._limits.max_file_bytes} in a commit: use `weft push`",
                        reason="BODY_TOO_LARGE",
                    )
            oid = None
            # A client leaves out what it finds unchanged by git's digest. Only a file of the same size can be.
            if path in there and there[path].size_bytes == size:
                oid = _git_oid(registry, there[path].sha256, size)
            entries.append({"path": path, "uploadMode": "regular", "shouldIgnore": ignored, "oid": oid})
        return entries

    async def _commit(self, request: Request) -> Answer:
        request.only()
        body, adapter, branch = request.body, request.adapter, request.asked.revision
        # Who may not commit here is told before gigabytes are received.
        await asyncio.to_thread(request.registry.workspaces.target, adapter, branch)
        body.check(NDJSON)
        async with self._receiving():
            reader = await asyncio.to_thread(CommitReader, request.registry.scratch, self._limits)
            try:
                async for chunk in pieces(body):
                    await asyncio.to_thread(reader.feed, chunk)
                commit = await asyncio.to_thread(reader.finish)
                done = await asyncio.to_thread(request.registry.workspaces.commit, adapter, branch, commit)
            finally:
                await asyncio.to_thread(reader.close)
        document = {
            "success": True,
            "commitOid": done.commit,
            "commitUrl": f"{request.origin}/{adapter}/commit/{done.commit}",
            "hookOutput": "",
        }
        unfinished = f"{adapter}: not published yet: {done.unfinished}" if done.unfinished else ""
        return json_answer(document, warnings(unfinished, dropped_warning(commit.dropped)))

    async def _branch(self, request: Request) -> Answer:
        request.only()
        workspaces, branch = request.registry.workspaces, request.asked.revision
        if request.asked.method == "DELETE":
            await asyncio.to_thread(workspaces.delete_branch, request.adapter, branch)
            return json_answer({})
        said = await request.body.json(MAX_SMALL_BYTES)
        start, empty = said.get("startingPoint"), said.get("emptyBranch", False)
        if not isinstance(start, str | None) or not isinstance(empty, bool):
            raise InvalidInputError("startingPoint: expected a string; emptyBranch: expected true or false")
        head = await asyncio.to_thread(workspaces.create_branch, request.adapter, branch, start or "", empty=empty)
        return json_answer({"ref": f"refs/heads/{branch}", "targetCommit": head})

    async def _tag(self, request: Request) -> Answer:
        request.only()
        if request.asked.method == "DELETE":
            await asyncio.to_thread(request.registry.workspaces.heads, request.adapter)  # It is not there for some.
            raise ForbiddenError(
                f"{request.adapter}:{request.asked.revision[:140]}: a tag names one version for ever: yank the version "
                "with `weft yank`, or delete it with `weft delete`",
                reason="TAGS_STAY",
            )
        said = await request.body.json(MAX_SMALL_BYTES)
        tag = said.get("tag")
        if not isinstance(tag, str):
            raise InvalidInputError("tag: expected a string")
        workspaces = request.registry.workspaces
        done = await asyncio.to_thread(workspaces.create_tag, request.adapter, tag, request.asked.revision)
        warning = "a tag has no message here: it was not kept" if said.get("message") else ""
        commit = revisions.commit_id(done.version.digest)
        return json_answer({"ref": f"refs/tags/{tag}", "targetCommit": commit}, warnings(warning))

    async def _verify(self, request: Request) -> Answer:
        request.only()
        oid, _size = lfs.check_object(await request.body.json(MAX_SMALL_BYTES))
        if not await asyncio.to_thread(request.registry.workspaces.has, request.adapter, f"sha256:{oid}"):
            raise CorruptionError(f"object {oid} is not here: send it again", reason="DIGEST_MISMATCH")
        return json_answer({})

    async def _object(self, request: Request) -> Answer:
        adapter, oid = request.adapter, request.asked.path
        permit = self._permits.read(request.query.get("permit", [""])[-1], adapter, oid)
        request.body.check(())
        size = permit.size_bytes
        if request.body.length not in (None, size):
            raise InvalidInputError(f"object {oid}: {request.body.length} bytes; {size} were announced")
        async with self._receiving():
            path = request.registry.scratch / f"commit-{uuid.uuid4().hex}"
            try:
                received, sha256 = 0, hashlib.sha256()
                await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
                with path.open("xb") as sink:
                    async for chunk in pieces(request.body):
                        received += len(chunk)
                        if received > size:
                            raise InvalidInputError(f"object {oid}: more than the {size} bytes that were announced")
                        await asyncio.to_thread(sha256.update, chunk)
                        await asyncio.to_thread(sink.write, chunk)
                found = sha256.hexdigest()
                if (found, received) != (oid, size):
                    raise InvalidInputError(
                        f"object {oid}: {received} bytes with the digest {found} came, of {size}: nothing was stored; "
                        "send it again",
                        reason="DIGEST_MISMATCH",
                    )
                store = request.registry.workspaces.receive
                await asyncio.to_thread(store, adapter, path, f"sha256:{oid}", size)
            finally:
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(path.unlink)
        return json_answer({})

    @asynccontextmanager
    async def _receiving(self) -> AsyncGenerator[None, None]:
        if not self._free:
            raise ExhaustedError("too many uploads at once: try again", reason="TOO_MANY_UPLOADS", retry_after_s=5.0)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


_REFUSED: Mapping[str, str] = {
    "move": "an adapter keeps its name: push its versions under the other one (`weft pull`, `weft push`)",
    "settings": "a repository here has no settings: who may read and write is said by tokens (`weft token create`)",
    "super-squash": "a branch here has no history that could be squashed",
    "pull-request": "there are no discussions and no pull requests here: commit to a branch",
    "duplicate": "files are copied by committing them",
}


def _git_oid(registry: EmbeddedRegistry, digest: str, size_bytes: int) -> str | None:
    if size_bytes > artifact.MAX_CONFIG_BYTES * 512:
        return None  # Sending it again takes less than a client would wait here.
    sha1 = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    for chunk in registry.read_blob(digest):
        sha1.update(chunk)
    return sha1.hexdigest()
