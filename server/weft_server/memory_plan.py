"""Where a server's memory goes: one budget split into what is fixed, what is shared out, and what each part may take.

Pure arithmetic. What the parts need is estimated from the base's dimensions, upwards where there is a doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from weft_registry.base import BaseSpec
from weft_registry.errors import InvalidInputError
from weft_server.options import DEFAULT_ADAPTER_BYTES, DEFAULT_KV_BYTES, DEFAULT_OVERLAY_BYTES, MIB, ServeOptions

KV_SHARE, ADAPTER_SHARE, OVERLAY_SHARE = 0.60, 0.25, 0.15
"""Of what `--memory` leaves once everything fixed, and the least of use of each, is subtracted."""
STACK_FACTOR = 2
"""torch kernels stack the adapters of a batch side by side, padded with zeros where modules share a product: at most so
many times their own bytes."""
BASE, COPIES, STACKED = "base weights", "dense copies of them", "adapters stacked for a batch"
_GROWTH_BYTES = 96 * MIB
"""What the process itself still grows by: gRPC, the tokenizer, buffers of the allocator."""
_LEAST_ADAPTER_BYTES = 8 * MIB
_GATHERED_TOKENS = 1 << 16
"""What the attention over many sequences copies at once."""


@dataclass(frozen=True)
class Needs:
    """What is fixed before anything is shared out."""

    process_bytes: int
    """Interpreter and libraries: what is resident before the base is loaded."""
    base_bytes: int
    copy_bytes: int
    """Of the dense copies; 0 where the engine makes none."""
    file_bytes: int
    """The base's file, which is mapped while it is loaded and while an adapter is merged."""
    step_bytes: int
    """Working memory of the largest step."""
    token_bytes: int
    """Keys and values of one token."""
    context_length: int
    stack_factor: int
    """How many times their own bytes the adapters of a batch take once more, stacked side by side."""


@dataclass(frozen=True)
class Part:
    """One line of the table."""

    name: str
    size_bytes: int
    reserved: bool
    """Taken whatever happens; otherwise a limit."""


@dataclass(frozen=True)
class MemoryPlan:
    """The limits that a server runs under."""

    kv_bytes: int
    adapter_bytes: int
    overlay_bytes: int
    copies: bool
    parts: tuple[Part, ...]
    budget_bytes: int | None

    def measured(self, base_bytes: int) -> MemoryPlan:
        """The plan once the base is loaded and takes `base_bytes`, copies included.

        Raises `NotEnoughMemoryError` if that is over the budget.
        """
        copy_bytes = next((part.size_bytes for part in self.parts if part.name == COPIES), 0)
        parts = tuple(
            replace(part, size_bytes=base_bytes - copy_bytes) if part.name == BASE else part for part in self.parts
        )
        plan = replace(self, parts=parts)
        if self.budget_bytes is not None and plan.total_bytes > self.budget_bytes:
            raise NotEnoughMemoryError(
                f"--memory {self.budget_bytes / MIB:,.1f} MiB: the base takes {base_bytes / MIB:,.1f} MiB, more than "
                f"expected; give at least {plan.total_bytes / MIB:,.0f} MiB",
                plan,
            )
        return plan

    @property
    def total_bytes(self) -> int:
        """What all parts take at most."""
        return sum(part.size_bytes for part in self.parts)

    def table(self) -> str:
        """For the person who starts the server."""
        rows = [(part.name, part.size_bytes, "reserved" if part.reserved else "at most") for part in self.parts]
        rows.append(("all together", self.total_bytes, "at most"))
        if self.budget_bytes is not None:
            rows.append(("--memory", self.budget_bytes, ""))
        width = max(len(name) for name, _, _ in rows)
        lines = (f"  {name:<{width}}  {size / MIB:>10,.1f} MiB  {how}".rstrip() for name, size, how in rows)
        return "\n".join(("memory:", *lines))


class NotEnoughMemoryError(InvalidInputError):
    """`--memory` is too small; `plan` is what it would have to hold."""

    def __init__(self, message: str, plan: MemoryPlan) -> None:
        super().__init__(message, reason="MEMORY_BUDGET")
        self.plan = plan


def plan_memory(options: ServeOptions, needs: Needs, *, copies: bool | None) -> MemoryPlan:
    """The limits for these options. Options given by themselves stay as they are; the others share what is left.

    `copies` says whether the engine keeps dense copies of the base; None leaves it to the budget. Raises
    `NotEnoughMemoryError` when the budget cannot hold what is fixed and the least that is of use.
    """
    if options.memory_bytes is None:
        return _plan(
            options,
            needs,
            copies=bool(copies),
            kv_bytes=_or(options.kv_bytes, DEFAULT_KV_BYTES),
            adapter_bytes=_or(options.adapter_bytes, DEFAULT_ADAPTER_BYTES),
            overlay_bytes=_or(options.overlay_bytes, DEFAULT_OVERLAY_BYTES),
        )
    least = _plan(
        options,
        needs,
        copies=bool(copies),
        # One request as long as the context must be possible, or the limits mean nothing to a caller.
        kv_bytes=_or(options.kv_bytes, needs.token_bytes * needs.context_length),
        adapter_bytes=_or(options.adapter_bytes, _LEAST_ADAPTER_BYTES),
        overlay_bytes=_or(options.overlay_bytes, 0),
    )
    missing = least.total_bytes - options.memory_bytes
    if missing > 0:
        raise NotEnoughMemoryError(
            f"--memory {options.memory_bytes / MIB:,.1f} MiB is {missing / MIB:,.1f} MiB too little for this base: "
            f"give at least {least.total_bytes / MIB:,.0f} MiB, or lower what was given by itself",
            least,
        )
    surplus = options.memory_bytes - least.total_bytes
    if copies is None:
        # The copies make batches faster and the caches smaller: they may take half of what could be shared out.
        copies = 0 < needs.copy_bytes <= surplus // 2
        surplus -= needs.copy_bytes if copies else 0
    shares = {
        "kv": KV_SHARE if options.kv_bytes is None else 0.0,
        "adapter": ADAPTER_SHARE if options.adapter_bytes is None else 0.0,
        "overlay": OVERLAY_SHARE if options.overlay_bytes is None else 0.0,
    }
    unit = surplus / (sum(shares.values()) or 1.0)
    return _plan(
        options,
        needs,
        copies=copies,
        kv_bytes=least.kv_bytes + int(unit * shares["kv"]),
        adapter_bytes=least.adapter_bytes + int(unit * shares["adapter"]) // (1 + needs.stack_factor),
        overlay_bytes=least.overlay_bytes + int(unit * shares["overlay"]),
    )


def base_bytes(spec: BaseSpec, item_bytes: int, dense_bytes: int, *, tied: bool) -> int:
    """The base's weights in memory, in a dtype of so many bytes of which a dense product keeps `dense_bytes`: an upper
    estimate."""
    linears = sum(n_out * n_in for n_out, n_in in spec.linears.values())
    groups = linears // spec.fingerprint.quant.group_size
    # Two float32 a group is the most that any int4 form keeps; the parity mode keeps dense weights.
    quantized = linears * 4 if item_bytes == 4 else linears // 2 + groups * 8
    embedding_and_head = item_bytes if tied and item_bytes == 4 else item_bytes + dense_bytes
    tables = spec.vocab_size * spec.hidden_size * embedding_and_head
    norms_and_rope = (4 * spec.num_layers * spec.hidden_size + 2 * spec.context_length * spec.head_dim) * 4
    return quantized + tables + norms_and_rope


def step_bytes(spec: BaseSpec, rows: int, max_batch_size: int) -> int:
    """Working memory of a step of `rows` tokens, `max_batch_size` sequences among them: an upper estimate."""
    widest = max(n_out for n_out, _ in spec.linears.values())
    activations = rows * 4 * (8 * spec.hidden_size + 4 * widest)
    masks = rows * spec.context_length * 8
    gathered = 2 * _GATHERED_TOKENS * spec.num_kv_heads * spec.head_dim * 4
    scores = _GATHERED_TOKENS * spec.num_heads * 8
    logits = max_batch_size * spec.vocab_size * 32
    return activations + masks + gathered + scores + logits


def _plan(
    options: ServeOptions, needs: Needs, *, copies: bool, kv_bytes: int, adapter_bytes: int, overlay_bytes: int
) -> MemoryPlan:
    parts = [
        Part("interpreter and libraries", needs.process_bytes, True),
        Part("what they grow by", _GROWTH_BYTES, True),
        Part(BASE, needs.base_bytes, True),
        *([Part(COPIES, needs.copy_bytes, True)] if copies else []),
        Part("base file, while loading or merging", needs.file_bytes, False),
        Part("working memory of a step", needs.step_bytes, False),
        Part("keys and values", kv_bytes, False),
        Part("adapters", adapter_bytes, False),
        *([Part(STACKED, needs.stack_factor * adapter_bytes, False)] if needs.stack_factor else []),
        Part("merged weights", overlay_bytes, False),
    ]
    return MemoryPlan(kv_bytes, adapter_bytes, overlay_bytes, copies, tuple(parts), options.memory_bytes)


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
