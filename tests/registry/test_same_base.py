from __future__ import annotations

from dataclasses import replace

import pytest

from tests.registry.lab import BASE
from weft_registry.errors import PreconditionError


def test_another_base_is_told_by_what_tells_it_apart() -> None:
    ours = BASE.fingerprint
    ours.check_is(ours, "it", "this", "leave it out")
    # The same source, in two bits.
    coarse = replace(ours, weights_sha256="sha256:" + "9" * 64, quant=replace(ours.quant, bits=2))
    made_for = f"^it was made for the base {ours.id}"
    with pytest.raises(
        PreconditionError, match=rf"{made_for} in 4 bits and groups of 8 .* in 2 bits .*: leave it out$"
    ):
        ours.check_is(coarse, "it", "this", "leave it out")
    with pytest.raises(PreconditionError, match=rf"{made_for} with .* but this is other with "):
        ours.check_is(replace(coarse, id="other"), "it", "this", "leave it out")
