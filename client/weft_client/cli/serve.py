"""`weft serve`: one base model, its adapters, and unless it is elsewhere the registry, on one port."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from weft_client.cli.access import access_options, taken
from weft_client.cli.failure import needs_extra
from weft_client.cli.options import FiniteRange
from weft_client.cli.output import size
from weft_server.options import (
    DEFAULT_ADAPTER_BYTES,
    DEFAULT_KV_BYTES,
    DEFAULT_OVERLAY_BYTES,
    ServeOptions,
)

_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(ServeOptions) if field.default is not dataclasses.MISSING
}
F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def memory(value: str | int) -> int:
    """Bytes from `800MiB`, `2GiB`, `2g` or `1073741824`; every unit is a power of 1024. Raises `click.BadParameter`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value).strip().lower())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size: write 800MiB, 2GiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


def _memory(flag: str, field: str, what: str, instead: str = "") -> Callable[[F], F]:
    """An option of bytes. `instead` says what holds where it is not given and has no default of its own."""
    default = _DEFAULTS[field]
    shown = instead or size(default)
    return click.option(flag, field, type=memory, metavar="SIZE", default=default, show_default=shown, help=what)


def _of_budget(default: int) -> str:
    return f"a share of --memory, or {size(default)}"


@click.command()
@click.option("--base", required=True, metavar="NAME", help="A base model of `weft base list`.")
@click.option("--host", default=_DEFAULTS["host"], show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=_DEFAULTS["port"], show_default=True, help="0 picks a free one."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Answer GET /metrics for Prometheus on this port, too; 0 picks a free one.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    help="Answer Hugging Face clients (HF_ENDPOINT=http://HOST:PORT) on this port, too; 0 picks a free one.",
)
@click.option(
    "--registry",
    envvar="WEFT_REGISTRY",
    metavar="HOST:PORT",
    help="Pull from a registry elsewhere (or WEFT_REGISTRY). Without it: host the embedded one.",
)
@click.option(
    "--engine", default=_DEFAULTS["engine"], show_default=True, help="What runs the base model: torch or vllm."
)
@click.option(
    "--vllm",
    multiple=True,
    default=_DEFAULTS["vllm"],
    metavar="KEY=VALUE",
    help="With --engine vllm: a setting of vLLM's own (AsyncEngineArgs), structures as JSON. May be given again.",
)
@click.option("--device", default=_DEFAULTS["device"], show_default=True, help="cpu, cuda, cuda:1; auto takes CUDA.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default=_DEFAULTS["dtype"],
    show_default=True,
    help="float32 is the parity mode: slower, and equal to a reference up to rounding.",
)
@click.option("--threads", type=click.IntRange(min=0), default=_DEFAULTS["threads"], help="Of the CPU; default: all.")
@click.option(
    "--kernels",
    type=click.Choice(["auto", "native", "torch"]),
    default=_DEFAULTS["kernels"],
    show_default=True,
    help="native: the decoder in C, several times faster, on CPUs with AVX-512 bfloat16; auto: wherever it can run.",
)
@click.option(
    "--copies",
    type=click.Choice(["auto", "always", "never"]),
    default=_DEFAULTS["copies"],
    show_default=True,
    help="Dense copies of the base beside the int4 weights, for the torch kernels on a CPU: more memory, faster "
    "batches.",
)
@click.option("--max-batch-size", type=click.IntRange(min=1), default=_DEFAULTS["max_batch_size"], show_default=True)
@click.option(
    "--max-prefill-tokens",
    type=click.IntRange(min=1),
    default=_DEFAULTS["max_prefill_tokens"],
    show_default=True,
    help="Prompt tokens of a step in which somebody is answering: a longer prompt is computed in pieces.",
)
@click.option(
    "--max-active-adapters",
    type=click.IntRange(min=1),
    default=_DEFAULTS["max_active_adapters"],
    show_default=True,
    help="Different adapters in one batch.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=_DEFAULTS["max_waiting"],
    show_default=True,
    help="Requests in the queue; one more is refused.",
)
@_memory(
    "--memory",
    "memory_bytes",
    "For the whole process: what the base and the libraries leave of it is shared out. On a CPU.",
    "no budget",
)
@_memory("--kv-memory", "kv_bytes", "For the keys and values of running requests.", _of_budget(DEFAULT_KV_BYTES))
@_memory(
    "--adapter-memory",
    "adapter_bytes",
    "For adapters; the least recently used go first.",
    _of_budget(DEFAULT_ADAPTER_BYTES),
)
@_memory(
    "--overlay-memory",
    "overlay_bytes",
    "For merged weights, those in use and those kept ready.",
    _of_budget(DEFAULT_OVERLAY_BYTES),
)
@_memory("--disk-cache", "disk_bytes", "For pulled adapters on disk; the least recently used go first.")
@click.option(
    "--preload",
    multiple=True,
    default=_DEFAULTS["preload"],
    metavar="REFERENCE",
    help="An adapter to bring into memory before the server is ready. May be given again.",
)
@click.option(
    "--require-signature",
    type=click.Path(path_type=Path),
    multiple=True,
    default=_DEFAULTS["require_signature"],
    metavar="KEY",
    help="A public key in PEM: only versions that it has signed (`weft sign`) are loaded. May be given again: one of "
    "them is enough.",
)
@click.option(
    "--reload-interval",
    "reload_interval_s",
    type=FiniteRange(min=0),
    default=_DEFAULTS["reload_interval_s"],
    show_default=True,
    metavar="SECONDS",
    help="How often aliases in use are looked up; a new version is loaded first and served then. 0: at every request.",
)
@click.option(
    "--merge-policy",
    type=click.Choice(["off", "auto"]),
    default=_DEFAULTS["merge_policy"],
    show_default=True,
    help="auto merges the adapter that most tokens come from, and unmerges it when that is over.",
)
@click.option(
    "--merge-share",
    type=FiniteRange(0, 1),
    default=_DEFAULTS["merge_share"],
    show_default=True,
    metavar="SHARE",
    help="Of the tokens, from which --merge-policy auto merges an adapter.",
)
@click.option(
    "--merge-window",
    "merge_window_s",
    type=FiniteRange(min=0, min_open=True),
    default=_DEFAULTS["merge_window_s"],
    show_default=True,
    metavar="SECONDS",
    help="Over which --merge-policy auto takes shares.",
)
@click.option(
    "--grace",
    "grace_s",
    type=FiniteRange(min=0),
    default=_DEFAULTS["grace_s"],
    show_default=True,
    metavar="SECONDS",
    help="How long running requests may go on when the server is stopped.",
)
@access_options
@needs_extra("serve")
def serve(**settings: Any) -> None:
    """Serve a base model and its adapters over gRPC, until Ctrl-C.

    Prints `ready on HOST:PORT` once it answers.

    \b
    Example:
      weft serve --base smol
      weft serve --base smol --memory 2GiB --preload acme/topics:production
      weft serve --base smol --port 0 --dtype float32 --adapter-memory 256MiB
      weft serve --base smol --engine vllm --vllm max_lora_rank=64
    """
    access = taken(settings)
    options = ServeOptions(access=access, **settings)

    from weft_adapters.primitives import keep_few_primitives
    from weft_adapters.threads import spin_briefly

    spin_briefly()
    if options.engine == "torch":
        # vLLM's processes would inherit it, and its memory is bounded by other means.
        keep_few_primitives()
    from weft_server.serving import serve as run

    run(options)
