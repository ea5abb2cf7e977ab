"""The registry at the other end of a channel."""
