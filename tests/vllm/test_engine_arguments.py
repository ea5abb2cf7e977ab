"""`--vllm KEY=VALUE` reaches vLLM's own settings, as vLLM reads them."""

from __future__ import annotations

import dataclasses

import pytest

from weft_registry.errors import InvalidInputError
from weft_server.vllm_engine.arguments import OURS, parse


def test_values_are_of_the_fields_own_types() -> None:
    found = parse(
        [
            "max_num_seqs=48",
            "gpu-memory-utilization=0.5",
            "enforce_eager=true",
            "enable_prefix_caching=False",
            "block_size=none",
            "max_num_batched_tokens=2k",
            'lora_target_modules=["q_proj", "v_proj"]',
            'hf_overrides={"rope_theta": 5}',
            "attention_backend=CPU_ATTN",
        ]
    )
    assert found["max_num_seqs"] == 48
    assert found["gpu_memory_utilization"] == 0.5
    assert found["enforce_eager"] is True
    assert found["enable_prefix_caching"] is False
    assert found["block_size"] is None
    assert found["max_num_batched_tokens"] == 2000
    assert found["lora_target_modules"] == ["q_proj", "v_proj"]
    assert found["hf_overrides"] == {"rope_theta": 5}
    assert "attention_backend" in found


def test_every_setting_of_vllm_can_be_given_but_for_those_that_are_ours() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs) if not field.name.startswith("_")}
    assert fields > OURS.keys()
    # None is read without the field's type: what is asserted is that no field is refused as unknown.
    assert parse([f"{name}=none" for name in sorted(fields - OURS.keys())]).keys() == fields - OURS.keys()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("max_num_seq=4", r"no such setting; nearest: max_num_seqs"),
        ("max_num_seqs", r"expected KEY=VALUE"),
        ("max_num_seqs=many", r"max_num_seqs=many"),
        ("dtype=float7", r"expected one of .*bfloat16"),
        ("enforce_eager=1", r"expected true or false"),
        ("hf_overrides={", r"hf_overrides="),
        ("model=/elsewhere", r"Weft sets it itself: give --base"),
        ("worker_extension_cls=x.Y", r"Weft sets it itself: merging"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(pair: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse([pair])


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_num_seqs: given twice"):
        parse(["max_num_seqs=1", "max-num-seqs=2"])
