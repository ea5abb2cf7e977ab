"""Training. The modules here are what one calls: `api` for all of it, `train`, `evaluate`, `label`, `requantize`.

The subpackages import one way: output -> training -> objectives -> methods -> modeling -> data -> config.
"""
