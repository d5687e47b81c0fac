"""Damaged and hostile checkpoints of other programs: one error, no code, no bomb."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from safetensors.torch import save_file

from napari_unet.checkpoint import load_model
from napari_unet.errors import CheckpointError
from napari_unet.importers.plain_yaml import read_yaml


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return families.randomised(families.Jvanvugt(depth=2, wf=1, batch_norm=True))


@pytest.fixture
def file(network: torch.nn.Module, tmp_path: Path) -> Path:
    torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("new", [True, False])
def test_code_is_named_and_not_run(network: torch.nn.Module, tmp_path: Path, new: bool) -> None:
    marker, path = tmp_path / "code-ran", tmp_path / "w.pt"
    content = {"state_dict": network.state_dict(), "more": Evil(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=r"asks for \S*io\.open"):
        load_model(path)
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError, match=r"asks for \S*io\.open"):
        load_model(path)
    torch.save(network, path)
    with pytest.raises(CheckpointError, match=r"asks for families\.Jvanvugt"):
        load_model(path)
    assert not marker.exists()


@pytest.mark.parametrize(("parts", "words"), [(20_000, "1000 characters"), (400, "do not make")])
def test_names_of_many_parts_take_no_time(parts: int, words: str, tmp_path: Path) -> None:
    shapes = {"x": (4, 1, 3, 3), "y": (4, 4, 3, 3)}
    state = {"a." * parts + f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    save_file(state, tmp_path / "w.safetensors")
    start = time.process_time()
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path / "w.safetensors")
    assert time.process_time() - start < 1


def rewritten(file: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the archive again, with members changed."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def pickled(content: bytes) -> Any:
    def change(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("data.pkl"))
        members[name] = content

    return change


def storage(count: int) -> bytes:
    """A pickle of one storage of so many floats."""
    stream = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if obj == "it" else None

    Pickler(stream, 2).dump({"a": "it"})
    return stream.getvalue()


def numbers(count: int) -> list[bytes]:
    """As a pickle has them: different ones of one hash."""
    found = (number * (2**61 - 1) for number in range(1, count + 1))
    return [b"\x8a\x0a" + number.to_bytes(10, "little") for number in found]


def called(name: bytes, *given: bytes) -> bytes:
    return b"\x80\x02c" + name + b"\n" + b"".join(given) + b"\x85R."


ALIKE = 40_000
ITEMS = b"N".join(numbers(ALIKE)) + b"N"
PAIRS = b"]" + b"".join(number + b"N\x86a" for number in numbers(ALIKE))
TUPLES = b"N".join(number + b"\x85" for number in numbers(ALIKE)) + b"N"
LIST = b"](" + b"".join(numbers(ALIKE)) + b"e"
NESTED = b"\x80\x02" + b")" + b"\x85" * 200_000 + b"."
DOUBLED = b"\x80\x02)" + b"2\x86" * 60 + b"."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (storage(1 << 40), "claims more weights"),
        (storage(-1), "damaged"),
        (NESTED, "nests far deeper"),
        (DOUBLED, "nests far deeper"),
        (b"\x80\x02}(" + ITEMS + b"u.", "odd keys"),
        (b"\x80\x02}" + b"".join(n + b"Ns" for n in numbers(ALIKE)) + b".", "odd keys"),
        (b"\x80\x02}(" + TUPLES + b"u.", "odd keys"),
        (called(b"collections\nOrderedDict", PAIRS), "odd keys"),
        (called(b"collections\nCounter", LIST), "odd keys"),
        (called(b"builtins\nset", LIST), "odd keys"),
        (b"\x80\x02ccollections\nOrderedDict\n)R" + LIST + b"b.", "odd keys"),
        # A list that is filled after it was given away, and one that is used over and over.
        (b"\x80\x02cbuiltins\nset\n]q\x00(" + b"".join(numbers(ALIKE)) + b"e\x85R.", "odd keys"),
        (
            b"\x80\x02]q\x00(" + b"N" * 5000 + b"e" + b"cbuiltins\nset\nh\x00\x85R" * 9 + b".",
            "odd keys",
        ),
        (b"\x80\x02" + b"]" * 1_100_000, "far longer"),
        (b"\x80\x02" + b"]" * 17_000_000, "far longer"),
        (b"\x80\x02cposix\nsystem\n.", r"asks for posix\.system"),
        (b"\x80\x02cbuiltins\nbytearray\n.", r"asks for builtins\.bytearray"),
        (pickle.dumps(pickle.dumps({"a": 1})), "damaged|no state dict"),
        (pickle.dumps({"a": 1}, 2), "no state dict"),
        (b"(.", "damaged"),
        (b"e.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
    ],
)
def test_pickles_that_claim_too_much(file: Path, content: bytes, words: str) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match=words):
        load_model(rewritten(file, pickled(content)))
    assert time.process_time() - start < 5


def test_archives_that_are_none_of_torch(file: Path, tmp_path: Path) -> None:
    good = file.read_bytes()
    with pytest.raises(CheckpointError, match="compressed"):
        load_model(rewritten(file, lambda members: None, zipfile.ZIP_DEFLATED))
    file.write_bytes(good)
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_model(rewritten(file, lambda members: members.update({"w/constants.pkl": b""})))
    for name, words in (
        ("model.weights.h5", "Keras"),
        ("rdf.yaml", "its description is no list of facts"),
        ("a.txt", "is no checkpoint"),
    ):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(CheckpointError, match=words):
            load_model(file)
    (tmp_path / "text.pt").write_text("no pickle at all")
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path / "text.pt")
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(CheckpointError, match="is empty"):
        load_model(tmp_path / "empty.ckpt")


def test_views_that_repeat_one_value_for_terabytes(network: torch.nn.Module, file: Path) -> None:
    state = dict(network.state_dict())
    state["last.weight"] = torch.zeros(1).expand(1 << 16, 2, 1, 1)
    state["last.bias"] = torch.zeros(1).expand(1 << 16)
    torch.save(state, file)
    with pytest.raises(CheckpointError, match="more values than the file holds"):
        load_model(file)


def test_values_that_are_no_numbers(network: torch.nn.Module, file: Path) -> None:
    for value, words in (
        (torch.full((2,), torch.nan), "no numbers"),
        (torch.zeros(2, dtype=torch.complex64), r"asks for torch\.Complex"),
        (torch.zeros(2, dtype=torch.int64), "plain numbers"),
        (torch.zeros(2, device="meta"), r"asks for torch\._utils\._rebuild_meta"),
        (torch.zeros(2).to_sparse(), r"asks for torch\._utils\._rebuild_sparse"),
    ):
        torch.save({**network.state_dict(), "last.bias": value}, file)
        with pytest.raises(CheckpointError, match=words):
            load_model(file)


def mutated(good: bytes, chance: random.Random) -> bytes:
    """One small piece of damage."""
    content = bytearray(good)
    where = chance.randrange(len(content))
    kind = chance.randrange(6)
    if kind == 0:
        content[where] ^= 1 << chance.randrange(8)
    elif kind == 1:
        content[where] = chance.randrange(256)
    elif kind == 2:
        del content[where:]
    elif kind == 3:
        del content[where : where + chance.randrange(1, 64)]
    elif kind == 4:
        content[where:where] = chance.randbytes(chance.randrange(1, 16))
    else:
        content[where : where + 8] = struct.pack("<Q", chance.getrandbits(64))
    return bytes(content)


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_mutations_load_right_or_raise(network: torch.nn.Module, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pt"
    state = {key: value.clone() for key, value in network.state_dict().items()}
    if kind == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    good = path.read_bytes()
    right = load_model(path)
    chance = random.Random(0)
    loaded = 0
    for _ in range(600 if kind == "pt" else 200):
        path.write_bytes(mutated(good, chance))
        try:
            model = load_model(path)
        except CheckpointError:
            continue
        loaded += 1
        assert model.config == right.config
        if kind == "pt":
            # Its sums catch every flipped bit of the weights; the other two formats have none.
            before, after = right.network.state_dict(), model.network.state_dict()
            assert all(torch.equal(before[key], after[key]) for key in before)
    assert loaded > 0


def test_mutated_pickles_whose_sums_are_right(network: torch.nn.Module, file: Path) -> None:
    good = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        inside = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    config, chance = load_model(file).config, random.Random(1)
    for _ in range(300):
        file.write_bytes(good)
        rewritten(file, pickled(mutated(inside, chance)))
        with contextlib.suppress(CheckpointError):
            assert load_model(file).config == config


def test_an_archive_hidden_around_another(file: Path) -> None:
    good = file.read_bytes()
    file.write_bytes(good + good)
    with pytest.raises(CheckpointError, match="other data around it"):
        load_model(file)
    file.write_bytes(good)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"PK"
    with pytest.raises(CheckpointError, match="other data around it"):
        load_model(file)


class OfOld:
    """Pickled as Python 2 did it: an ordered dictionary is made of a list of lists."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __reduce__(self) -> Any:
        return OrderedDict, ([[key, value] for key, value in self.values.items()],)


def by_index(network: torch.nn.Module) -> dict[str, Any]:
    """What a training script keeps beside the weights."""
    optimiser = torch.optim.Adam(network.parameters())
    sum(value.sum() for value in network.parameters()).backward()  # type: ignore[union-attr]
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [30, 60, 90])
    return {
        "state_dict": network.state_dict(),
        "optimizer": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "losses": [1 / (1 + step) for step in range(20_000)],
        "seen": {3, 5, 8},
        "best": {0: 0.5, 1_000_000: 0.25},
    }


def by_address(network: torch.nn.Module) -> dict[str, Any]:
    """Likewise, from before PyTorch 1.5: the state of a parameter under its address."""
    state = {140_000_000_000_000 + 64 * n: {"step": n} for n in range(1000)}
    groups = [{"lr": 0.1, "params": list(state)}]
    return {
        "state_dict": network.state_dict(),
        "optimizer": {"state": state, "param_groups": groups},
    }


def of_python_2(network: torch.nn.Module) -> dict[str, Any]:
    return {"state_dict": OfOld(network.state_dict()), "epoch": 7}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("content", [by_index, by_address, of_python_2])
def test_checkpoints_of_training_scripts_open(
    network: torch.nn.Module,
    tmp_path: Path,
    content: Callable[[torch.nn.Module], dict[str, Any]],
    new: bool,
) -> None:
    path, plain = tmp_path / "w.pt", tmp_path / "plain.pt"
    torch.save(content(network), path, _use_new_zipfile_serialization=new)
    torch.save(network.state_dict(), plain)
    found, right = load_model(path).network.state_dict(), load_model(plain).network.state_dict()
    assert list(found) == list(right)
    assert all(torch.equal(found[key], right[key]) for key in right)


def directory(path: Path, count: int, *, wide: bool) -> Path:
    """A zip file that is nearly all directory; `wide`: only the end's 64-bit form says so."""
    head = b"PK\x03\x04".ljust(30, b"\0")
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, *[0] * 8, 7, *[0] * 6)
    entries = b"".join(entry + b"%07d" % n for n in range(count))
    size, end = len(entries), b""
    if wide:
        place = len(head) + size
        end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, len(head))
        end += struct.pack("<4sLQL", b"PK\x06\x07", 0, place, 1)
        size = 0
    end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, len(head), 0)
    path.write_bytes(head + entries + end)
    return path


@pytest.mark.parametrize("wide", [False, True])
def test_a_directory_of_millions_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    few = directory(tmp_path / "few.pt", 10, wide=wide)
    with zipfile.ZipFile(few) as archive:
        assert len(archive.namelist()) == 10
    with pytest.raises(CheckpointError, match=r"few\.pt: .*no checkpoint"):
        load_model(few)
    many = directory(tmp_path / "many.pt", 200_000, wide=wide)

    def read(self: zipfile.ZipFile) -> None:
        raise AssertionError("its directory is read")

    monkeypatch.setattr(zipfile.ZipFile, "_RealGetContents", read)
    with pytest.raises(CheckpointError, match=r"many\.pt: .*far too many"):
        load_model(many)


@pytest.mark.parametrize(
    "number",
    [
        b"1" + b":59" * 100_000,
        b"1" + b":59" * 100_000 + b".5",
        b'!!int "1' + b":59" * 100_000 + b'"',
        b'!!float "1' + b":59" * 100_000 + b'"',
        b'!!int {=: "1' + b":59" * 100_000 + b'"}',
    ],
)
def test_numbers_to_the_base_of_60_are_short(number: bytes) -> None:
    start = time.process_time()
    with pytest.raises(CheckpointError, match="no readable YAML"):
        read_yaml(b"a: " + number + b"\n")
    assert time.process_time() - start < 2
    long = b"x1:59" * 1000
    assert read_yaml(b"a: 1:30\nb: " + long + b"\nc: 1.5\n") == {
        "a": 90, "b": long.decode(), "c": 1.5
    }  # fmt: skip
