"""bioimage.io packages open: both formats, our own without loss, hostile ones never."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bioimageio_judge
import bioimageio_packages as packages
import families
import numpy as np
import pytest
import torch
import yaml
from networks import random_model
from safetensors.torch import save_file
from torch import nn

from napari_unet.checkpoint import ClassInfo, Model, load_model, read_card, save_model
from napari_unet.cli import main
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.export import export_package
from napari_unet.importers.package_facts import classes_of, normalisation_of
from napari_unet.importers.plain_yaml import read_yaml
from napari_unet.intensity import Normalisation

FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Any], dict[str, str]]] = {
    "jvanvugt": (
        lambda: families.Jvanvugt(depth=2, batch_norm=True, classes=3),
        16,
        {"padding": False, "depth": 2},
        {"padding": "valid"},
    ),
    "johschmidt42": (
        lambda: families.Johschmidt42(n_blocks=2, classes=3, mode="nearest"),
        16,
        {
            "conv_mode": "valid",
            "up_mode": "nearest",
            "activation": "relu",
            "normalization": "batch",
        },
        {"padding": "valid", "up": "nearest", "slope": "0"},
    ),
}


def judged(kind: Callable[[], nn.Module]) -> nn.Module:
    return families.randomised(kind())


def assert_same_logits(model: Model, judge: nn.Module) -> None:
    size = model.config.geometry.size_for([2 * s for s in model.config.geometry.stride])
    image = torch.rand(1, model.config.in_channels, *size)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(image), judge(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("johschmidt42", "activation", "elu"),
        ("johschmidt42", "normalization", "instance"),
        ("johschmidt42", "normalization", "group8"),
        ("johschmidt42", "up_mode", "bicubic"),
        ("johschmidt42", "conv_mode", ["valid"]),
        ("jvanvugt", "padding", 3),
        ("jvanvugt", "up_mode", "shuffle"),
    ],
)
def test_arguments_that_ask_for_another_network_are_refused(
    name: str, argument: str, value: Any, tmp_path: Path
) -> None:
    kind, loss, kwargs, _ = FAMILIES[name]
    weights = packages.weights_of(judged(kind).state_dict())
    kwargs = {**kwargs, argument: value}
    document = packages.description("0.5.3", weights, loss=loss, classes=3, kwargs=kwargs)
    path = packages.write_package(tmp_path / "p.zip", document, {"weights.pt": weights})
    with pytest.raises(CheckpointError, match=f"whose {argument} is .*, which is not run; give"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".zip", ""])
@pytest.mark.parametrize("version", packages.FORMATS)
@pytest.mark.parametrize("name", FAMILIES)
def test_both_formats_open_with_all_they_say(
    name: str, version: str, suffix: str, tmp_path: Path
) -> None:
    kind, loss, kwargs, facts = FAMILIES[name]
    judge = judged(kind)
    weights = packages.weights_of(judge.state_dict())
    document = packages.description(version, weights, loss=loss, classes=3, kwargs=kwargs)
    path = packages.write_package(tmp_path / f"p{suffix}", document, {"weights.pt": weights})
    model = load_model(path)
    assert_same_logits(model, judge)
    assert model.origin is not None
    assert facts.items() <= model.origin.read.items()
    assert not set(facts) & set(model.origin.assumed)
    card = model.card
    assert card.name == "cells in phase contrast"
    assert card.provenance["authors"] == "A. Author; B. Author"
    assert card.provenance["licence"] == "CC-BY-4.0"
    assert card.provenance["cite"] == "Somebody et al. 2020"
    if version.startswith("0.4"):
        assert card.normalisation == Normalisation(low=1.0, high=99.5)
        assert card.spacing is None
    else:
        assert card.normalisation == Normalisation("mean-std", shift=0.25)
        assert card.spacing == (0.5, 0.5)
        roles = [(info.name, info.role) for info in card.classes]
        assert roles == [("background",) * 2, ("cell", "foreground"), ("border", "contour")]
    native = save_model(tmp_path / "n.safetensors", model.network, card)
    assert load_model(native).card == card == read_card(path)


@pytest.mark.parametrize("version", packages.FORMATS)
def test_what_is_written_by_hand_here_is_valid(version: str, tmp_path: Path) -> None:
    """The specification's own validator takes it; else the other tests would mean little."""
    network = judged(lambda: families.Jvanvugt(depth=2))
    image = torch.rand(1, 1, 48, 48)
    with torch.inference_mode():
        arrays = {"in.npy": image.numpy(), "out.npy": network(image).numpy()}
    for name, array in arrays.items():
        np.save(tmp_path / name, array)
    files = {name: (tmp_path / name).read_bytes() for name in arrays}
    files |= {"weights.pt": packages.weights_of(network.state_dict())}
    files |= {"README.md": b"# Validation\n", "network.py": b"class UNet: ...\n"}
    document = packages.description(version, files["weights.pt"], loss=16)
    entry, sha256 = document["weights"]["pytorch_state_dict"], hashlib.sha256(files["network.py"])
    if version.startswith("0.4"):
        entry["architecture_sha256"] = sha256.hexdigest()
        document |= {"test_inputs": ["in.npy"], "test_outputs": ["out.npy"]}
    else:
        entry["architecture"]["sha256"] = sha256.hexdigest()
        document["inputs"][0]["test_tensor"] = {"source": "in.npy"}
        document["outputs"][0]["test_tensor"] = {"source": "out.npy"}
    path = packages.write_package(tmp_path / "p", document, files)
    assert str(bioimageio_judge.described(path / "rdf.yaml").name) == document["name"]


@pytest.mark.parametrize("version", packages.FORMATS)
def test_a_volume_in_a_folder_of_an_archive_with_plain_weights(
    version: str, tmp_path: Path
) -> None:
    judge = judged(lambda: families.Johschmidt42(dim=3, n_blocks=2, start=2))
    state = {key: value.clone() for key, value in judge.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    weights = (tmp_path / "w.safetensors").read_bytes()
    document = packages.description(version, weights, ndim=3, loss=16, source="./w.safetensors")
    files = {"w.safetensors": weights, "rdf.yaml": yaml.safe_dump(document).encode()}
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"model-1.0/{name}", content)
    assert_same_logits(load_model(tmp_path / "p.zip"), judge)


@pytest.mark.parametrize("version", packages.FORMATS)
def test_sizes_tell_valid_from_padded(version: str, tmp_path: Path) -> None:
    """And where they contradict the arguments, or the weights, nothing is guessed."""
    weights = packages.weights_of(judged(lambda: families.Jvanvugt(depth=2)).state_dict())

    def opened(loss: int, **kwargs: Any) -> Model:
        document = packages.description(version, weights, loss=loss, kwargs=kwargs)
        path = packages.write_package(tmp_path / "p.zip", document, {"weights.pt": weights})
        return load_model(path)

    for loss, padding in ((16, "valid"), (0, "same")):
        model = opened(loss)
        assert model.origin is not None
        assert model.config.padding == model.origin.read["padding"] == padding
    model = opened(0, padding=False)
    assert model.origin is not None
    assert model.origin.assumed["padding"] == "valid"
    assert any("say valid" in text for text in model.origin.warnings)
    with pytest.raises(CheckpointError, match="12 x 12 px smaller than its input, where a U-Net"):
        opened(12)


CONFIGS: list[dict[str, Any]] = [
    {"norm": "batch", "slope": 0.1, "concat": "up-skip"},
    {"norm": "batch", "norm_order": "act-norm", "up_norm": True, "up_activation": True},
    {"ndim": 3, "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "pools": ((1, 2, 2), (2, 2, 2))},
    {"n_classes": 1, "up": "linear", "dropout": 0.5},
    {"padding": "same", "up_widths": (3, 5)},
]


@pytest.mark.parametrize("tileable", [False, True])
@pytest.mark.parametrize("settings", CONFIGS)
def test_our_own_packages_lose_nothing(
    settings: dict[str, Any], tileable: bool, tmp_path: Path
) -> None:
    model = random_model(**settings)
    classes = tuple(ClassInfo(f"Größe {n}", "#12aBcd", "other") for n in model.card.classes)
    card = replace(
        model.card,
        name="µ: name / with signs",
        normalisation=Normalisation("percentile", 0.1, 99.99, -1e-7),
        classes=(replace(classes[0], role="background"), *classes[1:]),
        spacing=(0.1, 1 / 3, 1e-3)[-model.config.ndim :],
        settings={"threshold": 0.7, "min_size": 12},
        provenance={"licence": "yes: no", "data": "'quoted'\n- 1\ttab"},
    )
    model = replace(model, card=card)
    path = export_package(model, tmp_path / "p.zip", tileable=tileable)
    again = load_model(path)
    assert again.card == card == read_card(path)
    assert again.origin is not None
    assert not again.origin.assumed
    before, after = model.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert export_package(again, tmp_path / "q.zip", tileable=tileable).read_bytes() == (
        path.read_bytes()
    )
    with pytest.raises(OptionError, match="says all about its network"):
        load_model(path, assume={"slope": 0.2})


@pytest.mark.parametrize("settings", CONFIGS)
def test_our_own_packages_open_without_our_own_notes_too(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """As another program may have written them again: from sizes and arguments alone."""
    model = random_model(**settings)
    for tileable in (False, True):
        path = export_package(model, tmp_path / "p.zip", tileable=tileable)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        document = yaml.safe_load(files.pop("rdf.yaml"))
        del document["config"]
        again = load_model(packages.write_package(tmp_path / "f", document, files))
        assert again.config == replace(model.config, dropout=0.0)
        assert again.card.normalisation == model.card.normalisation
        assert again.origin is not None
        assert not set(again.origin.assumed) & {"padding", "order", "norm-order", "slope"}


def test_the_window_in_which_weights_lie_unpacked_is_short(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("valid-unet-*"))
    path = export_package(random_model(), tmp_path / "p.zip")
    load_model(path)
    broken(path, entry(sha256="0" * 64))
    with pytest.raises(CheckpointError, match="checksum"):
        load_model(path)
    assert set(Path(tempfile.gettempdir()).glob("valid-unet-*")) == before


def broken(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The package with another description."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    document = yaml.safe_load(files["rdf.yaml"])
    change(document)
    return packages.write_package(path, document, {k: v for k, v in files.items() if k[-1] != "l"})


def entry(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["weights"]["pytorch_state_dict"].update(values)


def card(**values: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        for key, value in values.items():
            document["config"]["valid-unet"]["card"][key] = value

    return change


def dropped(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        del document["config"]
        for key in keys:
            document[key] = None

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (entry(source="../weights.pt"), "names a file outside itself"),
        (entry(source="/etc/passwd"), "names a file outside itself"),
        (entry(source="C:\\weights.pt"), "names a file outside itself"),
        (entry(source="a\\..\\..\\weights.pt"), "names a file outside itself"),
        (entry(source="https://example.org/w.pt"), "download the whole package"),
        (entry(source="10.5281/zenodo.1/w.pt"), "download the whole package"),
        (entry(source="other.pt"), r"holds no other\.pt"),
        (entry(source=None), "does not say which file"),
        (entry(source=["weights.pt"]), "does not say which file"),
        (entry(source="unet.py", sha256=None), "damaged|not a"),
        (entry(sha256="0" * 64), "the checksum differs"),
        (entry(sha256=7), "the checksum differs"),
        (lambda d: d.update(format_version="0.3.0"), "models of format 0.4 and 0.5 are read"),
        (lambda d: d.update(type="dataset"), "models of format 0.4 and 0.5 are read"),
        (lambda d: d.update(weights=None), "describes no weights"),
        (lambda d: d.update(weights={"onnx": {}, "torchscript": {}}), "as onnx, torchscript only"),
        (
            card(config={"widths": [1 << 15] * 12, "n_classes": 3}),
            "does not hold the network it describes",
        ),
        (card(config={"widths": [1 << 40]}), "description is not valid"),
        (card(config=None), "description is not valid"),
        (card(name=7), "description is not valid"),
        (card(spacing_um=[1]), "description is not valid"),
        (dropped("inputs"), "inputs other than one image"),
        (dropped("outputs"), "outputs other than one image"),
        (lambda d: (d.pop("config"), d["inputs"][0].update(axes="bxyc")), "axes"),
        (lambda d: (d.pop("config"), d["inputs"][0].update(axes=[1])), "not known"),
        (
            lambda d: (
                d.pop("config"),
                d["inputs"][0]["axes"].append(d["inputs"][0]["axes"].pop(1)),
            ),
            "unlike its weights",
        ),
        (lambda d: (d.pop("config"), d["inputs"][0]["axes"].pop()), "describes an input of axes"),
        (
            lambda d: (
                d.pop("config"),
                d["inputs"][0].update(
                    preprocessing=[{"id": "scale_range", "kwargs": {"min_percentile": 300}}]
                ),
            ),
            "preprocessing that is none",
        ),
    ],
)
def test_hostile_descriptions(
    change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    path = export_package(random_model(), tmp_path / "p.zip")
    with pytest.raises(CheckpointError, match=words) as raised:
        load_model(broken(path, change))
    assert str(raised.value).startswith("p.zip")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: &x [1, 2]\nb: *x\n", "refers to itself"),
        (b"a: &x [*x]\n", "refers to itself"),
        (b"a: 1\na: 2\n", "says one thing twice"),
        (b"a: {b: 1, b: 2}\n", "says one thing twice"),
        (b"a: !!python/object/apply:os.system ['true']\n", "no readable YAML"),
        (b"a: " + b"[" * 100_000, "nests far deeper|no readable YAML"),
        (b"- 1\n" * 110_000, "nests far deeper"),
        (b"a: " + b"x" * (1 << 20), "far longer"),
        (b"a: " + b"9" * 100_000, "no readable YAML"),
        (b"\xff\xfe\x00", "no readable YAML"),
        (b"a: 2024-13-45\n", "no readable YAML"),
        (b"? [1]\n: 2\n", "no readable YAML|no list"),
        (b"- 1\n", "no list of facts"),
        (b"1: 2\n", "no list of facts"),
        (b"", "no list of facts"),
    ],
)
def test_hostile_yaml(content: bytes, words: str) -> None:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=words):
        read_yaml(content)
    assert time.perf_counter() - start < 5


def test_folders_do_not_reach_outside(tmp_path: Path) -> None:
    weights = packages.weights_of(families.Jvanvugt(depth=2).state_dict())
    document = packages.description("0.5.3", weights, loss=16)
    inside = packages.write_package(tmp_path / "p", document, {})
    with pytest.raises(CheckpointError, match=r"lacks weights\.pt"):
        load_model(inside)
    (tmp_path / "weights.pt").write_bytes(weights)
    if hasattr(os, "symlink"):
        (inside / "weights.pt").symlink_to(tmp_path / "weights.pt")
        with pytest.raises(CheckpointError, match="outside itself"):
            load_model(inside)


def test_nothing_of_the_package_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "code-ran"
    weights = packages.weights_of(families.Jvanvugt(depth=2).state_dict())
    document = packages.description("0.5.3", weights, loss=16)
    code = f"open({str(marker)!r}, 'w')\n".encode()
    files = {"weights.pt": weights, "network.py": code, "__init__.py": code}
    load_model(packages.write_package(tmp_path / "p.zip", document, files))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("steps", "normalisation", "words"),
    [
        (None, Normalisation("none"), ""),
        ([{"id": "scale_range"}], Normalisation("min-max"), "whole data set"),
        (
            [{"name": "scale_range", "kwargs": {"mode": "per_sample", "axes": "cyx"}}],
            Normalisation("min-max"),
            "scaled together",
        ),
        (
            [
                {"id": "scale_linear", "kwargs": {"gain": 0.5, "offset": 3}},
                {"id": "scale_range", "kwargs": {"axes": ["y", "x"]}},
                {"id": "clip", "kwargs": {"min": 0, "max": 1}},
            ],
            Normalisation("min-max"),
            "step clip is not done",
        ),
        (
            [{"name": "zero_mean_unit_variance", "kwargs": {"mode": "fixed", "mean": 3, "std": 1}}],
            Normalisation("none", shift=-3),
            "",
        ),
        (
            [{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 3, "std": 2}}],
            None,
            "fixed factor",
        ),
        (
            [{"id": "scale_linear", "kwargs": {"gain": 1 / 255, "offset": -0.5}}],
            Normalisation("dtype-range", shift=-0.5),
            "",
        ),
        ([{"id": "binarize", "kwargs": {"threshold": 1}}], Normalisation("none"), "binarize"),
        (["nonsense"], Normalisation("none"), "not done"),
    ],
)
def test_preprocessing(steps: Any, normalisation: Normalisation | None, words: str) -> None:
    found, warnings = normalisation_of(steps, channels=2)
    assert found == normalisation
    assert words in " ".join(warnings)
    assert bool(words) == bool(warnings)


def test_names_of_channels_give_roles_only_where_they_are_clear() -> None:
    assert [info.role for info in classes_of(["background", "nuclei", "boundaries"], 3)] == [
        "background",
        "foreground",
        "contour",
    ]
    assert [info.name for info in classes_of(["cell"], 1)] == ["background", "cell"]
    for names in (["channel0", "channel1"], ["foreground", "boundary"], ["background"], []):
        assert classes_of(names, 2) == ()


def test_keras_models_in_packages(tmp_path: Path) -> None:
    from keras_networks import Design, build, logits, write

    judge = build(Design(widths=(3, 4)))
    files = write(judge, tmp_path)
    for kind, suffix in (("keras_v3", ".keras"), ("keras_hdf5", ".h5")):
        content = files[suffix].read_bytes()
        document = packages.description("0.5.3", content, loss=16, source=f"net{suffix}")
        entries = document["weights"]
        entries[kind] = entries.pop("pytorch_state_dict")
        for tensor in (*document["inputs"], *document["outputs"]):
            tensor["axes"].append(tensor["axes"].pop(1))
        path = packages.write_package(tmp_path / "p.zip", document, {f"net{suffix}": content})
        model = load_model(path)
        image = torch.rand(1, 1, *model.config.geometry.size_for((8, 8)))
        with torch.inference_mode():
            ours = model.network(image).numpy()
        np.testing.assert_allclose(ours, logits(judge, image.numpy()), atol=1e-4)
        assert model.card.normalisation == Normalisation("mean-std", shift=0.25)
        assert [info.name for info in model.card.classes] == ["background", "cell"]


def test_show_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = packages.weights_of(families.randomised(families.Jvanvugt(depth=2)).state_dict())
    path = packages.write_small_packages(tmp_path, torch.load(_file(tmp_path, weights)), 16)[2]
    assert main(["show", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["origin"]["format"].startswith("bioimage.io 0.5.3 package")
    assert main(["convert", str(path), str(tmp_path / "n.safetensors")]) == 0


def _file(folder: Path, content: bytes) -> Path:
    (folder / "w.pt").write_bytes(content)
    return folder / "w.pt"
