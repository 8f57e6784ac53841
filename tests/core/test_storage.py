"""Coded constants: bit for bit, in Python and in C; damaged ones are refused; nothing is touched outside."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effc.core.errors import ConfigError
from effc.core.grids import find_groups
from effc.core.storage import NAMES, Grouped, _segments, decode_arrays, encode_arrays

RUNTIME = Path(__file__).parents[2] / "backends/tvm/runtime"


def grid(rng: np.random.Generator, shape: tuple[int, ...], top: int, axis: int) -> np.ndarray:
    """Dequantized integers, a scale for each index of `axis`."""
    scales = np.abs(rng.standard_normal(shape[axis])).astype(np.float32) + np.float32(0.1)
    along = [1] * len(shape)
    along[axis] = -1
    levels = rng.integers(-top, top, shape, endpoint=True).astype(np.float32)
    return levels * scales.reshape(along)


def arrays(rng: np.random.Generator) -> dict[str, tuple[str, np.ndarray]]:
    """The codec that each array deserves, and the array."""
    w = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)
    few = rng.standard_normal(11).astype(np.float32)
    palettes = rng.standard_normal((4, 16)).astype(np.float32)
    chosen = [p[rng.integers(0, 16, (8, 16, 3, 3))] for p in palettes]
    short = np.abs(rng.standard_normal((24, 6, 1))).astype(ml_dtypes.bfloat16).astype(np.float32)
    blocks = rng.integers(-8, 8, (24, 6, 32)).astype(np.float32) * short
    return {
        "float": ("raw", w),
        "half": ("wide", w.astype(np.float16).astype(np.float32)),
        "bfloat": ("wide", w.astype(ml_dtypes.bfloat16).astype(np.float32)),
        "palette": ("palette", few[rng.integers(0, 11, w.shape)]),
        "pruned": ("palette", np.where(rng.random(w.shape) < 0.9, 0, few[rng.integers(0, 11, w.shape)])),
        "palettes": ("tables", np.concatenate(chosen)),
        "int8": ("grid", grid(rng, (32, 16, 3, 3), 127, 0)),
        "int4 by the last axis": ("grid", grid(rng, (64, 48), 7, 1)),
        "blocks": ("grid", blocks.reshape(24, -1)),
        "bytes": ("palette", rng.binomial(255, 0.5, 3000).astype(np.uint8)),
        "int16": ("palette", rng.integers(-3, 3, 700).astype(np.int16)),
        "int64": ("palette", rng.integers(-3, 3, 700)),
        "special": ("palette", np.resize(np.array([-0.0, 0.0, np.nan, np.inf, 1e-40], np.float32), 640)),
        "nothing": ("", np.zeros(100, np.float32)),
        "empty": ("", np.zeros(0, np.float32)),
    }  # fmt: skip


def known(array: np.ndarray) -> Grouped | None:
    found = find_groups(array)
    if found is None:
        return None
    levels = None if found.levels is None else found.levels.ravel()
    return Grouped(found.groups.ravel(), levels, found.scales)


@pytest.fixture(scope="session")
def decode(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C decoder as a library."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    library = tmp_path_factory.mktemp("decode") / "decode.so"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-std=c11", "-fPIC", "-shared", str(RUNTIME / "decode.c"),
         "-o", str(library)], check=True,
    )  # fmt: skip
    loaded = ctypes.CDLL(str(library))
    loaded.effc_decode.restype = ctypes.c_char_p
    loaded.effc_decode.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t
    ]  # fmt: skip
    return loaded


def in_c(library: ctypes.CDLL, data: bytes, size: int) -> tuple[str, bytes]:
    """What C says (nothing when all is well), and its bytes; guards around them must survive."""
    out = ctypes.create_string_buffer(b"\xa5" * (size + 64), size + 64)
    wrong = library.effc_decode(data, len(data), out, size)
    assert out.raw[size:] == b"\xa5" * 64
    return (wrong or b"").decode(), out.raw[:size]


@pytest.mark.parametrize("name", list(arrays(np.random.default_rng(0))))
def test_each_kind_has_its_codec_and_loses_no_bit(name: str, decode: ctypes.CDLL) -> None:
    codec, array = arrays(np.random.default_rng(0))[name]
    size = array.nbytes + 192
    coded = encode_arrays([(name, 64, array, known(array))], size)
    assert coded.codecs == ({codec: 1} if codec else {})
    assert set(coded.codecs) <= set(NAMES)
    wanted = bytes(64) + array.tobytes() + bytes(128)
    assert bytes(decode_arrays(coded.data, size)) == wanted
    assert in_c(decode, coded.data, size) == ("", wanted)
    if codec in ("palette", "tables", "grid"):
        assert len(coded.data) < 0.55 * array.nbytes or array.itemsize < 4


def test_many_arrays_in_one(decode: ctypes.CDLL) -> None:
    items, offset, wanted = [], 0, b""
    for name, (_, array) in arrays(np.random.default_rng(1)).items():
        items.append((name, offset, array, known(array)))
        wanted += array.tobytes() + bytes(-array.nbytes % 64)
        offset = len(wanted)
    coded = encode_arrays(items, offset)
    assert bytes(decode_arrays(coded.data, offset)) == wanted
    assert in_c(decode, coded.data, offset) == ("", wanted)
    assert coded.ratio == coded.raw_bytes / len(coded.data)
    assert sum(size for _, size in coded.by_name.values()) < len(coded.data)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(data=st.data())
def test_any_groups(decode: ctypes.CDLL, data: st.DataObject) -> None:
    """Grids and tables whose groups lie anyhow, in lanes, rows or at random."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    tables = data.draw(st.integers(1, 20))
    lanes = data.draw(st.sampled_from([1, 3, 16, 48]))
    rows = data.draw(st.integers(1, 30))
    groups = np.tile(rng.integers(0, tables, lanes), rows)
    groups = np.concatenate([groups, rng.integers(0, tables, data.draw(st.integers(0, 40)))])
    n = len(groups)
    assert sum(a * b for a, b in _segments(groups)) == n
    scales = rng.standard_normal(tables).astype(np.float32)
    levels = rng.integers(-9, 9, n).astype(np.int32)
    real = levels.astype(np.float32) * scales[groups] + np.float32(0)
    for known_ in (Grouped(groups, levels, scales), Grouped(groups)):
        coded = encode_arrays([("a", 0, real, known_)], real.nbytes)
        assert bytes(decode_arrays(coded.data, real.nbytes)) == real.tobytes()
        assert in_c(decode, coded.data, real.nbytes) == ("", real.tobytes())


def sealed(body: bytes) -> bytes:
    return b"EFCC" + zlib.crc32(body).to_bytes(4, "little") + body


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None
)
@given(data=st.data())
def test_damaged_data_are_refused_alike(decode: ctypes.CDLL, data: st.DataObject) -> None:
    """With the checksum made right again, so that the decoders themselves have to notice."""
    name = data.draw(
        st.sampled_from(["half", "pruned", "palettes", "int8", "blocks", "int16", "float"])
    )
    array = arrays(np.random.default_rng(2))[name][1].ravel()[: data.draw(st.integers(300, 900))]
    coded = encode_arrays([(name, 0, array, known(array))], array.nbytes + 8)
    assert in_c(decode, coded.data[:-1] + bytes([coded.data[-1] ^ 1]), array.nbytes + 8)[0]
    body = bytearray(coded.data[8:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(body) - 1, data.draw(st.sampled_from([40, 2000])))))
        body[at] = data.draw(st.integers(0, 255))
    broken = sealed(bytes(body[: data.draw(st.integers(1, len(body)))]))
    wrong, found = in_c(decode, broken, array.nbytes + 8)
    try:
        wanted = bytes(decode_arrays(broken, array.nbytes + 8))
    except ConfigError as error:
        assert wrong, error
        assert "\n" not in str(error)
    else:
        assert (wrong, found) == ("", wanted)


def test_the_decoder_is_clean_under_the_sanitizers(tmp_path: Path) -> None:
    """Thousands of damaged inputs in exact allocations, address and undefined behaviour instrumented."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    driver = r"""
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include "decode.h"
    int main(int argc, char **argv) {
      FILE *f = fopen(argv[1], "rb");
      unsigned long size, out, refused = 0;
      while (fread(&size, 8, 1, f) == 1 && fread(&out, 8, 1, f) == 1) {
        unsigned char *data = malloc(size), *to = malloc(out);
        if (fread(data, 1, size, f) != size) return 2;
        refused += effc_decode(data, size, to, out) != NULL;
        free(data), free(to);
      }
      return printf("%lu\n", refused), 0;
    }
    """
    (tmp_path / "driver.c").write_text(driver)
    for name in ("decode.c", "decode.h"):
        shutil.copy(RUNTIME / name, tmp_path)
    built = subprocess.run(
        ["gcc", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "driver.c",
         "decode.c", "-o", "driver"], cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    if "cannot find" in built.stderr:
        pytest.skip("gcc has no sanitizers")
    assert built.returncode == 0, built.stderr
    rng = np.random.default_rng(3)
    cases = []
    for name, (_, array) in arrays(rng).items():
        part = array.ravel()[:700]
        body = encode_arrays([(name, 0, part, known(part))], part.nbytes + 8).data[8:]
        for _ in range(250):
            damaged = bytearray(body)
            for at in rng.integers(0, min(len(body), int(rng.choice([12, 60, 3000]))), 2):
                damaged[at] = rng.integers(0, 256)
            data = sealed(bytes(damaged[: rng.integers(1, len(damaged) + 1)]))
            cases.append(np.array([len(data), part.nbytes + 8], np.uint64).tobytes() + data)
    (tmp_path / "cases").write_bytes(b"".join(cases))
    done = subprocess.run(["./driver", "cases"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:2000]
    assert len(cases) / 2 < int(done.stdout) <= len(cases)


def test_grids_are_found_from_the_floats_alone() -> None:
    rng = np.random.default_rng(4)
    array = grid(rng, (32, 16, 3, 3), 127, 0)
    found = find_groups(array)
    assert found is not None and found.levels is not None and found.scales is not None
    assert found.scales.shape == (32,)
    assert np.abs(found.levels).max() <= 127
    real = found.levels.astype(np.float32) * found.scales[found.groups]
    np.testing.assert_array_equal(real, array)
    assert find_groups(rng.standard_normal((32, 16, 3, 3)).astype(np.float32)) is None
    nudged = array.copy()
    nudged[5, 3, 1, 1] = np.nextafter(nudged[5, 3, 1, 1], np.float32(9))
    again = find_groups(nudged)
    assert again is None or again.scales is None
