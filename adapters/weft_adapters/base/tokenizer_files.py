"""The tokenizer of a stored base: tokenizer.json and tokenizer_config.json, readable without transformers.

tokenizer_config.json carries the chat template and the eos and bos tokens, whatever files the source had them in.
Sources without a tokenizer.json (GGUF files, sentencepiece models) are converted by transformers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from weft_adapters.base.config import ModelConfig
from weft_registry.errors import InvalidInputError, UnsupportedError

TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SOURCES = (TOKENIZER, "tokenizer.model", "vocab.json")
_SPECIAL_TOKENS = "special_tokens_map.json"


def write_from_directory(source: Path, target: Path, config: ModelConfig) -> None:
    """Copies a Hugging Face model directory's tokenizer into `target`, converting it when it has no tokenizer.json.

    Raises `InvalidInputError` when there is none or it does not fit the model, `UnsupportedError` when a conversion
    needs transformers and it is not installed.
    """
    if (source / TOKENIZER).is_file():
        _finish(source, target, config)
    elif any((source / name).is_file() for name in _SOURCES):
        _convert(source, target, config)
    else:
        raise InvalidInputError(f"{source.name}: no tokenizer ({', '.join(_SOURCES)}) beside the weights")


def write_from_gguf(source: Path, target: Path, config: ModelConfig) -> None:
    """Writes the tokenizer inside a GGUF file into `target`. Raises as `write_from_directory`."""
    _convert(source.parent, target, config, gguf_file=source.name)


def _convert(source: Path, target: Path, config: ModelConfig, **options: str) -> None:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UnsupportedError(
            f"the tokenizer of {options.get('gguf_file', source.name)} has to be converted, which needs transformers: "
            "pip install 'weft[train]'. Once imported, the base works without it"
        ) from error
    with tempfile.TemporaryDirectory() as converted:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, **options)
            tokenizer.save_pretrained(converted)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{options.get('gguf_file', source.name)}: transformers cannot read the tokenizer: {error}"
            ) from error
        _finish(Path(converted), target, config)


def _finish(source: Path, target: Path, config: ModelConfig) -> None:
    try:
        tokenizer = Tokenizer.from_file(str(source / TOKENIZER))
    except Exception as error:
        raise InvalidInputError(f"{TOKENIZER}: the tokenizers library cannot read it: {error}") from error
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > config.vocab_size:
        raise InvalidInputError(
            f"{TOKENIZER}: token id {size - 1} is outside the model's vocabulary of {config.vocab_size}"
        )
    (target / TOKENIZER).write_bytes((source / TOKENIZER).read_bytes())
    settings = _read_object(source / TOKENIZER_CONFIG)
    special = _read_object(source / _SPECIAL_TOKENS)
    ids = {"eos_token": next(iter(config.eos_token_ids), None), "bos_token": config.bos_token_id}
    for key, token_id in ids.items():
        value = settings.get(key) or special.get(key)
        if value is None and token_id is not None:
            value = tokenizer.id_to_token(token_id)
        settings[key] = value["content"] if isinstance(value, Mapping) else value
    if (source / TEMPLATE).is_file():
        settings["chat_template"] = (source / TEMPLATE).read_text(encoding="utf-8")
    # transformers writes about the place it loaded from, which is not about the tokenizer.
    for key in ("local_files_only", "is_local", "name_or_path"):
        settings.pop(key, None)
    text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True)
    (target / TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path.name}: not UTF-8 JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path.name}: expected an object")
    return value
