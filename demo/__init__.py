"""The demonstration: three real tasks, one adapter of each kind, one mixed batch. Not part of the distribution."""
