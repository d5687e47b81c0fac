"""Small sound checkpoints of every format, which `fuzz_checkpoints` then damages."""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from napari_unet.card import Card
from napari_unet.checkpoint import save_model
from napari_unet.config import UNetConfig
from napari_unet.model import UNet, he_initialise

__all__ = ["Seed", "seeds"]

# The tests' own builders; they are no package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


@dataclass(frozen=True)
class Seed:
    """One sound checkpoint.

    Parameters
    ----------
    kind : str
        Its format, for the table.
    path : Path
        What is opened: a file, or a folder.
    files : tuple of Path
        What is damaged, one at a time; all lie in the folder of `path` or in it.
    summed : bool
        Whether the format has sums that tell damaged weights.
    slow : bool
        Whether it is read in a process of its own.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    summed: bool = False
    slow: bool = False


def seeds(folder: Path) -> list[Seed]:
    """Write one checkpoint of each format into folders of their own."""
    torch.manual_seed(0)
    builders: list[Callable[[Path], Iterator[Seed]]] = [_ours, _torch, _caffe, _keras, _bioimageio]
    found: list[Seed] = []
    for number, builder in enumerate(builders):
        here = folder / str(number)
        here.mkdir()
        found += builder(here)
    return found


def _network() -> UNet:
    network = UNet(UNetConfig(widths=(3, 4), norm="batch"))
    he_initialise(network, torch.Generator().manual_seed(0))
    return network.eval()


def _one(kind: str, path: Path, **more: Any) -> Seed:
    return Seed(kind, path, (path,), **more)


def _ours(folder: Path) -> Iterator[Seed]:
    network = _network()
    native = save_model(folder / "native.safetensors", network, Card("seed", network.config))
    yield _one("native", native)
    plain = {key: value.clone() for key, value in network.state_dict().items()}
    save_file(plain, folder / "plain.safetensors")
    yield _one("plain safetensors", folder / "plain.safetensors")


def _torch(folder: Path) -> Iterator[Seed]:
    families = importlib.import_module("families")
    judge = families.randomised(families.Jvanvugt(depth=2, wf=1, batch_norm=True))
    state = judge.state_dict()
    torch.save(state, folder / "new.pt")
    yield _one("PyTorch zip", folder / "new.pt", summed=True)
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    yield _one("PyTorch of old", folder / "old.pth")
    prefixed = {f"model.{key}": value for key, value in state.items()}
    optimiser = torch.optim.Adam(judge.parameters()).state_dict()
    torch.save(
        {"state_dict": prefixed, "optimizer_states": [optimiser], "epoch": 3}, folder / "l.ckpt"
    )
    yield _one("Lightning .ckpt", folder / "l.ckpt", summed=True)


def _caffe(folder: Path) -> Iterator[Seed]:
    caffe = importlib.import_module("caffe_networks")
    net = caffe.Caffe((3, 4), shift=-0.5)
    weights = caffe.random_weights(net)
    binary = folder / "binary.caffemodel"
    binary.write_bytes(caffe.caffemodel(net, weights))
    yield _one(".caffemodel", binary)
    alone = folder / "alone"
    alone.mkdir()
    caffe.write_h5(alone / "a.caffemodel.h5", net, weights, compression="gzip")
    yield _one(".caffemodel.h5", alone / "a.caffemodel.h5", slow=True)
    both = folder / "both"
    both.mkdir()
    path = caffe.write_h5(both / "b.caffemodel.h5", net, weights)
    definition = caffe.write_modeldef(both / "b.modeldef.h5", net)
    yield Seed(".caffemodel.h5 + .modeldef.h5", path, (definition, path), slow=True)


def _keras(folder: Path) -> Iterator[Seed]:
    keras = importlib.import_module("keras_networks")
    model = keras.build(keras.Design(widths=(3, 4), norm="before"))
    for name, path in keras.write(model, folder).items():
        summed = path.suffix == ".keras"
        yield _one(f"Keras {name}", path, summed=summed, slow=True)


_DESCRIPTION = """\
format_version: {version}
type: model
name: seed
description: a network to damage
authors: [{{name: nobody}}]
license: MIT
inputs: {inputs}
outputs: {outputs}
weights:
  pytorch_state_dict:
    source: weights.pt
    {architecture}
"""
_NEW = {
    "version": "0.5.4",
    "inputs": "[{id: raw, axes: [{type: batch}, {type: channel, channel_names: [a]}, "
    "{type: space, id: y, size: {min: 20, step: 2}}, "
    "{type: space, id: x, size: {min: 20, step: 2}}]}]",
    "outputs": "[{id: out, axes: [{type: batch}, {type: channel, channel_names: [a, b]}, "
    "{type: space, id: y, size: {tensor_id: raw, axis_id: y, offset: -16}}, "
    "{type: space, id: x, size: {tensor_id: raw, axis_id: x, offset: -16}}]}]",
    "architecture": "architecture: {source: unet.py, callable: UNet, kwargs: {}}",
}
_OLD = {
    "version": "0.4.10",
    "inputs": "[{name: raw, axes: bcyx, data_type: float32, "
    "shape: {min: [1, 1, 20, 20], step: [0, 0, 2, 2]}}]",
    "outputs": "[{name: out, axes: bcyx, data_type: float32, shape: {reference_tensor: raw, "
    "scale: [1, 0, 1, 1], offset: [0, 1, -8, -8]}}]",
    "architecture": "architecture: unet.py:UNet",
}


def _bioimageio(folder: Path) -> Iterator[Seed]:
    weights = io.BytesIO()
    torch.save(_network().state_dict(), weights)
    for kind, fields in (("0.5", _NEW), ("0.4", _OLD)):
        parts = {
            "rdf.yaml": _DESCRIPTION.format(**fields).encode(),
            "weights.pt": weights.getvalue(),
            "unet.py": b"raise SystemExit('code of a package was run')\n",
        }
        path = folder / f"{kind}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        yield _one(f"bioimage.io {kind} zip", path, summed=True)
    inside = folder / "package"
    inside.mkdir()
    for name, content in parts.items():
        (inside / name).write_bytes(content)
    files = tuple(inside / name for name in ("rdf.yaml", "weights.pt"))
    yield Seed("bioimage.io folder", inside, files, summed=False)
