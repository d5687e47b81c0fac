"""Which device, what it can do, how much room it has. What torch says of GPUs is made up."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from napari_unet import devices
from napari_unet.devices import (
    _GROUPS,
    _container_memory,
    arithmetic,
    free_memory,
    has_kernels,
    is_out_of_memory,
    memory_layout,
    resolve_device,
    resolve_precision,
)
from napari_unet.errors import OptionError

GPU = torch.device("cuda")
GIB = 1 << 30


def test_devices_and_precisions_that_are_not_there() -> None:
    assert resolve_device("cpu").type == "cpu"
    for name in ("tpu9", "cuda:99", "meta"):
        with pytest.raises(OptionError, match=r"no device|No device"):
            resolve_device(name)
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == torch.float32
    assert resolve_precision("bfloat16", cpu) == torch.bfloat16
    for name in ("float16", "int8"):
        with pytest.raises(OptionError):
            resolve_precision(name, cpu)


@pytest.mark.parametrize(
    ("capability", "auto"),
    [((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float16),
     ((7, 0), torch.float16), ((6, 1), torch.float32)],
)  # fmt: skip
def test_a_gpu_computes_in_what_it_has_units_for(
    capability: tuple[int, int], auto: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda")
    assert resolve_precision("auto", gpu) == auto
    assert resolve_precision("float16", gpu) == torch.float16
    if capability >= (8, 0):
        assert resolve_precision("tf32", gpu) == torch.float32
    else:
        with pytest.raises(OptionError, match="choose float32"):
            resolve_precision("tf32", gpu)
        with pytest.raises(OptionError, match="choose float16"):
            resolve_precision("bfloat16", gpu)
    with pytest.raises(OptionError, match="choose float32"):
        resolve_precision("tf32", torch.device("cpu"))


@pytest.mark.parametrize(
    ("built", "capability", "usable"),
    [
        (["sm_75", "sm_80", "sm_86"], (8, 6), True),
        (["sm_75", "sm_80"], (8, 9), True),
        (["sm_75", "sm_86"], (8, 0), False),
        (["sm_75", "sm_80"], (6, 1), False),
        (["sm_75", "sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),
        (["sm_90a", "compute_120"], (9, 0), True),
        (["sm_90", "compute_120"], (10, 0), False),
        ([], (3, 5), True),
    ],
)
def test_a_gpu_is_used_if_torch_was_built_for_it(
    built: list[str], capability: tuple[int, int], usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert has_kernels(0) == usable
    assert resolve_device("auto").type == ("cuda" if usable else "cpu")
    if usable:
        assert resolve_device("cuda:0") == torch.device("cuda:0")
    else:
        with pytest.raises(OptionError, match="nothing to run on the device 'cuda'; choose 'cpu'"):
            resolve_device("cuda")
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert has_kernels(0)  # AMD's are not looked at


def test_the_first_usable_gpu_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: ((5, 0), (8, 0))[i])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda:1")


SETTINGS: dict[str, Callable[[], None]] = {
    "as torch comes": lambda: None,
    "all ieee": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "cudnn ieee": lambda: setattr(torch.backends.cudnn, "fp32_precision", "ieee"),
    "convolutions ieee": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "by the older name": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    conv = torch.backends.cudnn.conv
    every = (torch.backends, torch.backends.cudnn, conv, torch.backends.cudnn.rnn)
    before = [(one, one.fp32_precision) for one in every]
    yield
    for one, precision in before:
        one.fp32_precision = precision  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("tf32", [False, True])
def test_how_a_gpu_rounds_is_said_for_a_while(name: str, tf32: bool) -> None:
    """Whatever a person, or another plugin, has told torch, and by which of its names."""
    SETTINGS[name]()
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    for one_shape in (False, True):
        with arithmetic(GPU, tf32=tf32, one_shape=one_shape):
            assert cudnn.conv.fp32_precision == ("tf32" if tf32 else "ieee")
            assert cudnn.benchmark == (one_shape or before[1])
            with arithmetic(GPU, tf32=not tf32):
                assert cudnn.conv.fp32_precision == ("ieee" if tf32 else "tf32")
            assert cudnn.conv.fp32_precision == ("tf32" if tf32 else "ieee")
        assert (cudnn.conv.fp32_precision, cudnn.benchmark) == before
    with arithmetic(torch.device("cpu"), tf32=tf32, one_shape=True):
        assert (cudnn.conv.fp32_precision, cudnn.benchmark) == before


@pytest.mark.usefixtures("_as_it_was")
def test_two_threads_do_not_undo_what_the_other_says() -> None:
    conv: Any = torch.backends.cudnn.conv
    before, seen = conv.fp32_precision, []

    def other() -> None:
        with arithmetic(GPU, tf32=True):
            seen.append(conv.fp32_precision)

    with arithmetic(GPU, tf32=False):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        assert conv.fp32_precision == "ieee"
    thread.join()
    assert seen == ["tf32"]
    assert conv.fp32_precision == before


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Invalid buffer size: 24.00 GiB",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_memory_that_runs_out_has_many_words(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(ValueError(words))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_torch_keeps_of_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the second image would get smaller tiles than the first."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB)
    assert free_memory(GPU) == 6 * GIB
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3 * GIB)
    assert free_memory(torch.device("mps")) == 7 * GIB


def test_a_gpu_that_others_have_filled_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: str) -> Callable[[Any], Any]:
        def raising(_: Any) -> Any:
            raise RuntimeError(words)

        return raising

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail("CUDA error: out of memory"))
    assert free_memory(GPU) == 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail("CUDA error: unspecified launch failure"))
    with pytest.raises(RuntimeError, match="launch"):
        free_memory(GPU)


def test_volumes_on_apples_gpus_are_computed_in_float32() -> None:
    mps = torch.device("mps")
    assert resolve_precision("auto", mps, 3) == torch.float32
    assert resolve_precision("float16", mps, 2) == torch.float16
    for name in ("float16", "bfloat16"):
        with pytest.raises(OptionError, match=f"compute volumes in float32, not {name}"):
            resolve_precision(name, mps, 3)


def test_maps_lie_as_the_device_reads_them_rightly() -> None:
    for device in (torch.device("cpu"), GPU):
        assert memory_layout(device, 2) == torch.channels_last
        assert memory_layout(device, 3) == torch.channels_last_3d
    assert memory_layout(torch.device("mps"), 2) == torch.contiguous_format


def test_the_cache_of_a_gpu_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        devices.empty_cache(torch.device(name))
    assert emptied == ["cuda", "mps"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("path", "group"),
    [("/", ""), ("/job/step", "job"), ("/docker/0815", "")],
    ids=["container", "job", "container under another name"],
)
def test_copies_of_files_in_a_container_are_free(
    tmp_path: Path, version: int, path: str, group: str
) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    own.write_text(f"9:cpu:/\n4:memory:{path}\n" if version == 1 else f"0::{path}\n")
    folder = (root / "memory" if version == 1 else root) / group
    folder.mkdir(parents=True)
    limit, use, cache = _GROUPS["memory" if version == 1 else ""]
    (folder / limit).write_text(f"{8 * GIB}\n")
    (folder / use).write_text(f"{7 * GIB}\n")
    assert _container_memory(root, own) == GIB
    (folder / "memory.stat").write_text(f"anon 1\n{cache} {6 * GIB}\nactive_file 9\n")
    assert _container_memory(root, own) == 7 * GIB
    (folder / use).write_text(f"{GIB}\n")  # of the cache more than of all: read at another moment
    assert _container_memory(root, own) == 8 * GIB


def test_where_there_is_no_limit_there_is_none(tmp_path: Path) -> None:
    assert _container_memory(tmp_path, tmp_path / "none") == sys.maxsize
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_memory(tmp_path, tmp_path / "cgroup") == sys.maxsize
