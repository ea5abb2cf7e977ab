"""The int4 base weight, and the adapter kinds that are batched over it. Knows nothing of requests or services."""
