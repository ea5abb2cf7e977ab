"""A registry at the other end of a gRPC channel. Implements `weft_registry.api.RegistryApi`; errors arrive as ours.

Calls that may be repeated are, a few times, when the registry cannot be reached; broken transfers go on where they
broke.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc

from weft.v1 import registry_pb2 as pb
from weft.v1 import registry_pb2_grpc
from weft_registry.api import (
    AdapterSummary,
    Deleted,
    Identity,
    Progress,
    Published,
    Signature,
    VerifyReport,
    Version,
    VersionQuery,
)
from weft_registry.errors import NotFoundError, OffsetError, UnavailableError, WeftError
from weft_registry.reference import AdapterName
from weft_registry.remote.aliases import RemoteAliases
from weft_registry.remote.staleness import HearsStaleness
from weft_registry.wire.channel import open_channel
from weft_registry.wire.chunks import ChunkCalls, UploadPiece
from weft_registry.wire.login import token_for
from weft_registry.wire.messages import (
    MAX_CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    identity_from,
    query_message,
    signature_from,
    summary_from,
    version_from,
)
from weft_registry.wire.status import from_rpc_error

ATTEMPTS = 5
"""How often a call is tried, or a transfer is resumed without a byte of progress."""
MAX_DELAY_S = 2.0
TIMEOUT_S = 60.0
"""Of a short call."""
TRANSFER_TIMEOUT_S = 3600.0
"""Of a call that reads or hashes whole files."""
_FIND_AT_ONCE = 500
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished is noticed in the middle of a long call, not at its deadline.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # One that is back is noticed within seconds, however long it was away.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Registries on this machine are reached directly, whatever proxy the environment names.
    ("grpc.enable_http_proxy", 0),
]

T = TypeVar("T")


class RemoteRegistry(RemoteAliases):
    """Owns one channel to `target` ("HOST:PORT", or "grpcs://HOST:PORT" over TLS). Thread-safe."""

    def __init__(
        self,
        target: str,
        timeout_s: float = TIMEOUT_S,
        transfer_timeout_s: float = TRANSFER_TIMEOUT_S,
        token: str | None = None,
    ) -> None:
        """`timeout_s` bounds each short call, `transfer_timeout_s` whatever reads or hashes whole files.

        Without a `token`, WEFT_TOKEN or what `weft login` stored for `target`. Raises as `token_for` and
        `open_channel`.
        """
        self.target = target
        self._timeout_s = timeout_s
        self._transfer_timeout_s = transfer_timeout_s
        self._heard = HearsStaleness()
        self._channel = grpc.intercept_channel(open_channel(target, _OPTIONS, token_for(target, token)), self._heard)
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        self._chunks = ChunkCalls(self._channel)

    def find_missing(self, digests: Sequence[str], adapter: AdapterName | None = None) -> list[str]:
        """See `RegistryApi.find_missing`."""
        name = str(adapter or "")
        missing: list[str] = []
        for start in range(0, len(digests), _FIND_AT_ONCE):
            request = pb.FindMissingBlobsRequest(digests=digests[start : start + _FIND_AT_ONCE], adapter=name)
            answer = self._retried(partial(self._stub.FindMissingBlobs, request, timeout=self._timeout_s))
            missing += answer.missing_digests
        return missing

    def upload(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        progress: Progress | None = None,
        adapter: AdapterName | None = None,
    ) -> None:
        """See `RegistryApi.upload`. Goes on from what the registry has committed, after every break.

        Raises `CorruptionError` if the file does not have the digest.
        """
        reported, best, failures = 0, -1, 0
        wanted = pb.StartUploadRequest(digest=digest, size_bytes=size_bytes, adapter=str(adapter or ""))

        def report(done: int) -> None:
            nonlocal reported
            if progress and done > reported:
                progress(done - reported)
            reported = max(reported, done)

        while True:
            start = self._retried(lambda: self._stub.StartUpload(wanted, timeout=self._timeout_s))
            if start.complete:
                report(size_bytes)
                return
            if start.committed_size_bytes > best:
                best, failures = start.committed_size_bytes, 0
            report(start.committed_size_bytes)
            try:
                with self._errors():
                    requests = _upload_requests(path, start.upload_id, start.committed_size_bytes, report)
                    self._chunks.write_upload(requests, timeout=self._transfer_timeout_s)
                return
            except (UnavailableError, OffsetError, NotFoundError) as error:
                # Broken off; or another sender of the same bytes is ahead, or has finished: look again.
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                _pause(failures, error)

    def publish(
        self,
        adapter: AdapterName,
        manifest_bytes: bytes,
        *,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        request_id: str = "",
    ) -> Published:
        """See `RegistryApi.publish`. Without a `request_id` one is made, so that a repeated call publishes once."""
        request = pb.PublishRequest(
            adapter=str(adapter),
            manifest_json=manifest_bytes,
            tags=tags,
            aliases=aliases,
            request_id=request_id or str(uuid.uuid4()),
        )
        answer = self._retried(lambda: self._stub.Publish(request, timeout=self._transfer_timeout_s))
        return Published(version_from(answer.version), answer.existing)

    def resolve(self, reference: str) -> Version:
        """See `RegistryApi.resolve`."""
        request = pb.ResolveRequest(reference=reference)
        return version_from(self._retried(lambda: self._stub.Resolve(request, timeout=self._timeout_s)).version)

    def list_adapters(self, namespace: str = "") -> list[AdapterSummary]:
        """See `RegistryApi.list_adapters`. Reads every page."""
        request = pb.ListAdaptersRequest(namespace=namespace)
        found: list[AdapterSummary] = []
        while True:
            answer = self._retried(lambda: self._stub.ListAdapters(request, timeout=self._timeout_s))
            found += [summary_from(summary) for summary in answer.adapters]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def list_versions(self, adapter: AdapterName, *, include_yanked: bool = False) -> list[Version]:
        """See `RegistryApi.list_versions`. Reads every page."""
        request = pb.ListVersionsRequest(adapter=str(adapter), include_yanked=include_yanked)
        found: list[Version] = []
        while True:
            answer = self._retried(lambda: self._stub.ListVersions(request, timeout=self._timeout_s))
            found += [version_from(version) for version in answer.versions]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def read_blob(self, digest: str, offset: int = 0, limit: int = 0, *, unverified: bool = False) -> Iterator[bytes]:
        """See `RegistryApi.read_blob`. After a break it goes on with the next byte."""
        done, best, failures = 0, 0, 0
        while True:
            if limit and done == limit:
                return
            request = pb.ReadBlobRequest(
                digest=digest,
                offset_bytes=offset + done,
                limit_bytes=limit - done if limit else 0,
                unverified=unverified,
            )
            try:
                with self._errors():
                    for chunk in self._chunks.read_blob(request, timeout=self._transfer_timeout_s):
                        done += len(chunk)
                        yield chunk
                return
            except UnavailableError as error:
                failures = 1 if done > best else failures + 1
                best = done
                if failures >= ATTEMPTS:
                    raise
                _pause(failures, error)

    def yank(self, reference: str, reason: str = "") -> Version:
        """See `RegistryApi.yank`."""
        request = pb.YankRequest(reference=reference, reason=reason)
        return version_from(self._retried(lambda: self._stub.Yank(request, timeout=self._timeout_s)).version)

    def delete_version(self, reference: str) -> Deleted:
        """See `RegistryApi.delete_version`. Not repeated: one whose answer was lost would find nothing to delete."""
        request = pb.DeleteVersionRequest(reference=reference)
        answer = self._once(lambda: self._stub.DeleteVersion(request, timeout=self._timeout_s))
        return Deleted(answer.version_digest, answer.freed_bytes)

    def search_versions(self, query: VersionQuery) -> list[Version]:
        """See `RegistryApi.search_versions`. Reads every page."""
        request = query_message(query)
        found: list[Version] = []
        while True:
            answer = self._retried(lambda: self._stub.SearchVersions(request, timeout=self._timeout_s))
            found += [version_from(version) for version in answer.versions]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def put_signature(self, reference: str, key_digest: str, bundle: bytes) -> Signature:
        """See `RegistryApi.put_signature`."""
        request = pb.PutSignatureRequest(reference=reference, key_digest=key_digest, bundle=bundle)
        answer = self._retried(lambda: self._stub.PutSignature(request, timeout=self._timeout_s))
        return signature_from(answer.signature)

    def list_signatures(self, reference: str) -> list[Signature]:
        """See `RegistryApi.list_signatures`."""
        request = pb.ListSignaturesRequest(reference=reference)
        answer = self._retried(lambda: self._stub.ListSignatures(request, timeout=self._timeout_s))
        return [signature_from(signature) for signature in answer.signatures]

    def verify(self, reference: str) -> VerifyReport:
        """See `RegistryApi.verify`."""
        request = pb.VerifyVersionRequest(reference=reference)
        answer = self._retried(lambda: self._stub.VerifyVersion(request, timeout=self._transfer_timeout_s))
        return VerifyReport(answer.version_digest, answer.checked_files, answer.checked_bytes, tuple(answer.problems))

    def who_am_i(self) -> Identity:
        """See `RegistryApi.who_am_i`."""
        return identity_from(self._retried(lambda: self._stub.WhoAmI(pb.WhoAmIRequest(), timeout=self._timeout_s)))

    @property
    def stale_note(self) -> str | None:
        """See `RegistryApi.stale_note`."""
        return self._heard.note

    def close(self) -> None:
        """See `RegistryApi.close`."""
        self._channel.close()

    def _retried(self, call: Callable[[], T]) -> T:
        """Calls, again and later each time, while the registry is unavailable."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._errors():
                    return call()
            except UnavailableError as error:
                if attempt == ATTEMPTS:
                    raise
                _pause(attempt, error)
        raise AssertionError("unreachable: the last attempt returns or raises")

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Raises what the registry answered as the error it is."""
        try:
            yield
        except grpc.RpcError as error:
            raise answered_by(self.target, error) from error


def answered_by(target: str, error: grpc.RpcError) -> WeftError:
    """What the registry at `target` answered, or that nobody did."""
    known = from_rpc_error(error)
    # Without a reason of the server's own, nobody answered.
    if isinstance(known, UnavailableError) and known.reason == UnavailableError.default_reason:
        return UnavailableError(
            f"no registry answers at {target} ({known.message}); name another with --registry or WEFT_REGISTRY, or "
            "leave it out for the embedded one",
            reason="REGISTRY_UNREACHABLE",
            metadata={"target": target},
        )
    return known


def _upload_requests(path: Path, upload_id: str, offset: int, report: Progress) -> Iterator[UploadPiece]:
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(MAX_CHUNK_BYTES):
            yield UploadPiece(upload_id, offset, chunk, finish=False)
            offset += len(chunk)
            report(offset)
        yield UploadPiece(upload_id, offset, b"", finish=True)


def _pause(attempt: int, error: WeftError) -> None:
    """Waits: twice as long each time, with a random part so that many clients do not return together."""
    delay_s = error.retry_after_s if error.retry_after_s is not None else 0.1 * 2**attempt
    time.sleep(min(delay_s, MAX_DELAY_S) * random.uniform(0.75, 1.25))
