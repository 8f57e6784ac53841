"""The text form of blockings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.backends.tvm.kernels.choice import Blocking

_NUMBER = st.none() | st.integers(1, 1 << 20)


@given(st.builds(Blocking, _NUMBER, _NUMBER, _NUMBER, st.none() | st.booleans(), _NUMBER))
def test_text_round_trips(blocking: Blocking) -> None:
    assert Blocking.parse(str(blocking)) == blocking


def test_the_rule_has_no_text() -> None:
    assert str(Blocking()) == ""
    assert Blocking.parse("") == Blocking()


@pytest.mark.parametrize(
    "text",
    ["tile", "tile=", "tile=0", "tile=-1", "tile=1,tile=2", "width=3", "stationary=2", "unroll=9999999"],
)  # fmt: skip
def test_what_is_no_blocking(text: str) -> None:
    with pytest.raises(ValueError, match="no blocking"):
        Blocking.parse(text)
