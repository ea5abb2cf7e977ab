"""What a run is told: one YAML file as frozen dataclasses, a module for each of its blocks. No torch.

Lowest of the subpackages: imports none of the others.
"""
