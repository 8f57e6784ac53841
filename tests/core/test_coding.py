"""Entropy coding: what goes in comes out; what no encoder wrote is refused."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.core import coding
from effc.core.coding import MAX_BITS, Reader, canonical_codes, code_lengths, decode_symbols
from effc.core.errors import ConfigError


@st.composite
def symbols(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A sequence, from even to mostly one symbol, and its alphabet."""
    alphabet = draw(st.sampled_from([1, 2, 3, 16, 17, 255, 256, 511, 4096]))
    size = draw(st.integers(0, 600))
    common = draw(st.floats(0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    found = rng.integers(0, alphabet, size)
    found[rng.random(size) < common] = rng.integers(0, alphabet)
    return found, alphabet


@given(symbols())
def test_round_trip(case: tuple[np.ndarray, int]) -> None:
    given_, alphabet = case
    reader = Reader(coding.encode_symbols(given_, alphabet))
    np.testing.assert_array_equal(decode_symbols(reader, given_.size, alphabet), given_)
    assert reader.at == len(reader.data)


@given(symbols(), st.sampled_from([15, 255]))
def test_runs_round_trip_whatever_they_skip(case: tuple[np.ndarray, int], filler: int) -> None:
    given_, alphabet = case
    if not given_.size:
        return
    common = int(given_[0])
    reader = Reader(coding._encode_runs(given_.astype(np.int64), common, alphabet, filler))
    np.testing.assert_array_equal(decode_symbols(reader, given_.size, alphabet), given_)
    assert reader.at == len(reader.data)


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=300))
def test_codes_are_optimal_prefix_codes(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts)).astype(int)
    used = [c for c in counts if c]
    assert [bool(n) for n in lengths] == [bool(c) for c in counts]
    if len(used) < 2:
        return
    assert lengths.max() <= MAX_BITS
    assert sum(2.0 ** -int(n) for n in lengths if n) == 1
    codes = canonical_codes(lengths)
    words = sorted(f"{codes[i]:0{lengths[i]}b}" for i in np.flatnonzero(lengths))
    assert not any(b.startswith(a) for a, b in zip(words, words[1:], strict=False))
    heap = list(used)
    heapq.heapify(heap)
    best = 0  # Huffman's algorithm, without a limit
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        best += both
        heapq.heappush(heap, both)
    cost = sum(int(n) * c for n, c in zip(lengths, counts, strict=True))
    assert cost >= best
    if max(used) < 100 * min(used):  # then no optimal code is longer than the limit
        assert cost == best


def test_the_length_limit_holds_where_huffman_would_be_longer() -> None:
    counts = np.array([1 << i for i in range(30)])
    lengths = code_lengths(counts)
    assert lengths.max() == MAX_BITS
    assert sum(2.0 ** -int(n) for n in lengths) == 1


def test_sizes_follow_the_statistics() -> None:
    rng = np.random.default_rng(0)
    even = rng.integers(0, 256, 20_000)
    assert coding.encode_symbols(even, 256)[0] == coding.PLAIN
    skewed = np.minimum(rng.geometric(0.5, 20_000), 15)
    assert coding.encode_symbols(skewed, 16)[0] == coding.HUFFMAN
    assert 8 * len(coding.encode_symbols(skewed, 16)) < 2.02 * 20_000  # its entropy is 2 bits
    sparse = np.where(rng.random(20_000) < 0.95, 0, rng.integers(1, 16, 20_000))
    coded = coding.encode_symbols(sparse, 16)
    assert coded[0] == coding.RUNS
    entropy = 0.95 * np.log2(1 / 0.95) + 0.05 * np.log2(15 / 0.05)
    assert 8 * len(coded) < 1.08 * entropy * 20_000


@pytest.mark.parametrize("value", [0, 1, 127, 128, 1 << 40, (1 << 63) - 1])
def test_varints(value: int) -> None:
    reader = Reader(coding.varint(value, 5))
    assert (reader.varint(), reader.varint()) == (value, 5)
    for number in (value >> 1, -(value >> 1)):
        assert coding.unzigzag(coding.zigzag(number)) == number


@given(symbols(), st.data())
def test_damaged_streams_raise_or_decode_to_the_right_length(
    case: tuple[np.ndarray, int], data: st.DataObject
) -> None:
    given_, alphabet = case
    coded = bytearray(coding.encode_symbols(given_, alphabet))
    at = data.draw(st.integers(0, len(coded) - 1))
    coded[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_symbols(Reader(bytes(coded)), given_.size, alphabet)
    except ConfigError as error:
        assert "damaged" in str(error)
        assert "\n" not in str(error)
    else:
        assert found.size == given_.size
        assert found.size == 0 or found.max() < alphabet


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x03",  # no such kind
        b"\x00\x0d\x00",  # 13 bits a symbol
        b"\x01\x02\x11\x00",  # Huffman, ends before its bits
        b"\x01\x03\x11\x01\x01\x00",  # three codes of one bit
        b"\x01\x02\x1f\x01\x00",  # a code of 15 bits
        b"\x02\x02\x05\x0f",  # runs of a symbol outside the alphabet
        b"\xff" * 12,  # an endless integer
    ],
)
def test_what_no_encoder_writes_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="damaged"):
        decode_symbols(Reader(data), 3, 16)
