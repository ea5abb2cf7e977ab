from __future__ import annotations

import pytest

from tests.tiny_models import AddedBase
from weft_registry.errors import InvalidInputError
from weft_trainer.config.adapter import LowRankOptions
from weft_trainer.methods.targets import lowest_layer, resolve


def test_all_means_every_linear(deep_base: AddedBase) -> None:
    assert resolve(LowRankOptions(), deep_base.stored.spec).target_modules == tuple(deep_base.stored.spec.linears)


def test_last_parts_and_layers_meet(deep_base: AddedBase) -> None:
    options = LowRankOptions(target_modules=("q_proj", "model.layers.3.mlp.up_proj"), layers="top:2")
    params = resolve(options, deep_base.stored.spec)
    assert params.target_modules == (
        "model.layers.2.self_attn.q_proj",
        "model.layers.3.self_attn.q_proj",
        "model.layers.3.mlp.up_proj",
    )
    assert lowest_layer(params) == 2
    assert lowest_layer(resolve(LowRankOptions(layers=(1, 3)), deep_base.stored.spec)) == 1


def test_a_full_name_decides_over_a_last_part(deep_base: AddedBase) -> None:
    exact = "model.layers.1.self_attn.q_proj"
    ranks = {exact: 2, "q_proj": 4}
    options = LowRankOptions(r=8, target_modules=("q_proj",), rank_pattern=ranks, alpha_pattern={exact: 1.5})
    params = resolve(options, deep_base.stored.spec)
    assert [params.rank(m) for m in params.target_modules] == [4, 2, 4, 4]
    assert params.scaling(exact) == 0.75


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (LowRankOptions(target_modules=("q_prj",)), "did you mean 'q_proj'"),
        (LowRankOptions(layers="top:9"), "from 1 to 4"),
        (LowRankOptions(layers="bottom"), 'expected "all"'),
        (LowRankOptions(layers=(7,)), "no layer 7"),
        (
            LowRankOptions(target_modules=("q_proj",), rank_pattern={"v_proj": 2}),
            "adapter.rank_pattern.v_proj: no linear module among those adapted; did you mean 'q_proj'",
        ),
        (LowRankOptions(target_modules=("model.layers.0.mlp.up_proj",), layers="top:1"), "no module in common"),
    ],
)
def test_what_matches_nothing_is_refused(deep_base: AddedBase, options: LowRankOptions, says: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        resolve(options, deep_base.stored.spec)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            LowRankOptions(r=4, target_modules=("q_proj",), rank_pattern={"q_proj": 999}),
            r"rank_pattern\.q_proj: rank 999",
        ),
        (LowRankOptions(r=999), r"adapter\.r: rank 999.*at most \d+ ranks"),
    ],
)
def test_a_rank_over_a_modules_size_is_refused(options: LowRankOptions, says: str, deep_base: AddedBase) -> None:
    with pytest.raises(InvalidInputError, match=says):
        resolve(options, deep_base.stored.spec)
