"""A registry that stands before another one: it answers from what it holds, and brings what it lacks."""
