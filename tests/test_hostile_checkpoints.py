"""Damaged and hostile checkpoints of other programs: one error, no code, no bomb."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from safetensors.torch import save_file

from napari_unet.checkpoint import load_model
from napari_unet.errors import CheckpointError


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


NESTED = b"\x80\x02" + b")" + b"\x85" * 200_000 + b"."
DOUBLED = b"\x80\x02)" + b"2\x86" * 60 + b"."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (storage(1 << 40), "claims more weights"),
        (storage(-1), "damaged"),
        (NESTED, "nests far deeper"),
        (DOUBLED, "nests far deeper"),
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
