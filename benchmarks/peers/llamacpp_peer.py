"""llama.cpp through llama-cpp-python's low-level calls: `llama_decode` over one token of every sequence at a time."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


class Peer:
    """One base model without adapters: llama.cpp does not batch requests that wear different ones."""

    def __init__(self, settings: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        path = Path(settings["model"])
        if settings["quantize"] == "q4_0":
            path = _as_q4_0(path, Path(settings["cache"]))
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if model is None:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        vocab = llama_cpp.llama_model_get_vocab(model)
        assert vocab is not None
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        most = settings["batch"] * settings["context"]
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = most
        params.n_batch = most
        params.n_seq_max = settings["batch"]
        params.n_threads = params.n_threads_batch = settings["threads"]
        params.flash_attn_type = settings["flash_attn"]
        params.kv_unified = settings["kv_unified"]
        self._context = llama_cpp.llama_init_from_model(model, params)
        if self._context is None:
            raise RuntimeError(f"llama.cpp cannot make a context of {most} tokens")
        self._batch = _Batch(most)
        self.about = (
            f"llama-cpp-python {llama_cpp.__version__}, {path.name}: {llama_cpp.llama_print_system_info().decode()}"
        )

    def generate(self, prompts: Sequence[Sequence[int]], adapters: Sequence[int | None], new: int) -> list[list[int]]:
        """Greedy tokens; every adapter must be None."""
        if any(index is not None for index in adapters):
            raise ValueError("llama.cpp is measured without adapters")
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_clear(memory, False)
        rows = np.arange(len(prompts))
        lengths = np.array([len(prompt) for prompt in prompts])
        ends = lengths.cumsum()
        positions = np.concatenate([np.arange(length) for length in lengths])
        token_T = self._decode(np.concatenate(prompts), positions, rows.repeat(lengths), ends - 1)
        generated = [token_T]
        for step in range(new - 1):
            token_T = self._decode(token_T, lengths + step, rows, rows)
            generated.append(token_T)
        tokens: list[list[int]] = np.stack(generated, 1).tolist()
        return tokens

    def _decode(self, token_T: Any, position_T: Any, sequence_T: Any, last: Any) -> Any:
        """The likeliest next token at the rows `last`."""
        batch = self._batch.fill(token_T, position_T, sequence_T, last)
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with {code}")
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(len(last), self._vocab_size)).argmax(1)


class _Batch:
    """A `llama_batch`, filled through arrays: element by element Python would take longer than llama.cpp."""

    def __init__(self, most: int) -> None:
        self._batch = llama_cpp.llama_batch_init(most, 0, 1)
        view = np.ctypeslib.as_array
        self._tokens = view(self._batch.token, (most,))
        self._positions = view(self._batch.pos, (most,))
        self._wanted = view(self._batch.logits, (most,))
        view(self._batch.n_seq_id, (most,))[:] = 1
        # llama_batch_init allocates one array of sequence numbers per token; these live in one block instead.
        self._sequences = np.zeros(most, np.int32)
        self._pointers = (ctypes.POINTER(ctypes.c_int32) * most)(
            *(ctypes.cast(self._sequences.ctypes.data + 4 * row, ctypes.POINTER(ctypes.c_int32)) for row in range(most))
        )
        self._batch.seq_id = ctypes.cast(self._pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))

    def fill(self, token_T: Any, position_T: Any, sequence_T: Any, last: Any) -> Any:
        """The batch of these tokens, with logits wanted at the rows `last`."""
        count = len(token_T)
        self._batch.n_tokens = count
        self._tokens[:count] = token_T
        self._positions[:count] = position_T
        self._sequences[:count] = sequence_T
        self._wanted[:count] = 0
        self._wanted[last] = 1
        return self._batch


def _as_q4_0(source: Path, cache: Path) -> Path:
    """The model quantized to Q4_0 by llama.cpp itself.

    It starts from the base's own numbers: llama.cpp dequantizes the Q4_1 file to float32 and quantizes that, which is
    what it would do with a float32 file of the same numbers.
    """
    target = cache / f"{source.stem}-q4_0.gguf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        params.allow_requantize = True
        if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp could not quantize {source} to Q4_0")
        partial.replace(target)
    return target
