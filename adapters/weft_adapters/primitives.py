"""How many primitives oneDNN keeps, with which torch multiplies in bfloat16 on a CPU. To be decided before it computes.

A primitive is a program for one shape: compiled in about 0.7 ms, and about 0.3 MiB of heap for as long as it is kept.
oneDNN keeps 1024 of them, and torch's own layer over it as many again. Batches of many sizes over many adapters fill
both: 600 MiB that no budget knows of. oneDNN is asked whatever torch's layer keeps, so that this needs next to none.
oneDNN's own must hold the shapes of one step, which every layer asks for again: about five for each adapter whose
prompts are computed in it, and as many for the base. With 24 requests for 18 adapters at once, a step took as long with
128 as with 256, and a tenth longer than with 1024, where shapes of earlier batches come again.
"""

from __future__ import annotations

import os

_OF_ONEDNN = 128
_OF_TORCH = 32


def keep_few_primitives() -> None:
    """Has them keep what a step needs, unless the environment says how much."""
    # oneDNN reads either name, and the one with ONE first.
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_OF_ONEDNN))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(_OF_TORCH))
