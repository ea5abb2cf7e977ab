"""The training loop and what surrounds it: checkpoints, early stopping, signals, figures, several processes.

Imports `objectives` and what those import; knows no artifact.
"""
