"""Sample sets: folders, tars, arrays, labels, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effc.core.artifact import TensorSpec
from effc.core.data import FirstSamples, SyntheticSamples, open_samples
from effc.core.errors import ConfigError
from effc.core.pictures import labels
from effc.core.preprocess import Preprocess

INPUT = (TensorSpec("x", "float32", (1, 3, 8, 8)),)
RAW = Preprocess.parse("raw")
RNG = np.random.default_rng(0)


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def tar_of(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def test_labels_by_leading_integer() -> None:
    assert labels(["12_cat.jpg", "3-dog.jpg", "bird.jpg", "0007.jpg"]) == {
        "12_cat.jpg": 12, "3-dog.jpg": 3, "bird.jpg": None, "0007.jpg": None,
    }  # fmt: skip
    assert labels(["set/12_cat.jpg", "set/1_a.jpg"]) == {"set/12_cat.jpg": 12, "set/1_a.jpg": 1}


def test_labels_by_class_folder() -> None:
    assert labels(["dog/1_a.jpg", "cat/b.jpg", "dog/c.jpg"]) == {
        "dog/1_a.jpg": 1, "cat/b.jpg": 0, "dog/c.jpg": 1,
    }  # fmt: skip
    assert labels(["10/a.jpg", "2/a.jpg"]) == {"10/a.jpg": 1, "2/a.jpg": 0}


def test_folder(tmp_path: Path) -> None:
    for name in ("10_b.png", "2_a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(picture(int(name[0]) if name[0].isdigit() else 0))
    samples = open_samples(tmp_path, INPUT, RAW)
    assert len(samples) == 2 and not samples.synthetic
    found = [(int(f["x"][0, 0, 0, 0]), label) for f, label in samples.labelled()]
    assert found == [(2, 2), (1, 10)]
    before = samples.fingerprint
    assert before != open_samples(tmp_path, INPUT, Preprocess.parse("unit")).fingerprint
    (tmp_path / "2_a.png").write_bytes(picture(9))
    assert open_samples(tmp_path, INPUT, RAW).fingerprint != before


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tar_streams_twice_the_same(tmp_path: Path, mode: str) -> None:
    suffix = {"w": ".tar", "w:gz": ".tar.gz", "w:xz": ".tar.xz"}[mode]
    members = [(f"d/{i}_x.png", picture(i)) for i in (5, 1, 3)]
    path = tar_of(tmp_path / f"a{suffix}", [*members, ("d/readme.md", b"hello")], mode)
    samples = open_samples(path, INPUT, RAW)
    assert len(samples) == 3
    first = [(float(f["x"].mean()), label) for f, label in samples.labelled()]
    assert first == [(5.0, 5), (1.0, 1), (3.0, 3)]
    assert [(float(f["x"].mean()), label) for f, label in samples.labelled()] == first
    assert len(list(FirstSamples(samples, 2))) == 2


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("1_a.png")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("member", "word"),
    [
        (("../1_a.png", picture(1)), "outside"),
        (("/abs/1_a.png", picture(1)), "outside"),
        (("a/../../1_a.png", picture(1)), "outside"),
        (link(tarfile.SYMTYPE), "link"),
        (link(tarfile.LNKTYPE), "link"),
        (link(tarfile.FIFOTYPE), "regular"),
    ],
)
def test_unsafe_tars_are_refused(tmp_path: Path, member: object, word: str) -> None:
    path = tar_of(tmp_path / "a.tar", [("0_ok.png", picture(1)), member])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=word):
        open_samples(path, INPUT, RAW)


def test_a_member_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1_a.png")
    info.size = 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"\0" * 1024)
    with pytest.raises(ConfigError, match="larger"):
        open_samples(tmp_path / "a.tar", INPUT, RAW)


def test_truncated_and_alien_files(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", [("1_a.png", RNG.bytes(30_000))])
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ConfigError):
        list(open_samples(path, INPUT, RAW))
    for name in ("b.tar", "b.npz", "b.npy", "b.jpg"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
        with pytest.raises(ConfigError):
            list(open_samples(tmp_path / name, INPUT, RAW))
    with pytest.raises(ConfigError, match="does not exist"):
        open_samples(tmp_path / "none.npz", INPUT, RAW)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ConfigError, match="regular"):
        open_samples(tmp_path / "pipe.npz", INPUT, RAW)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures"):
        open_samples(tmp_path / "empty", INPUT, RAW)


def test_pictures_need_a_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "1_a.png").write_bytes(picture(1))
    with pytest.raises(ConfigError, match="preprocessing"):
        open_samples(tmp_path, INPUT)
    with pytest.raises(ConfigError, match="one input"):
        open_samples(tmp_path, (*INPUT, TensorSpec("z", "float32", (1,))), RAW)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_pixels(tmp_path: Path, save: object) -> None:
    x = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    y = np.arange(5, dtype=np.int64)
    save(tmp_path / "a.npz", x=x, y=y)  # type: ignore[operator]
    samples = open_samples(tmp_path / "a.npz", INPUT, Preprocess.parse("unit"))
    assert len(samples) == 5
    for i, (feeds, label) in enumerate(samples.labelled()):
        assert label == i
        wanted = x[i].astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
        np.testing.assert_allclose(feeds["x"], wanted, rtol=1e-6)
    with pytest.raises(ConfigError, match="uint8") as error:
        open_samples(tmp_path / "a.npz", INPUT)
    assert "--preprocess" in error.value.hint


def test_npz_of_tensors_passes_as_it_is(tmp_path: Path) -> None:
    x = RNG.standard_normal((4, 3, 8, 8))
    np.savez(tmp_path / "a.npz", x=x)
    feeds = list(open_samples(tmp_path / "a.npz", INPUT, RAW))
    assert len(feeds) == 4 and feeds[0]["x"].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([f["x"] for f in feeds]), x.astype(np.float32))
    np.save(tmp_path / "one.npy", x[:1])
    (only,) = open_samples(tmp_path / "one.npy", INPUT)
    np.testing.assert_array_equal(only["x"], x[:1].astype(np.float32))


def test_npz_by_input_name(tmp_path: Path) -> None:
    inputs = (TensorSpec("a", "int64", (2,)), TensorSpec("b", "float32", ()))
    np.savez(tmp_path / "a.npz", a=np.array([[1, 2], [3, 4]]), b=np.float32(5))
    feeds = list(open_samples(tmp_path / "a.npz", inputs))
    assert [f["a"].tolist() for f in feeds] == [[1, 2], [3, 4]]
    assert [float(f["b"]) for f in feeds] == [5.0, 5.0]
    with pytest.raises(ConfigError, match="no array for input 'c'"):
        open_samples(tmp_path / "a.npz", (*inputs, TensorSpec("c", "float32", (1,))))


def test_integer_features_are_normalized(tmp_path: Path) -> None:
    spec = (TensorSpec("x", "float32", (1, 1, 4, 2)),)
    x = RNG.integers(-128, 128, (3, 4, 2), dtype=np.int8)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([2, 0, 1]))
    feeds = [
        f["x"] for f in open_samples(tmp_path / "a.npz", spec, Preprocess.parse("mean=83,std=1.71"))
    ]
    np.testing.assert_allclose(
        np.concatenate(feeds)[:, 0], (x.astype(np.float64) - 83) / 1.71, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"x": np.zeros((4, 3, 9, 9), np.float32)}, "is float32"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "no samples"),
        ({"x": np.zeros((4, 3, 8, 8), np.float32), "y": np.zeros(3, np.int64)}, "4 integers"),
        ({"x": np.zeros((4, 3, 8, 8), np.float32), "y": np.zeros(4)}, "float64"),
        ({"a": np.zeros((4, 3, 8, 8)), "b": np.zeros(1)}, "no array"),
        ({"x": np.array([object()], dtype=object)}, "object"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], word: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=word):
        open_samples(tmp_path / "a.npz", INPUT, RAW)


def test_a_cut_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3, 8, 8), np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-100])
    with pytest.raises(ConfigError, match="ends within sample 3"):
        list(open_samples(tmp_path / "a.npy", INPUT))


def test_synthetic_samples_are_seeded_and_say_so() -> None:
    specs = (
        *INPUT,
        TensorSpec("i", "uint8", (4,)),
        TensorSpec("b", "bool", ()),
        TensorSpec("h", "float16", (2, 2)),
    )
    one, two = SyntheticSamples(specs, count=3, seed=1), SyntheticSamples(specs, count=3, seed=2)
    assert one.synthetic and len(one) == 3 and one.fingerprint != two.fingerprint
    for a, b in zip(one, SyntheticSamples(specs, count=3, seed=1), strict=True):
        for spec in specs:
            assert a[spec.name].dtype == np.dtype(spec.dtype) and a[spec.name].shape == spec.shape
            np.testing.assert_array_equal(a[spec.name], b[spec.name])
    assert [label for _, label in one.labelled()] == [None] * 3


def rows(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "rows.npz"
    x = np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((3, 8, 8), np.float32)
    np.savez(path, x=x, y=np.arange(count))
    return path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[::5]", [0, 5, 10]),
        ("[!::5]", [1, 2, 3, 4, 6, 7, 8, 9, 11]),
        ("[1::5]", [1, 6, 11]),
        ("[:3]", [0, 1, 2]),
        ("[-2:]", [10, 11]),
        ("[2:100]", list(range(2, 12))),
        ("[!:10]", [10, 11]),
        ("[:]", list(range(12))),
    ],
)
def test_a_slice_picks_samples(tmp_path: Path, text: str, wanted: list[int]) -> None:
    archive = tar_of(tmp_path / "p.tar", [(f"{i}_a.png", picture(i)) for i in range(12)])
    for path, preprocess in ((rows(tmp_path, 12), None), (archive, RAW)):
        samples = open_samples(Path(f"{path}{text}"), INPUT, preprocess)
        found = list(samples.labelled())
        assert [label for _, label in found] == wanted and len(samples) == len(wanted)
        assert [float(f["x"].mean()) for f, _ in found] == wanted
        assert [float(f["x"].mean()) for f in samples] == wanted


def test_slices_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    path = rows(tmp_path, 12)
    texts = ("", "[::5]", "[!::5]", "[::6]", "[1::5]", "[:5]")
    assert len({open_samples(Path(f"{path}{t}"), INPUT).fingerprint for t in texts}) == len(texts)


@pytest.mark.parametrize(("text", "word"), [("[20:]", "none of 12"), ("[::0]", "zero")])
def test_slices_that_pick_nothing_are_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        open_samples(Path(f"{rows(tmp_path, 12)}{text}"), INPUT)


def test_a_file_whose_name_ends_like_a_slice_is_that_file(tmp_path: Path) -> None:
    path = rows(tmp_path, 12)
    odd = path.rename(tmp_path / "rows.npz[::5]").with_name("rows.npz[::5]")
    with pytest.raises(ConfigError, match="no picture|can't be read"):  # its suffix says nothing
        next(iter(open_samples(odd, INPUT, RAW)))


def test_picked_rows_are_all_that_is_decoded(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "p.tar", [("0_a.png", picture(7)), ("1_b.png", b"no picture")])
    assert len(list(open_samples(Path(f"{archive}[:1]"), INPUT, RAW))) == 1
    with pytest.raises(ConfigError, match="1_b.png"):
        list(open_samples(Path(f"{archive}[1:]"), INPUT, RAW))
