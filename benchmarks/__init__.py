"""Measurements: ratios against a peer in the same run, never absolute speed claims."""

from weft_adapters.threads import wait_asleep

wait_asleep()
