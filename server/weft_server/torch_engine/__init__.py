"""The embedded engine: a decoder for the Llama family in plain torch, on the CPU or CUDA."""
