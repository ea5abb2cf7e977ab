"""Where bytes are kept, by digest. Knows nothing of adapters."""
