"""Keeping a registry well for years: collecting garbage, checking everything, backing up and restoring."""
