import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from weft.v1 import adapter_pb2 as _adapter_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FindMissingBlobsRequest(_message.Message):
    __slots__ = ("digests", "adapter")
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    adapter: str
    def __init__(self, digests: _Optional[_Iterable[str]] = ..., adapter: _Optional[str] = ...) -> None: ...

class FindMissingBlobsResponse(_message.Message):
    __slots__ = ("missing_digests",)
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    missing_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, missing_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class StartUploadRequest(_message.Message):
    __slots__ = ("digest", "size_bytes", "adapter")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    adapter: str
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., adapter: _Optional[str] = ...) -> None: ...

class StartUploadResponse(_message.Message):
    __slots__ = ("upload_id", "committed_size_bytes", "complete")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    committed_size_bytes: int
    complete: bool
    def __init__(self, upload_id: _Optional[str] = ..., committed_size_bytes: _Optional[int] = ..., complete: bool = ...) -> None: ...

class WriteUploadRequest(_message.Message):
    __slots__ = ("upload_id", "offset_bytes", "chunk", "finish")
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    offset_bytes: int
    chunk: bytes
    finish: bool
    def __init__(self, upload_id: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., chunk: _Optional[bytes] = ..., finish: bool = ...) -> None: ...

class WriteUploadResponse(_message.Message):
    __slots__ = ("committed_size_bytes", "complete")
    COMMITTED_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    committed_size_bytes: int
    complete: bool
    def __init__(self, committed_size_bytes: _Optional[int] = ..., complete: bool = ...) -> None: ...

class QueryUploadRequest(_message.Message):
    __slots__ = ("upload_id",)
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    upload_id: str
    def __init__(self, upload_id: _Optional[str] = ...) -> None: ...

class QueryUploadResponse(_message.Message):
    __slots__ = ("committed_size_bytes", "size_bytes")
    COMMITTED_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    committed_size_bytes: int
    size_bytes: int
    def __init__(self, committed_size_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("adapter", "manifest_json", "tags", "aliases", "request_id")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    manifest_json: bytes
    tags: _containers.RepeatedScalarFieldContainer[str]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    request_id: str
    def __init__(self, adapter: _Optional[str] = ..., manifest_json: _Optional[bytes] = ..., tags: _Optional[_Iterable[str]] = ..., aliases: _Optional[_Iterable[str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class PublishResponse(_message.Message):
    __slots__ = ("version", "existing")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXISTING_FIELD_NUMBER: _ClassVar[int]
    version: _adapter_pb2.AdapterVersion
    existing: bool
    def __init__(self, version: _Optional[_Union[_adapter_pb2.AdapterVersion, _Mapping]] = ..., existing: bool = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: _adapter_pb2.AdapterVersion
    def __init__(self, version: _Optional[_Union[_adapter_pb2.AdapterVersion, _Mapping]] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("namespace", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class AdapterSummary(_message.Message):
    __slots__ = ("namespace", "name", "version_count", "latest")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_COUNT_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    version_count: int
    latest: _adapter_pb2.AdapterVersion
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., version_count: _Optional[int] = ..., latest: _Optional[_Union[_adapter_pb2.AdapterVersion, _Mapping]] = ...) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("adapters", "next_page_token")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[AdapterSummary]
    next_page_token: str
    def __init__(self, adapters: _Optional[_Iterable[_Union[AdapterSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("adapter", "page_size", "page_token", "include_yanked")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_YANKED_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    page_size: int
    page_token: str
    include_yanked: bool
    def __init__(self, adapter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., include_yanked: bool = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[_adapter_pb2.AdapterVersion]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[_adapter_pb2.AdapterVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReadBlobRequest(_message.Message):
    __slots__ = ("digest", "offset_bytes", "limit_bytes", "unverified")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNVERIFIED_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset_bytes: int
    limit_bytes: int
    unverified: bool
    def __init__(self, digest: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., unverified: bool = ...) -> None: ...

class ReadBlobResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("adapter", "alias", "target", "expected_etag")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ETAG_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    target: str
    expected_etag: str
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ..., target: _Optional[str] = ..., expected_etag: _Optional[str] = ...) -> None: ...

class SetAliasResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class Alias(_message.Message):
    __slots__ = ("name", "version_digest", "etag", "moved_at", "previous_version_digest", "protected")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    MOVED_AT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROTECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    version_digest: str
    etag: str
    moved_at: _timestamp_pb2.Timestamp
    previous_version_digest: str
    protected: bool
    def __init__(self, name: _Optional[str] = ..., version_digest: _Optional[str] = ..., etag: _Optional[str] = ..., moved_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., previous_version_digest: _Optional[str] = ..., protected: bool = ...) -> None: ...

class YankRequest(_message.Message):
    __slots__ = ("reference", "reason")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    reference: str
    reason: str
    def __init__(self, reference: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class YankResponse(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: _adapter_pb2.AdapterVersion
    def __init__(self, version: _Optional[_Union[_adapter_pb2.AdapterVersion, _Mapping]] = ...) -> None: ...

class VerifyVersionRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class VerifyVersionResponse(_message.Message):
    __slots__ = ("version_digest", "checked_files", "checked_bytes", "problems")
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FILES_FIELD_NUMBER: _ClassVar[int]
    CHECKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    version_digest: str
    checked_files: int
    checked_bytes: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version_digest: _Optional[str] = ..., checked_files: _Optional[int] = ..., checked_bytes: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteAliasRequest(_message.Message):
    __slots__ = ("adapter", "alias", "expected_etag")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ETAG_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    expected_etag: str
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ..., expected_etag: _Optional[str] = ...) -> None: ...

class DeleteAliasResponse(_message.Message):
    __slots__ = ("version_digest",)
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    version_digest: str
    def __init__(self, version_digest: _Optional[str] = ...) -> None: ...

class RollbackAliasRequest(_message.Message):
    __slots__ = ("adapter", "alias", "expected_etag", "steps")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ETAG_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    expected_etag: str
    steps: int
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ..., expected_etag: _Optional[str] = ..., steps: _Optional[int] = ...) -> None: ...

class RollbackAliasResponse(_message.Message):
    __slots__ = ("alias",)
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    alias: Alias
    def __init__(self, alias: _Optional[_Union[Alias, _Mapping]] = ...) -> None: ...

class AliasMove(_message.Message):
    __slots__ = ("sequence", "adapter", "alias", "version_digest", "previous_version_digest", "etag", "moved_at", "actor")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    MOVED_AT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    adapter: str
    alias: str
    version_digest: str
    previous_version_digest: str
    etag: str
    moved_at: _timestamp_pb2.Timestamp
    actor: str
    def __init__(self, sequence: _Optional[int] = ..., adapter: _Optional[str] = ..., alias: _Optional[str] = ..., version_digest: _Optional[str] = ..., previous_version_digest: _Optional[str] = ..., etag: _Optional[str] = ..., moved_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ...) -> None: ...

class ListAliasMovesRequest(_message.Message):
    __slots__ = ("adapter", "alias", "page_size", "page_token")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    alias: str
    page_size: int
    page_token: str
    def __init__(self, adapter: _Optional[str] = ..., alias: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAliasMovesResponse(_message.Message):
    __slots__ = ("moves", "next_page_token")
    MOVES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    moves: _containers.RepeatedCompositeFieldContainer[AliasMove]
    next_page_token: str
    def __init__(self, moves: _Optional[_Iterable[_Union[AliasMove, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchAliasesRequest(_message.Message):
    __slots__ = ("adapters", "after")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    after: int
    def __init__(self, adapters: _Optional[_Iterable[str]] = ..., after: _Optional[int] = ...) -> None: ...

class WatchAliasesResponse(_message.Message):
    __slots__ = ("move", "sequence")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    move: AliasMove
    sequence: int
    def __init__(self, move: _Optional[_Union[AliasMove, _Mapping]] = ..., sequence: _Optional[int] = ...) -> None: ...

class DeleteVersionRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class DeleteVersionResponse(_message.Message):
    __slots__ = ("version_digest", "freed_bytes")
    VERSION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    version_digest: str
    freed_bytes: int
    def __init__(self, version_digest: _Optional[str] = ..., freed_bytes: _Optional[int] = ...) -> None: ...

class SearchVersionsRequest(_message.Message):
    __slots__ = ("namespace", "kind", "base", "label", "conditions", "parent_digest", "published_after", "published_before", "order_by", "all_versions", "page_size", "page_token")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AFTER_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    ALL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    kind: str
    base: str
    label: str
    conditions: _containers.RepeatedScalarFieldContainer[str]
    parent_digest: str
    published_after: _timestamp_pb2.Timestamp
    published_before: _timestamp_pb2.Timestamp
    order_by: str
    all_versions: bool
    page_size: int
    page_token: str
    def __init__(self, namespace: _Optional[str] = ..., kind: _Optional[str] = ..., base: _Optional[str] = ..., label: _Optional[str] = ..., conditions: _Optional[_Iterable[str]] = ..., parent_digest: _Optional[str] = ..., published_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., published_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., order_by: _Optional[str] = ..., all_versions: bool = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class SearchVersionsResponse(_message.Message):
    __slots__ = ("versions", "next_page_token")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[_adapter_pb2.AdapterVersion]
    next_page_token: str
    def __init__(self, versions: _Optional[_Iterable[_Union[_adapter_pb2.AdapterVersion, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("key_digest", "bundle", "added_at", "added_by")
    KEY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ADDED_AT_FIELD_NUMBER: _ClassVar[int]
    ADDED_BY_FIELD_NUMBER: _ClassVar[int]
    key_digest: str
    bundle: bytes
    added_at: _timestamp_pb2.Timestamp
    added_by: str
    def __init__(self, key_digest: _Optional[str] = ..., bundle: _Optional[bytes] = ..., added_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., added_by: _Optional[str] = ...) -> None: ...

class PutSignatureRequest(_message.Message):
    __slots__ = ("reference", "key_digest", "bundle")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    KEY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    key_digest: str
    bundle: bytes
    def __init__(self, reference: _Optional[str] = ..., key_digest: _Optional[str] = ..., bundle: _Optional[bytes] = ...) -> None: ...

class PutSignatureResponse(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: Signature
    def __init__(self, signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class ListSignaturesRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class ListSignaturesResponse(_message.Message):
    __slots__ = ("signatures",)
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    signatures: _containers.RepeatedCompositeFieldContainer[Signature]
    def __init__(self, signatures: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ...) -> None: ...

class WhoAmIRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WhoAmIResponse(_message.Message):
    __slots__ = ("name", "scopes", "namespaces", "expires_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    NAMESPACES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    namespaces: _containers.RepeatedScalarFieldContainer[str]
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., namespaces: _Optional[_Iterable[str]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
