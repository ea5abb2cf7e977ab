"""vLLM behind the engine protocol. Importing this package imports no vLLM."""
