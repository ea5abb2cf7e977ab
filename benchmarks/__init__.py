"""Measurements: ratios against a peer in the same run, never absolute speed claims."""

from weft_adapters.threads import spin_briefly

spin_briefly()
