from __future__ import annotations

import argparse
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import napari_unet.checkpoint
from napari_unet.cli import common, doctor, main
from napari_unet.errors import ImageError, MemoryLimitError
from napari_unet.files import read_image, read_labels

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Small networks that tell bright pixels from dark ones, by name."""
    import torch

    from napari_unet import UNet, UNetConfig, save_model
    from napari_unet.checkpoint import Card, ClassInfo

    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, config, spacing in (
        ("nuclei", UNetConfig(widths=(4, 8), n_classes=2), None),
        ("colour", UNetConfig(widths=(4, 8), in_channels=3), None),
        ("volume", UNetConfig(widths=(2, 4), ndim=3), None),
        ("fine", UNetConfig(widths=(4, 8)), (0.5, 0.5)),
    ):
        torch.manual_seed(0)
        network = UNet(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(0.05, 0.15)
            # Bright is foreground: the second logit grows with what is seen; at half light they
            # are equal.
            network.head.weight[0] *= -1
            network.head.bias.zero_()
            size = config.geometry.smallest
            low, high = network(torch.full((1, config.in_channels, *size), 0.5))[0].flatten(1)
            network.head.bias[0] = (high - low).mean()
        classes = (
            ClassInfo("background", "#000000", "background"),
            ClassInfo("nucleus", "#ff0000", "foreground"),
        )
        card = Card(name, config, classes=classes, spacing=spacing, provenance={"data": "made up"})
        found[name] = save_model(folder / f"{name}.safetensors", network, card)
    return found


@pytest.fixture
def bundled(models, monkeypatch):
    """Make the small network the bundled one."""
    monkeypatch.setattr(
        napari_unet.checkpoint, "bundled_models", lambda: {"nuclei": models["nuclei"]}
    )
    return models


@pytest.fixture
def cells(tmp_path):
    path = tmp_path / "cells.tif"
    image = RANDOM.integers(0, 200, (50, 60)).astype(np.uint16)
    image[10:20, 10:25] = image[30:42, 35:50] = 3000
    tifffile.imwrite(
        path, image, imagej=True, resolution=(2, 2), metadata={"unit": "um", "axes": "YX"}
    )
    return path


@pytest.fixture
def run(capsys):
    """Run a command line: its status, stdout and stderr."""

    def call(*words):
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


FORWARD = "napari_unet.predictors.torch_predictor.TorchPredictor.forward"

# --- The command as such ----------------------------------------------------------------------


def test_help_of_everything(run):
    status, text, _ = run("--help")
    assert status == 0
    commands = "segment verify shapes show convert export probe evaluate doctor demo"
    for command in commands.split():
        assert f"    {command} " in text
        assert run(command, "--help")[0] == 0
    assert run("--version") == (0, "valid-unet 0.1.0\n", "")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["segment"],
        ["segment", "a.tif"],
        ["segment", "a.tif", "-o", "b.tif", "--output", "poem"],
        ["segment", "a.tif", "-o", "b.tif", "--tile-size", "0"],
        ["segment", "a.tif", "-o", "b.tif", "--spacing", "1,x"],
        ["segment", "a.tif", "-o", "b.tif", "--spacing", "0"],
        ["shapes"],
        ["shapes", "572", "--depth", "12"],
        ["shapes", "-4"],
    ],
)
def test_wrong_usage_is_2(run, words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--help"], ["shapes", "572"], ["show"], ["segment", "--help"]])
def test_what_needs_no_torch_imports_none(words):
    code = (
        "import sys; from napari_unet.cli import main; main(sys.argv[1:]); "
        "sys.exit(bool({'torch', 'napari', 'qtpy', 'skimage'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, *words], capture_output=True).returncode == 0


def test_evaluate_and_show_import_no_torch(tmp_path, models):
    np.save(tmp_path / "a.npy", np.eye(4, dtype=int))
    labels = str(tmp_path / "a.npy")
    code = (
        "import sys; from napari_unet.cli import main; "
        "assert main(['evaluate', sys.argv[1], sys.argv[1]]) == 0; "
        "assert main(['show', sys.argv[2]]) == 0; sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, labels, str(models["nuclei"])]
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_as_a_module():
    command = [sys.executable, "-m", "napari_unet", "shapes", "572", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["output"] == [388, 388]


def test_into_a_closed_pipe():
    command = f"'{sys.executable}' -m napari_unet shapes 572 | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# --- Failures ---------------------------------------------------------------------------------


def failing(error):
    def fail(*_args, **_options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "valid-unet: interrupted; no file was left half-written.\n"),
        (ImageError("It is torn; get another."), 4, "valid-unet: It is torn; get another.\n"),
        (MemoryLimitError("Too large; crop it."), 4, "valid-unet: Too large; crop it.\n"),
        (TypeError("two\nlines"), 1, "a bug: TypeError: two lines - run it again with --debug"),
    ],
)
def test_every_failure_is_one_line(run, monkeypatch, tmp_path, error, status, words):
    monkeypatch.setattr("napari_unet.cli.evaluate._compare", failing(error))
    code, out, err = run("evaluate", tmp_path / "a.tif", tmp_path / "b.tif")
    assert (code, out) == (status, "")
    assert words in err
    assert err.count("\n") == 1
    if not isinstance(error, KeyboardInterrupt):
        for words in (["--debug", "evaluate"], ["evaluate", "--debug"]):
            err = run(*words, tmp_path / "a.tif", tmp_path / "b.tif")[2]
            assert "Traceback" in err


def test_a_torch_that_does_not_load(run, monkeypatch, cells, tmp_path):
    monkeypatch.setitem(sys.modules, "napari_unet.segmentation", None)
    monkeypatch.delattr(napari_unet, "segmentation", raising=False)
    status, out, err = run("segment", cells, "-o", tmp_path / "a.tif")
    assert (status, out) == (4, "")
    assert "PyTorch cannot be loaded" in err
    assert "run `valid-unet doctor`" in err


def bad_images(folder):
    tifffile.imwrite(folder / "whole.tif", np.zeros((64, 64), np.uint16))
    content = (folder / "whole.tif").read_bytes()
    (folder / "whole.tif").unlink()
    yield "missing.tif", None, "There is no file"
    yield "empty.tif", b"", "empty.tif is empty; get the file again."
    yield "text.tif", b"words, only words", "is no image that can be read here"
    yield "cut.tif", content[: len(content) // 2], "cut.tif is damaged or cut short"
    yield "rgb.png", np.zeros((9, 9, 3), np.uint8) + np.arange(3, dtype=np.uint8), "has 3 channels"
    yield "complex.npy", np.zeros((9, 9), complex), "complex128 cannot be segmented"
    yield "5d.npy", np.zeros((2, 2, 2, 9, 9, 1)), "more than (T)(Z)YX(C)"
    yield "line.npy", np.zeros(9), "too few axes"
    yield "nothing.npy", np.zeros((0, 9)), "has no pixels"


def test_bad_images_are_4(run, tmp_path, models):
    for name, content, words in bad_images(tmp_path):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None and name.endswith(".npy"):
            np.save(path, content)
        elif content is not None:
            Image.fromarray(content).save(path)
        status, out, err = run(
            "segment", path, "-o", tmp_path / "out" / "a.tif", "--model", models["nuclei"]
        )
        assert (status, out, err.count("\n")) == (4, "", 1), name
        assert words in err
        assert not list((tmp_path / "out").iterdir()), name


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((30, 40), 7, np.uint8),
        np.full((30, 40), np.nan),
        np.where(np.eye(30) > 0, np.inf, 1.0),
        np.zeros((1, 1), np.uint16),
        np.eye(30) > 0,
    ],
    ids=["constant", "nan", "infinite", "1x1", "bool"],
)
def test_odd_images_work(run, tmp_path, models, pixels):
    np.save(tmp_path / "a.npy", pixels)
    out = tmp_path / "out.npy"
    assert run("segment", tmp_path / "a.npy", "-o", out, "--model", models["nuclei"])[0] == 0
    assert np.load(out).shape == pixels.shape


def test_bad_models_are_4(run, tmp_path, cells):
    import pickle

    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(print))
    for name in ("text.safetensors", "pickle.pt", "missing.safetensors", "", "unknown"):
        status, out, err = run(
            "segment", cells, "-o", tmp_path / "out.tif", "--model", tmp_path / name
        )
        assert (status, out, err.count("\n")) == (4, "", 1), name
        assert not (tmp_path / "out.tif").exists()


def test_outputs_that_cannot_be_written(run, tmp_path, cells, models, monkeypatch):
    def segment(out):
        status, stdout, err = run("segment", cells, "-o", out, "--model", models["nuclei"])
        assert (status, stdout, err.count("\n")) == (4, "", 1)
        return err

    before = cells.read_bytes()
    assert "is the image itself; choose another name" in segment(cells)
    assert "no ending that says what to write" in segment(tmp_path / "labels")
    assert "is not a folder; choose another place" in segment(cells / "a.tif")
    (tmp_path / "out.tif").write_bytes(b"precious")
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr(tifffile, "imwrite", failing(full))
        assert "The disk is full" in segment(tmp_path / "out.tif")
    with monkeypatch.context() as patch:
        refused = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        patch.setattr(Path, "touch", failing(refused))
        assert "cannot be written (Permission denied)" in segment(tmp_path / "out.tif")
    assert (tmp_path / "out.tif").read_bytes() == b"precious"
    assert cells.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.tif", "out.tif"]


def test_interrupted_while_it_runs(run, tmp_path, cells, models, monkeypatch):
    (tmp_path / "out.tif").write_bytes(b"precious")
    monkeypatch.setattr(FORWARD, failing(KeyboardInterrupt()))
    status, out, err = run(
        *("segment", cells, "-o", tmp_path / "out.tif", "--model", models["nuclei"]),
        *("--engine", "torch"),
    )
    assert (status, out) == (130, "")
    assert "interrupted" in err
    assert (tmp_path / "out.tif").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.tif", "out.tif"]


def test_an_image_deleted_halfway(run, tmp_path, models, monkeypatch):
    path = tmp_path / "a.npy"
    np.save(path, RANDOM.random((200, 200)).astype(np.float32))
    import napari_unet.files

    def read_lazily(path, **options):
        return real(path, **options, lazy_above=0)

    real = napari_unet.files.read_image
    monkeypatch.setattr(napari_unet.files, "read_image", read_lazily)
    from napari_unet.predictors.torch_predictor import TorchPredictor

    forward = TorchPredictor.forward

    def delete(*args):
        path.unlink(missing_ok=True)
        return forward(*args)

    monkeypatch.setattr(TorchPredictor, "forward", delete)
    status, out, err = run(
        *("segment", path, "-o", tmp_path / "out.tif"),
        *("--model", models["nuclei"], "--tile-size", 64, "--engine", "torch"),
    )
    assert (status, out) == (4, "")
    assert "changed or removed while it was being read" in err
    assert not (tmp_path / "out.tif").exists()


# --- segment ----------------------------------------------------------------------------------


def test_segment_one_image(run, tmp_path, cells, models):
    out = tmp_path / "labels.tif"
    status, text, err = run("segment", cells, "-o", out, "--model", models["nuclei"])
    assert (status, err) == (0, "")
    assert text.startswith(f"{cells} -> {out}: ")
    assert ": 2 objects in " in text
    assert "(1 tile, cpu, torch, float32, " in text
    labels = read_image(out)
    assert (labels.kind, labels.axes, labels.spacing) == ("imagej", "YX", (0.5, 0.5))
    from napari_unet import segment

    want = segment(read_image(cells).data, models["nuclei"], spacing=(0.5, 0.5)).labels
    np.testing.assert_array_equal(labels.data, want)
    assert want.max() > 0
    with tifffile.TiffFile(out) as file:
        assert "model nuclei" in file.imagej_metadata["Info"]


def test_segment_json(run, tmp_path, cells, models):
    out = tmp_path / "labels.tif"
    words = ("segment", cells, "-o", out, "--model", models["nuclei"], "--json")
    status, text, err = run(*words, "--tile-size", 40, "--min-size", 5)
    assert (status, err) == (0, "")
    report = json.loads(text)
    labels = read_labels(out)
    assert report["input"] == str(cells)
    assert report["output"] == str(out)
    assert report["shape"] == [50, 60]
    assert report["model"] == "nuclei"
    assert len(report["tile_size"]) == len(report["halo"]) == 2
    assert max(report["tile_size"]) <= 40
    assert report["tiles"] > 1
    assert (report["device"], report["precision"]) == ("cpu", "float32")
    assert report["seconds"] > 0
    assert report["megapixels_per_second"] > 0
    assert report["objects"] == len(np.unique(labels)) - 1 == 2
    assert report["settings"]["min_size"] == 5
    assert report["remarks"] == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2 << 30), ("1.5G", 3 << 29), ("800MB", 800_000_000), ("64 KiB", 1 << 16), ("9", 9)],
)
def test_amounts_of_memory(text, size):
    assert common.memory_size(text) == size


@pytest.mark.parametrize("text", ["", "2 cups", "-1G", "0", "GiB"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(argparse.ArgumentTypeError):
        common.memory_size(text)


def test_segment_with_an_engine_in_little_memory(run, tmp_path, cells, models):
    words = ("segment", cells, "-o", tmp_path / "o.tif", "--model", models["nuclei"], "--json")
    status, text, err = run(*words, "--memory", "1KiB", "--engine", "torch")
    assert (status, err) == (0, "")
    report = json.loads(text)
    assert (report["engine"], report["settings"]["memory"]) == ("torch", 1024)
    assert "more than there is for it" in report["remarks"][0]


def test_segment_several(run, tmp_path, cells, models):
    other = tmp_path / "more.ome.tif"
    tifffile.imwrite(other, read_image(cells).data, ome=True)
    torn = tmp_path / "torn.tif"
    torn.write_bytes(b"")
    words = ("segment", cells, other, torn, "-o", tmp_path / "out", "--model", models["nuclei"])
    status, text, err = run(*words, "--json")
    assert status == 4
    assert err == f"valid-unet: {torn}: torn.tif is empty; get the file again.\n"
    first, second, third = json.loads(text)
    assert first["output"] == str(tmp_path / "out" / "cells_labels.tif")
    assert second["output"] == str(tmp_path / "out" / "more_labels.ome.tif")
    assert third == {"input": str(torn), "error": "torn.tif is empty; get the file again."}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "cells_labels.tif",
        "more_labels.ome.tif",
    ]
    assert read_image(second["output"]).kind == "ome"
    status, text, _ = run(*words[:3], *words[4:])
    assert status == 0
    assert text.count("->") == 2


def test_one_image_into_a_folder(run, tmp_path, cells, models):
    for out in (f"{tmp_path}/new/", tmp_path / "new"):
        status, _, _ = run("segment", cells, "-o", out, "--model", models["nuclei"])
        assert status == 0
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["cells_labels.tif"]


def test_several_images_do_not_fit_into_one_file(run, tmp_path, cells):
    status, _, err = run("segment", cells, tmp_path / "b.tif", "-o", tmp_path / "one.tif")
    assert status == 2
    assert "is one file, for 2 images; give a folder: one/" in err


def test_two_images_of_one_name(run, tmp_path, cells):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cells.png").write_bytes(b"")
    status, _, err = run("segment", cells, tmp_path / "b" / "cells.png", "-o", tmp_path / "out")
    assert status == 2
    assert "would both be written to" in err


def test_patterns_as_windows_passes_them(run, tmp_path, cells, models):
    pattern = tmp_path / "cel*.tif"
    words = ("-o", tmp_path / "out/", "--model", models["nuclei"])
    assert run("segment", pattern, "-o", f"{tmp_path}/out/", *words[2:])[0] == 0
    assert (tmp_path / "out" / "cells_labels.tif").exists()
    status, _, err = run("segment", tmp_path / "none*.tif", *words)
    assert status == 2
    assert "No file matches" in err


def test_names_that_are_none(run, tmp_path, cells, models):
    words = ("-o", f"{tmp_path}/out/", "--model", models["nuclei"])
    status, _, err = run("segment", tmp_path / "**.tif", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert "is no pattern for files" in err
    # One that cannot be looked at does not keep the others from being segmented.
    status, _, err = run("segment", tmp_path / ("x" * 300), cells, *words)
    assert (status, err.count("\n")) == (4, 1)
    assert "File name too long" in err
    assert (tmp_path / "out" / "cells_labels.tif").exists()
    status, _, err = run("segment", "~nobody.tif", *words)  # a name as any other
    assert (status, err) == (4, "valid-unet: There is no file ~nobody.tif; check the path.\n")


def test_what_cannot_be_written_is_told_before_the_network_runs(
    run, tmp_path, models, monkeypatch, zarr_image
):
    monkeypatch.setattr(FORWARD, failing(AssertionError("the network ran")))
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.zeros((3, 50, 50), np.uint8), imagej=True, metadata={"axes": "TYX"})
    words = ("--model", models["nuclei"], "--engine", "torch")
    status, _, err = run("segment", stack, "-o", tmp_path / "out.png", *words)
    assert (status, err) == (
        4,
        "valid-unet: out.png: a PNG holds one plane; choose .tif for a stack.\n",
    )
    before = sorted(zarr_image.rglob("*"))
    status, _, err = run("segment", zarr_image / "0", "-o", zarr_image, *words)
    assert status == 4
    assert "holds the image itself" in err
    assert sorted(zarr_image.rglob("*")) == before


@pytest.fixture
def zarr_image(tmp_path):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "image.zarr"
    zarr.open_group(path, mode="w", zarr_format=2).create_array("0", data=np.ones((50, 60)))
    return path


@pytest.mark.parametrize("output", ["classes", "probabilities"])
def test_other_outputs(run, tmp_path, cells, models, output):
    status, _, _ = run(
        *("segment", cells, "-o", f"{tmp_path}/out/"),
        *("--model", models["nuclei"], "--output", output),
    )
    assert status == 0
    result = read_image(tmp_path / "out" / f"cells_{output}.tif")
    if output == "classes":
        assert set(np.unique(result.data)) <= {0, 1}
    else:
        assert result.axes == "YXC"
        np.testing.assert_allclose(result.data.sum(-1), 1, atol=1e-5)


def test_keep_probabilities(run, tmp_path, cells, models):
    words = ("--model", models["nuclei"], "--keep-probabilities", "--json")
    status, text, _ = run("segment", cells, "-o", tmp_path / "a.png", *words)
    assert status == 0
    assert json.loads(text)["probabilities"] == str(tmp_path / "a_probabilities.tif")
    assert read_image(tmp_path / "a_probabilities.tif").axes == "YXC"
    assert read_labels(tmp_path / "a.png").shape == (50, 60)


def test_stacks_and_volumes(run, tmp_path, models):
    stack = RANDOM.integers(0, 99, (5, 30, 34)).astype(np.uint8)
    np.save(tmp_path / "a.npy", stack)
    for name, axes, kept in (("nuclei", "TYX", "TYX"), ("volume", "ZYX", "ZYX")):
        words = ("segment", tmp_path / "a.npy", "-o", tmp_path / "out.tif")
        words += ("--model", models[name])
        for more in ((), ("--axes", axes)):
            assert run(*words, *more)[0] == 0
            out = read_image(tmp_path / "out.tif")
            assert (out.axes, out.data.shape) == (kept, stack.shape)


def test_channels(run, tmp_path, models):
    colours = RANDOM.integers(0, 99, (30, 34, 3)).astype(np.uint8)
    np.save(tmp_path / "front.npy", np.moveaxis(colours, -1, 0))
    Image.fromarray(colours).save(tmp_path / "a.png")
    words = ("--model", models["colour"])
    assert run("segment", tmp_path / "a.png", "-o", tmp_path / "a.npy", *words)[0] == 0
    front = ("segment", tmp_path / "front.npy", "-o", tmp_path / "b.npy", "--axes", "CYX")
    assert run(*front, *words)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_several_coloured_pictures_are_no_grey_ones(run, tmp_path, models):
    # Each row would be a picture of three columns.
    colours = RANDOM.integers(0, 255, (3, 60, 50, 3)).astype(np.uint8)
    np.save(tmp_path / "pages.npy", colours)
    tifffile.imwrite(tmp_path / "pages.tif", colours, photometric="rgb", metadata=None)
    for name in ("pages.npy", "pages.tif"):
        words = (tmp_path / name, "-o", tmp_path / "a.tif", "--model", models["nuclei"])
        status, _, err = run("segment", *words)
        assert status == 4
        assert "The image has 3 channels, the model takes 1" in err


def test_equal_channels_are_grey(run, tmp_path, models):
    grey = RANDOM.integers(0, 99, (30, 34)).astype(np.uint8)
    Image.fromarray(np.repeat(grey[..., None], 3, -1)).save(tmp_path / "a.png")
    words = ("-o", tmp_path / "a.npy", "--model", models["nuclei"])
    status, text, _ = run("segment", tmp_path / "a.png", *words)
    assert status == 0
    assert "note: its 3 channels are equal and were read as one" in text


def test_spacing(run, tmp_path, cells, models):
    def grid(*words):
        status, text, _ = run(
            *("segment", cells, "-o", tmp_path / "a.tif"),
            *("--model", models["fine"], "--json", *words),
        )
        assert status == 0
        return json.loads(text)["network_shape"], read_image(tmp_path / "a.tif").spacing

    assert grid() == ([50, 60], (0.5, 0.5))
    assert grid("--spacing", "1,0.5") == ([100, 60], (1.0, 0.5))
    assert grid("--spacing", "1") == ([100, 120], (1.0, 1.0))
    assert grid("--spacing", "1", "--no-rescale") == ([50, 60], (1.0, 1.0))
    words = ("--model", models["fine"], "--spacing", "1")
    text = run("segment", cells, "-o", tmp_path / "a.tif", *words)[1]
    assert "note: the model saw the image at 200% of its size" in text
    status, _, err = run(
        *("segment", cells, "-o", tmp_path / "a.tif"),
        *("--model", models["fine"], "--spacing", "1,1,1"),
    )
    assert status == 2
    assert "spacing needs 2 lengths (YX)" in err


def test_zarr_in_and_out(run, tmp_path, cells, models):
    pytest.importorskip("zarr")
    words = ("--model", models["nuclei"])
    assert run("segment", cells, "-o", tmp_path / "a.zarr", *words)[0] == 0
    again = run("segment", tmp_path / "a.zarr", "-o", tmp_path / "b.zarr", *words, "--json")
    assert again[0] == 0
    assert json.loads(again[1])["shape"] == [50, 60]
    assert read_image(tmp_path / "b.zarr").spacing == (0.5, 0.5)


def test_progress_on_a_terminal(monkeypatch, run, tmp_path, cells, models):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    words = ("segment", cells, "-o", tmp_path / "a.tif", "--model", models["nuclei"])
    assert run(*words, "--tile-size", 40)[0] == 0
    lines = [line.rstrip() for line in terminal.getvalue().split("\r")]
    assert lines[-1] == lines[-2] == ""
    assert any("cells.tif  [" in line and "tiles" in line and "s left" in line for line in lines)
    assert all(len(line) < 100 for line in lines)
    terminal.truncate(0)
    assert run(*words, "--json")[0] == 0
    assert terminal.getvalue().strip("\0") == ""


# --- verify, shapes, show ---------------------------------------------------------------------


def test_verify(run, cells, models):
    words = ("verify", cells, "--model", models["nuclei"], "--tile-size", 40)
    status, text, _ = run(*words, "--json")
    assert status == 0
    report = json.loads(text)
    assert report["max_abs_logit_difference"] <= 1e-4
    assert report["changed_labels"] == 0
    assert report["pixels"] == 50 * 60
    assert report["tiles"] > 1
    status, text, _ = run(*words)
    assert "changed labels: 0" in text
    assert "fits into one tile" not in text
    assert "fits into one tile" in run(*words[:-2])[1]


def test_a_package_that_says_all_has_nothing_to_probe(run, tmp_path, cells, models):
    assert run("export", models["nuclei"], tmp_path / "a.zip", "--format", "bioimageio")[0] == 0
    labels = tmp_path / "labels.tif"
    tifffile.imwrite(labels, np.ones((50, 60), np.uint8))
    status, _, err = run("probe", tmp_path / "a.zip", cells, labels)
    assert status == 2
    assert "says all about its network; there is nothing to probe" in err


def test_shapes(run):
    status, text, err = run("shapes", 572)
    assert (status, err) == (0, "")
    for words in (
        "31,030,658 parameters",
        "4 px per side off the encoder's 64 x 64",
        "512 from the encoder + 512 from the decoder",
        "572 x 572 px in, 388 x 388 px out: 92 px per side",
        "(64, 64, 512) with (56, 56, 1024)",
        "Expected size 64 but got size 56",
    ):
        assert words in text.replace("\n", " ")
    report = json.loads(run("shapes", 572, "--json")[1])
    assert report["size"] == [572, 572]
    assert report["output"] == [388, 388]
    assert report["halo"] == [92, 92]
    assert report["parameters"] == 31_030_658
    assert run("shapes", 92, "--depth", 3, "--base-features", 8)[0] == 0


def test_shapes_that_do_not_work(run):
    status, text, err = run("shapes", 573)
    assert (status, err) == (4, "")
    text = text.replace("\n", " ")
    assert "have to halve an odd map, 569 x 569 px" in text
    assert "The nearest sizes that work are 572 px (-> 388 px) and 588 px (-> 404 px)" in text
    assert "half a pixel apart" in text
    assert "The smallest that works is 188 px (-> 4 px)" in run("shapes", 9)[1]
    status, text, err = run("shapes", 573, "--json")
    report = json.loads(text)
    assert status == 4
    assert err.count("\n") == 1
    assert not report["admissible"]
    assert (report["nearest_below"], report["nearest_above"]) == ([572, 572], [588, 588])


def test_show(run, bundled):
    status, text, _ = run("show")
    assert status == 0
    assert text.startswith("nuclei: 2-D, 1 channel, background + nucleus")
    assert list(json.loads(run("show", "--json")[1])) == ["nuclei"]
    status, text, _ = run("show", "nuclei")
    assert status == 0
    for words in ("made up", "SHA-256", "background, nucleus (foreground)", "percentile 1 to 99.8"):
        assert words in text
    report = json.loads(run("show", bundled["fine"], "--json")[1])
    assert report["spacing_um"] == [0.5, 0.5]
    assert report["config"]["widths"] == [4, 8]
    status, _, err = run("show", "unknown")
    assert status == 4
    assert "There is no checkpoint 'unknown'" in err


# --- evaluate ---------------------------------------------------------------------------------


def test_evaluate_files(run, tmp_path):
    truth = np.zeros((20, 20), np.uint16)
    truth[2:8, 2:8], truth[12:18, 2:8] = 1, 2
    found = truth.copy()
    found[12:18] = 0
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    Image.fromarray(found).save(tmp_path / "found.png")
    status, text, _ = run("evaluate", tmp_path / "found.png", tmp_path / "truth.tif", "--json")
    assert status == 0
    report = json.loads(text)
    assert report["f1_50"] == pytest.approx(2 / 3)
    assert report["mean_ap"] == pytest.approx(0.5)
    assert report["iou"] == pytest.approx(0.5)
    assert report["pixel_error"] == pytest.approx(36 / 400)
    text = run("evaluate", tmp_path / "found.png", tmp_path / "truth.tif")[1]
    assert text.splitlines()[1].split() == [
        *("found.png", "0.6667", "0.5000", "0.5000", "0.09000", "1", "2")
    ]
    np.save(tmp_path / "other.npy", found[:5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_dir", failing(PermissionError(13, "Permission denied", "found")))
        status, _, err = run("evaluate", tmp_path / "found.png", tmp_path / "truth.tif")
    assert (status, err) == (
        *(4, "valid-unet: found: Permission denied; check the path and its permissions.\n"),
    )
    status, _, err = run("evaluate", tmp_path / "other.npy", tmp_path / "truth.tif")
    assert status == 4
    assert "other.npy has shape (5, 20) but truth.tif has (20, 20)" in err


@pytest.mark.parametrize("planes", [(), (2,)])
def test_time_points_are_evaluated_each_for_itself(run, tmp_path, planes):
    frame = np.zeros((*planes, 20, 20), np.uint16)
    frame[..., 2:8, 2:8], frame[..., 12:18, 2:8] = 1, 2
    axes = "TZYX" if planes else "TYX"
    for name, frames in (
        ("tracked", [frame, frame, frame]),  # a cell keeps its number
        ("counted", [np.where(frame, frame + 2 * t, 0) for t in range(3)]),
    ):
        array = np.stack(frames).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"{name}.tif", array, imagej=True, metadata={"axes": axes})
    names = tmp_path / "counted.tif", tmp_path / "tracked.tif"
    status, text, _ = run("evaluate", *names, "--json")
    report = json.loads(text)
    assert status == 0
    assert (report["f1_50"], report["objects"], report["truth_objects"]) == (1, 6, 6)


def test_evaluate_membranes(run, tmp_path):
    """Two cells and a wall between them, its middle proposed, then a proposal without walls."""
    truth = np.full((2, 12, 21), 255, np.uint8)
    truth[:, :, 9:12] = 0
    interior = np.full(truth.shape, 0.95, np.float32)
    interior[:, :, 10] = 0.05
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    tifffile.imwrite(tmp_path / "interior.tif", interior)
    paths = tmp_path / "interior.tif", tmp_path / "truth.tif"
    status, text, _ = run("evaluate", *paths, "--membranes", "--json")
    assert status == 0
    report = json.loads(text)
    assert report["rand"] == report["info"] == pytest.approx(1)
    assert report["rand_threshold"] == pytest.approx(0.1)
    assert report["pixel_error"] == pytest.approx(2 / 21)
    text = run("evaluate", *paths, "--membranes")[1]
    assert text.splitlines()[1].split() == [
        *("interior.tif", "1.0000", "0.1", "1.0000", "0.1", "0.09524", "0.1")
    ]
    np.save(tmp_path / "none.npy", np.ones(truth.shape, np.float32))
    text = run("evaluate", tmp_path / "none.npy", paths[1], "--membranes", "--json")[1]
    assert json.loads(text)["rand"] == pytest.approx(2 / 3)  # 1/2 over (1/2 + 1) / 2
    status, _, err = run("evaluate", paths[1], paths[1], "--membranes")
    assert status == 4
    assert "truth.tif holds no probabilities from 0 to 1 but uint8" in err
    status, _, err = run("evaluate", tmp_path, tmp_path, "--membranes")
    assert status == 4
    assert "give a stack of slices as one file" in err


def test_evaluate_folders(run, tmp_path):
    labels, truth = tmp_path / "labels", tmp_path / "truth"
    labels.mkdir()
    truth.mkdir()
    array = np.eye(9, dtype=np.uint16)
    for name in ("a", "b"):
        tifffile.imwrite(truth / f"{name}.tif", array)
    tifffile.imwrite(labels / "a_labels.ome.tif", array)
    (labels / "notes.txt").touch()
    status, _, err = run("evaluate", labels, truth)
    assert status == 4
    assert "has no labels for 1 of 2 images" in err
    assert "(b.tif)" in err
    np.save(labels / "b.npy", 0 * array)
    np.save(labels / "c.npy", array)
    status, text, err = run("evaluate", labels, truth, "--json")
    assert status == 0
    assert err == "valid-unet: 1 label images without a truth are left out.\n"
    report = json.loads(text)
    assert report["f1_50"] == pytest.approx(0.5)
    assert report["image_count"] == 2
    assert [image["f1_50"] for image in report["images"]] == [1, 0]
    text = run("evaluate", labels, truth)[1]
    assert text.splitlines()[-1].split()[:5] == ["mean", "of", "2,", "sums", "0.5000"]
    assert run("evaluate", labels, truth / "a.tif")[0] == 4
    (tmp_path / "empty").mkdir()
    assert "holds no label image" in run("evaluate", labels, tmp_path / "empty")[2]


# --- doctor -----------------------------------------------------------------------------------


def test_doctor(run, bundled):
    status, text, err = run("doctor")
    assert (status, err) == (0, "")
    for words in ("napari-valid-unet", "Python", "PyTorch", "GPU", "numpy", "napari", "Qt"):
        assert any(line.startswith(words) for line in text.splitlines()), words
    assert "model nuclei" in text
    assert "What to do:\n- " in text
    report = json.loads(run("doctor", "--json")[1])
    assert report["torch"]["error"] is None
    assert report["packages"]["numpy"] == np.__version__


NO_TORCH = {
    "version": "2.13.0", "threads": 1, "mps": False, "gpus": [], "unusable": [], "built_for": None,
}  # fmt: skip
GPU = "NVIDIA H200, driver 580.1"


@pytest.mark.parametrize(
    ("torch", "nvidia", "gpu", "advice"),
    [
        ({"built_for": None}, [], "none: nvidia-smi finds no GPU, and this PyTorch", None),
        ({"built_for": "CUDA 13.0"}, [], "none: PyTorch is built for CUDA 13.0, but", None),
        ({"built_for": None}, [GPU], "not used: NVIDIA H200", "install a PyTorch built for CUDA"),
        ({"built_for": "CUDA 13.0"}, [GPU], "cannot use it", "update its driver"),
        (
            {"built_for": "CUDA 13.0", "gpus": ["NVIDIA H200, 139 GiB"]},
            [GPU],
            "NVIDIA H200, 139 GiB (CUDA 13.0)",
            None,
        ),
        (
            {"built_for": "CUDA 13.0", "unusable": ["NVIDIA GTX 1080, 8 GiB"]},
            [GPU],
            "not used: NVIDIA GTX 1080, 8 GiB: this PyTorch (CUDA 13.0) cannot use it",
            "install a PyTorch built for it",
        ),
        ({"mps": True}, [], "Apple's, by Metal (mps)", None),
        ({"error": "no DLL"}, [], "not known", "Install PyTorch anew (no DLL)"),
    ],
)
def test_doctor_knows_why_there_is_no_gpu(run, monkeypatch, torch, nvidia, gpu, advice):
    monkeypatch.setattr(doctor, "_torch", lambda: {**NO_TORCH, "error": None, **torch})
    monkeypatch.setattr(doctor, "_nvidia", lambda: nvidia)
    status, text, _ = run("doctor")
    assert status == 0
    line = next(line for line in text.splitlines() if line.startswith("GPU "))
    assert gpu in line
    todo = text.partition("What to do:")[2]
    assert ("PyTorch" in todo) == (advice is not None)
    assert advice is None or advice in todo


def test_doctor_never_fails(run, monkeypatch):
    broken = failing(ValueError("broken"))
    monkeypatch.setattr(doctor.importlib.metadata, "version", broken)
    monkeypatch.setattr(doctor.subprocess, "run", failing(OSError(errno.ENOMEM, "no memory")))
    monkeypatch.setattr(doctor.platform, "platform", broken)
    monkeypatch.setattr(doctor, "_memory", broken)
    monkeypatch.setattr(doctor, "_nvidia", broken)
    monkeypatch.setattr(napari_unet.checkpoint, "bundled_models", broken)
    status, text, _ = run("doctor")
    assert status == 0
    assert "unknown (ValueError" in text
    assert run("doctor", "--json")[0] == 0


def test_doctor_without_packages(run, monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    status, text, _ = run("doctor")
    assert status == 0
    assert "- Install PyTorch anew (it is not installed)" in text
    assert 'pip install "napari-valid-unet[all]"' in text
    assert "pip install zarr imagecodecs" in text


@pytest.mark.parametrize(
    ("code", "words"),
    [("import os; os.abort()", "ended with"), ("raise OSError('no DLL')", "no DLL")],
)
def test_doctor_survives_a_torch_that_crashes(monkeypatch, code, words):
    monkeypatch.setattr(doctor, "_ASK_TORCH", code)
    assert words in doctor._torch()["error"]


# --- demo -------------------------------------------------------------------------------------


@pytest.fixture
def no_display(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")


def test_demo_without_a_display(run, no_display, bundled, tmp_path):
    status, text, err = run("demo", "--screenshot", "a.png")
    assert status == 0
    assert err == (
        "There is no display (neither DISPLAY nor WAYLAND_DISPLAY is set). "
        "The sample is segmented into files instead.\n"
    )
    assert "overlay.png" in text
    folder = tmp_path / "valid-unet-demo"
    assert sorted(p.name for p in folder.iterdir()) == ["image.tif", "labels.tif", "overlay.png"]
    image, labels = read_image(folder / "image.tif"), read_image(folder / "labels.tif")
    assert image.spacing == labels.spacing == (0.65, 0.65)
    assert image.data.shape == labels.data.shape
    assert read_image(folder / "overlay.png").data.shape == (*image.data.shape, 3)


@pytest.mark.parametrize(
    ("missing", "words"),
    [(["napari"], "napari-valid-unet[all]"), (["PyQt6", "PySide6", "PyQt5", "PySide2"], "no Qt")],
)
def test_demo_without_napari(run, no_display, bundled, monkeypatch, missing, words):
    from napari_unet.cli import demo

    real = demo.importlib.util.find_spec
    monkeypatch.setattr(
        demo.importlib.util, "find_spec", lambda name: None if name in missing else real(name)
    )
    status, _, err = run("demo")
    assert status == 0
    assert words in err


def test_demo_with_a_display(run, monkeypatch, tmp_path):
    from napari_unet.cli import demo

    pytest.importorskip("napari")
    from napari_unet._napari import demo as window

    calls = []
    monkeypatch.setattr(demo, "why_no_window", lambda: None)
    monkeypatch.setattr(window, "run", lambda path: calls.append(path) or 0)
    assert run("demo")[0] == run("demo", "--screenshot", tmp_path / "a.png")[0] == 0
    assert calls == [None, tmp_path / "a.png"]


def test_spacing_for():
    assert common.spacing_for(None, (2.0, 0.5, 0.5), 2) == (0.5, 0.5)
    assert common.spacing_for(None, (0.5, 0.5), 3) is None
    assert common.spacing_for((1.0,), None, 3) == (1.0, 1.0, 1.0)
    assert common.spacing_for((3.0, 4.0), (2.0, 0.5, 0.5), 2) == (3.0, 4.0)
    assert common.spacing_for(None, None, 2) is None
