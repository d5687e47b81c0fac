"""bioimage.io packages: a description, weights, the network's source and a test in one zip file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.atomic import replacing_file
from napari_unet.card import Card
from napari_unet.errors import OptionError
from napari_unet.export.description import describe, find_license
from napari_unet.export.readme import readme
from napari_unet.export.sizes import axis_sizes, network_arguments
from napari_unet.intensity import fit_intensity

if TYPE_CHECKING:
    from torch import nn

    from napari_unet.checkpoint import Model

__all__ = ["LICENSES", "export_package"]

# Enough to show something in two dimensions; in three the smallest is large already.
_SHOWN = {2: 64, 3: 1}
# SPDX identifiers that the specification takes, of licences that models and data are given under.
LICENSES = (
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-3.0"),
    *("CC-BY-NC-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
    *("MIT", "MIT-0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear"),
    *("Apache-2.0", "ISC", "Zlib", "0BSD", "Unlicense", "WTFPL", "BSL-1.0", "PDDL-1.0"),
    *("GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "LGPL-2.1-only"),
    *("LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "AGPL-3.0-only"),
    *("AGPL-3.0-or-later", "MPL-2.0", "EPL-2.0", "EUPL-1.2", "CECILL-2.1", "Artistic-2.0"),
    *("ODbL-1.0", "ODC-By-1.0", "Python-2.0", "PSF-2.0"),
)


def export_package(
    model: Model,
    target: str | os.PathLike[str],
    *,
    tileable: bool = False,
    authors: Sequence[str] = (),
    license: str | None = None,
) -> Path:
    """Write a model as a package of version 0.5 of the bioimage.io specification.

    Its output are logits. It holds what `napari_unet.load_model` needs to read the same model back,
    bit for bit.

    Parameters
    ----------
    model : Model
        What to write.
    target : str or path
        A ``.zip`` file; an existing one is replaced only once the new one is complete.
    tileable : bool
        Write the variant whose output is as large as its input, with a halo to cut off, for
        programs that tile images without regard to the offset of a valid network.
    authors : sequence of str
        Names; those of the card's provenance if left out.
    license : str, optional
        SPDX identifier of a usual licence, such as ``CC-BY-4.0``, in any case of letters; that of
        the card if left out and clear.

    Raises
    ------
    OptionError
        If the licence is not known, or the specification cannot express the model.
    OutputError
        If the file cannot be written.
    """
    path, card = Path(target), model.card
    license = find_license(card.provenance) if license is None else _license(license)
    named = [card.provenance[key] for key in ("authors", "author") if key in card.provenance]
    authors = [*authors] or named[:1]
    files = _files(model, tileable=tileable)
    text = readme(card, tileable=tileable, authors=authors, license=license)
    files["README.md"] = text.encode("utf-8", "replace")
    import torch

    description = describe(
        card,
        tileable=tileable,
        authors=authors,
        license=license,
        sums={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        torch_version=torch.__version__,
    )
    with replacing_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in {"rdf.yaml": _yaml(description), **files}.items():
            # A fixed date: the same model gives the same bytes.
            member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            # Weights do not compress.
            stored = name.endswith((".pt", ".png"))
            member.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
    return path


def _license(name: str) -> str:
    """Return an identifier as SPDX writes it."""
    for known in LICENSES:
        if known.lower() == name.strip().lower():
            return known
    raise OptionError(
        f"{name[:60]!r} is no SPDX identifier of a usual licence; give one such as CC0-1.0, "
        "CC-BY-4.0, MIT, BSD-3-Clause, Apache-2.0 or GPL-3.0-or-later."
    )


def _yaml(document: dict[str, Any]) -> bytes:
    import yaml

    # Through JSON, so that no object is in it twice: YAML would write a reference then.
    plain = json.loads(json.dumps(document))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return text.encode("utf-8", "replace")


def _files(model: Model, *, tileable: bool) -> dict[str, bytes]:
    """Everything but the description and what is written from it."""
    import torch

    card = model.card
    state = {key: tensor.detach().cpu() for key, tensor in model.network.state_dict().items()}
    weights = io.BytesIO()
    torch.save(state, weights)
    image = _example(card, tileable=tileable)
    # The package's test reads floats; a scaling by the type has to see the type that is meant.
    levels = image.astype(np.uint8) if _is_of_bytes(card) else image
    normalised = fit_intensity(np.moveaxis(levels, 0, -1), card.normalisation, channel_last=True)
    network = _network(card, tileable=tileable)
    network.load_state_dict(state)
    with torch.inference_mode():
        pixels = torch.from_numpy(normalised.apply(levels)[np.newaxis])
        logits: NDArray[np.float32] = network.eval()(pixels).numpy()
    return {
        "unet.py": Path(__file__).with_name("unet.py").read_bytes().replace(b"\r\n", b"\n"),
        "weights.pt": weights.getvalue(),
        "test_input.npy": _npy(image[np.newaxis]),
        "test_output.npy": _npy(logits),
        "cover.png": _cover(card, image, logits[0]),
    }


def _network(card: Card, *, tileable: bool) -> nn.Module:
    """Build the network as the package's own source does."""
    from napari_unet.export import unet

    name, arguments = network_arguments(card.config, tileable=tileable)
    network: nn.Module = getattr(unet, name)(**arguments)
    return network


def _is_of_bytes(card: Card) -> bool:
    return card.normalisation.kind == "dtype-range"


def _example(card: Card, *, tileable: bool) -> NDArray[np.float32]:
    """Draw bright blobs on a dark, noisy ground: (C, [Z,] Y, X), in grey levels."""
    from scipy import ndimage

    shape = [
        size.smallest + -(-(_SHOWN[card.config.ndim] - 1) // size.step) * size.step
        for size in axis_sizes(card.config, tileable=tileable)
    ]
    rng = np.random.default_rng(0)
    bytes_ = _is_of_bytes(card)
    channels = []
    for _ in range(card.config.in_channels):
        seeds = rng.random(shape) < 1 / 150
        blobs = ndimage.gaussian_filter(seeds.astype(np.float32), 3.0)
        light = 100 + 2000 * np.minimum(blobs / max(float(blobs.max()), 1e-9), 0.4)
        channels.append(np.minimum(rng.poisson(light / 5), 255) if bytes_ else rng.poisson(light))
    return np.asarray(channels, np.float32)


def _cover(card: Card, image: NDArray[np.float32], logits: NDArray[np.float32]) -> bytes:
    """Draw the input and, beside it, the class of each pixel; a square each."""
    from PIL import Image

    centre = tuple(
        slice((have - kept) // 2, (have + kept) // 2)
        for have, kept in zip(image.shape[1:], logits.shape[1:], strict=True)
    )
    grey = image[0][centre]
    classes = logits.argmax(0) if len(logits) > 1 else (logits[0] > 0).astype(np.intp)
    if grey.ndim == 3:
        grey, classes = grey[len(grey) // 2], classes[len(classes) // 2]
    side = min(grey.shape)
    grey, classes = grey[:side, :side], classes[:side, :side]
    span = max(float(np.ptp(grey)), 1e-9)
    levels = (255 * (grey - grey.min()) / span).astype(np.uint8)
    left = np.repeat(levels[..., np.newaxis], 3, axis=-1)
    colors = [tuple(bytes.fromhex(info.color[1:])) for info in card.classes]
    right = np.asarray(colors, np.uint8)[classes]
    picture = Image.fromarray(np.concatenate([left, right], axis=1))
    picture = picture.resize((512, 256), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
