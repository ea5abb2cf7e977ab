"""Stores an imported model under WEFT_HOME/bases/NAME: whole or not at all, and never changed afterwards.

The directory holds model.safetensors (`<module>.codes`, `.scale`, `.minimum`, `.bias`; everything else under its
Hugging Face name), config.json, the tokenizer's files, and base.json, the `BaseSpec` with the fingerprint.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weft_adapters.base import layout
from weft_adapters.base.checkpoint import Checkpoint
from weft_adapters.base.writer import SafetensorsWriter
from weft_registry import canonical, digest
from weft_registry.base import BaseFingerprint, BaseSpec, BaseStore, QuantSpec
from weft_registry.errors import AlreadyExistsError
from weft_registry.home import Home

MODEL_FILE = "model.safetensors"
_PARTIAL = ".importing-"


def save_base(
    home: Home, name: str, checkpoint: Checkpoint, model_id: str, revision: str, report: Callable[[str], None]
) -> BaseSpec:
    """Writes `checkpoint` as base `name` and returns its spec.

    A base of that name with the same weights and configuration is left alone and its spec returned. Raises
    `AlreadyExistsError` when the name is taken by another model; then, as after any other error, nothing is stored.
    """
    store = BaseStore(home.bases)
    path = store.path(name)
    home.bases.mkdir(parents=True, exist_ok=True)
    with _exclusive(home.bases, report):
        _remove_leftovers(home.bases)
        # One level below a hidden directory, so that no listing of bases ever sees a half-written one.
        holder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home.bases))
        try:
            partial = holder / name
            partial.mkdir()
            spec = _write(partial, checkpoint, model_id, revision, report)
            if path.exists():
                return _same_or_refuse(store, name, spec, report)
            partial.rename(path)
        finally:
            shutil.rmtree(holder)
    return spec


def _write(
    directory: Path, checkpoint: Checkpoint, model_id: str, revision: str, report: Callable[[str], None]
) -> BaseSpec:
    checkpoint.write_tokenizer(directory)
    _write_json(directory / "config.json", checkpoint.config_json)
    modules = layout.linears(checkpoint.config)
    with SafetensorsWriter(directory / MODEL_FILE, checkpoint.plan) as writer:
        done = 0
        for tensor_name, tensor in checkpoint.tensors():
            writer.add(tensor_name, tensor)
            if tensor_name.endswith(layout.CODES):
                done += 1
                if done % 50 == 0 or done == len(modules):
                    report(f"stored {done} of {len(modules)} linear layers")
        table = writer.table()
    spec = _spec(checkpoint, table, model_id, revision)
    _write_json(directory / "base.json", spec.as_json())
    return spec


def _spec(checkpoint: Checkpoint, table: list[dict[str, Any]], model_id: str, revision: str) -> BaseSpec:
    config = checkpoint.config
    scales = [row for row in table if row["name"].endswith((layout.SCALE, layout.MINIMUM))]
    fingerprint = BaseFingerprint(
        id=model_id,
        revision=revision,
        weights_sha256=digest.of_bytes(canonical.dumps(table)),
        config_sha256=config.sha256(),
        arch=config.arch,
        quant=QuantSpec(
            method="groupwise-affine",
            bits=checkpoint.bits,
            group_size=checkpoint.group_size,
            symmetric=False,
            zero_point="float",
            scales_sha256=digest.of_bytes(canonical.dumps(scales)),
        ),
    )
    return BaseSpec(
        fingerprint=fingerprint,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        context_length=config.context_length,
        linears=layout.linears(config),
    )


def _same_or_refuse(store: BaseStore, name: str, spec: BaseSpec, report: Callable[[str], None]) -> BaseSpec:
    if name not in store.names():
        raise AlreadyExistsError(
            f"{store.path(name)} exists but holds no base model (no base.json); remove it or choose another name",
            reason="BASE_EXISTS",
            metadata={"base": name},
        )
    old = store.get(name)
    ours, theirs = spec.fingerprint, old.fingerprint
    if (ours.weights_sha256, ours.config_sha256) != (theirs.weights_sha256, theirs.config_sha256):
        raise AlreadyExistsError(
            f"base {name!r} exists with other weights ({theirs.id}, {theirs.weights_sha256}; this source gives "
            f"{ours.weights_sha256}); a base never changes: choose another name",
            reason="BASE_EXISTS",
            metadata={"base": name, "existing": theirs.weights_sha256, "imported": ours.weights_sha256},
        )
    report(f"base {name!r} is there already, with the same weights")
    return old


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _exclusive(directory: Path, report: Callable[[str], None]) -> Iterator[None]:
    """One import at a time per home: that is what makes any `.importing-*` directory a leftover."""
    with (directory / ".import.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another import into the same WEFT_HOME")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(directory: Path) -> None:
    for leftover in directory.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover)
