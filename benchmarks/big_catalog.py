"""A catalog of many adapters and versions, written straight into the tables: publishing a hundred thousand versions
would take hours, and listings and resolves see the same rows.

The manifests are real ones, of the size that an adapter of every linear module of a small model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from weft_registry import canonical
from weft_registry import digest as digests
from weft_registry.catalog import records
from weft_registry.catalog import tables as t
from weft_registry.catalog.database import Catalog
from weft_registry.reference import LATEST

_AT_ONCE = 200
_BASE = "acme/small-base"
_WEIGHTS = "sha256:" + "b" * 64


def fill(catalog: Catalog, adapters: int = 10_000, versions: int = 10, tensors: int = 60, namespaces: int = 20) -> None:
    """Adds `adapters` adapters with `versions` versions each: every version tagged, measured, and trained on from the
    one before it; `latest` and `production` at the last and the last but one. `tensors` sets the manifests' size (about
    150 bytes each)."""
    entries = [
        {
            "name": f"base_model.model.model.layers.{i // 14}.mlp.up_proj.{i % 14}.lora_A.weight",
            "dtype": "F32",
            "shape": [8, 576],
            "sha256": digests.of_bytes(str(i).encode()),
        }
        for i in range(tensors)
    ]
    names = [(f"team{i % namespaces:02}", f"adapter-{i:05}") for i in range(adapters)]
    for start in range(0, adapters, _AT_ONCE):
        rows: dict[Any, list[dict[str, Any]]] = {}
        for i in range(start, min(start + _AT_ONCE, adapters)):
            for table, row in _adapter(i + 1, *names[i], versions, entries):
                rows.setdefault(table, []).append(row)
        with catalog.write() as connection:
            for table in (t.adapters, t.versions, t.version_files, t.version_metrics, t.tags, t.aliases, t.alias_moves):
                connection.execute(table.insert(), rows[table])


def _adapter(
    adapter: int, namespace: str, name: str, versions: int, tensors: list[dict[str, Any]]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    now = records.now_us()
    yield t.adapters, {"id": adapter, "namespace": namespace, "name": name, "created_at_us": now}
    parent = ""
    for number in range(1, versions + 1):
        version = (adapter - 1) * versions + number
        score = f"{(adapter * 7919 + number) % 1000 / 1000:.3f}"
        document = _manifest(f"{namespace}/{name}", number, score, parent, tensors)
        raw = canonical.dumps(document)
        digest = digests.of_bytes(raw)
        yield (
            t.versions,
            {
                "id": version,
                "adapter_id": adapter,
                "digest": digest,
                "manifest": raw,
                "kind": document["kind"],
                "base_weights_sha256": _WEIGHTS,
                "base_id": _BASE,
                "parent_digest": parent,
                "size_bytes": 1 << 20,
                "published_at_us": now + version,
                "published_by": "bench",
                "yanked": False,
                "yank_reason": "",
            },
        )
        (file,) = document["files"]
        yield (
            t.version_files,
            {"version_id": version, "path": file["path"], "sha256": file["sha256"], "size_bytes": file["size"]},
        )
        yield t.version_metrics, {"version_id": version, "name": "exact_match", "split": "eval", "value": float(score)}
        yield t.tags, {"adapter_id": adapter, "tag": f"v{number}", "version_id": version}
        for alias, back in ((LATEST, 0), ("production", 1)):
            if number == versions - back:
                place = {"etag": f"{version:032x}", "moved_at_us": now + version}
                yield (
                    t.aliases,
                    {
                        "adapter_id": adapter,
                        "alias": alias,
                        "version_id": version,
                        "previous_version_id": None,
                        **place,
                    },
                )
                yield (
                    t.alias_moves,
                    {
                        "adapter_id": adapter,
                        "alias": alias,
                        "digest": digest,
                        "previous_digest": "",
                        "actor": "",
                        **place,
                    },
                )
        parent = digest


def _manifest(name: str, number: int, score: str, parent: str, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    weights = digests.of_bytes(f"{name}:{number}".encode())
    return {
        "schema_version": 1,
        "kind": "lora",
        "name": name,
        "created": "2026-01-31T12:00:00Z",
        "license": "apache-2.0",
        "base": {
            "id": _BASE,
            "revision": "main",
            "weights_sha256": _WEIGHTS,
            "config_sha256": "sha256:" + "c" * 64,
            "arch": "LlamaForCausalLM",
            "quant": {
                "method": "groupwise-affine",
                "bits": 4,
                "group_size": 32,
                "symmetric": False,
                "zero_point": "float",
                "scales_sha256": "sha256:" + "d" * 64,
            },
        },
        "adapter": {
            "r": 8,
            "alpha": "16",
            "use_rslora": False,
            "target_modules": ["model.layers.0.mlp.up_proj"],
            "rank_pattern": {},
            "alpha_pattern": {},
        },
        "tensors": tensors,
        "files": [
            {
                "path": "adapter_model.safetensors",
                "size": 1 << 20,
                "sha256": weights,
                "media_type": "application/vnd.safetensors",
            }
        ],
        "tokenizer": {},
        "provenance": {"parent_version": parent or None},
        "metrics": [{"name": "exact_match", "value": score, "dataset_sha256": "sha256:" + "e" * 64, "split": "eval"}],
    }
