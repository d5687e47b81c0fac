"""What people give: files that belong together, older models, classes; and what they get back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import random_model
from PIL import Image
from training_support import discs, pairs_of, small_recipe, write_pairs

from napari_unet.card import Card, ClassInfo
from napari_unet.checkpoint import Model, load_model, read_card, save_model
from napari_unet.cli import main
from napari_unet.config import UNetConfig
from napari_unet.errors import ImageError, OptionError, OutputError
from napari_unet.intensity import fit_intensity
from napari_unet.segmentation import segment
from napari_unet.training.dataset import common_spacing, hold_out, labelled, to_samples
from napari_unet.training.pairs import Pair, PairFiles, find_pairs, load_pair
from napari_unet.training.plan import parse_classes, plan_training
from napari_unet.training.report import EventLog
from napari_unet.training.targets import Targets
from napari_unet.training.transfer import transfer

IMAGE, LABELS = discs(0)


def put(path: Path, pixels: np.ndarray, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, **more)
    return path


def names(pairs: list[PairFiles]) -> list[tuple[str, str]]:
    return [(pair.image.name, pair.labels.name) for pair in pairs]


def test_folders_patterns_files_and_tables_name_the_same_pairs(tmp_path):
    for name in ("b", "a"):
        put(tmp_path / "im" / f"{name}.tif", IMAGE)
        put(tmp_path / "la" / f"{name}_mask.png", LABELS.astype(np.uint8))
    (tmp_path / "im" / "notes.txt").write_text("no picture")
    wanted = [("a.tif", "a_mask.png"), ("b.tif", "b_mask.png")]
    assert names(find_pairs(str(tmp_path / "im"), str(tmp_path / "la"))) == wanted
    pattern = find_pairs(str(tmp_path / "im" / "*.tif"), str(tmp_path / "la" / "*.png"))
    assert names(pattern) == wanted
    one = find_pairs(str(tmp_path / "im" / "a.tif"), str(tmp_path / "la" / "b_mask.png"))
    assert names(one) == [("a.tif", "b_mask.png")]
    table = tmp_path / "pairs.csv"
    table.write_text(
        "image,labels,reviewed\nim/a.tif,la/b_mask.png,\nim/b.tif,la/a_mask.png,im/a.tif"
    )
    found = find_pairs(str(table), None)
    assert names(found) == [("a.tif", "b_mask.png"), ("b.tif", "a_mask.png")]
    assert [pair.reviewed for pair in found] == [None, tmp_path / "im/a.tif"]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (["a", "b", "c"], ["a", "b"], r"3 images and 2 label images, and 1 have no .*c\.tif"),
        (["a"], [], "holds no label image"),
        (None, ["a"], "There is no .*im"),
    ],
    ids=["count", "empty", "missing"],
)
def test_what_does_not_belong_together_is_one_sentence(tmp_path, images, labels, words):
    (tmp_path / "la").mkdir()
    for name in images or ():
        put(tmp_path / "im" / f"{name}.tif", IMAGE)
    for name in labels:
        put(tmp_path / "la" / f"{name}.tif", LABELS)
    with pytest.raises(ImageError, match=words):
        find_pairs(str(tmp_path / "im"), str(tmp_path / "la"))


def test_tables_that_name_nothing_are_one_sentence(tmp_path):
    table = tmp_path / "pairs.csv"
    for text, words in (("image,labels\n", "names no pair"), ("a,b\n1,2\n", "no column 'image'")):
        table.write_text(text)
        with pytest.raises(ImageError, match=words):
            find_pairs(str(table), None)


def test_stacks_are_planes_to_a_flat_network_and_volumes_to_the_other(tmp_path):
    stack, labels = discs(1, (5, 30, 32))
    files = PairFiles(
        put(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZYX"}),
        put(tmp_path / "b.tif", labels),
    )
    planes = load_pair(files, 2)
    assert [p.name for p in planes] == [f"a.tif[{z}]" for z in range(5)]
    assert all(p.axes == "YX" for p in planes)
    (volume,) = load_pair(files, 3)
    assert (volume.axes, volume.image.shape) == ("ZYX", (5, 30, 32))


def test_colours_are_channels_unless_they_are_grey(tmp_path):
    rgb = np.stack([IMAGE, IMAGE // 2, IMAGE], axis=-1)
    truth = put(tmp_path / "b.tif", LABELS)
    (pair,) = load_pair(PairFiles(put(tmp_path / "a.png", rgb), truth), 2)
    assert (pair.axes, pair.channels, pair.channel_first.shape) == ("YXC", 3, (3, 48, 52))
    rgb[..., 1] = IMAGE
    (pair,) = load_pair(PairFiles(put(tmp_path / "c.png", rgb), truth), 2)
    assert (pair.axes, pair.channels) == ("YX", 1)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:-1], r"has shape \(48, 52\) but .* has \(47, 52\)"),
        (LABELS + np.float32(0.5), "no label image"),
        (np.repeat(LABELS[..., None], 3, axis=-1).astype(np.uint8), "3 channels"),
    ],
    ids=["shape", "fractions", "colours"],
)
def test_labels_that_are_none_are_one_sentence(tmp_path, labels, words):
    files = PairFiles(put(tmp_path / "a.tif", IMAGE), put(tmp_path / "b.tif", labels))
    with pytest.raises(ImageError, match=words):
        load_pair(files, 2)


def test_images_are_held_out_before_anything_else():
    pairs = pairs_of(10)
    rest, held = hold_out(pairs, 0.3, seed=3)
    assert (len(rest), len(held)) == (7, 3)
    assert {p.name for p in rest} | {p.name for p in held} == {p.name for p in pairs}
    assert [p.name for p in hold_out(pairs, 0.3, seed=3)[1]] == [p.name for p in held]
    assert len(hold_out(pairs[:2], 0.01, seed=0)[1]) == 1
    assert hold_out(pairs, 0, seed=0) == (pairs, [])
    with pytest.raises(OptionError, match="from 0 up to 1"):
        hold_out(pairs, 1.0, seed=0)


def test_of_one_image_a_part_is_held_out():
    (pair,) = pairs_of(1)
    (rest,), (held,) = hold_out([pair], 0.25, seed=0)
    assert (rest.image.shape, held.image.shape) == ((48, 39), (48, 13))
    np.testing.assert_array_equal(np.hstack([rest.labels, held.labels]), pair.labels)


@given(st.data())
def test_both_parts_have_something_labelled(data):
    """Whatever is labelled and reviewed, where it can be."""
    (one,) = pairs_of(1)
    pairs = []
    for number in range(data.draw(st.integers(1, 5))):
        reviewed = None
        if data.draw(st.booleans()):
            reviewed = np.zeros(one.labels.shape, bool)
            start, stop = sorted(data.draw(st.tuples(st.integers(0, 52), st.integers(0, 52))))
            reviewed[:, start:stop] = True
        labels = one.labels if data.draw(st.booleans()) else np.zeros_like(one.labels)
        image = np.roll(one.image, number)
        pairs.append(replace(one, name=f"{number}", image=image, labels=labels, reviewed=reviewed))
    fraction, sparse = data.draw(st.sampled_from([0.1, 0.15, 0.5])), data.draw(st.booleans())
    rest, held = hold_out(pairs, fraction, data.draw(st.integers(0, 9)), sparse=sparse)

    def columns(parts):
        return sum(int(labelled(p, sparse=sparse).any(0).sum()) for p in parts)

    def pixels(parts):
        return sum(int(labelled(p, sparse=sparse).sum()) for p in parts)

    assert pixels(rest) + pixels(held) == pixels(pairs)
    if columns(pairs) > 1:
        assert pixels(held)
        assert pixels(rest)


def test_of_what_is_labelled_in_one_place_a_part_is_held_out():
    (pair,) = pairs_of(1)
    reviewed = np.zeros(pair.labels.shape, bool)
    reviewed[:, :26] = True
    (rest,), (held,) = hold_out([replace(pair, reviewed=reviewed)], 0.25, seed=0)
    inside = int(labelled(replace(pair, reviewed=reviewed), sparse=False).sum())
    assert 0.6 * inside < labelled(rest, sparse=False).sum() < 0.8 * inside
    assert held.labels.shape[1] > 26  # to the end of the image


def test_the_last_planes_of_a_stack_are_held_out(tmp_path):
    planes = [discs(n) for n in range(10)]
    for name, one in (("image", 0), ("labels", 1)):
        put(tmp_path / f"{name}.tif", np.stack([plane[one] for plane in planes]))
    pairs = load_pair(PairFiles(tmp_path / "image.tif", tmp_path / "labels.tif"), 2)
    for seed in range(5):
        held = hold_out(pairs, 0.3, seed)[1]
        assert [pair.name for pair in held] == [f"image.tif[{n}]" for n in (7, 8, 9)]


def test_what_is_held_out_depends_on_neither_place_nor_name():
    pairs = pairs_of(8)
    held = {id(p.image) for p in hold_out(pairs, 0.25, seed=1)[1]}
    renamed = [replace(p, name=f"{n}") for n, p in enumerate(reversed(pairs))]
    assert {id(p.image) for p in hold_out(renamed, 0.25, seed=1)[1]} == held
    # One more image takes the place of at most one.
    fewer = {id(p.image) for p in hold_out(pairs[:-1], 0.25, seed=1)[1]}
    assert len(held & fewer) >= 1
    others = [{id(p.image) for p in hold_out(pairs, 0.25, seed)[1]} for seed in range(9)]
    assert any(one != held for one in others)


def test_where_nothing_is_to_be_found_nothing_is_compared():
    one, other = pairs_of(2)
    empty = replace(other, labels=np.zeros_like(other.labels))
    plan = plan_training([one], small_recipe(), name="a", val=[empty])
    assert not plan.held
    assert "Nothing is labelled in what is held out" in plan.notes[-1]
    plan = plan_training([one, empty], small_recipe(), name="a", val=0.15)
    assert plan.held[0].name.startswith(f"{one.name} (")


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64, np.int64])
def test_numbers_of_objects_may_be_large(dtype):
    labels = LABELS.astype(dtype)
    large = np.where(labels > 0, labels + np.iinfo(np.uint32).max - 200, 0).astype(dtype)
    targets = Targets("instances", 3)
    np.testing.assert_array_equal(
        targets.index(large, LABELS < 5), targets.index(labels, LABELS < 5)
    )


def test_images_of_another_spacing_are_learned_on_the_networks_grid():
    image, labels = discs(2, (60, 64))
    fine = Pair("a", np.kron(image, np.ones((2, 2), np.uint8)), "YX", np.kron(labels, [[1, 1]] * 2))
    fine = replace(fine, spacing=(0.5, 0.5))
    card = Card("a", UNetConfig(widths=(2, 3), n_classes=3), spacing=(1.0, 1.0))
    (one,) = to_samples([fine], card, small_recipe(), sparse=False)
    assert one.image.shape == (1, 60, 64)
    np.testing.assert_array_equal(one.labels, labels)
    plain = fit_intensity(fine.image, card.normalisation).apply(image[None])
    assert np.abs(one.image - plain).mean() < 0.05
    assert common_spacing([fine, fine]) == (0.5, 0.5)
    assert common_spacing([fine, replace(fine, spacing=(0.6, 0.5))]) is None
    assert common_spacing([fine, replace(fine, spacing=None)]) is None


IMAGES = torch.from_numpy(np.random.default_rng(0).random((1, 1, 60, 60), np.float32))


@torch.no_grad()
def test_the_same_question_keeps_every_weight():
    model = random_model(norm="batch")
    moved = transfer(model, dropout=0.5)
    assert moved.comparable
    assert moved.model.config.dropout == 0.5
    assert torch.equal(moved.model.network(IMAGES), model.network(IMAGES))


@torch.no_grad()
def test_other_channels_see_the_mean_of_the_old():
    model = random_model()
    moved = transfer(model, in_channels=3)
    assert not moved.comparable
    assert "3 channels instead of 1" in moved.new[0]
    torch.testing.assert_close(
        moved.model.network(IMAGES.expand(-1, 3, -1, -1)), model.network(IMAGES)
    )


@torch.no_grad()
def test_other_classes_keep_those_they_know():
    model = random_model()
    myelin = ClassInfo("myelin", "#112233", "other")
    back, front = model.card.classes[:2]
    moved = transfer(model, classes=(myelin, replace(front, name="axon"), back))
    assert moved.new == ("class myelin",)
    logits, old = moved.model.network(IMAGES), model.network(IMAGES)
    assert torch.equal(logits[:, [2, 1]], old[:, [0, 1]])
    assert [info.name for info in moved.model.card.classes] == ["myelin", "axon", "background"]


@torch.no_grad()
def test_a_sigmoid_becomes_a_softmax_of_the_same_probabilities():
    model = random_model(n_classes=1)
    moved = transfer(
        model, classes=(*model.card.classes, ClassInfo("contour", "#0000ff", "contour"))
    )
    logits = moved.model.network(IMAGES)[:, :2]
    torch.testing.assert_close(
        torch.softmax(logits, dim=1)[:, 1], torch.sigmoid(model.network(IMAGES)[:, 0])
    )


def test_classes_are_read_from_the_command_line():
    infos, values = parse_classes("background, myelin=5:other,axon=2")
    assert [(i.name, i.role) for i in infos] == [
        ("background", "background"), ("myelin", "other"), ("axon", "foreground"),
    ]  # fmt: skip
    assert values == (0, 5, 2)
    for text in ("one", "a,b=x", "a,b:cell", "a=1,b=1", "a,,b"):
        with pytest.raises(OptionError):
            parse_classes(text)


def test_objects_of_an_older_model_are_learned_in_their_usual_order():
    infos = (
        ClassInfo("back", "#000000", "background"),
        ClassInfo("edge", "#00ff00", "contour"),
        ClassInfo("cell", "#ff0000", "foreground"),
    )
    model = random_model()
    model = Model(replace(model.card, classes=infos), model.network)
    plan = plan_training(pairs_of(3), small_recipe(), name="new", start=model)
    assert [info.name for info in plan.model.card.classes] == ["back", "cell", "edge"]
    assert plan.before is model
    with torch.no_grad():
        old, new = model.network(IMAGES), plan.model.network(IMAGES)
    assert torch.equal(new, old[:, [0, 2, 1]])


def test_a_plan_refuses_what_cannot_be_learned():
    pairs = pairs_of(3)
    rgb = np.repeat(pairs[0].image[..., None], 3, axis=-1)
    odd = replace(pairs[0], image=rgb, axes="YXC")
    empty = [replace(pair, labels=np.zeros_like(pair.labels)) for pair in pairs]
    for wrong, words in (
        ([], "no image to learn from"),
        ([*pairs, odd], "has 3 channels, others have 1"),
        (empty, "anything but 0"),
    ):
        with pytest.raises(ImageError, match=words):
            plan_training(wrong, small_recipe(), name="new")
    with pytest.raises(ImageError, match=r"0\.tif: The labels hold the number \d, which"):
        plan_training(pairs, small_recipe(), name="new", classes=parse_classes("a,b,c"), val=0.0)


def run(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


SMALL = ("--widths", "4,6", "--tile", "16", "--batch", "2", "--steps", "30", "--rate", "0.02")


def test_the_command_makes_a_model_that_segments(tmp_path, capsys):
    images, labels = write_pairs(tmp_path, 4)
    out = tmp_path / "new" / "cells.safetensors"
    assert run(images, labels, "-o", out, *SMALL, "--no-contour", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["output"] == str(out)
    assert document["steps"] == 30
    assert document["after"]["images"] == 1
    card = read_card(out)
    assert card.name == "cells"
    assert "3 labelled images" in card.provenance["data"]
    assert "held out: " in card.provenance["figures"]
    page = out.with_suffix(".html").read_text()
    assert "<svg" in page
    assert document["images"][0]["name"] in page
    assert page.count("data:image/png") == 3
    assert segment(IMAGE, load_model(out)).labels.max() > 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["cells.html", "cells.safetensors"]


def test_the_old_model_stays_where_the_new_one_is_no_better(tmp_path, capsys):
    images, labels = write_pairs(tmp_path, 3)
    old, out = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    model = random_model()
    save_model(old, model.network, model.card)
    out.write_bytes(b"what was there before")
    rate = ("--rate", "1e-12", "--steps", "2", "--tile", "16")
    assert run(images, labels, "-o", out, "--from", old, *rate) == 3
    assert out.read_bytes() == b"what was there before"
    said = capsys.readouterr().out
    assert "The old model stays" in said
    assert "Kept of random: the network inside" in said


def test_a_state_that_waits_is_not_overwritten(tmp_path, capsys):
    images, labels = write_pairs(tmp_path, 3)
    state = tmp_path / "new.training"
    state.write_bytes(b"precious")
    assert run(images, labels, "-o", tmp_path / "new.safetensors", *SMALL) == 2
    assert "add --resume to go on" in capsys.readouterr().err
    assert state.read_bytes() == b"precious"


def test_classes_and_volumes_can_be_trained(tmp_path, capsys):
    for number in range(2):
        image, labels = discs(number, (16, 26, 28))
        put(tmp_path / "images" / f"{number}.tif", image, imagej=True, metadata={"axes": "ZYX"})
        put(tmp_path / "masks" / f"{number}.tif", (labels > 0).astype(np.uint8) * 7)
    out = tmp_path / "new.safetensors"
    given = (tmp_path / "images", tmp_path / "masks", "-o", out, "--val", tmp_path, "--json")
    options = ("--widths", "2,3", "--tile", "8", "--batch", "1", "--steps", "3", "--ndim", "3")
    assert run(*given, *options, "--classes", "outside,disc=7") == 0
    after = json.loads(capsys.readouterr().out)["after"]
    assert {"iou_1", "mean_iou", "pixel_error"} <= after.keys()
    card = read_card(out)
    assert (card.config.ndim, card.config.n_classes) == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--val", "2"], 2, "from 0 up to 1"),
        (["--val", "nowhere"], 4, "neither a .csv nor a folder"),
        (["--replay", "nowhere"], 2, "name it by --from"),
        (["--widths", "a,b"], 2, "--widths is numbers"),
        (["--classes", "a"], 2, "two classes"),
        (["--rate", "-1"], 2, "learning rate"),
        (["--rate", "0"], 2, "learning rate is above 0 and below 100"),
        (["--from", "nuclei", "--no-contour"], 2, "about a new network"),
        (["--from", "nuclei", "--ndim", "2"], 2, "about a new network"),
        (["--report", "labels.tif"], 2, "A report is an .html file"),
        (["--resume"], 4, "to resume from"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, arguments, status, words):
    images, labels = write_pairs(tmp_path, 2)
    out = tmp_path / "new.safetensors"
    assert run(images, labels, "-o", out, "--steps", "1", *arguments) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not out.exists()


def test_a_pattern_that_is_none_is_one_sentence(tmp_path):
    with pytest.raises(OptionError, match="is no pattern for files"):
        find_pairs(str(tmp_path / "**.tif"), str(tmp_path))


def test_a_report_that_cannot_be_written_leaves_the_model(tmp_path, capsys, monkeypatch):
    images, labels = write_pairs(tmp_path, 2)
    out = tmp_path / "new.safetensors"
    words = (images, labels, "-o", out, "--steps", "1", "--val", "0")
    # Where nothing can ever be written is told before the training.
    assert run(*words, "--report", next(images.iterdir()) / "a.html") == 4
    assert "is not a folder" in capsys.readouterr().err

    def full(*_args, **_options):
        raise OutputError("The disk is full; free some space.")

    monkeypatch.setattr("napari_unet.training.report.write_report", full)
    assert run(*words) == 0
    said = capsys.readouterr()
    assert said.err == "valid-unet: The disk is full; free some space.\n"
    assert "new.safetensors was written." in said.out
    assert out.exists()
    assert not list(tmp_path.glob("*.training"))


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    images, labels = write_pairs(tmp_path, 2)
    log = tmp_path / "log"
    out = tmp_path / "new.safetensors"
    assert run(images, labels, "-o", out, *SMALL, "--tensorboard", log, "--json") == 0
    assert next(p.name for p in log.iterdir()).startswith("events.out.tfevents")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionError, match=r"pip install napari-valid-unet\[tensorboard\]"):
        EventLog(log)
