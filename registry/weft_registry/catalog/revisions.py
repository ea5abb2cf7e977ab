"""Which revision of the tables this Weft knows. Apart from what upgrades them, so that asking costs no import of it."""

HEAD = "0002"
"""The newest revision in `migrations/versions`."""
