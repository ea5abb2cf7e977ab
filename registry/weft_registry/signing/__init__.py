"""Signatures of versions. They stay outside of the digest: a version is the same with and without them."""
