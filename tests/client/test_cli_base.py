"""`weft base` as far as it goes without a model: what it refuses, and how."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Weft = Callable[..., Result]


@pytest.mark.parametrize("option", ["--samples", "--length"])
def test_what_only_calibration_heeds_is_refused_without_it(option: str, weft: Weft) -> None:
    assert "--gptq DATA" in weft("base", "requantize", "tiny", "tiny-3bit", option, "64", status=2).stderr


@pytest.mark.parametrize("bits", ["1", "5", "8"])
def test_a_width_that_is_not_offered_is_wrong_usage(bits: str, weft: Weft, tmp_path: Path) -> None:
    assert "2<=x<=4" in weft("base", "add", "tiny", tmp_path, "--bits", bits, status=2).stderr
    assert "2<=x<=4" in weft("base", "requantize", "tiny", "new", "--bits", bits, status=2).stderr
