"""Packages for other programs: bioimageio.spec and bioimageio.core judge them."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import zipfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import bioimageio_judge as judge
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_model

from napari_unet.checkpoint import Card, ClassInfo, Model, load_model
from napari_unet.cli import main
from napari_unet.config import UNetConfig
from napari_unet.engine import run_tiles
from napari_unet.errors import OptionError, OutputError
from napari_unet.export import export_package
from napari_unet.export.description import exact_scale, find_dois, find_license, preprocessing_steps
from napari_unet.export.package import LICENSES
from napari_unet.export.sizes import axis_sizes, network_arguments
from napari_unet.intensity import Normalisation, fit_intensity
from napari_unet.prepared import Runtime
from napari_unet.tiling import Window, plan_tiles, read_mirrored

# bioimageio.core leaves the files open that it reads from.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL: dict[str, Any] = {"widths": (3, 4), "n_classes": 3}
VOLUME: dict[str, Any] = {
    "widths": (2, 3),
    "ndim": 3,
    "kernels": ((1, 3, 3), (3, 3, 3)),
    "pools": ((1, 2, 2),),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "paper's depth": {"widths": (2, 2, 2, 2, 2)},
    "two channels, norm": {**SMALL, "in_channels": 2, "norm": "batch"},
    "norm last, also up": {
        **SMALL,
        "norm": "batch",
        "norm_order": "act-norm",
        "up_norm": True,
        "up_activation": True,
    },
    "leaky, other order": {**SMALL, "slope": 0.1, "concat": "up-skip", "up_widths": (5,)},
    "sigmoid": {**SMALL, "n_classes": 1},
    "linear": {"widths": (3, 4, 4), "up": "linear"},
    "nearest": {**SMALL, "up": "nearest"},
    "one level": {"widths": (4,)},
    "volume": VOLUME,
    "padded": {**SMALL, "padding": "same"},
    "padded volume": {**VOLUME, "padding": "same"},
}
NORMALISATIONS = {
    "percentile": Normalisation(),
    "min-max": Normalisation("min-max", shift=-0.5),
    "mean-std": Normalisation("mean-std"),
    "none": Normalisation("none", shift=0.25),
    "dtype-range": Normalisation("dtype-range", shift=-0.5),
}


def grey_levels(model: Model, shape: tuple[int, ...], seed: int = 1) -> np.ndarray[Any, Any]:
    """(C, [Z,] Y, X)."""
    rng = np.random.default_rng(seed)
    levels = 300 * rng.random((model.config.in_channels, *shape), np.float32)
    return (levels + 100 * np.arange(len(levels)).reshape(-1, *[1] * len(shape))).astype(np.float32)


def normalised(model: Model, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    last = np.moveaxis(image, 0, -1)
    return fit_intensity(last, model.card.normalisation, channel_last=True).apply(image)


def our_logits(model: Model, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of one tile of an admissible size."""
    with torch.inference_mode():
        return model.network(torch.from_numpy(normalised(model, image))[None]).numpy()


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("tileable", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_source_in_the_package_is_the_same_network(
    name: str, tileable: bool, tmp_path: Path
) -> None:
    """Its own file, its own weights, run without this package's modules."""
    model = random_model(**CONFIGS[name])
    files = members(export_package(model, tmp_path / "m.zip", tileable=tileable))
    (tmp_path / "unet.py").write_bytes(files["unet.py"])
    assert b"SPDX-License-Identifier: BSD-3-Clause" in files["unet.py"]
    assert not re.search(rb"^\s*(import|from) (?!torch|__future__|collections|typing)",
                         files["unet.py"], re.MULTILINE)  # fmt: skip
    architecture = yaml.safe_load(files["rdf.yaml"])["weights"]["pytorch_state_dict"][
        "architecture"
    ]
    source = runpy.run_path(str(tmp_path / "unet.py"))
    network = source[architecture["callable"]](**architecture["kwargs"]).eval()
    (tmp_path / "weights.pt").write_bytes(files["weights.pt"])
    network.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert [*network.state_dict()] == [*model.network.state_dict()]

    geometry = model.config.geometry
    shape = geometry.size_for(tuple(2 * s for s in geometry.stride))
    image = torch.rand(2, model.config.in_channels, *shape)
    plain = source["UNet"](**model.config.to_dict()).eval()
    plain.load_state_dict(model.network.state_dict())
    with torch.inference_mode():
        assert torch.equal(plain(image), model.network(image))


@pytest.mark.parametrize(
    ("name", "normalisation", "tileable"),
    [
        ("plain", "percentile", False),
        ("two channels, norm", "min-max", False),
        ("two channels, norm", "percentile", True),
        ("leaky, other order", "mean-std", True),
        ("sigmoid", "none", False),
        ("plain", "dtype-range", False),
        ("linear", "percentile", True),
        ("volume", "mean-std", False),
        ("volume", "min-max", True),
        ("padded", "percentile", False),
    ],
)
def test_passes_the_validator_and_gives_the_same_logits(
    name: str, normalisation: str, tileable: bool, tmp_path: Path
) -> None:
    model = random_model(**CONFIGS[name])
    spacing = (2.0, 0.5, 0.4)[-model.config.ndim :]
    card = replace(model.card, normalisation=NORMALISATIONS[normalisation], spacing=spacing)
    model = replace(model, card=card)
    path = export_package(model, tmp_path / "m.zip", tileable=tileable, authors=["A. B. C."])
    found = judge.described(path)
    assert [axis.scale for axis in found.inputs[0].axes[2:]] == [
        float(np.float32(length)) for length in spacing
    ]
    assert {axis.unit for axis in found.outputs[0].axes[2:]} == {"micrometer"}
    summary = judge.tested(path)
    assert summary.status == "passed", summary.format()

    same = tileable or model.config.padding == "same"
    sizes = axis_sizes(model.config, tileable=tileable)
    shape = tuple(size.smallest + size.step for size in sizes)
    image = grey_levels(model, shape)
    if normalisation == "dtype-range":
        image = np.minimum(image, 255).astype(np.uint8)
    theirs = judge.logits_of(path, image[None].astype(np.float32))
    if not same:
        np.testing.assert_allclose(theirs, our_logits(model, image), atol=1e-4)
        return
    assert theirs.shape[2:] == shape
    ours = tiled(model, image)
    if model.config.padding == "valid":  # mirrored at the edges as we do
        np.testing.assert_allclose(theirs[0], ours, atol=1e-4)
    inside = (slice(None), *(slice(s.halo, n - s.halo) for s, n in zip(sizes, shape, strict=True)))
    np.testing.assert_allclose(theirs[0][inside], ours[inside], atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "padded"])
def test_blocks_of_the_tileable_variant_meet_without_seams(name: str, tmp_path: Path) -> None:
    """bioimageio.core cuts the image into blocks; inside the halo they are our own result."""
    model = random_model(**CONFIGS[name])
    path = export_package(model, tmp_path / "m.zip", tileable=True)
    sizes = axis_sizes(model.config, tileable=True)
    shape = tuple(size.smallest + 4 * size.step for size in sizes)
    image = grey_levels(model, shape)
    theirs = judge.logits_of(path, image[None], blocks=2)
    inside = (slice(None), *(slice(s.halo, n - s.halo) for s, n in zip(sizes, shape, strict=True)))
    np.testing.assert_allclose(theirs[0][inside], tiled(model, image)[inside], atol=1e-4)


@given(st.floats(1e-4, 1e4), st.integers(1, 100_000))
def test_scales_take_no_pixel_from_a_size(length: float, size: int) -> None:
    """Sizes are multiplied by one axis' scale and divided by the other's."""
    scale = exact_scale(length)
    assert size * scale / scale == size
    assert scale == pytest.approx(length, rel=1e-6)


@settings(max_examples=40)
@given(
    st.integers(2, 3).flatmap(
        lambda ndim: st.integers(0, 2).flatmap(
            lambda depth: st.fixed_dictionaries(
                {
                    "ndim": st.just(ndim),
                    "widths": st.just((1,) * (depth + 1)),
                    "kernels": st.tuples(
                        *[st.tuples(*[st.sampled_from((1, 3, 5))] * ndim)] * (depth + 1)
                    ),
                    "pools": st.tuples(*[st.tuples(*[st.integers(1, 3)] * ndim)] * depth),
                    "up": st.sampled_from(("upconv", "linear")),
                    "padding": st.sampled_from(("valid", "same")),
                }
            )
        )
    ),
    st.booleans(),
    st.integers(0, 3),
)
def test_sizes_are_those_of_the_network(settings: dict[str, Any], tileable: bool, n: int) -> None:
    """Every size that the description allows goes through, and gives the output it promises."""
    config = UNetConfig(in_channels=1, n_classes=1, **settings)
    sizes = axis_sizes(config, tileable=tileable)
    name, arguments = network_arguments(config, tileable=tileable)
    shape = [size.smallest + n * size.step for size in sizes]
    for size, axis in zip(sizes, config.geometry.axes, strict=True):
        assert size.step == axis.stride
        assert size.smallest > 2 * size.halo
        assert size.halo % axis.stride == 0
        assert size.halo >= (axis.halo if name == "SameSizeUNet" else axis.trim * axis.same)
    if np.prod(shape) < 2e6:
        from napari_unet.export import unet

        with torch.inference_mode():
            found = getattr(unet, name)(**arguments)(torch.zeros(1, 1, *shape)).shape[2:]
        assert [*found] == [have + size.offset for have, size in zip(shape, sizes, strict=True)]


def tiled(model: Model, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Logits of all pixels from tiles of our own plan."""
    pixels, geometry = normalised(model, image), model.config.geometry
    last = np.moveaxis(pixels, 0, -1)
    plan = plan_tiles(
        image.shape[1:], geometry, geometry.size_for([6 * s for s in geometry.stride])
    )
    logits = np.zeros((model.config.n_classes, *image.shape[1:]), np.float32)

    def read(window: Window) -> np.ndarray[Any, Any]:
        return np.moveaxis(read_mirrored(last, window), -1, 0)

    for tile, values in run_tiles(model.network, read, plan, CPU):
        logits[(slice(None), *tile.write.slices)] = values
    return logits


def test_the_same_model_gives_the_same_bytes_and_replaces_only_when_done(tmp_path: Path) -> None:
    model, path = random_model(**SMALL), tmp_path / "m.zip"
    first = export_package(model, path).read_bytes()
    assert export_package(model, path).read_bytes() == first
    odd = replace(model.card, normalisation=Normalisation(low=0.1, high=0.9))
    with pytest.raises(OptionError, match=r"no upper percentile of 0\.9"):
        export_package(replace(model, card=odd), path)
    for license in ("my own!", "CC-BY", "Foo-1.0", "GPL-3.0", ""):
        with pytest.raises(OptionError, match="no SPDX identifier"):
            export_package(model, path, license=license)
    assert path.read_bytes() == first
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(OutputError, match="choose another folder"):
        export_package(model, tmp_path / "none" / "m.zip")


def test_sums_are_those_of_the_files(tmp_path: Path) -> None:
    files = members(export_package(random_model(**SMALL), tmp_path / "m.zip"))

    def check(node: Any) -> int:
        if isinstance(node, list):
            return sum(map(check, node))
        if not isinstance(node, dict):
            return 0
        if "sha256" in node:
            assert hashlib.sha256(files[node["source"]]).hexdigest() == node["sha256"]
        return ("sha256" in node) + sum(map(check, node.values()))

    assert check(yaml.safe_load(files["rdf.yaml"])) == len(files) - 1


def test_licences_are_those_of_the_specification(tmp_path: Path) -> None:
    listed = resources.files("bioimageio.spec").joinpath("static", "spdx_licenses.json")
    known = json.loads(listed.read_text("utf-8"))
    valid = {
        entry["licenseId"] for entry in known["licenses"] if not entry["isDeprecatedLicenseId"]
    }
    assert not set(LICENSES) - valid
    path = export_package(random_model(**SMALL), tmp_path / "m.zip", license="cc-by-sa-4.0")
    assert str(judge.described(path).license) == "CC-BY-SA-4.0"


def test_nuclei_brings_its_licence_and_its_data_along(tmp_path: Path) -> None:
    path = export_package(load_model("nuclei"), tmp_path / "nuclei.zip")
    found = judge.described(path)
    assert str(found.license) == "CC0-1.0"
    assert {str(entry.doi) for entry in found.cite} == {
        "10.1007/978-3-319-24574-4_28",
        "10.1038/s41592-019-0612-7",
    }
    text = members(path)["README.md"].decode()
    assert "BBBC038v1" in text
    assert "a softmax over the channels" in text
    assert judge.tested(path).status == "passed"


def test_classes_of_any_name_pass(tmp_path: Path) -> None:
    names = ["1 Zellkern/Rand: ä", "核", "核 2"]
    classes = tuple(ClassInfo(name, "#000000", "foreground") for name in names)
    model = random_model(**SMALL)
    card = Card("µ", model.config, classes=(replace(classes[0], role="background"), *classes[1:]))
    found = judge.described(export_package(replace(model, card=card), tmp_path / "m.zip"))
    assert found.name == "U-Net"
    assert len(set(found.outputs[0].axes[1].channel_names)) == 3


def test_facts_in_a_card(tmp_path: Path) -> None:
    assert find_license({"licence": "Data: CC BY 4.0."}) == "CC-BY-4.0"
    assert find_license({"licence": "MIT", "license of the data": "CC0"}) is None
    assert find_license({"data": "CC0"}) is None
    assert find_dois({"a": "see doi:10.1000/x.1."}) == {"10.1000/x.1": "see doi:10.1000/x.1."}
    assert preprocessing_steps(Normalisation("none"), "yx") == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "n.zip"
    options = ["--format", "bioimageio", "--author", "N. N.", "--license", "CC-BY-4.0"]
    assert main(["export", "nuclei", str(target), *options]) == 0
    assert "no halo" in capsys.readouterr().out
    document = yaml.safe_load(members(target)["rdf.yaml"])
    assert document["authors"] == [{"name": "N. N."}]
    assert document["license"] == "CC-BY-4.0"
    assert document["outputs"][0]["axes"][2]["size"]["offset"] == -88
    assert "halo" not in document["outputs"][0]["axes"][2]
    assert main(["export", "nuclei", str(target), "--tileable", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == str(target)
    document = yaml.safe_load(members(target)["rdf.yaml"])
    assert document["outputs"][0]["axes"][2]["halo"] == 48
    assert main(["export", "nuclei", str(tmp_path / "n.pt")]) == 2
    assert "end in .zip" in capsys.readouterr().err
    assert main(["export", str(target), str(target)]) == 2
    assert "same file" in capsys.readouterr().err


def test_the_paper_has_the_sizes_of_the_paper() -> None:
    valid = axis_sizes(UNetConfig(), tileable=False)[0]
    assert (valid.smallest, valid.step, valid.offset, valid.halo) == (188, 16, -184, 0)
    same = axis_sizes(UNetConfig(), tileable=True)[0]
    assert (same.offset, same.halo, same.smallest % 16) == (0, 96, 0)
