"""A decoder in C for CPUs with AVX-512 bfloat16: int4 products without a copy, low-rank deltas in the same pass, and
attention over blocks. The torch decoder is its oracle, and stands in wherever this one cannot run."""
