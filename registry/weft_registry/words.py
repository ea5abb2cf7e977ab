"""What may stand in a manifest as text: bounded, and nothing that does harm where it is shown or stored.

A manifest's words end up in terminals, web pages, logs and databases. An escape sequence, a character that reverses
the direction of reading, or a NUL has no business in any of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from weft_registry import digest as digests
from weft_registry.errors import Violation
from weft_registry.manifest import Manifest, Metric

MAX_WORD = 256
"""Characters of a name, a licence, a kind."""
MAX_METRICS = 4096
# Tab and line breaks are text; the other control characters are orders to a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def check(manifest: Manifest) -> list[Violation]:
    """What is wrong with the words of a manifest."""
    base = manifest.base
    words = {
        "manifest.kind": manifest.kind,
        "manifest.name": manifest.name,
        "manifest.license": manifest.license,
        "manifest.base.id": base.id,
        "manifest.base.revision": base.revision,
        "manifest.base.arch": base.arch,
        "manifest.base.quant.method": base.quant.method,
        "manifest.base.quant.zero_point": base.quant.zero_point,
    }
    violations = [_bad_word(field) for field, word in words.items() if not _is_word(word)]
    for field, digest in (
        ("weights_sha256", base.weights_sha256),
        ("config_sha256", base.config_sha256),
        ("quant.scales_sha256", base.quant.scales_sha256),
    ):
        if not digests.is_digest(digest):
            violations.append(Violation(f"manifest.base.{field}", "not a digest: sha256:<64 lower-case hex digits>"))
    try:
        datetime.strptime(manifest.created, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        violations.append(Violation("manifest.created", f"{manifest.created}: there is no such time"))
    violations += _check_metrics(manifest.metrics)
    for field in ("adapter", "tokenizer", "provenance"):
        if has_control(getattr(manifest, field)):
            violations.append(Violation(f"manifest.{field}", "a control character in its text"))
    return violations


def _check_metrics(metrics: Sequence[Metric]) -> list[Violation]:
    if len(metrics) > MAX_METRICS:
        return [Violation("manifest.metrics", f"{len(metrics)}; at most {MAX_METRICS}")]
    return [
        _bad_word(f"manifest.metrics[{index}].{field}")
        for index, metric in enumerate(metrics)
        for field, word in vars(metric).items()
        if not _is_word(word)
    ]


def _is_word(text: str) -> bool:
    return len(text) <= MAX_WORD and text.isprintable()


def _bad_word(field: str) -> Violation:
    return Violation(field, f"expected one line of printable text, at most {MAX_WORD} characters")


def has_control(value: Any) -> bool:
    """Whether a document has a control character in any of its strings. No deeper than `canonical.MAX_DEPTH`."""
    if isinstance(value, str):
        return _CONTROL.search(value) is not None
    if isinstance(value, Mapping):
        return any(has_control(key) or has_control(item) for key, item in value.items())
    return isinstance(value, list) and any(map(has_control, value))
