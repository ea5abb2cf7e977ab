"""The catalog: what versions there are, and what tags and aliases name them. Knows nothing of bytes."""
