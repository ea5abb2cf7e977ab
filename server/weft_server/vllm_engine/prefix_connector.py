"""Prefix-tuning in vLLM: a KV connector that writes an adapter's keys and values where placeholders would be computed.

To vLLM the virtual tokens are tokens that somebody else has computed already. It allocates their slots, asks for them
to be filled before the step's forward pass, and computes from there: the first token of the text is at position P, and
attention sees the prefix as if it had always been in the cache. Nothing of a placeholder is ever computed. Whole blocks
are then cached and shared by vLLM's own rules; a tail of P that fills no block is written for each request.

Two objects of this class exist: one in the scheduler, which says what is to be written where, and one in every worker,
which writes it. Source: vLLM 0.32, vllm/distributed/kv_transfer/kv_connector/v1/base.py.

Legend: L layers, P virtual tokens, h this worker's key-value heads, D head size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)

from weft_registry.errors import InvalidInputError, PreconditionError, UnsupportedError, WeftError
from weft_server.vllm_engine.prefix_request import PrefixAdapter, read_request
from weft_server.vllm_engine.prefix_store import PrefixShape, PrefixStore, local_heads

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

_log = logging.getLogger(__name__)
_ROOT, _LIMIT = "weft_root", "weft_limit_bytes"


def kv_transfer_config(root: Path, limit_bytes: int) -> KVTransferConfig:
    """What vLLM's `kv_transfer_config` must be for prefix adapters.

    `root` is the directory that adapters' files are read from, and `limit_bytes` what every worker may keep in memory.
    """
    from vllm.config import KVTransferConfig

    return KVTransferConfig(
        kv_connector=PrefixConnector.__name__,
        kv_connector_module_path=__name__,
        # Of the roles the one that hands nothing on: a request that ends has nothing to wait for.
        kv_role="kv_consumer",
        kv_load_failure_policy="fail",
        kv_connector_extra_config={_ROOT: str(root), _LIMIT: limit_bytes},
    )


@dataclass(frozen=True)
class PrefixLoad:
    """What a step needs before its forward pass: the virtual tokens from `first` on, each in its slot of the cache."""

    request_id: str
    adapter: PrefixAdapter | None
    first: int
    slots: tuple[int, ...]
    blocks: frozenset[int]
    """The cache blocks of the slots: what is reported when nothing could be written."""
    problem: str = ""
    """Why the request is refused, when there is no adapter."""


@dataclass(frozen=True)
class PrefixMetadata(KVConnectorMetadata):  # type: ignore[misc]  # As below.
    """From the scheduler to the workers, one a step."""

    loads: tuple[PrefixLoad, ...]


class PrefixConnector(KVConnectorBase_V1):  # type: ignore[misc]  # vLLM is not there for mypy.
    """Requests with a prefix, in any mixture with requests without one.

    A request whose prefix cannot be written fails (finish reason "error", the cause in the log), and no other; so does
    one that asks for what a prefix cannot give. That goes through vLLM's own report of blocks that could not be loaded:
    a connector has no other way to refuse.
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Raises `UnsupportedError` for an engine in which the slots of a request are not in one place."""
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
        if transfer.kv_load_failure_policy != "fail":
            raise UnsupportedError(
                "prefix adapters: kv_load_failure_policy must be 'fail': to recompute a prefix would be to compute its "
                "placeholders as text"
            )
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise UnsupportedError(
                f"prefix adapters: this model's layers have {len(kv_cache_config.kv_cache_groups)} kinds of cache, "
                "each with blocks of its own; only models with one are served"
            )
        if parallel.decode_context_parallel_size != 1 or getattr(parallel, "prefill_context_parallel_size", 1) != 1:
            raise UnsupportedError("prefix adapters: context parallelism spreads a request's slots over workers")
        self._block_size = int(kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size)
        # The scheduler's half.
        self._loads: dict[str, PrefixLoad] = {}
        self._refused: dict[str, int] = {}
        """Of the requests that are to fail: how many of their tokens were in the cache."""
        # A worker's half.
        self._layers: list[tuple[int, Any]] = []
        self._failed: set[int] = set()
        self._store: PrefixStore | None = None

    # In the scheduler.

    def on_new_request(self, request: Request) -> None:
        """Lets a request that is to be refused get as far as its refusal.

        Requests that skip the cache (those for `prompt_logprobs` do) load nothing from a connector either, and would
        compute the placeholders as text.
        """
        if _read(request) is not None and request.skip_reading_prefix_cache:
            request.skip_reading_prefix_cache = False

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """How many virtual tokens are there beyond those found in the cache: need not be whole blocks."""
        wanted = _read(request)
        if wanted is None:
            return 0, False
        if isinstance(wanted, str):
            # One loaded token is what makes vLLM look at the report, and its block is nobody else's. Where there is no
            # room for one, the block before it is reported: a prompt of a single token has neither.
            self._refused[request.request_id] = num_computed_tokens
            return int(request.num_tokens > num_computed_tokens + 1), False
        return max(0, wanted.num_virtual_tokens - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Notes the slots of the virtual tokens that are to be written in the coming step."""
        wanted = _read(request)
        if wanted is None:
            return
        (block_ids,) = blocks.get_block_ids()
        if isinstance(wanted, str):
            at = max(0, self._refused.pop(request.request_id, 0) + num_external_tokens - 1) // self._block_size
            load = PrefixLoad(request.request_id, None, 0, (), frozenset(block_ids[at : at + 1]), wanted)
        elif num_external_tokens:
            end = wanted.num_virtual_tokens
            first = end - num_external_tokens
            places = [divmod(position, self._block_size) for position in range(first, end)]
            slots = tuple(block_ids[block] * self._block_size + offset for block, offset in places)
            load = PrefixLoad(
                request.request_id, wanted, first, slots, frozenset(block_ids[block] for block, _ in places)
            )
        else:
            return
        self._loads[request.request_id] = load

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> PrefixMetadata:
        """What the workers write in this step. A request that left the step again is not in it."""
        scheduled = scheduler_output.num_scheduled_tokens
        loads = tuple(load for load in self._loads.values() if load.request_id in scheduled)
        self._loads.clear()
        return PrefixMetadata(loads)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Nothing of it stays behind."""
        self._refused.pop(request.request_id, None)
        return False, None

    # In a worker.

    def register_kv_caches(self, kv_caches: dict[str, Tensor]) -> None:
        """Finds the attention layers. Raises `UnsupportedError` for one whose cache cannot be written from outside."""
        from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
        from vllm.model_executor.models.utils import extract_layer_index

        config, model = self._vllm_config, self._vllm_config.model_config
        num_layers = model.hf_text_config.num_hidden_layers
        heads = local_heads(
            model.get_total_num_kv_heads(), get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        )
        layers = config.compilation_config.static_forward_context
        # Layers beyond the model's are a draft model's: what it sees changes how often it is right, not the text.
        indexed = [(extract_layer_index(name), layers[name]) for name in kv_caches]
        self._layers = [(index, layer) for index, layer in indexed if index < num_layers]
        for index, layer in self._layers:
            if not hasattr(layer.impl, "do_kv_cache_update") or layer.num_kv_heads != len(heads):
                raise UnsupportedError(
                    f"prefix adapters: layer {index} ({type(layer.impl).__name__}, {layer.num_kv_heads} key-value "
                    "heads) has no cache that a prefix can be written to; choose another attention backend"
                )
        root = self._kv_transfer_config.get_from_extra_config(_ROOT, None)
        if root is None:
            raise InvalidInputError(f"prefix adapters: kv_connector_extra_config must have {_ROOT} and {_LIMIT}")
        self._store = PrefixStore(
            Path(root),
            int(self._kv_transfer_config.get_from_extra_config(_LIMIT, 0)),
            PrefixShape(num_layers, model.get_total_num_kv_heads(), model.get_head_size(), heads),
            model.dtype,
            next(iter(kv_caches.values())).device,
        )

    @property
    def store(self) -> PrefixStore:
        """The worker's prefixes. Raises `PreconditionError` before the caches are there, and in the scheduler."""
        if self._store is None:
            raise PreconditionError("prefix adapters: this vLLM process holds no key-value cache")
        return self._store

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Writes the step's virtual tokens, in order: a later request may share blocks with an earlier one."""
        for load in self._get_connector_metadata().loads:
            try:
                if load.adapter is None:
                    raise InvalidInputError(load.problem)
                rows_L2PhD = self.store.get(load.adapter)
            except (WeftError, OSError) as error:
                _log.error("request %s: %s", load.request_id, error)
                self._failed |= load.blocks
            else:
                self._write(rows_L2PhD[:, :, load.first : load.first + len(load.slots)], load.slots)

    def _write(self, rows_L2PhD: Tensor, slots: tuple[int, ...]) -> None:
        slots_P = torch.tensor(slots, dtype=torch.int64).to(rows_L2PhD.device, non_blocking=True)
        for index, layer in self._layers:
            # As the attention layer writes its own, whatever its cache looks like inside. A key carries its position
            # already when it is written: these carry none, and stay so.
            key_PhD, value_PhD = rows_L2PhD[index]
            layer.impl.do_kv_cache_update(layer, key_PhD, value_PhD, layer.kv_cache, slots_P)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """The blocks that could not be written since the last call."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Everything was written before the forward pass began."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing leaves vLLM's cache."""

    def wait_for_save(self) -> None:
        """Nothing leaves vLLM's cache."""


def _read(request: Request) -> PrefixAdapter | str | None:
    """The adapter that a request carries, why it is refused, or None for one without."""
    try:
        adapter = read_request(request.kv_transfer_params, request.cache_salt, request.num_prompt_tokens)
    except InvalidInputError as error:
        return error.message
    params = request.sampling_params
    if adapter is not None and (params is None or params.skip_reading_prefix_cache):
        return (
            "a prefix adapter's virtual tokens are never computed: there are no prompt_logprobs with one, no pooling, "
            "and no skip_reading_prefix_cache"
        )
    return adapter
