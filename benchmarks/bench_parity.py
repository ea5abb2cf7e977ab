"""Parity on the real model in float32: a mixed batch of every kind against independent oracles, and against each
request alone; merged QA-LoRA against unmerged; unmerging bit for bit.

Kinds that PEFT has against stock PEFT, the others against their formulas in float64, the base against transformers. The
relative difference is the largest absolute one over the largest absolute logit of the request.
"""

from __future__ import annotations

import hashlib

import torch

from benchmarks.engines import Tracer
from benchmarks.oracles import Oracle
from benchmarks.report import Row, arguments, report
from benchmarks.subjects import benchmark_home, random_adapter, real_base
from weft_adapters.kinds import KINDS
from weft_server.torch_engine.decoder import TorchDecoder
from weft_server.torch_engine.merging import build_overlay


def main() -> None:
    """Runs the benchmark."""
    args = arguments(__doc__ or "")
    requests, new = (17, 4) if args.quick else (34, 16)
    base = real_base(benchmark_home())
    adapters = [random_adapter(kind, base.spec, seed) for seed in range(2) for kind in KINDS]
    bound = [adapter.bound(torch.float32, base) for adapter in adapters]
    generator = torch.Generator().manual_seed(1)
    lengths = [5 + 7 * (i % 6) for i in range(requests)]
    prompts = [torch.randint(100, base.config.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    choice = [i % (len(bound) + 1) for i in range(requests)]
    wearers = [bound[i] if i < len(bound) else None for i in choice]
    tracer = Tracer(base)
    mixed = tracer.run(prompts, wearers, new)
    alone = [tracer.run([p], [w], new)[0] for p, w in zip(prompts, wearers, strict=True)]
    oracle = Oracle(base, adapters)
    worst: dict[str, float] = {}
    agree: dict[str, list[bool]] = {}
    for prompt, wearer, trace in zip(prompts, wearers, mixed, strict=True):
        kind = wearer.kind.name if wearer else "base"
        expected = oracle.logits(wearer.digest if wearer else None, prompt + trace.tokens[:-1])[len(prompt) - 1 :]
        difference = (trace.logits_SV.double() - expected).abs().max() / expected.abs().max()
        worst[kind] = max(worst.get(kind, 0.0), float(difference))
        agree.setdefault(kind, []).append(expected.argmax(-1).tolist() == trace.tokens)
    rows = [Row(f"{kind}: largest relative logit difference", value, "") for kind, value in worst.items()]
    rows += [
        Row(f"{kind}: requests whose greedy tokens equal the oracle's", 100 * sum(same) / len(same), "%")
        for kind, same in agree.items()
    ]
    equal = sum(m.tokens == a.tokens for m, a in zip(mixed, alone, strict=True))
    rows.append(Row("batched equals alone, greedy tokens", 100 * equal / requests, "%"))
    spread = max(float((m.logits_SV - a.logits_SV).abs().max()) for m, a in zip(mixed, alone, strict=True))
    rows.append(Row("batched against alone, largest logit difference", spread, ""))

    qalora = next(adapter for adapter in bound if adapter.kind.name == "qalora")
    before = _fingerprint(tracer)
    overlay = build_overlay(base, tracer.decoder, qalora)
    merged = tracer.run(prompts, wearers, new, overlay)
    merged_logits = max(
        float((m.logits_SV - a.logits_SV).abs().max())
        for m, a, w in zip(merged, mixed, wearers, strict=True)
        if w is qalora
    )
    others = sum(m.tokens == a.tokens for m, a in zip(merged, mixed, strict=True))
    rows += [
        Row("QA-LoRA merged against unmerged, largest logit difference", merged_logits, ""),
        Row("requests with equal tokens while one adapter is merged", 100 * others / requests, "%"),
        Row("base tensors changed by merge and unmerge", float(before != _fingerprint(tracer)), "of all"),
    ]
    after = tracer.run(prompts, wearers, new)
    same_bits = all(torch.equal(a.logits_SV, m.logits_SV) for a, m in zip(after, mixed, strict=True))
    rows.append(Row("logits bit-equal after unmerge", 100.0 * same_bits, "%"))
    title = f"Parity in float32, SmolLM2-135M int4: {requests} requests over {len(bound)} adapters in one batch"
    report(title, rows, args.json)


def _fingerprint(tracer: Tracer) -> str:
    """A digest over every weight tensor that the decoder computes with."""
    sha = hashlib.sha256()
    assert isinstance(tracer.decoder, TorchDecoder)
    for site in tracer.decoder.sites:
        for value in vars(tracer.decoder.kernel(site)).values():
            if isinstance(value, torch.Tensor):
                sha.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()
