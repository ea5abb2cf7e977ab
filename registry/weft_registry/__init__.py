"""The registry: immutable adapter versions over content-addressed blobs. Knows nothing of torch."""
