"""Drawing tokens: the distributions that temperature, top-k and top-p promise."""

from collections import Counter

import pytest
import torch

from weft_server.engine import Sampling
from weft_server.torch_engine.sampling import draw

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
DRAWS = 4000


def frequencies(sampling: Sampling) -> dict[int, float]:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(draw(LOGITS, sampling, generator) for _ in range(DRAWS))
    return {token: count / DRAWS for token, count in counts.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    expected = torch.softmax(LOGITS.double() / temperature, -1)
    found = frequencies(Sampling(temperature))
    for token in range(5):
        assert found.get(token, 0.0) == pytest.approx(float(expected[token]), abs=0.03)


def test_top_k_keeps_the_k_most_likely_in_proportion() -> None:
    found = frequencies(Sampling(1.0, top_k=2))
    expected = torch.softmax(LOGITS[:2].double(), -1)
    assert set(found) == {0, 1}
    assert found[0] == pytest.approx(float(expected[0]), abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    # The probabilities are about 0.64, 0.23, 0.09, 0.03, 0.01.
    assert set(frequencies(Sampling(1.0, top_p=0.6))) == {0}
    assert set(frequencies(Sampling(1.0, top_p=0.65))) == {0, 1}
    assert set(frequencies(Sampling(1.0, top_p=0.9))) == {0, 1, 2}


def test_a_tiny_top_p_is_greedy_and_top_k_may_exceed_the_vocabulary() -> None:
    assert set(frequencies(Sampling(5.0, top_p=1e-6))) == {0}
    assert set(frequencies(Sampling(5.0, top_k=100))) == {0, 1, 2, 3, 4}
