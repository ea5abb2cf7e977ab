"""A place in an object store (S3, GCS, Azure): what can go wrong there in our words, and patience with what passes.

Credentials are those that the providers' own tools take from the environment. Knows nothing of blobs and digests.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from weft_registry.errors import ConflictError, InvalidInputError, PreconditionError, UnavailableError, WeftError
from weft_registry.passwords import masked

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

SCHEMES = ("s3", "gs", "az")
_SECRETS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or AWS_ENDPOINT_URL for a server of your own",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the path of a service account's key",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_STATUS = re.compile(r"status code: ([0-9]{3})")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)
_INSTANCE_METADATA = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0


@dataclass(frozen=True)
class Patience:
    """How long an object store is waited for."""

    connect_s: float = 5.0
    idle_s: float = 30.0
    """For an answer, or the next bytes of one. A part of 8 MiB must have gone up in this time."""
    failing_s: float = 30.0
    """For a request to succeed that fails in a way that may pass, with exponential backoff and jitter in between."""


class Bucket:
    """Owns the connection to one prefix of one bucket. Thread-safe."""

    def __init__(self, store: ObjectStore, where: str, patience: Patience | None = None) -> None:
        self.store = store
        self.where = where
        self._patience = patience or Patience()
        self._reached = False

    @classmethod
    def at(cls, url: str, patience: Patience | None = None) -> Bucket:
        """The place that `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix` names.

        Sends nothing yet. Raises `InvalidInputError` for a URL that is none, `PreconditionError` for credentials that
        cannot be used.
        """
        patience = patience or Patience()
        scheme = check_url(url)
        endpoints = {name: os.environ[name] for name in _ENDPOINTS if os.environ.get(name)}
        for name, endpoint in endpoints.items():
            if not re.match(r"https?://[^/]", endpoint):
                raise PreconditionError(
                    f"{name}: {masked(endpoint)} is no endpoint: say http://HOST:PORT or https://HOST",
                    reason="BLOBS_ENDPOINT",
                )
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=patience.connect_s),
            "read_timeout": timedelta(seconds=patience.idle_s),
            # The whole of a large file may take as long as it takes.
            "timeout": timedelta(days=1),
            # What an operator asked for by an http:// endpoint, and nobody gets by default.
            "allow_http": any(endpoint.startswith("http://") for endpoint in endpoints.values()),
        }
        retries: RetryConfig = {
            "max_retries": 3,
            "retry_timeout": timedelta(seconds=patience.failing_s),
            "backoff": {"init_backoff": timedelta(seconds=_FIRST_WAIT_S), "max_backoff": timedelta(seconds=1)},
        }
        try:
            store: ObjectStore
            if scheme == "s3":
                store = S3Store.from_url(url, client_options=client, retry_config=retries)
            elif scheme == "gs":
                store = GCSStore.from_url(url, client_options=client, retry_config=retries)
            else:
                store = AzureStore.from_url(url, client_options=client, retry_config=retries)
        except (BaseError, ValueError, OSError) as error:
            raise PreconditionError(
                f"blobs {url}: {_said(error)}: set {_SECRETS[scheme]}", reason="BLOBS_CREDENTIALS"
            ) from error
        return cls(store, url, patience)

    def reach(self) -> None:
        """Asks whether the bucket is there and may be listed. Raises as `call`."""
        self._call(lambda: next(obstore.list(self.store, chunk_size=1), None))
        self._reached = True

    def call(self, operation: Callable[[], T]) -> T:
        """What `operation` returns. It is tried again after failures that may pass, so it must be safe to repeat.

        Raises `UnavailableError` when it went on failing, `PreconditionError` for what only an operator can change;
        `FileNotFoundError` if the object is not there.
        """
        # A bucket that is not there answers as an object that is not there does: find out before anyone believes it.
        if not self._reached:
            self.reach()
        return self._call(operation)

    def _call(self, operation: Callable[[], T]) -> T:
        deadline, wait_s = time.monotonic() + self._patience.failing_s, _FIRST_WAIT_S
        while True:
            try:
                return operation()
            except UnavailableError as error:
                failure: WeftError = error
            except BaseError as error:
                failure = self._failure(error)
                failure.__cause__ = error
            if not isinstance(failure, UnavailableError) or time.monotonic() + wait_s > deadline:
                raise failure
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def unreachable(self, said: str) -> UnavailableError:
        """A failure that may pass."""
        return UnavailableError(
            f"no usable answer from {self.where} ({said}); nothing half done is kept: try again",
            reason="BLOBS_UNREACHABLE",
            retry_after_s=5.0,
        )

    def _failure(self, error: BaseError) -> WeftError:
        """What a caller should hear of `error`."""
        said, whole = _said(error), str(error)
        match = _STATUS.search(whole)
        status = int(match[1]) if match else 0
        secrets = _SECRETS.get(self.where.partition(":")[0], "the credentials")
        if any(host in said for host in _INSTANCE_METADATA):
            return PreconditionError(
                f"no credentials for {self.where}, and this machine has no role of its own: set {secrets}",
                reason="BLOBS_CREDENTIALS",
            )
        if status == 412:
            return ConflictError(f"{self.where}: an object was replaced while it was read: read it again ({said})")
        if _NO_BUCKET.search(whole) or status == 404:
            return PreconditionError(
                f"{self.where}: there is no such bucket ({said}): create it, or name another", reason="BLOBS_NO_BUCKET"
            )
        if status in (401, 403):
            return PreconditionError(
                f"{self.where} refuses these credentials ({said}): set {secrets}, and let them list, read, write and "
                "delete there",
                reason="BLOBS_CREDENTIALS",
            )
        if status and status < 500 and status not in (408, 425, 429):
            return PreconditionError(f"{self.where} refuses a request ({said})", reason="BLOBS_REFUSED")
        return self.unreachable(said)


def check_url(url: str) -> str:
    """The scheme of a URL that names a bucket. Raises `InvalidInputError`."""
    match = re.fullmatch(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]*)(/[^?#]*)?", url)
    if match is None:
        raise InvalidInputError(
            f"blobs: {masked(url)} is no place for blobs: say s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
            "az://CONTAINER/PREFIX or file:///DIRECTORY"
        )
    return match[1]


def _said(error: Exception) -> str:
    """The library's message without its Debug dump, and an XML answer's code and message instead of its XML."""
    text = str(error).partition("Debug source")[0]
    code = re.search(r"<Code>([^<]{1,80})</Code>", text)
    message = re.search(r"<Message>([^<]{1,300})</Message>", text)
    text = re.sub(r"<\?xml.*|<[A-Za-z!].*", "", text, flags=re.DOTALL)
    found = [" ".join(text.split()).rstrip(": ")[:400], *(part[1] for part in (code, message) if part)]
    return ", ".join(part for part in found if part)
