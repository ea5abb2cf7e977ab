"""The exact base inside vLLM: the quantization method `weft_int4`, its model directories, and merging in place."""
