"""The inference server: one quantized base model, each request through its own adapter, over gRPC."""
