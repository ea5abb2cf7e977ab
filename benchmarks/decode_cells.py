"""Which batches the decode benchmark measures: a table, because the full product would take hours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One batch and what its rows wear; compared with the base alone at the same batch size."""

    metric: str
    batch: int
    kinds: tuple[str, ...] = ()
    """Rows take turns through these; "base" is no adapter."""
    adapters: int = 1
    """Different adapters of each kind."""
    rank: int = 8
    popularity: str = "even"
    """How the rows of a kind choose among its adapters: see `samples.popularity`."""
    merged: bool = False
    """The first adapter is merged into the base's weights while this cell runs, and only then."""

    @property
    def baseline(self) -> str:
        """The row of the base alone."""
        return f"base_b{self.batch}"


ALL_KINDS = ("lora", "qalora", "prefix", "base")
EVERY_KIND = ("lora", "dora", "qalora", "ia3", "prefix", "prompt", "bottleneck", "fusion")

CELLS = (
    # One request at a time.
    Cell("lora1_r8_over_base_b1", 1, ("lora",)),
    Cell("lora1_r64_over_base_b1", 1, ("lora",), rank=64),
    Cell("qalora1_r8_over_base_b1", 1, ("qalora",)),
    Cell("prefix1_over_base_b1", 1, ("prefix",)),
    Cell("merged_over_base_b1", 1, ("qalora",), merged=True),
    # A small batch.
    Cell("lora1_r8_over_base_b8", 8, ("lora",)),
    Cell("lora8_r8_over_base_b8", 8, ("lora",), adapters=8),
    Cell("lora8_r16_over_base_b8", 8, ("lora",), adapters=8, rank=16),
    Cell("qalora8_r8_over_base_b8", 8, ("qalora",), adapters=8),
    Cell("prefix8_over_base_b8", 8, ("prefix",), adapters=8),
    Cell("all_kinds_over_base_b8", 8, ALL_KINDS, adapters=2),
    Cell("merged_over_base_b8", 8, ("qalora",), merged=True),
    # A full batch: first the four that the targets name, then how popularity, rank and kind change it.
    Cell("lora8_r8_over_base_b32", 32, ("lora",), adapters=8),
    Cell("lora32_r16_over_base_b32", 32, ("lora",), adapters=32, rank=16),
    Cell("all_kinds_over_base_b32", 32, ALL_KINDS, adapters=8),
    Cell("merged_over_base_b32", 32, ("qalora",), merged=True),
    Cell("lora1_r8_over_base_b32", 32, ("lora",)),
    Cell("lora32_r8_over_base_b32", 32, ("lora",), adapters=32),
    Cell("lora32_r8_zipf_over_base_b32", 32, ("lora",), adapters=32, popularity="zipf"),
    Cell("lora8_r16_over_base_b32", 32, ("lora",), adapters=8, rank=16),
    Cell("lora8_r64_over_base_b32", 32, ("lora",), adapters=8, rank=64),
    Cell("qalora8_r8_over_base_b32", 32, ("qalora",), adapters=8),
    Cell("prefix8_over_base_b32", 32, ("prefix",), adapters=8),
    Cell("merged_lora_over_base_b32", 32, ("lora",), merged=True),
    # The kinds that make the native decoder stop between its operators, and all there are at once.
    Cell("dora8_r8_over_base_b32", 32, ("dora",), adapters=8),
    Cell("ia3_8_over_base_b32", 32, ("ia3",), adapters=8),
    Cell("prompt8_over_base_b32", 32, ("prompt",), adapters=8),
    Cell("bottleneck8_r8_over_base_b32", 32, ("bottleneck",), adapters=8),
    Cell("fusion8_r8_over_base_b32", 32, ("fusion",), adapters=8),
    Cell("every_kind_over_base_b32", 32, EVERY_KIND, adapters=2),
    # Half the rows wear the merged adapter; the others take turns through seven that are not.
    Cell("merged_half_over_base_b32", 32, ("qalora",), adapters=8, popularity="half", merged=True),
    # Twice the batch that a server takes by default.
    Cell("lora8_r8_over_base_b64", 64, ("lora",), adapters=8),
    Cell("lora32_r16_over_base_b64", 64, ("lora",), adapters=32, rank=16),
    Cell("all_kinds_over_base_b64", 64, ALL_KINDS, adapters=16),
)
