"""`weft generate`: a completion, streamed to the terminal as it comes."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import click

from weft_client.cli.options import FiniteRange, json_option, server_option
from weft_client.cli.output import echo_json, printable
from weft_client.cli.sources import connected

if TYPE_CHECKING:
    from weft_client.results import Chunk, Completion


@click.command()
@click.argument("reference")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="The prompt is a user's message: apply the model's chat template.")
@click.option("--system", metavar="TEXT", help="A system message before it; implies --chat.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Default: 128, or what the context leaves.")
@click.option("--min-new-tokens", type=click.IntRange(min=0))
@click.option("--temperature", type=FiniteRange(min=0), help="0, the default: greedy.")
@click.option("--top-k", type=click.IntRange(min=0), help="Sample from the k most likely tokens.")
@click.option("--top-p", type=FiniteRange(0, 1, min_open=True), help="Sample from this much probability.")
@click.option("--seed", type=click.IntRange(min=0), help="Makes what is drawn at random repeatable.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on past the end-of-sequence token.")
@click.option("--logprobs", type=click.IntRange(0, 20), help="With --json: this many likely tokens at each position.")
@click.option("--timeout", "timeout_s", type=FiniteRange(min=0, min_open=True), metavar="SECONDS")
@click.option("--stats", is_flag=True, help="Token counts and the adapter's digest, on stderr.")
@json_option
@server_option
def generate(
    reference: str,
    prompt: str,
    chat: bool,
    system: str | None,
    max_new_tokens: int | None,
    min_new_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    logprobs: int | None,
    timeout_s: float | None,
    stats: bool,
    as_json: bool,
    server_target: str | None,
) -> None:
    """Complete a prompt, printing the text as it is generated.

    REFERENCE names the adapter; "-" means the base model alone. Several are worn together, each with its weight:
    "acme/topics+acme/style*0.5". A PROMPT of "-" is read from stdin.

    \b
    Example:
      weft generate acme/topics:production "The match ended in" --max-new-tokens 8
      echo "Once upon a time" | weft generate - -
    """
    from weft_client.results import Completion

    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json: there is no place for them in plain text")
    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    as_chat = chat or system is not None
    with connected(server_target) as client:
        stream = client.stream(
            None if as_chat else text,
            _worn(reference),
            messages=messages if as_chat else None,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos or None,
            logprobs=logprobs,
            timeout_s=timeout_s,
        )
        chunks: list[Chunk] = []
        for chunk in stream:
            chunks.append(chunk)
            if not as_json:
                # A terminal obeys escape sequences, and a model may write any; a file gets the text as it is.
                # `color` keeps click from removing them there.
                click.echo(printable(chunk.text) if sys.stdout.isatty() else chunk.text, nl=False, color=True)
    completion = Completion.from_chunks(chunks)
    if as_json:
        echo_json(dataclasses.asdict(completion))
    else:
        click.echo()
    if stats:
        click.echo(_stats(completion), err=True)


def _worn(reference: str) -> str:
    if reference == "-":
        return ""
    if not reference.strip():
        # What a shell makes of a variable that is not set must not be answered by the base in the adapter's place.
        raise click.UsageError('REFERENCE is empty: name an adapter, or "-" for the base model alone')
    return reference


def _stats(completion: Completion) -> str:
    return (
        f"{completion.input_tokens} tokens in ({completion.cached_tokens} cached), {completion.generated_tokens} out, "
        f"ended by {completion.finish_reason}; adapter {completion.adapter_digest or 'none: the base model'}"
    )
