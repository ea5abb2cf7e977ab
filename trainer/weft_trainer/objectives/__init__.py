"""What is optimized and how it is scored: completions, distillation, preferences.

Imports `methods` (a teacher may wear an artifact), `modeling`, `data` and `config`.
"""
