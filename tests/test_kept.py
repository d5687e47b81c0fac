"""What is made ready for one run is there for the next, and for no other network."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_model
from numpy.typing import NDArray

from napari_unet import Options, devices, segment
from napari_unet.checkpoint import Model, load_again, load_model, save_model
from napari_unet.errors import Cancelled
from napari_unet.footprint import footprint
from napari_unet.predictors import kept
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.libraries import library_predictor
from napari_unet.predictors.torch_predictor import TorchPredictor
from napari_unet.prepared import Prepared, Runtime
from napari_unet.segmentation import segment_steps
from napari_unet.steps import walk

ENGINES = ("torch", "openvino", "ncnn")
CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    kept.clear()
    yield
    kept.clear()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines for which a network was made ready."""
    made: list[str] = []
    build = Prepared._build

    def counted(self: Prepared) -> Any:
        made.append(self.runtime.engine)
        return build(self)

    monkeypatch.setattr(Prepared, "_build", counted)
    return made


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8)


def probabilities(image: NDArray[Any], model: Model | Path, **more: Any) -> NDArray[np.float32]:
    found = segment(image, model, output="probabilities", precision="float32", **more)
    assert found.probabilities is not None
    return found.probabilities


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_run_finds_the_network_ready(
    engine: str, built: list[str], image: NDArray[np.uint8]
) -> None:
    pytest.importorskip(engine)
    model = random_model()
    first = probabilities(image, model, engine=engine)
    assert np.array_equal(first, probabilities(image, model, engine=engine))
    # Another image, another shape of tile, another answer.
    other = probabilities(image[:50].copy(), model, engine=engine)
    labels = segment(image, model, output="classes", precision="float32", engine=engine).labels
    assert np.array_equal(labels, first.argmax(0))
    assert built == [engine]
    kept.clear()
    assert np.array_equal(other, probabilities(image[:50].copy(), model, engine=engine))
    assert built == [engine] * 2


def test_a_file_that_was_not_written_since_is_the_same_model(
    built: list[str], image: NDArray[np.uint8], tmp_path: Path
) -> None:
    path, models = tmp_path / "a.safetensors", [random_model(0), random_model(1)]
    wanted = [probabilities(image, model, engine="torch") for model in models]
    built.clear()
    for turn, (model, found) in enumerate(zip(models, wanted, strict=True)):
        save_model(path, model.network, model.card)
        for _ in range(2):
            assert np.array_equal(probabilities(image, path, engine="torch"), found)
        assert built == ["torch"] * (turn + 1)
    # Nobody else gets the network of these runs.
    assert load_model(path).network is not load_model(path).network
    assert load_again(path) is load_again(path)
    assert load_model(path).network is not load_again(path).network
    assert load_again(models[0]) is models[0]


def in_place(parameter: torch.nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(0.5)


def behind_its_back(parameter: torch.nn.Parameter) -> None:
    parameter.data[..., 0] += 0.25


def places_changed(parameter: torch.nn.Parameter) -> None:
    with torch.no_grad():
        parameter.copy_(parameter.flip(0))


@pytest.mark.parametrize("learn", [in_place, behind_its_back, places_changed])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_that_learned_is_made_ready_anew(
    engine: str,
    learn: Callable[[torch.nn.Parameter], None],
    built: list[str],
    image: NDArray[np.uint8],
) -> None:
    pytest.importorskip(engine)
    model = random_model()
    before = probabilities(image, model, engine=engine)
    learn(next(model.network.parameters()))
    after = probabilities(image, model, engine=engine)
    assert not np.array_equal(before, after)
    assert built == [engine] * 2
    assert len(kept._kept) == 1
    kept.clear()
    assert np.array_equal(after, probabilities(image, model, engine=engine))


@pytest.mark.parametrize("shape", [(3,), (1, 5, 7), (64, 64, 3, 3), (128, 256, 3, 3), (300, 4097)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_every_bit_and_its_place_counts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randint(-1000, 1000, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    seen = {kept._fingerprint(tensor)}
    assert seen == {kept._fingerprint(tensor.clone())}
    changes = [tensor.flip(0), tensor.roll(1, 0), tensor.flip(-1), -tensor]
    for place in (0, tensor.numel() // 2, tensor.numel() - 1):
        one = tensor.clone()
        one.view(-1)[place] = 7777
        changes.append(one)
    seen |= {kept._fingerprint(one) for one in changes}
    distinct = {one.view(torch.uint8).numpy().tobytes() for one in (tensor, *changes)}
    assert len(seen) == len(distinct) > 4


def test_nothing_keeps_a_network_alive(image: NDArray[np.uint8]) -> None:
    model, other = random_model(), random_model()
    for one in (model, other):
        probabilities(image, one, engine="torch")
    assert len(kept._kept) == 2
    del model, one
    gc.collect()
    assert [key.network() for key in kept._kept] == [other.network]


def test_an_interrupted_run_leaves_nothing(image: NDArray[np.uint8]) -> None:
    model = random_model()
    settings: dict[str, Any] = {"tile_size": 44, "engine": "torch", "output": "classes"}

    def steps(**more: Any) -> Any:
        return segment_steps(image, model, Options(**settings, **more), should_stop=stop)

    stopped = False

    def stop() -> bool:
        return stopped

    abandoned = steps()
    next(abandoned)
    next(abandoned)
    abandoned.close()
    assert not kept._kept
    for keep_finished in (False, True):
        stopped, run = False, steps(keep_finished=keep_finished)
        next(run)
        assert next(run).done == 1
        stopped = True
        if keep_finished:
            assert not walk(run).report.complete
        else:
            with pytest.raises(Cancelled):
                walk(run)
        assert not kept._kept
    stopped = False
    walk(steps())
    assert len(kept._kept) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_two_runs_at_once_do_not_share(
    engine: str, built: list[str], image: NDArray[np.uint8]
) -> None:
    pytest.importorskip(engine)
    model = random_model()
    options = Options(tile_size=44, engine=engine, precision="float32", output="classes")
    images = image, image[::-1].copy()
    wanted = [segment(one, model, options).labels for one in images]
    assert len(built) == 1
    runs = [segment_steps(one, model, options) for one in images]
    found: list[Any] = [None, None]
    while any(one is None for one in found):
        for place, run in enumerate(runs):
            try:
                if found[place] is None:
                    next(run)
            except StopIteration as stop:
                found[place] = stop.value.labels
    assert len(built) == 2
    assert all(map(np.array_equal, found, wanted))
    assert len(kept._kept) == 1


def test_when_memory_runs_out_nothing_is_kept_for_others(
    image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = random_model(), random_model()
    wanted = probabilities(image, model, engine="torch")
    probabilities(image, other, engine="torch")
    there: list[int] = []
    forward = TorchPredictor.forward

    def fails_once(self: TorchPredictor, *given: Any) -> Any:
        there.append(len(kept._kept))
        if len(there) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, *given)

    monkeypatch.setattr(TorchPredictor, "forward", fails_once)
    monkeypatch.setattr(devices, "_learned", {})
    found = probabilities(image, model, engine="torch")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len(there) > 1
    assert there == [1, *[0] * (len(there) - 1)]


class Held:
    """A predictor that holds so many bytes, most of them for the next tile."""

    def __init__(self, held: int) -> None:
        self.held, self.rested = held, threading.Event()

    def rest(self, most: int = 0) -> None:
        assert most == 0
        self.held = 1
        self.rested.set()


def test_no_more_is_kept_than_may_be_and_the_last_stays() -> None:
    networks = [random_model().network for _ in range(4)]
    keys = [kept.key_of(network, CPU) for network in networks]
    for key, held in zip(keys, (40, 50, 30, 20), strict=True):
        kept.keep(key, Held(held), 100)  # type: ignore[arg-type]
    assert list(kept._kept) == keys[1:]
    found = kept.take(keys[1])
    assert found is not None
    kept.keep(keys[1], found, 100)
    kept.keep(keys[0], Held(30), 100)  # type: ignore[arg-type]
    assert list(kept._kept) == [keys[3], keys[1], keys[0]]
    kept.keep(keys[2], Held(101), 100)  # type: ignore[arg-type]
    assert not kept._kept


def test_memory_for_the_next_tile_goes_back_to_another_network() -> None:
    networks = [random_model().network for _ in range(3)]
    keys = [kept.key_of(network, CPU) for network in networks]
    ready = [Held(30), Held(40)]
    for key, one in zip(keys, ready, strict=False):
        kept.keep(key, one, 100)  # type: ignore[arg-type]
    assert kept.take(keys[0]) is ready[0]
    assert [one.held for one in ready] == [30, 40]
    assert kept.take(keys[2]) is None
    assert [one.held for one in ready] == [30, 1]
    assert list(kept._kept) == [keys[1]]


def test_memory_for_the_next_tile_goes_back_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = [random_model().network for _ in range(2)]
    keys = [kept.key_of(network, CPU) for network in networks]
    monkeypatch.setattr(kept, "_MINUTE", 3600)
    first, second = Held(30), Held(40)
    kept.keep(keys[0], first, 100)  # type: ignore[arg-type]
    waiting = kept._lull
    monkeypatch.setattr(kept, "_MINUTE", 0.01)
    kept.keep(keys[1], second, 100)  # type: ignore[arg-type]
    assert waiting is not None
    waiting.join(10)
    assert not waiting.is_alive()  # one wait at a time, from the last run on
    assert first.rested.wait(10)
    assert second.rested.wait(10)
    assert kept._lull is not None
    kept._lull.join(10)
    assert list(kept._kept) == keys


def test_a_share_of_what_is_free_stays_and_no_more_than_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda _: 8 << 30)
    assert devices.idle_memory() == devices.idle_memory(objects=True) == 1 << 30
    assert devices.idle_memory(600 << 20) == 600 << 20
    assert devices.idle_memory(600 << 20, objects=True) == 200 << 20
    assert devices.idle_memory(6 << 30, objects=True) == 1 << 30


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_maps_that_are_much_go_back_and_the_rest_is_told(engine: str) -> None:
    pytest.importorskip(engine)
    model = random_model(widths=(16, 32))
    predictor = library_predictor(engine, LeanUNet(model.network))
    shape = (508, 508)
    pixels = np.zeros((1, 1, *shape), np.float32)
    cost = footprint(model.config, shape, predictor=engine)
    assert 20 << 20 < cost.peak < 1 << 30
    before = _own()
    wanted = predictor.start(pixels).result(None)
    for most, held in ((cost.peak, cost.peak), (cost.peak - 1, cost.weights)):
        predictor.rest(most)
        predictor.prepare(1, shape)  # waits for the memory to be back
        assert predictor.held == held
        if before:
            assert (_own() - before > 0.5 * cost.peak) == (held == cost.peak)
    assert np.array_equal(predictor.start(pixels).result(None), wanted)
    predictor.rest(cost.peak)
    # Maps of another shape would only lie beside those that come.
    small = pixels[..., :44, :44].copy()
    predictor.start(small).result(None)
    predictor.rest(cost.peak)
    assert predictor.held == footprint(model.config, (44, 44), predictor=engine).peak
    if before:
        assert _own() - before < 0.5 * cost.peak


def _own() -> int:
    """Memory of this process, in bytes; 0 where the system does not tell."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


_TWICE = """
import os, sys
import numpy as np
from napari_unet import segment
from napari_unet.checkpoint import load_model
from napari_unet.predictors import kept

model, image = load_model("nuclei"), np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8)
for engine in sys.argv[1:]:
    segment(image, model, engine=engine)
assert len(kept._kept) == len(sys.argv) - 1
if hasattr(os, "fork"):
    child = os.fork()
    if not child:
        os._exit(len(kept._kept))
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_takes_nothing_over_and_the_end_of_the_program_is_clean() -> None:
    engines = [engine for engine in ENGINES if importlib.util.find_spec(engine)]
    # Python warns of forks beside threads, which is what is tried here.
    command = [sys.executable, "-W", "ignore", "-c", _TWICE, *engines]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
