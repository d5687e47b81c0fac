"""HDF5 and Caffe files made to crash, hang or fill the memory: one error, in little time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from caffe_networks import (
    Caffe,
    blob,
    caffemodel,
    random_weights,
    tagged,
    varint,
    whole,
    write_h5,
    write_modeldef,
)

from napari_unet.checkpoint import load_model
from napari_unet.errors import CheckpointError
from napari_unet.importers import hdf5
from napari_unet.importers.hdf5 import read_hdf5

NET = Caffe((3, 5))
WEIGHTS = random_weights(NET)


def a_cycle(file: h5py.File) -> None:
    file["data/conv_d0a-b/round"] = file["data"]


def a_cycle_through_the_root(file: h5py.File) -> None:
    file["data/x"] = file["/"]


def an_external_link(file: h5py.File) -> None:
    file["data/x"] = h5py.ExternalLink("/etc/passwd", "/")


def a_soft_link_round(file: h5py.File) -> None:
    file["data/x"] = h5py.SoftLink("/data/x")


def a_claim(file: h5py.File) -> None:
    file.create_dataset("data/x/0", (1 << 45,), "f4")


def a_claim_in_chunks(file: h5py.File) -> None:
    file.create_dataset("data/x/0", (1 << 45,), "f4", chunks=(1 << 20,), compression="gzip")


def a_bomb(file: h5py.File) -> None:
    file.create_dataset("data/x/0", (1 << 28,), "f4", chunks=(1 << 22,), compression="gzip")
    file["data/x/0"][: 1 << 24] = 0


def one_huge_chunk(file: h5py.File) -> None:
    file.create_dataset("data/x/0", (1,), "f4", maxshape=(None,), chunks=(1 << 29,))


def other_peoples_bytes(file: h5py.File) -> None:
    file.create_dataset("data/x/0", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def a_virtual_dataset(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("data/x/0", layout)


def a_deep_nest(file: h5py.File) -> None:
    here = file["data"]
    for _ in range(3000):
        here = here.create_group("g")


def many_groups(file: h5py.File) -> None:
    for number in range(20_001):
        file.create_group(f"data/{number}")


def many_texts(file: h5py.File) -> None:
    file.create_dataset("data/x/0", data=np.full(20_001, "x", object), dtype=h5py.string_dtype())


def one_long_text(file: h5py.File) -> None:
    file.create_dataset("model_prototxt", (1 << 8,), f"S{1 << 24}", compression="gzip")


def a_large_attribute(file: h5py.File) -> None:
    file.create_group("data/x").attrs.create("y", np.zeros(1 << 17))


def structures(file: h5py.File) -> None:
    file.create_dataset("data/x/0", (3,), np.dtype([("a", "f4")]))


def references(file: h5py.File) -> None:
    file.create_dataset("data/x/0", data=np.array([file.ref], h5py.ref_dtype), dtype=h5py.ref_dtype)


HOSTILE: dict[Callable[[h5py.File], None], str] = {
    a_cycle: "inside itself",
    a_cycle_through_the_root: "inside itself",
    an_external_link: "links to somewhere else",
    a_soft_link_round: "links to somewhere else",
    a_claim: "far more values",
    a_claim_in_chunks: "far more values",
    a_bomb: "far more values",
    one_huge_chunk: "far more values",
    other_peoples_bytes: "in other files",
    a_virtual_dataset: "in other files",
    a_deep_nest: "far more objects",
    many_groups: "far more objects",
    many_texts: "far more text",
    one_long_text: "far more text",
    a_large_attribute: "attribute far larger",
    structures: "values of no number",
    references: "values of no number",
}


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda build: build.__name__)
def test_hostile_hdf5(hostile: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    assert load_model(path)
    with h5py.File(path, "a", libver="latest") as file:
        hostile(file)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=HOSTILE[hostile]):
        load_model(path)
    assert time.monotonic() - start < 15  # a slow machine's start of Python, twice


def test_a_file_that_hdf5_itself_never_ends_on(tmp_path: Path) -> None:
    """A text of no length in its heap: the library takes the next one to be the same, for ever."""
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    with h5py.File(path, "a") as file:
        file.attrs["names"] = [f"layer number {n}" for n in range(20)]
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 136] = bytes(120)
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="damaged, or made to take forever"):
        load_model(path)
    assert time.monotonic() - start < 15  # two seconds, and a slow machine's start of Python


@pytest.fixture
def crooked_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put other code in the place of the reading process: as if a file had taken it over."""

    def replace(code: str) -> None:
        script = tmp_path / "child.py"
        script.write_text(f"import faulthandler, sys, time\n{code}\n")
        monkeypatch.setattr(hdf5, "_CHILD", script)

    return replace


@pytest.mark.parametrize(
    "code",
    [
        "faulthandler._sigsegv()",
        "faulthandler.dump_traceback_later(1, exit=True, file=sys.stderr); time.sleep(100)",
        "print('no JSON')",
        "print('[' * 100000)",
        "print('[1, 2]')",
        "print('{}')",
        'print(\'{"groups": 1, "attributes": {}, "datasets": []}\')',
        'print(\'{"groups": [], "attributes": {}, "datasets": [{"path": "/a", "shape": [9999999], '
        '"dtype": "<f4", "offset": 0}]}\')',
        'print(\'{"groups": [], "attributes": {}, "datasets": [{"path": "/a", "shape": [4], '
        '"dtype": "<f4", "offset": 1e300}]}\')',
        'print(\'{"groups": [], "attributes": {}, "datasets": [{"path": "/a", "shape": [-4], '
        '"dtype": "<f4", "offset": 8}]}\')',
        'print(\'{"groups": [], "attributes": {}, "datasets": [{"path": "/a", "shape": [4], '
        '"dtype": "O", "offset": 8}]}\')',
        'print(\'{"groups": [], "attributes": {}, "datasets": [{"path": "/a", "shape": [4], '
        '"dtype": "<f4"}]}\')',
        'print(\'{"groups": [], "attributes": {"/": {"a": {"shape": [2], "dtype": "<f4", '
        '"values": [1]}}}, "datasets": []}\')',
    ],
)
def test_nothing_that_the_reading_process_tells_is_believed(
    crooked_child: Callable[[str], None], tmp_path: Path, code: str
) -> None:
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    crooked_child(code)
    with pytest.raises(CheckpointError, match=r"n\.caffemodel\.h5"):
        read_hdf5(path)


def test_a_machine_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "h5py" else found(name)
    )
    with pytest.raises(CheckpointError, match="pip install h5py"):
        load_model(path)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(CheckpointError, match="no second Python"):
        load_model(path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits are Linux's")
def test_the_reading_process_has_limits(tmp_path: Path) -> None:
    """Time ends it however deep in C it is, and memory beyond the limit is refused."""
    child = Path(hdf5.__file__).with_name("hdf5_child.py")
    code = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nimport hdf5_child\n"
        "hdf5_child._limit(1, 50 << 20)\n"
        "try:\n    bytes(200 << 20)\nexcept MemoryError:\n    print('refused', flush=True)\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(child.parent)], capture_output=True, check=False
    )
    assert done.stdout == b"refused\n"
    assert done.returncode == 1
    assert time.monotonic() - start < 20


def test_what_is_read_is_what_is_there(tmp_path: Path) -> None:
    """Mapped, packed, turned and empty values, texts of each kind, attributes of each kind."""
    chance = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "plain": chance.random((3, 4), np.float32),
        "turned": chance.random(5).astype(">f8"),
        "packed": chance.integers(0, 9, (40, 30)),
        "half": chance.random(7).astype("f2"),
        "none": np.zeros((0, 3), np.float32),
        "one": np.float64(2.5),
        "flag": np.bool_(True),
    }
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            packing = {"compression": "gzip", "shuffle": True} if name == "packed" else {}
            file.create_dataset(f"g/{name}", data=values, **packing)
        file["text"], file["fixed"], file["texts"] = "ä\n", np.bytes_(b"b"), ["c", "dd"]
        file["same"] = file["g/plain"]
        file["nothing"] = h5py.Empty("f4")
        file["a type"] = np.dtype("i4")
        file.attrs.update({"i": 1, "f": 2.5, "s": "x", "l": ["y", "z"], "e": h5py.Empty("f4")})
        file["g"].attrs["array"] = np.arange(3)
        file["g"].attrs["bytes"] = np.array([b"p", b"qq"])
    content = path.read_bytes()
    found = read_hdf5(path)
    assert found.groups == ("/", "/g")
    assert found.attributes["/"] == {"i": 1, "f": 2.5, "s": "x", "l": ["y", "z"]}
    assert found.attributes["/g"]["bytes"] == ["p", "qq"]
    assert found.attributes["/g"]["array"].tolist() == [0, 1, 2]
    for name, values in arrays.items():
        read = found.datasets[f"/g/{name}"]
        assert read.dtype == np.asarray(values).dtype.newbyteorder("=")
        assert read.shape == np.shape(values)
        assert np.array_equal(read, values)
    assert np.array_equal(found.datasets["/same"], arrays["plain"])
    texts = {key: found.datasets[f"/{key}"].tolist() for key in ("text", "fixed", "texts")}
    assert texts == {"text": "ä\n", "fixed": "b", "texts": ["c", "dd"]}
    found.datasets["/g/plain"][:] = 7
    assert path.read_bytes() == content


def caffe_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "n.caffemodel"
    path.write_bytes(content)
    return path


GOOD = caffemodel(NET, WEIGHTS)
LAYER = tagged(1, "conv_d0a-b") + tagged(2, "Convolution")
PROTOBUFS = {
    "terabytes in a layer": varint(100 << 3 | 2) + varint(1 << 42) + b"x",
    "terabytes in a blob": tagged(100, LAYER + varint(7 << 3 | 2) + varint(1 << 42)),
    "a shape of terabytes": tagged(
        100, LAYER + tagged(7, tagged(7, tagged(1, varint(1 << 40))) + tagged(5, b"\0" * 8))
    ),
    "a shape of many axes": tagged(
        100, LAYER + tagged(7, tagged(7, tagged(1, b"\1" * 9)) + tagged(5, b"\0" * 4))
    ),
    "a shape below zero": tagged(
        100, LAYER + tagged(7, tagged(7, tagged(1, varint((1 << 64) - 4))) + tagged(5, b"\0" * 4))
    ),
    **{
        f"a shape of nothing, {' x '.join(map(str, shape))}": tagged(
            100, LAYER + tagged(7, tagged(7, b"".join(whole(1, extent) for extent in shape)))
        )
        for shape in ((0, 1 << 62), (0, 1 << 63), (1 << 40, 1 << 40, 0), (0,))
    },
    "a number without an end": b"\xff" * 400_000,
    "millions of parts": whole(1000, 1) * 2_000_000,
    "millions of numbers, each with parts between": tagged(
        100, LAYER + tagged(7, (b"\x2d" + b"\0" * 4 + whole(15, 1)) * 400_000)
    ),
    "half a number": tagged(100, LAYER + tagged(7, tagged(5, b"\0" * 3))),
    "groups of old": tagged(100, b"\x0b" * 100),
    "no field": b"\0" * 1000,
    "the same layer twice": GOOD + GOOD,
    "no weights": tagged(1, "a net"),
    "weights of another layer": GOOD + tagged(
        100,
        tagged(1, "fc") + tagged(2, "InnerProduct") + tagged(7, blob(np.ones((2, 2)), "packed")),
    ),
    "an image": b"GIF89a" + bytes(range(200)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROTOBUFS)
def test_hostile_caffemodels(name: str, tmp_path: Path) -> None:
    path = caffe_file(tmp_path, PROTOBUFS[name])
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"n\.caffemodel"):
        load_model(path)
    assert time.process_time() - start < 5


def test_a_caffemodel_cut_anywhere(tmp_path: Path) -> None:
    """Only between two layers a message may end; then weights are missing."""
    for stop in range(0, len(GOOD), 97):
        with pytest.raises(CheckpointError):
            load_model(caffe_file(tmp_path, GOOD[:stop]))


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("group", b"\x28\x02", "grouped or dilated"),
        ("dilation", b"\x90\x01\x02", "grouped or dilated"),
        ("stride", b"\x30\x03", "stride of 3 x 3"),
    ],
)
def test_convolutions_that_are_not_run(tmp_path: Path, field: str, text: bytes, words: str) -> None:
    old = whole(1, 5) + whole(3, 0)[:0] + whole(4, 3) + whole(4, 3)
    content = GOOD
    body = tagged(106, old)
    assert body in content
    changed = tagged(106, old + text)
    # The message grows: so does its layer's length, one byte before its fields.
    start = content.index(body)
    layer = content.rindex(varint(100 << 3 | 2), 0, start)
    inner = content[layer:]
    length, head = 0, 2
    while True:
        byte = inner[head]
        length |= (byte & 0x7F) << 7 * (head - 2)
        head += 1
        if byte < 0x80:
            break
    layer_body = inner[head : head + length].replace(body, changed)
    content = content[:layer] + tagged(100, layer_body) + inner[head + length :]
    with pytest.raises(CheckpointError, match=words):
        load_model(caffe_file(tmp_path, content))


def test_biases_may_be_left_out(tmp_path: Path) -> None:
    plain = {name: (weight,) for name, (weight, _) in WEIGHTS.items()}
    model = load_model(caffe_file(tmp_path, caffemodel(NET, plain)))  # type: ignore[arg-type]
    assert not model.network.state_dict()["head.bias"].any()


def test_a_definition_of_millions_of_words(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    for text in ("a:1 " * 600_000, "a {" * 100_000, "layer { name: 'a' top: 'a' } " * 20_000):
        write_modeldef(tmp_path / "n.modeldef.h5", NET, **{"/model_prototxt": text})
        start = time.process_time()
        with pytest.raises(CheckpointError, match=r"n\.modeldef\.h5"):
            load_model(path)
        assert time.process_time() - start < 5


def test_layers_that_pass_each_other_on_for_ever(tmp_path: Path) -> None:
    """Blobs refer back only: a ring of names is a chain that ends."""
    ring = "layer { name: 'a' type: 'ReLU' bottom: 'y' top: 'x' } " * 3
    ring += "layer { name: 'b' type: 'Convolution' bottom: 'x' top: 'y' } " * 3
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    write_modeldef(tmp_path / "n.modeldef.h5", NET, **{"/model_prototxt": ring})
    with pytest.raises(CheckpointError, match=r"n\.modeldef\.h5"):
        load_model(path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_neighbours_that_are_no_files(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "n.caffemodel.h5", NET, WEIGHTS)
    (tmp_path / "n.modeldef.h5").mkdir()
    assert load_model(path).origin is not None
