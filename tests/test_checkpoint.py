"""The native checkpoint: what is written comes back, and what is broken is said in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_model, random_network
from replacing import replaced_in_turn
from safetensors.torch import save_file

from napari_unet.checkpoint import (
    Card,
    ClassInfo,
    bundled_models,
    file_sha256,
    load_model,
    read_card,
    save_model,
)
from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError, OutputError
from napari_unet.intensity import Normalisation

CONFIG = UNetConfig(widths=(4, 8), n_classes=3, norm="batch")
CARD = Card(
    "cells",
    CONFIG,
    Normalisation("mean-std", shift=0.5),
    spacing=(0.65, 0.65),
    settings={"min_size": 12, "threshold": 0.4},
    provenance={"data": "µ-scope"},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_model(tmp_path / "cells.safetensors", random_network(CONFIG), CARD)


def test_what_is_saved_comes_back(file: Path) -> None:
    model = load_model(file)
    assert model.card == CARD
    assert model.path == file
    saved, loaded = random_network(CONFIG).state_dict(), model.network.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    assert not model.network.training
    again = save_model(file.with_name("again.safetensors"), model.network, model.card)
    assert again.read_bytes() == file.read_bytes()
    assert load_model(model) is model


def test_half_precision_is_half_the_size_and_loads_as_float32(file: Path) -> None:
    half = save_model(file.with_name("half.safetensors"), random_network(CONFIG), CARD, half=True)
    assert half.stat().st_size < 0.75 * file.stat().st_size
    network = load_model(half).network
    assert all(p.dtype == torch.float32 for p in network.parameters())
    full = load_model(file).network
    for one, other in zip(network.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_the_card_says_what_it_is_in_one_line() -> None:
    assert CARD.describe() == (
        "2-D, 1 channel, background + foreground + contour, 0.65 µm/px, 1,719 parameters"
    )
    plain = Card("x", UNetConfig())
    assert plain.describe().endswith("no rescaling, 31 M parameters")
    assert [info.role for info in plain.classes] == ["background", "foreground"]


def test_reading_a_card_needs_no_torch(file: Path) -> None:
    code = (
        "import sys\nfrom napari_unet.checkpoint import bundled_models, read_card\n"
        "read_card(sys.argv[1])\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, file], check=True)


def test_bundled_models_are_within_their_size_and_describe_themselves() -> None:
    for name, path in bundled_models().items():
        assert path.stat().st_size <= 8e6
        card = read_card(name)
        assert card.name == name
        assert {"data", "licence", "recipe", "figures"} <= set(card.provenance)
        assert path.with_suffix(".md").is_file()


def test_a_name_that_is_nothing_lists_what_there_is() -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint 'nuclie'.*bundled models"):
        load_model("nuclie")


def rewrite(file: Path, change: Any) -> Path:
    """Change a file's description and write it again."""
    model = load_model(file)
    document = json.loads(model.card.to_json())
    change(document)
    text = document if isinstance(document, str) else json.dumps(document)
    save_file(model.network.state_dict(), file, metadata={"valid-unet": text})
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format=2), "format 2"),
        (lambda d: d.pop("config"), "'config'"),
        (lambda d: d.update(name=""), "a name of"),
        (lambda d: d.update(name=7), "a name of"),
        (lambda d: d["config"].update(widths=[4, 1 << 40]), "a width"),
        (lambda d: d["config"].update(widths="wide"), "a width"),
        (lambda d: d["config"].update(widths=[60000, 60000]), "parameters but holds"),
        (lambda d: d["config"].update(extra=1), "unknown network settings"),
        (lambda d: d["config"].update(concat="up-skip", widths=[8, 4]), "parameters but holds"),
        (lambda d: d["normalisation"].update(kind="magic"), "normalisation must be"),
        (lambda d: d["normalisation"].update(low=[]), "must be a number"),
        (lambda d: d.update(classes=d["classes"][:1]), "1 classes are named"),
        (lambda d: d["classes"][1].update(color="red"), "#rrggbb"),
        (lambda d: d["classes"][1].update(role="hero"), "a role is"),
        (lambda d: d.update(classes=[5]), "not valid"),
        (lambda d: d.update(spacing_um=[1]), "one length above 0"),
        (lambda d: d.update(spacing_um=[0, 1]), "one length above 0"),
        (lambda d: d.update(spacing_um=["a", 1]), "not valid"),
        (lambda d: d.update(settings={"magic": 1}), "unknown model settings"),
        (lambda d: d.update(settings={"min_size": -1}), "must be a number"),
        (lambda d: d.update(provenance={"data": 5}), "texts only"),
    ],
)
def test_a_description_that_lies_is_one_error(file: Path, change: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_model(rewrite(file, change))


def other_file(kind: str, file: Path, marker: Path) -> None:
    """Overwrite `file` by something that is no checkpoint."""

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    good = file.read_bytes()
    header = struct.unpack("<Q", good[:8])[0]
    content = {
        "text": b"just a note\n",
        "empty": b"",
        "truncated": good[:-100],
        "header only": good[: 8 + header],
        "pickle": pickle.dumps(Evil()),
        "huge header": struct.pack("<Q", 1 << 62) + good[8:],
        "bit flip": good[:20] + bytes([good[20] ^ 0x80]) + good[21:],
        "terabytes": _claims_terabytes(),
    }
    if kind == "torch":
        torch.save({"a": torch.zeros(2)}, file)
    else:
        file.write_bytes(content[kind])


def _claims_terabytes() -> bytes:
    tensor = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    header = json.dumps({"a": tensor}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "not a readable .safetensors"),
        ("empty", "is empty"),
        ("truncated", "cut short"),
        ("header only", "cut short"),
        ("pickle", r"a pickle that asks for pathlib\."),
        ("torch", "holds no state dict of a network"),
        ("huge header", "cut short"),
        ("bit flip", "."),
        ("terabytes", "cut short"),
    ],
)
def test_files_that_are_no_checkpoints(file: Path, tmp_path: Path, kind: str, words: str) -> None:
    marker = tmp_path / "code-ran"
    other_file(kind, file, marker)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=words):
        load_model(file)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert not marker.exists()


def test_a_file_that_is_overwritten_later_leaves_what_was_loaded(file: Path) -> None:
    state = load_model(file).network.state_dict()
    before = {key: tensor.clone() for key, tensor in state.items()}
    with file.open("r+b") as opened:  # in its place, as `cp` does
        opened.write(bytes(file.stat().st_size))
    assert all(torch.equal(state[key], before[key]) for key in state)
    with pytest.raises(CheckpointError):
        load_model(file)


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no file be replaced that is read")
def test_card_weights_and_hash_are_of_one_file_while_it_is_replaced(
    file: Path, tmp_path: Path
) -> None:
    cards = [replace(CARD, name=name) for name in ("first", "second")]
    files = [
        save_model(tmp_path / card.name, random_network(CONFIG, seed), card)
        for seed, card in enumerate(cards)
    ]
    facts = {
        card.name: (file_sha256(path), random_network(CONFIG, seed).state_dict()["head.bias"])
        for seed, (card, path) in enumerate(zip(cards, files, strict=True))
    }
    with replaced_in_turn(file, files):
        for _ in range(300):
            model = load_model(file)
            sha256, bias = facts[model.card.name]
            assert model.sha256 == sha256
            assert torch.equal(model.network.state_dict()["head.bias"], bias)


def test_tensors_without_a_description(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    for read in (load_model, read_card):
        with pytest.raises(CheckpointError, match="not those of a U-Net"):
            read(path)


def test_tensors_of_another_network(file: Path) -> None:
    model = load_model(file)
    weights = model.network.state_dict()
    weights["head.other"] = weights.pop("head.bias")
    save_file(weights, file, metadata={"valid-unet": model.card.to_json()})
    with pytest.raises(CheckpointError, match=r"first difference: head\.bias"):
        load_model(file)


def test_a_full_disk_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_unet.atomic.os.fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        save_model(file, random_network(CONFIG, 1), CARD)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_saving_into_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="choose another folder"):
        save_model(tmp_path / "no" / "a.safetensors", random_network(CONFIG), CARD)


def test_card_and_network_must_agree(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="different configurations"):
        save_model(tmp_path / "a.safetensors", random_network(UNetConfig(widths=(2,))), CARD)


def test_classes_are_checked_and_have_defaults() -> None:
    with pytest.raises(OptionError):
        ClassInfo("x", "#12345g")
    many = random_model(n_classes=9).card.classes
    assert len(many) == 9
    assert many[0].role == "background"
    assert len(random_model(n_classes=1).card.classes) == 2
