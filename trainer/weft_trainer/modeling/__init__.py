"""A stored base as a model that trains, and what every adapted model has in common. Imports `data` and `config`."""
