"""Checkpoints of other programs: recognised from names and shapes, and exact."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from caffe_networks import Caffe, caffemodel, random_weights, write_h5
from networks import random_network
from safetensors.torch import save_file
from torch import nn

from napari_unet.checkpoint import Model, load_model, read_card, save_model
from napari_unet.cli import main
from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.importers.detective import examine
from napari_unet.importers.reading import Reading
from napari_unet.segmentation import segment
from napari_unet.verification import verify

GIVEN = Path(__file__).resolve().parents[1].parent / "shared" / "checkpoints"

NETWORKS: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    "jvanvugt": (families.Jvanvugt, {}, {}),
    "jvanvugt rgb, deep": (families.Jvanvugt, {"channels": 3, "classes": 4, "depth": 4}, {}),
    "jvanvugt batch norm": (families.Jvanvugt, {"batch_norm": True, "wf": 3}, {}),
    "jvanvugt bilinear": (families.Jvanvugt, {"up_mode": "upsample"}, {}),
    "jvanvugt bilinear batch norm": (
        families.Jvanvugt,
        {"up_mode": "upsample", "batch_norm": True, "depth": 2},
        {},
    ),
    "jvanvugt one level": (families.Jvanvugt, {"depth": 1}, {}),
    "hayashimasa": (families.Hayashimasa, {}, {}),
    "hayashimasa plain": (families.Hayashimasa, {"batch_norm": False, "classes": 1}, {}),
    "hayashimasa five levels": (families.Hayashimasa, {"widths": (2, 4, 4, 6, 8)}, {}),
    "johschmidt42": (families.Johschmidt42, {}, {}),
    "johschmidt42 plain": (families.Johschmidt42, {"norm": False, "channels": 2}, {}),
    "johschmidt42 3-D": (families.Johschmidt42, {"dim": 3, "start": 2, "n_blocks": 2}, {}),
    "johschmidt42 3-D plain": (families.Johschmidt42, {"dim": 3, "norm": False, "start": 2}, {}),
    "johschmidt42 nearest": (families.Johschmidt42, {"mode": "nearest"}, {}),
    "milesial": (families.Milesial, {}, {}),
    "milesial two poolings": (families.Milesial, {"depth": 2, "start": 3}, {}),
    "labmlai": (families.Labmlai, {}, {}),
    "jvanvugt padded": (families.Jvanvugt, {"padding": 1}, {"padding": "same"}),
    "jvanvugt padded bilinear": (
        families.Jvanvugt,
        {"padding": 1, "up_mode": "upsample", "batch_norm": True},
        {"padding": "same"},
    ),
    "johschmidt42 padded": (families.Johschmidt42, {"padding": 1}, {"padding": "same"}),
    "johschmidt42 bilinear": (families.Johschmidt42, {"mode": "bilinear"}, {"up": "linear"}),
}


def input_for(config: UNetConfig) -> torch.Tensor:
    size = config.geometry.size_for(tuple(2 * s for s in config.geometry.stride))
    return torch.rand(1, config.in_channels, *size, generator=torch.Generator().manual_seed(1))


def assert_same_logits(model: Model, judge: nn.Module) -> None:
    image = input_for(model.config)
    with torch.inference_mode():
        torch.testing.assert_close(model.network(image), judge(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["jvanvugt_valid_bn", "johschmidt42_valid_2d"])
def test_given_checkpoints_give_their_own_logits(name: str) -> None:
    path = GIVEN / f"{name}.pt"
    if not path.is_file():
        pytest.skip(f"the checkpoints of other programs are not at {GIVEN}")
    model = load_model(path)
    with np.load(path.with_suffix(".npz")) as judge, torch.inference_mode():
        logits = model.network(torch.from_numpy(judge["input"])).numpy()
        np.testing.assert_allclose(logits, judge["logits"], atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_families_give_their_own_logits_and_survive_conversion(name: str, tmp_path: Path) -> None:
    kind, settings, assume = NETWORKS[name]
    judge = families.randomised(kind(**settings))
    torch.save({"model_state_dict": judge.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    model = load_model(tmp_path / "w.pt", assume=assume)
    assert model.origin is not None
    assert name.partition(" ")[0] in model.origin.family
    assert model.origin.given == assume
    assert not set(model.origin.assumed) & set(assume)
    assert_same_logits(model, judge)

    native = save_model(tmp_path / "native.safetensors", model.network, model.card)
    again = load_model(native)
    assert again.card == model.card == read_card(native)
    assert again.origin is None  # the file itself says it now
    before, after = model.network.state_dict(), again.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)

    flat = {key: tensor.clone() for key, tensor in judge.state_dict().items()}
    save_file(flat, tmp_path / "plain.safetensors")
    assert_same_logits(load_model(tmp_path / "plain.safetensors", assume=assume), judge)


@pytest.mark.parametrize(
    ("settings", "assume"),
    [
        ({}, {}),
        ({"norm": "batch"}, {}),
        ({"norm": "batch", "norm_order": "act-norm"}, {}),
        ({"norm": "batch", "norm_order": "act-norm", "up_norm": True, "up_activation": True}, {}),
        ({"norm": "batch", "norm_order": "act-norm", "up_norm": True}, {}),
        ({"norm": "batch", "up_norm": True, "up_activation": True}, {"up_activation": True}),
        ({"up": "nearest"}, {"up": "nearest"}),
        ({"up": "linear", "ndim": 3, "widths": (2, 3)}, {}),
        ({"slope": 0.1, "concat": "up-skip"}, {"slope": 0.1, "order": "up-skip"}),
        (
            {
                "ndim": 3,
                "widths": (2, 3, 4),
                "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
                "pools": ((1, 2, 2), (2, 2, 2)),
            },
            {},
        ),
        ({"widths": (4, 12, 6), "up_widths": (3, 5), "n_classes": 1}, {}),
    ],
)
def test_our_own_names(settings: dict[str, Any], assume: dict[str, Any], tmp_path: Path) -> None:
    config = UNetConfig(**{"widths": (4, 8, 16), **settings})
    judge = random_network(config)
    torch.save(judge.state_dict(), tmp_path / "w.pth")
    model = load_model(tmp_path / "w.pth", assume=assume)
    assert model.config == config
    assert_same_logits(model, judge)


def renamed(state: dict[str, Any]) -> OrderedDict[str, Any]:
    """The same weights under names that say nothing."""
    modules = dict.fromkeys(key.rpartition(".")[0] for key in state)
    plain = {name: f"layer{number}" for number, name in enumerate(modules)}
    return OrderedDict(
        (f"{plain[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}", value)
        for key, value in state.items()
    )


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_unknown_names_are_matched_by_shape(tmp_path: Path, batch_norm: bool, suffix: str) -> None:
    judge = families.randomised(families.Hayashimasa((4, 8, 16, 32), batch_norm=batch_norm))
    path = tmp_path / f"w{suffix}"
    state = renamed(dict(judge.state_dict()))
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({key: value.clone() for key, value in state.items()}, path)
    model = load_model(path)
    assert model.origin is not None
    assert "unknown names" in model.origin.family
    assert model.origin.assumed["order"] == "skip-up"
    assert model.origin.assumed["padding"] == "valid"
    assert_same_logits(model, judge)


class Sequences(nn.Module):
    """Blocks that are sequences of layers, two convolutions in each; concatenates [skip, up]."""

    def __init__(self, layers: str, names: tuple[str, str, str] = ("enc", "dec", "up")) -> None:
        super().__init__()
        self.down, self.merge, self.up = names
        for level, (inputs, width) in enumerate(((1, 4), (4, 8), (8, 16)), 1):
            setattr(self, f"{self.down}{level}", self._block(layers, inputs, width))
        for number, width in ((1, 8), (2, 4)):
            setattr(self, f"{self.up}{number}", nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            setattr(self, f"{self.merge}{number}", self._block(layers, 2 * width, width))
        self.segment = nn.Conv2d(4, 2, 1)

    @staticmethod
    def _block(layers: str, inputs: int, width: int) -> nn.Module:
        kinds = {
            "c": lambda i: nn.Conv2d(i, width, 3),
            "d": lambda _: nn.Dropout2d(0.1),
            "n": lambda _: nn.BatchNorm2d(width),
            "a": lambda _: nn.ReLU(),
        }
        return nn.Sequential(*(kinds[c](i) for i in (inputs, width) for c in layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in (1, 2, 3):
            x = getattr(self, f"{self.down}{level}")(x)
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2) if level < 3 else x
        for number in (1, 2):
            up = getattr(self, f"{self.up}{number}")(x)
            joined = torch.cat([families.crop(skips[2 - number], up), up], 1)
            x = getattr(self, f"{self.merge}{number}")(joined)
        return self.segment(x)


@pytest.mark.parametrize("names", [("enc", "dec", "rise"), ("contract", "deconv", "up")])
@pytest.mark.parametrize(
    ("layers", "order", "inferred"),
    [
        ("cna", "norm-act", "norm-act"),
        ("cnad", "norm-act", "norm-act"),
        ("can", "act-norm", "act-norm"),
        ("cdna", "norm-act", None),
        ("cand", "act-norm", None),
    ],
)
def test_a_dropout_is_not_taken_for_an_activation(
    names: tuple[str, str, str], layers: str, order: str, inferred: str | None, tmp_path: Path
) -> None:
    judge = families.randomised(Sequences(layers, names))
    torch.save(judge.state_dict(), tmp_path / "w.pt")
    origin = load_model(tmp_path / "w.pt").origin
    assert origin is not None
    assert origin.inferred.get("norm-order") == inferred
    assert ("norm-order" in origin.assumed) is (inferred is None)
    model = load_model(tmp_path / "w.pt", assume={"norm-order": order})
    assert_same_logits(model, judge)


def test_what_a_person_knows_counts_more_than_names(tmp_path: Path) -> None:
    config = UNetConfig(widths=(2, 4), norm="batch", norm_order="act-norm", up_norm=True)
    torch.save(random_network(config).state_dict(), tmp_path / "w.pt")
    inferred = load_model(tmp_path / "w.pt").origin
    assert inferred is not None
    assert {"norm-order": "act-norm", "up-activation": "no"}.items() <= inferred.inferred.items()
    model = load_model(tmp_path / "w.pt", assume={"norm-order": "norm-act"})
    assert model.config.norm_order == "norm-act"
    assert model.origin is not None
    assert model.origin.given == {"norm-order": "norm-act"}
    # What followed from the order that was inferred is open again.
    assert not {"norm-order", "up-activation"} & set(model.origin.inferred)
    assert model.origin.assumed["up-activation"] == "no"


def test_unknown_names_that_fit_twice_are_not_guessed(tmp_path: Path) -> None:
    """Equal widths: only the order in which modules were made tells the blocks apart."""
    judge = families.randomised(families.Hayashimasa((4, 4, 4), batch_norm=False))
    state = renamed(dict(judge.state_dict()))
    torch.save(state, tmp_path / "w.pt")
    assert_same_logits(load_model(tmp_path / "w.pt"), judge)
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="several U-Nets have"):
        load_model(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "model._orig_mod.module."]
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_wrappers(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    judge = families.randomised(families.Jvanvugt(batch_norm=True, depth=2))
    state: Any = OrderedDict((prefix + key, value) for key, value in judge.state_dict().items())
    state["criterion.weight"] = torch.ones(2)
    optimiser = torch.optim.Adam(judge.parameters()).state_dict()
    content = state if wrapper is None else {"epoch": 1, "optimizer": optimiser, wrapper: state}
    torch.save(content, tmp_path / "w.ckpt")
    model = load_model(tmp_path / "w.ckpt")
    assert model.origin is not None
    assert model.origin.ignored == ("criterion.weight",)
    assert_same_logits(model, judge)


def prefixed(prefix: str, network: nn.Module) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in network.state_dict().items()}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("prefix", "other", "kind"),
    [
        ("model", "ema_model", "copy"),
        ("online_model", "ema_model.module", "copy"),
        ("wrapper.model._orig_mod", "wrapper.model_ema", "copy"),
        ("model", "loss.vgg", "loss"),
        ("ema_model", "loss.vgg", "loss"),
        ("generator", "discriminator", "loss"),
    ],
)
def test_the_network_is_found_beside_others(
    prefix: str, other: str, kind: str, suffix: str, tmp_path: Path
) -> None:
    judge = families.randomised(families.Jvanvugt(batch_norm=True, depth=2))
    copy = families.randomised(families.Jvanvugt(batch_norm=True, depth=2), 7)
    loss = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3))
    for first in (True, False):
        own, beside = prefixed(prefix, judge), prefixed(other, copy if kind == "copy" else loss)
        state = {**own, **beside} if first else {**beside, **own}
        path = tmp_path / f"w{suffix}"
        if suffix == ".pt":
            torch.save({"state_dict": state}, path)
        else:
            save_file({key: value.clone() for key, value in state.items()}, path)
        model = load_model(path)
        assert model.origin is not None
        shared = "wrapper." if prefix.startswith("wrapper.") else ""
        assert set(model.origin.ignored) == {key.removeprefix(shared) for key in beside}
        assert_same_logits(model, judge)


def test_of_two_networks_none_is_guessed(tmp_path: Path) -> None:
    """They may run one behind the other."""
    network = families.randomised(families.Jvanvugt(depth=2))
    torch.save({**prefixed("first", network), **prefixed("second", network)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="do not make one"):
        load_model(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "beside", [{"state_dict": {}}, {"model": "unet"}, {"net": {"model": {"depth": 3}}}]
)
def test_wrappers_without_weights_are_passed_by(beside: dict[str, Any], tmp_path: Path) -> None:
    judge = families.randomised(families.Jvanvugt(depth=2))
    torch.save({**beside, "weights": judge.state_dict()}, tmp_path / "w.pt")
    assert_same_logits(load_model(tmp_path / "w.pt"), judge)


def test_parameters_halves_and_files_of_old_are_read(tmp_path: Path) -> None:
    judge = families.randomised(families.Jvanvugt(depth=2)).half().float()
    torch.save(dict(judge.named_parameters()), tmp_path / "parameters.pt")
    half = {key: value.half() for key, value in judge.state_dict().items()}
    torch.save(half, tmp_path / "half.pt")
    torch.save(judge.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        model = load_model(path)
        assert all(p.dtype == torch.float32 for p in model.network.parameters())
        assert_same_logits(model, judge)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "padded" in name or name in (
    "milesial two poolings", "labmlai")])  # fmt: skip
def test_padded_networks_are_exact_inside(name: str, tmp_path: Path) -> None:
    """In tiles as in one pass of their own code, but for a halo along the image's edge."""
    kind, settings, assume = NETWORKS[name]
    judge = families.randomised(kind(**settings))
    torch.save(judge.state_dict(), tmp_path / "w.pt")
    model = load_model(tmp_path / "w.pt", assume={"normalisation": "none", **assume})
    assert model.config.padding == "same"
    halo = max(model.config.geometry.halo)
    stride = max(model.config.geometry.stride)
    assert halo % stride == 0
    shape = (2 * halo + 3 * stride, 2 * halo + 5 * stride)
    image = np.random.default_rng(0).random(shape, np.float32)
    with torch.inference_mode():
        whole = judge(torch.from_numpy(image)[None, None]).softmax(1)[0].numpy()
    tile = 2 * halo + 2 * stride
    found = segment(
        image, model, output="probabilities", tile_size=tile, precision="float32"
    ).probabilities
    assert found is not None
    inside = (slice(None), slice(halo, -halo), slice(halo, -halo))
    np.testing.assert_allclose(found[inside], whole[inside], atol=1e-5)
    # The halo is needed: nearer to the edge mirrored pixels are not zeros.
    assert np.abs(found - whole).max() > 1e-3
    assert verify(image, model, tile_size=tile).max_abs_logit_difference < 1e-4


def test_padding_is_never_silent(tmp_path: Path) -> None:
    for number, network in enumerate((families.Milesial(), families.Labmlai())):
        path = tmp_path / f"{number}.pt"
        torch.save(network.state_dict(), path)
        padded = load_model(path).origin
        assert padded is not None
        assert padded.assumed["padding"] == "same"
        assert "zeros were filled in there and mirrored pixels here" in padded.warnings[0]
        valid = load_model(path, assume={"padding": "valid"})
        assert valid.config.padding == "valid"
        assert valid.origin is not None
        assert valid.origin.given == {"padding": "valid"}
        assert "differs from its training" in valid.origin.warnings[0]
        assert "differs from its training" in valid.card.provenance["warnings"]
    torch.save(families.Milesial(bilinear=True).state_dict(), path)
    with pytest.raises(CheckpointError, match="cannot be run tile by tile"):
        load_model(path, assume={"padding": "valid"})


@pytest.mark.parametrize(
    ("assume", "words"),
    [
        ({"colour": "red"}, "choose among padding, order"),
        ({"order": "sideways"}, "order must be one of skip-up, up-skip"),
        ({"up": "nearest"}, "no open question of this file; open are padding"),
        ({"norm-order": "norm-act"}, "no open question"),
        ({"slope": "steep"}, "slope must be a number"),
        ({"slope": 3}, "slope must be a number from 0 up to 1"),
        ({"shift": "nan"}, "shift must be a number"),
    ],
)
def test_assumptions_are_checked(tmp_path: Path, assume: dict[str, Any], words: str) -> None:
    torch.save(families.Jvanvugt(depth=2).state_dict(), tmp_path / "w.pt")
    with pytest.raises(OptionError, match=words):
        load_model(tmp_path / "w.pt", assume=assume)


def test_what_says_all_takes_no_assumptions(tmp_path: Path) -> None:
    torch.save(families.Jvanvugt(depth=2).state_dict(), tmp_path / "w.pt")
    model = load_model(tmp_path / "w.pt", assume={"slope": 0.1, "normalisation": "min-max"})
    assert (model.config.slope, model.card.normalisation.kind) == (0.1, "min-max")
    native = save_model(tmp_path / "n.safetensors", model.network, model.card)
    for source in (model, native):
        with pytest.raises(OptionError, match="assume nothing"):
            load_model(source, assume={"slope": 0.1})


def shapes_without(key: str, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    state = families.Jvanvugt(batch_norm=True).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if key not in name}
    return {**shapes, **{name.replace("__", "."): shape for name, shape in more.items()}}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (shapes_without("last"), "up-convolutions|missing|do not make one"),
        (shapes_without("up_path.1"), "parts of the file are missing"),
        (shapes_without("block.3"), "unknown place"),
        (shapes_without("running_mean"), "no running statistics"),
        (shapes_without("nothing", extra__mean=(3,)), r"extra\.mean"),
        (shapes_without("nothing", last__weight=(2, 4, 1)), "2 or 3 dimensions"),
        (
            shapes_without("nothing", up_path__0__conv_block__block__0__weight=(8, 12, 3, 3)),
            "level 1: 8 channels of the encoder and 8 of the up-convolution meet a convolution "
            "that takes 12: the up-convolution has to halve the channels to 4",
        ),
        (shapes_without("nothing", up_path__0__up__weight=(16, 8, 4, 4)), "kernel of 4 x 4"),
        ({"a.weight": (4, 1, 3, 3), "b.weight": (4, 4, 3, 3)}, "do not make one"),
        ({"a.weight": (4, 1, 3, 3), "b.weight": (4, 4, 3)}, "2 or 3 dimensions"),
        ({}, "not those of a U-Net"),
    ],
)
def test_other_networks_are_refused(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        examine(Reading("state dict", {k: torch.zeros(s) for k, s in shapes.items()}))


def test_an_up_convolution_that_does_not_halve_is_told_level_by_level(tmp_path: Path) -> None:
    """The other half of the classic mistake, under names that say nothing."""
    state = dict(families.Hayashimasa((4, 8, 16), batch_norm=False).state_dict())
    for number, width in ((1, 16), (2, 8)):
        state[f"up{number}.weight"] = torch.zeros(width, width, 2, 2)
        state[f"up{number}.bias"] = torch.zeros(width)
    for content in (state, renamed(state)):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / "w.pt")
        told = str(caught.value)
        for level, skip, up, half in ((1, 8, 16, 8), (0, 4, 8, 4)):
            assert f"level {level}: {skip} channels of the encoder and {up} of the" in told
            assert f"takes {skip + half}: the up-convolution has to halve the channels" in told
        assert "`valid-unet shapes" in told


def test_convert_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "w.pt", tmp_path / "n.safetensors"
    torch.save(families.Jvanvugt(depth=2).state_dict(), source)
    assert read_card(source) == load_model(source).card
    assert main(["convert", str(source), str(target), "--assume", "order=skip-up"]) == 0
    assert "given" in capsys.readouterr().out
    assert load_model(target).config.concat == "skip-up"
    assert main(["show", str(target)]) == 0
    assert "order skip-up" in capsys.readouterr().out
    assert main(["show", str(source), "--json", "--assume", "slope=0.2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["slope"] == 0.2
    assert document["origin"]["assumed"]["padding"] == "valid"
    assert document["origin"]["family"] == "jvanvugt/pytorch-unet"
    assert main(["convert", str(target), str(target)]) == 2
    assert "same file" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "n.pt")]) == 2
    assert "end in .safetensors" in capsys.readouterr().err
    assert main(["convert", str(source), str(target), "--assume", "order"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_segment_and_verify_say_what_they_assume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, image = tmp_path / "w.pt", tmp_path / "image.npy"
    torch.save(families.randomised(families.Jvanvugt(depth=2)).state_dict(), source)
    np.save(image, np.random.default_rng(0).random((40, 40), np.float32))
    options = ["--model", str(source), "--assume", "normalisation=min-max"]
    assert main(["verify", str(image), *options]) == 0
    assert main(["segment", str(image), "-o", str(tmp_path / "labels.npy"), *options]) == 0
    told = capsys.readouterr().err
    assert told.count("assumed to have: padding valid, order up-skip") == 2
    assert "normalisation" not in told


@pytest.mark.parametrize("kind", ["safetensors", "pt", "caffemodel", "caffemodel.h5"])
def test_a_file_that_is_overwritten_later_leaves_what_was_loaded(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{kind}"
    net = Caffe((3, 4), channels=1)
    judge = families.randomised(families.Jvanvugt(depth=2))
    if kind == "safetensors":
        save_file(judge.state_dict(), path)
    elif kind == "pt":
        torch.save(judge.state_dict(), path)
    elif kind == "caffemodel":
        path.write_bytes(caffemodel(net, random_weights(net)))
    else:
        write_h5(path, net, random_weights(net))
    model = load_model(path)
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    with path.open("r+b") as file:  # in its place, as `cp` does
        file.write(bytes(path.stat().st_size))
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_safetensors_header_that_begins_like_a_pickle(tmp_path: Path) -> None:
    judge = families.randomised(families.Jvanvugt(depth=2))
    state = {key: value.clone() for key, value in judge.state_dict().items()}
    for length in range(2000):
        path = tmp_path / "w.pt"  # a wrong name does no harm either
        save_file(state, path, metadata={"note": "x" * length})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert_same_logits(load_model(path), judge)
