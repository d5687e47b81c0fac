"""The loop: it learns, it repeats itself to the bit, and nothing of it is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import random_model
from replacing import replaced_in_turn
from safetensors.torch import load_file, save
from training_support import pairs_of, small_recipe, small_training, write_pairs

from napari_unet.errors import CheckpointError, MemoryLimitError, OptionError, OutputError
from napari_unet.model import UNet
from napari_unet.steps import walk
from napari_unet.training import job as job_module
from napari_unet.training.loop import TrainingError, train, train_steps
from napari_unet.training.recipe import Recipe, paper_recipe
from napari_unet.training.run import Run
from napari_unet.training.schedule import Optimisation
from napari_unet.training.state import load_state, save_state, state_path
from napari_unet.training.targets import Targets
from napari_unet.training.validation import Validation, class_scores, is_better


def same_weights(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ndim", [2, 3])
def test_it_learns_to_find_discs(ndim):
    recipe = small_recipe(
        steps=60,
        every=30,
        write=(16, 16) if ndim == 2 else (4, 12, 12),
        optimisation=Optimisation(rate=0.03),
        targets=Targets(n_classes=2),
        average=0.8,
    )
    result = train(**small_training(recipe, ndim=ndim, widths=(4, 6)))
    assert result.complete
    assert result.after is not None
    first, last = result.curves.loss[0][1], np.mean([loss for _, loss in result.curves.loss[-10:]])
    assert last < first / 2
    assert result.after.mean["iou"] > 0.7
    assert [step for step, _ in result.curves.scores] == [30, 60]


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_seed_repeats_to_the_bit_whatever_the_workers(outputs):
    recipe = small_recipe(targets=Targets(n_classes=outputs))
    runs = [
        train(**small_training(replace(recipe, workers=workers), dropout=0.5))
        for workers in (0, 1, 3)
    ]
    assert same_weights(runs[0].network, runs[1].network)
    assert same_weights(runs[0].network, runs[2].network)
    assert runs[0].curves == runs[2].curves
    other = train(**small_training(replace(recipe, seed=1), dropout=0.5))
    assert not same_weights(runs[0].network, other.network)


def test_the_random_numbers_of_others_are_left_alone(monkeypatch):
    """Those of the device are seeded, and put back: `torch.manual_seed` is for all devices."""
    given = small_training(small_recipe(steps=2), dropout=0.5)
    monkeypatch.setattr(torch, "manual_seed", None)
    before = torch.get_rng_state()
    train(**given)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_that_runs_out_says_what_to_do(monkeypatch):
    given = small_training(small_recipe(steps=2))

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_learn", full)
        with pytest.raises(
            MemoryLimitError, match=r"^Out of memory on cpu with 2 tiles .* a step; choose"
        ):
            train(**given)
    monkeypatch.setattr(UNet, "to", full)
    with pytest.raises(
        MemoryLimitError, match=r"^Out of memory on cpu with the network alone; close"
    ):
        train(**given)


def test_a_state_without_a_scale_goes_on_where_there_is_one():
    """One of the processor, on a GPU that learns in float16."""
    model = random_model(widths=(4, 4))
    run = Run(model.network, small_recipe(), 9)
    tensors, numbers = run.tensors(), run.numbers()
    other = Run(model.network, small_recipe(), 9)
    other.scaler = torch.amp.GradScaler("cpu", enabled=True)
    other.restore(tensors, numbers)
    assert same_weights(run.network, other.network)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_training_that_was_closed_goes_on_as_if_nothing_had_been(tmp_path, kind):
    recipe = small_recipe(steps=9, optimisation=Optimisation(kind, rate=1e-3))
    given = small_training(recipe, dropout=0.5)
    whole = train(**given)
    state = tmp_path / "a.training"
    for stop_after in (2, 3, 2):
        steps = train_steps(**given, state=state, resume=state.exists())
        for _ in range(stop_after):
            next(steps)
        torch.manual_seed(stop_after)  # nobody's business
        steps.close()
    result = train(**given, state=state, resume=True)
    assert same_weights(whole.network, result.network)
    assert whole.curves == result.curves
    assert whole.best_step == result.best_step
    assert result.after == whole.after


def test_stopping_returns_the_best_so_far(tmp_path):
    given = small_training(small_recipe(steps=1000, every=3))
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count > 200

    result = train(**given, state=tmp_path / "a.training", should_stop=stop)
    assert not result.complete
    assert 0 < result.steps < 1000
    assert result.after is not None


def test_stopping_before_the_first_look_looks_once():
    result = train(**small_training(small_recipe(steps=100, every=50)), should_stop=lambda: True)
    assert result.steps == 1
    assert result.after is not None


def test_the_best_network_is_kept_and_patience_ends_the_training():
    recipe = small_recipe(steps=60, every=1, patience=3, optimisation=Optimisation(rate=1e-9))
    given = small_training(recipe)
    result = train(**given, before=given["model"])
    # Nothing is learned: the first look stays the best, and the old model is as good.
    assert (result.best_step, result.steps, result.complete) == (1, 4, True)
    assert result.before is not None
    assert result.worse == (not is_better(result.after, result.before))


def test_minutes_become_steps_and_bound_the_time():
    given = small_training(small_recipe(steps=None, minutes=0.05, every=None))
    seen = list(train_steps(**given))
    assert seen[0].total >= 10
    slow = train_steps(**given, should_stop=lambda: time.sleep(0.5) or False)
    began = time.monotonic()
    slept = list(slow)
    assert len(slept) < slept[0].total
    assert time.monotonic() - began < 60


def test_a_pause_is_no_time_spent():
    began = time.monotonic()
    steps = train_steps(**small_training(small_recipe(steps=4, every=None)))
    next(steps)
    time.sleep(2)
    second = next(steps)
    result = walk(steps)
    worked = time.monotonic() - began - 2
    assert result.seconds <= worked
    assert second.left <= 2 * worked


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_state(tmp_path):
    given = small_training(small_recipe(steps=50))
    given["samples"][0].image[:] = np.nan
    state = tmp_path / "a.training"
    with pytest.raises(TrainingError, match=r"no number any more at step \d+; the state") as info:
        train(**given, state=state, save_every=0)
    saved = load_state(state)[1]["job"]["step"]
    assert f"step {saved + 1};" in str(info.value)


def test_nothing_to_learn_from_is_one_sentence():
    given = small_training(small_recipe())
    sample = given["samples"][0]
    for labels, words in (
        (np.zeros_like(sample.labels), "All labelled pixels are background"),
        (np.full_like(sample.labels, -1), "Nothing is labelled"),
    ):
        with pytest.raises(TrainingError, match=words):
            train(**{**given, "samples": [replace(sample, labels=labels)]})
    with pytest.raises(TrainingError, match="no image to learn from"):
        train(**{**given, "samples": []})


def test_a_state_is_of_one_training_only(tmp_path):
    given, state = small_training(small_recipe()), tmp_path / "a.training"
    with pytest.raises(CheckpointError, match="to resume from"):
        train(**given, state=state, resume=True)
    steps = train_steps(**given, state=state)
    next(steps)
    steps.close()
    other = {**given, "recipe": small_recipe(seed=4)}
    with pytest.raises(OptionError, match="other settings \\(seed: 0\\)"):
        train(**other, state=state, resume=True)
    fewer = {**given, "samples": given["samples"][:2]}
    with pytest.raises(OptionError, match="its images: 3"):
        train(**fewer, state=state, resume=True)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is no state"):
        train(**given, state=state, resume=True)


def test_states_are_there_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.training"
    save_state(path, {"a": torch.arange(3)}, {"b": 1})

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        save_state(path, {"a": torch.zeros(3)}, {"b": 2})
    tensors, document = load_state(path)
    assert torch.equal(tensors["a"], torch.arange(3))
    assert document["b"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.training"]


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no file be replaced that is read")
def test_a_state_is_read_whole_while_the_next_is_put_in_its_place(tmp_path):
    path, states = tmp_path / "a.training", [tmp_path / str(n) for n in range(2)]
    for n, state in enumerate(states):
        save_state(state, {"a": torch.full((50,), n), "b": torch.tensor(n)}, {"n": n})
    with replaced_in_turn(path, states):
        for _ in range(3000):
            tensors, document = load_state(path)
            assert {*tensors["a"].tolist(), tensors["b"].item()} == {document["n"]}


@pytest.mark.parametrize("text", [b"", b"\0" * 20, b"\xff" * 40, b"{}"])
def test_what_is_no_state_is_refused(text, tmp_path):
    path = tmp_path / "a.training"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match="no state of a training"):
        load_state(path)
    for metadata in (None, {"other": "{}"}, {"valid-unet-training": "[1]"}):
        path.write_bytes(save({"a": torch.zeros(2)}, metadata=metadata))
        with pytest.raises(CheckpointError, match="no state of a training"):
            load_state(path)


def test_a_folder_that_cannot_be_written_to_is_found_out_at_once(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OutputError("cannot be written")

    monkeypatch.setattr(job_module, "save_state", refuse)
    steps = train_steps(**small_training(small_recipe()), state=tmp_path / "a.training")
    with pytest.raises(OutputError):
        next(steps)


def test_the_running_mean_is_what_its_formula_says():
    given = small_training(small_recipe(average=0.6))
    run = Run(given["model"].network, given["recipe"], 10)
    name = "down.0.0.weight"
    mean = None
    from napari_unet.training.tiles import Cutter

    recipe = given["recipe"]
    base = np.ones(3, np.float32)
    geometry = given["model"].config.geometry
    cutter = Cutter(
        tuple(given["samples"]), geometry, 16, 2, recipe.targets, base, recipe.augmentation
    )
    for number in range(1, 8):
        run.step(cutter(number), number)
        now = run.network.state_dict()[name].numpy().copy()
        decay = min(0.6, number / (9 + number))  # of a mean of number - 1 members
        mean = now if mean is None else decay * mean + (1 - decay) * now
    np.testing.assert_allclose(run.averaged.state_dict()[name], mean, rtol=1e-4, atol=1e-6)


def test_recipes_say_what_they_are():
    with pytest.raises(OptionError, match="either steps or minutes"):
        Recipe()
    with pytest.raises(OptionError, match="batch must be"):
        Recipe(steps=1, batch=0)
    recipe = paper_recipe(Targets(), steps=3)
    assert (recipe.optimisation.kind, recipe.optimisation.momentum) == ("sgd", 0.99)
    assert (recipe.weighting.height, recipe.weighting.reach) == (10, 5)
    assert (recipe.augmentation.elastic, recipe.augmentation.knots) == (10, 3)


def test_class_scores_are_what_they_say():
    truth = np.array([0, 0, 1, 1, 2, 2, -1, -1])
    found = np.array([0, 1, 1, 1, 2, 0, 0, 2])
    scores = class_scores(found, truth, 4)
    assert scores == pytest.approx(
        {"iou_1": 2 / 3, "iou_2": 1 / 2, "iou_3": 1, "mean_iou": 13 / 18, "pixel_error": 2 / 6}
    )


def test_better_is_strictly_better():
    def of(ap: float, iou: float) -> Validation:
        return Validation((), {"mean_ap": ap, "iou": iou})

    assert is_better(of(0.1, 0.1), None)
    assert is_better(of(0.5, 0.1), of(0.4, 0.9))
    assert is_better(of(0.5, 0.2), of(0.5, 0.1))
    assert not is_better(of(0.5, 0.1), of(0.5, 0.1))


def command(folder, out, *more: str) -> list[str]:
    images, labels = folder / "images", folder / "labels"
    return [
        sys.executable, "-m", "napari_unet", "train", str(images), str(labels), "-o", str(out),
        "--steps", "40", "--widths", "3,4", "--tile", "16", "--batch", "2", "--val", "0.25",
        "--dropout", "0.3", "--save-every", "0", "--json", *more,
    ]  # fmt: skip


def test_kill_minus_nine_and_resume_make_the_weights_of_an_undisturbed_run(tmp_path):
    write_pairs(tmp_path, 4)
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    subprocess.run(command(tmp_path, whole), check=True, capture_output=True, timeout=120)
    state, steps = state_path(broken), []
    for kill in range(2):
        process = subprocess.Popen(
            command(tmp_path, broken, *["--resume"] * bool(kill)),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            wait_for_step(process, state, (steps or [0])[-1] + 8)
        finally:
            process.kill()
            process.communicate()
        steps.append(load_state(state)[1]["job"]["step"])
    assert 0 < steps[0] < steps[1] < 40
    resumed = command(tmp_path, broken, "--resume")
    subprocess.run(resumed, check=True, capture_output=True, timeout=120)
    wanted, found = load_file(whole), load_file(broken)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert not state.exists()
    assert not list(tmp_path.glob(".*.part"))


def wait_for_step(process: subprocess.Popen[bytes], state, step: int) -> None:
    """Wait until a state on disk has come so far."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        if state.exists() and load_state(state)[1]["job"]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in a minute")


def test_held_out_images_take_no_part(tmp_path):
    given = small_training(small_recipe())
    assert pairs_of(4)[3].name == given["held"][0].name
    assert given["held"][0].name not in {one.name for one in given["samples"]}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal for one process")
def test_ctrl_c_ends_after_a_step_and_keeps_the_state(tmp_path):
    write_pairs(tmp_path, 4)
    out = tmp_path / "new.safetensors"
    given = command(tmp_path, out)
    given[given.index("--steps") + 1] = "100000"
    process = subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for_step(process, state_path(out), 2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 130
    step = load_state(state_path(out))[1]["job"]["step"]
    assert f"stopped at step {step}; the same command with --resume goes on" in said
    assert not out.exists()
