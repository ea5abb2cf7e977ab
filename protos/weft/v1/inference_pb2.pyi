import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_EOS_TOKEN: _ClassVar[FinishReason]
    FINISH_REASON_STOP_SEQUENCE: _ClassVar[FinishReason]
    FINISH_REASON_TIME_LIMIT: _ClassVar[FinishReason]

class AdapterTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADAPTER_TIER_UNSPECIFIED: _ClassVar[AdapterTier]
    ADAPTER_TIER_DEVICE: _ClassVar[AdapterTier]
    ADAPTER_TIER_HOST: _ClassVar[AdapterTier]
    ADAPTER_TIER_DISK: _ClassVar[AdapterTier]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_EOS_TOKEN: FinishReason
FINISH_REASON_STOP_SEQUENCE: FinishReason
FINISH_REASON_TIME_LIMIT: FinishReason
ADAPTER_TIER_UNSPECIFIED: AdapterTier
ADAPTER_TIER_DEVICE: AdapterTier
ADAPTER_TIER_HOST: AdapterTier
ADAPTER_TIER_DISK: AdapterTier

class GenerateRequest(_message.Message):
    __slots__ = ("adapter_id", "adapters", "prompt", "messages", "token_ids", "sampling", "stopping", "logprobs")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    adapters: _containers.RepeatedCompositeFieldContainer[WeightedAdapter]
    prompt: str
    messages: ChatMessages
    token_ids: TokenIds
    sampling: Sampling
    stopping: Stopping
    logprobs: int
    def __init__(self, adapter_id: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[WeightedAdapter, _Mapping]]] = ..., prompt: _Optional[str] = ..., messages: _Optional[_Union[ChatMessages, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stopping: _Optional[_Union[Stopping, _Mapping]] = ..., logprobs: _Optional[int] = ...) -> None: ...

class WeightedAdapter(_message.Message):
    __slots__ = ("adapter_id", "weight")
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    adapter_id: str
    weight: float
    def __init__(self, adapter_id: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class Stopping(_message.Message):
    __slots__ = ("max_new_tokens", "min_new_tokens", "stop_sequences", "include_stop_sequence", "ignore_eos", "time_limit")
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    max_new_tokens: int
    min_new_tokens: int
    stop_sequences: _containers.RepeatedScalarFieldContainer[str]
    include_stop_sequence: bool
    ignore_eos: bool
    time_limit: _duration_pb2.Duration
    def __init__(self, max_new_tokens: _Optional[int] = ..., min_new_tokens: _Optional[int] = ..., stop_sequences: _Optional[_Iterable[str]] = ..., include_stop_sequence: bool = ..., ignore_eos: bool = ..., time_limit: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "text", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class PositionLogprobs(_message.Message):
    __slots__ = ("chosen", "top")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    chosen: TokenLogprob
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, chosen: _Optional[_Union[TokenLogprob, _Mapping]] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "summary")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[PositionLogprobs]
    summary: GenerateSummary
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[PositionLogprobs, _Mapping]]] = ..., summary: _Optional[_Union[GenerateSummary, _Mapping]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "summary")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[PositionLogprobs]
    summary: GenerateSummary
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[PositionLogprobs, _Mapping]]] = ..., summary: _Optional[_Union[GenerateSummary, _Mapping]] = ...) -> None: ...

class GenerateSummary(_message.Message):
    __slots__ = ("finish_reason", "stop_sequence", "input_token_count", "generated_token_count", "cached_token_count", "adapter_digest", "part_digests")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PART_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    finish_reason: FinishReason
    stop_sequence: str
    input_token_count: int
    generated_token_count: int
    cached_token_count: int
    adapter_digest: str
    part_digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, finish_reason: _Optional[_Union[FinishReason, str]] = ..., stop_sequence: _Optional[str] = ..., input_token_count: _Optional[int] = ..., generated_token_count: _Optional[int] = ..., cached_token_count: _Optional[int] = ..., adapter_digest: _Optional[str] = ..., part_digests: _Optional[_Iterable[str]] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("base_name", "base_json", "context_length", "vocabulary_size", "max_batch_size", "engine", "device", "dtype", "kinds", "mergeable_kinds", "server_version")
    BASE_NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_JSON_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    MERGEABLE_KINDS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    base_name: str
    base_json: bytes
    context_length: int
    vocabulary_size: int
    max_batch_size: int
    engine: str
    device: str
    dtype: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    mergeable_kinds: _containers.RepeatedScalarFieldContainer[str]
    server_version: str
    def __init__(self, base_name: _Optional[str] = ..., base_json: _Optional[bytes] = ..., context_length: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., mergeable_kinds: _Optional[_Iterable[str]] = ..., server_version: _Optional[str] = ...) -> None: ...

class ResidentAdapter(_message.Message):
    __slots__ = ("reference", "digest", "kind", "resident_bytes", "lease_count", "merged", "requests_served", "idle", "hot", "tier", "quarantined", "reload_problem", "generated_tokens")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_SERVED_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    HOT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    RELOAD_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    digest: str
    kind: str
    resident_bytes: int
    lease_count: int
    merged: bool
    requests_served: int
    idle: _duration_pb2.Duration
    hot: bool
    tier: AdapterTier
    quarantined: str
    reload_problem: str
    generated_tokens: int
    def __init__(self, reference: _Optional[str] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., resident_bytes: _Optional[int] = ..., lease_count: _Optional[int] = ..., merged: bool = ..., requests_served: _Optional[int] = ..., idle: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hot: bool = ..., tier: _Optional[_Union[AdapterTier, str]] = ..., quarantined: _Optional[str] = ..., reload_problem: _Optional[str] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class ListResidentRequest(_message.Message):
    __slots__ = ("include_disk",)
    INCLUDE_DISK_FIELD_NUMBER: _ClassVar[int]
    include_disk: bool
    def __init__(self, include_disk: bool = ...) -> None: ...

class ListResidentResponse(_message.Message):
    __slots__ = ("adapters", "resident_bytes", "limit_bytes", "overlay_bytes", "overlay_limit_bytes", "disk_bytes", "disk_limit_bytes", "generated_tokens")
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    adapters: _containers.RepeatedCompositeFieldContainer[ResidentAdapter]
    resident_bytes: int
    limit_bytes: int
    overlay_bytes: int
    overlay_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    generated_tokens: int
    def __init__(self, adapters: _Optional[_Iterable[_Union[ResidentAdapter, _Mapping]]] = ..., resident_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., overlay_bytes: _Optional[int] = ..., overlay_limit_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_limit_bytes: _Optional[int] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("adapter",)
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    adapter: ResidentAdapter
    def __init__(self, adapter: _Optional[_Union[ResidentAdapter, _Mapping]] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class UnloadResponse(_message.Message):
    __slots__ = ("freed_bytes",)
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    def __init__(self, freed_bytes: _Optional[int] = ...) -> None: ...

class MergeRequest(_message.Message):
    __slots__ = ("reference",)
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    def __init__(self, reference: _Optional[str] = ...) -> None: ...

class MergeResponse(_message.Message):
    __slots__ = ("adapter_digest", "overlay_bytes", "build_time", "switch_time", "hot", "switch_steps")
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUILD_TIME_FIELD_NUMBER: _ClassVar[int]
    SWITCH_TIME_FIELD_NUMBER: _ClassVar[int]
    HOT_FIELD_NUMBER: _ClassVar[int]
    SWITCH_STEPS_FIELD_NUMBER: _ClassVar[int]
    adapter_digest: str
    overlay_bytes: int
    build_time: _duration_pb2.Duration
    switch_time: _duration_pb2.Duration
    hot: bool
    switch_steps: int
    def __init__(self, adapter_digest: _Optional[str] = ..., overlay_bytes: _Optional[int] = ..., build_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., switch_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., hot: bool = ..., switch_steps: _Optional[int] = ...) -> None: ...

class UnmergeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnmergeResponse(_message.Message):
    __slots__ = ("adapter_digest", "switch_time")
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SWITCH_TIME_FIELD_NUMBER: _ClassVar[int]
    adapter_digest: str
    switch_time: _duration_pb2.Duration
    def __init__(self, adapter_digest: _Optional[str] = ..., switch_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("started_at", "uptime", "requests", "engine", "key_values", "residency", "merging", "memory", "adapter_tokens")
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUES_FIELD_NUMBER: _ClassVar[int]
    RESIDENCY_FIELD_NUMBER: _ClassVar[int]
    MERGING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    started_at: _timestamp_pb2.Timestamp
    uptime: _duration_pb2.Duration
    requests: RequestStats
    engine: EngineStats
    key_values: KeyValueStats
    residency: ResidencyStats
    merging: MergeStats
    memory: MemoryStats
    adapter_tokens: _containers.RepeatedCompositeFieldContainer[AdapterTokens]
    def __init__(self, started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uptime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., requests: _Optional[_Union[RequestStats, _Mapping]] = ..., engine: _Optional[_Union[EngineStats, _Mapping]] = ..., key_values: _Optional[_Union[KeyValueStats, _Mapping]] = ..., residency: _Optional[_Union[ResidencyStats, _Mapping]] = ..., merging: _Optional[_Union[MergeStats, _Mapping]] = ..., memory: _Optional[_Union[MemoryStats, _Mapping]] = ..., adapter_tokens: _Optional[_Iterable[_Union[AdapterTokens, _Mapping]]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("upper_bounds", "counts", "sum")
    UPPER_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    upper_bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, upper_bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class RequestStats(_message.Message):
    __slots__ = ("ended", "in_flight", "duration_seconds", "time_to_first_token_seconds", "inter_token_seconds", "queue_seconds")
    class CodeCount(_message.Message):
        __slots__ = ("code", "count")
        CODE_FIELD_NUMBER: _ClassVar[int]
        COUNT_FIELD_NUMBER: _ClassVar[int]
        code: str
        count: int
        def __init__(self, code: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...
    ENDED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INTER_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ended: _containers.RepeatedCompositeFieldContainer[RequestStats.CodeCount]
    in_flight: int
    duration_seconds: Histogram
    time_to_first_token_seconds: Histogram
    inter_token_seconds: Histogram
    queue_seconds: Histogram
    def __init__(self, ended: _Optional[_Iterable[_Union[RequestStats.CodeCount, _Mapping]]] = ..., in_flight: _Optional[int] = ..., duration_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., time_to_first_token_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., inter_token_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., queue_seconds: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class EngineStats(_message.Message):
    __slots__ = ("steps", "prompt_tokens", "cached_tokens", "generated_tokens", "preemptions", "finished", "failed", "cancelled", "running", "waiting", "active_adapters", "step_seconds", "step_rows")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_ROWS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    finished: int
    failed: int
    cancelled: int
    running: int
    waiting: int
    active_adapters: int
    step_seconds: Histogram
    step_rows: Histogram
    def __init__(self, steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., finished: _Optional[int] = ..., failed: _Optional[int] = ..., cancelled: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., active_adapters: _Optional[int] = ..., step_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., step_rows: _Optional[_Union[Histogram, _Mapping]] = ...) -> None: ...

class KeyValueStats(_message.Message):
    __slots__ = ("total_blocks", "used_blocks", "cached_blocks", "block_bytes", "prefix_hit_tokens", "prefix_miss_tokens")
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_MISS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    total_blocks: int
    used_blocks: int
    cached_blocks: int
    block_bytes: int
    prefix_hit_tokens: int
    prefix_miss_tokens: int
    def __init__(self, total_blocks: _Optional[int] = ..., used_blocks: _Optional[int] = ..., cached_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ..., prefix_miss_tokens: _Optional[int] = ...) -> None: ...

class ResidencyStats(_message.Message):
    __slots__ = ("tiers", "loads", "load_failures", "load_seconds", "evictions", "reloads", "quarantined")
    class TierCount(_message.Message):
        __slots__ = ("tier", "adapters", "bytes")
        TIER_FIELD_NUMBER: _ClassVar[int]
        ADAPTERS_FIELD_NUMBER: _ClassVar[int]
        BYTES_FIELD_NUMBER: _ClassVar[int]
        tier: AdapterTier
        adapters: int
        bytes: int
        def __init__(self, tier: _Optional[_Union[AdapterTier, str]] = ..., adapters: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
    TIERS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FAILURES_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    RELOADS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[ResidencyStats.TierCount]
    loads: int
    load_failures: int
    load_seconds: Histogram
    evictions: int
    reloads: int
    quarantined: int
    def __init__(self, tiers: _Optional[_Iterable[_Union[ResidencyStats.TierCount, _Mapping]]] = ..., loads: _Optional[int] = ..., load_failures: _Optional[int] = ..., load_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., evictions: _Optional[int] = ..., reloads: _Optional[int] = ..., quarantined: _Optional[int] = ...) -> None: ...

class MergeStats(_message.Message):
    __slots__ = ("merges", "unmerges", "switches", "build_seconds", "switch_seconds", "overlays", "merged_digest")
    MERGES_FIELD_NUMBER: _ClassVar[int]
    UNMERGES_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    BUILD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SWITCH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OVERLAYS_FIELD_NUMBER: _ClassVar[int]
    MERGED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    merges: int
    unmerges: int
    switches: int
    build_seconds: Histogram
    switch_seconds: Histogram
    overlays: int
    merged_digest: str
    def __init__(self, merges: _Optional[int] = ..., unmerges: _Optional[int] = ..., switches: _Optional[int] = ..., build_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., switch_seconds: _Optional[_Union[Histogram, _Mapping]] = ..., overlays: _Optional[int] = ..., merged_digest: _Optional[str] = ...) -> None: ...

class MemoryStats(_message.Message):
    __slots__ = ("base_bytes", "key_value_used_bytes", "key_value_limit_bytes", "adapter_bytes", "adapter_limit_bytes", "pack_bytes", "overlay_bytes", "overlay_limit_bytes", "disk_bytes", "disk_limit_bytes")
    BASE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PACK_BYTES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    base_bytes: int
    key_value_used_bytes: int
    key_value_limit_bytes: int
    adapter_bytes: int
    adapter_limit_bytes: int
    pack_bytes: int
    overlay_bytes: int
    overlay_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    def __init__(self, base_bytes: _Optional[int] = ..., key_value_used_bytes: _Optional[int] = ..., key_value_limit_bytes: _Optional[int] = ..., adapter_bytes: _Optional[int] = ..., adapter_limit_bytes: _Optional[int] = ..., pack_bytes: _Optional[int] = ..., overlay_bytes: _Optional[int] = ..., overlay_limit_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_limit_bytes: _Optional[int] = ...) -> None: ...

class AdapterTokens(_message.Message):
    __slots__ = ("adapter", "digest", "generated_tokens")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    digest: str
    generated_tokens: int
    def __init__(self, adapter: _Optional[str] = ..., digest: _Optional[str] = ..., generated_tokens: _Optional[int] = ...) -> None: ...
