"""PyTorch's ``.pt``, ``.pth`` and ``.ckpt``: state dicts in pickles, read without running code."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet.errors import CheckpointError
from napari_unet.importers.archives import has_small_directory
from napari_unet.importers.pickle_scan import Scan, scan_pickle
from napari_unet.importers.reading import Reading

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_pickle"]

_ZIP = b"PK\x03\x04"
_MOST_MEMBERS = 100_000
_MOST_PICKLE = 16 << 20
_CHUNK = 1 << 22
_MOST_WRAPPERS = 3
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")


def read_pickle(path: Path) -> Reading:
    """Read the state dict of a PyTorch file.

    Parameters
    ----------
    path : Path
        A zip archive as ``torch.save`` writes it, or the pickles it wrote before version 1.6.

    Returns
    -------
    Reading
        Its tensors are in the order of the file, and views of it where possible.

    Raises
    ------
    CheckpointError
        If it is damaged, claims more than it holds, or asks for anything but tensors.
    """
    _check_torch()
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP
            scan = _scan_zip(path) if is_zip else _scan_legacy(file)
            length = path.stat().st_size
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    except (
        OSError,
        zipfile.BadZipFile,
        struct.error,
        RuntimeError,
        LookupError,
        ValueError,
        EOFError,
        OverflowError,
    ) as error:
        raise CheckpointError(
            f"{path.name} is damaged or cut short ({error}); get the file again."
        ) from error
    if scan.refused:
        raise CheckpointError(
            f"{path.name} is a pickle that asks for {_listed(scan.refused)}, which a state dict "
            "does not need and which could run code; save the network's state_dict() alone."
        )
    if sum(scan.storages.values()) > length:
        raise CheckpointError(f"{path.name} claims more weights than it holds; get it again.")
    tensors = _state_dict(_load(path, mmap=is_zip), path.name)
    for name, tensor in tensors.items():
        # A view can repeat one value for terabytes.
        if tensor.numel() * tensor.element_size() > length:
            raise CheckpointError(f"{path.name}: {name} claims more values than the file holds.")
    return Reading("PyTorch state dict", tensors)


def _check_torch() -> None:
    """See that torch has the fixes for CVE-2025-32434 and CVE-2026-24747."""
    import torch

    version = torch.__version__.split("+")[0].split(".")
    if tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version[:2]) < (2, 10):
        raise CheckpointError(
            f"PyTorch {torch.__version__} does not read pickles safely; install 2.10 or later."
        )


def _load(path: Path, *, mmap: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                # Misnamed: torch.load would go by the name, not by what is in the file.
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        if isinstance(error, pickle.UnpicklingError):
            # PyTorch's own words advise to load it unsafely.
            reason = "its safe reader refuses it"
        raise CheckpointError(
            f"{path.name} is a damaged PyTorch file ({reason}); get it again."
        ) from error


def _scan_zip(path: Path) -> Scan:
    """Check the archive's sizes and sums, then look through its pickle."""
    with path.open("rb") as stream:
        if not has_small_directory(stream):
            raise CheckpointError("the archive names a member twice, or far too many.")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [info.filename for info in members]
        if len(members) > _MOST_MEMBERS or len(set(names)) != len(names):
            raise CheckpointError("the archive names a member twice, or far too many.")
        if archive.comment or min((info.header_offset for info in members), default=0):
            # Another archive before or behind it, which PyTorch might read instead.
            raise CheckpointError("the archive has other data around it; get the file again.")
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members):
            raise CheckpointError("its parts are compressed, which PyTorch never does.")
        if sum(info.file_size for info in members) > path.stat().st_size:
            raise CheckpointError("the archive claims to hold more than its own length.")
        pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        folders = {name.partition("/")[0] for name in names}
        if len(pickles) != 1 or len(folders) != 1:
            raise CheckpointError(_other_archive(names))
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                "it is a TorchScript program; save the network's state_dict() instead."
            )
        _check_sums(archive, members)
        if archive.getinfo(pickles[0]).file_size > _MOST_PICKLE:
            raise CheckpointError("its pickle is far longer than a state dict needs.")
        scan = scan_pickle(io.BytesIO(archive.read(pickles[0])))
        root = pickles[0].removesuffix("data.pkl")
        for key, size in scan.storages.items():
            if f"{root}data/{key}" not in names:
                raise CheckpointError("weights are missing; get the file again.")
            if archive.getinfo(f"{root}data/{key}").file_size < size:
                raise CheckpointError("it claims more weights than it holds; get the file again.")
    return scan


def _check_sums(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Read every member once: a flipped bit anywhere changes its sum."""
    if not any(info.CRC for info in members):
        # Written without sums, for speed: torch.serialization.set_crc32_options(False).
        for info in members:
            info.CRC = None  # type: ignore[assignment]  # zipfile's own way not to check
    for info in members:
        with archive.open(info) as member:
            while member.read(_CHUNK):
                pass


def _other_archive(names: list[str]) -> str:
    """Say what a zip archive without a state dict is."""
    last = {name.rpartition("/")[2] for name in names}
    if "model.weights.h5" in last:
        return "it is a Keras model without its config.json; save the model again."
    return "the zip archive is no checkpoint; give PyTorch's, Keras's or a bioimage.io package."


def _scan_legacy(file: Any) -> Scan:
    """Look through the pickles of a file from before PyTorch 1.6."""
    file.seek(0)
    stream = io.BytesIO(file.read(_MOST_PICKLE))
    storages: dict[str, int] = {}
    # Magic number, version and machine; the state dict; the keys of its storages.
    for number in range(5):
        scan = scan_pickle(stream)
        if scan.refused:
            return scan
        storages.update(scan.storages)
        if number < 4 and stream.tell() == stream.getbuffer().nbytes:
            raise CheckpointError("it is a pickle, but not one of PyTorch that is complete.")
    return Scan((), storages)


def _state_dict(loaded: Any, name: str) -> dict[str, Tensor]:
    """Find the state dict in what was loaded."""
    if (found := _unwrapped(loaded, _MOST_WRAPPERS)) is None:
        raise CheckpointError(
            f"{name} holds no state dict of a network; save network.state_dict() into it."
        )
    return found


def _unwrapped(loaded: Any, wrappers: int) -> dict[str, Tensor] | None:
    """Return the first mapping with convolutions, through so many wrappers."""
    import torch

    if not isinstance(loaded, Mapping):
        return None
    tensors = {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if any(value.ndim >= 4 for value in tensors.values()):
        return tensors
    inside = [loaded[key] for key in _WRAPPERS if key in loaded] if wrappers else []
    found = (_unwrapped(value, wrappers - 1) for value in inside)
    return next((state for state in found if state is not None), None)


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")
