"""What a precision changes on real images: ``python benchmarks/agreement.py FOLDER...``.

Each FOLDER has index.csv, images/ and masks/; its rows with split ``test`` are segmented in float32
and in the other precisions, with everything else alike, and compared class by class and object by
object. ``--emulate`` does so where no GPU is at hand, with convolutions of rounded inputs and
weights, as a GPU's tensor cores round them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import environment
from torch import Tensor
from torch.overrides import TorchFunctionMode

from napari_unet.checkpoint import load_model
from napari_unet.evaluate import evaluate
from napari_unet.options import Options
from napari_unet.segmentation import segment

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "scripts"))

# Of the labels, and of F1 at IoU 0.5.
_CHANGED, _F1 = 1e-3, 3e-3


def _tf32(values: Tensor) -> Tensor:
    """Round to the 10 bits of fraction that tensor cores multiply."""
    return ((values.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


# How products' inputs, and the maps themselves, are rounded.
_ROUNDED: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "tf32": (_tf32, False),
    "float16": (lambda values: values.half().float(), True),
    "bfloat16": (lambda values: values.bfloat16().float(), True),
}


class Emulated(TorchFunctionMode):
    """Convolutions in float32 of rounded numbers: what a GPU computes but for the order of sums."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.round, self.maps_too = _ROUNDED[precision]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not getattr(func, "__name__", "").startswith("conv"):
            return func(*args, **(kwargs or {}))
        found = func(self.round(args[0]), self.round(args[1]), *args[2:], **(kwargs or {}))
        return self.round(found) if self.maps_too else found


def compare(
    folder: Path, model: Any, device: str, precisions: list[str], *, emulate: bool = False
) -> list[dict[str, Any]]:
    """Rows of one folder, one for each precision."""
    from data_sets import pairs_of

    pairs = pairs_of(folder, "test")
    classes: dict[str, list[Any]] = {}
    scores: dict[str, list[float]] = {}
    ran: dict[str, str] = {}
    for precision in ("float32", *precisions):
        finds = Options(device=device, precision=precision)
        mode: AbstractContextManager[Any] = nullcontext()
        if emulate:
            finds = Options(precision="float32", engine="torch")
            mode = Emulated(precision) if precision != "float32" else mode
        wants = replace(finds, output="classes")
        with mode:
            found = [segment(p.image, model, replace(wants, axes=p.axes)) for p in pairs]
            objects = [segment(p.image, model, replace(finds, axes=p.axes)).labels for p in pairs]
        classes[precision] = [one.labels for one in found]
        ran[precision] = f"{precision}, emulated" if emulate else found[0].report.precision
        scores[precision] = [
            evaluate(labels, p.labels)["f1_50"] for labels, p in zip(objects, pairs, strict=True)
        ]
    rows = []
    for precision in precisions:
        both = zip(classes["float32"], classes[precision], strict=True)
        changed = sum(int(np.count_nonzero(a != b)) for a, b in both)
        f1 = {name: float(np.mean(scores[name])) for name in ("float32", precision)}
        rows.append(
            {
                "data": folder.name,
                "images": len(pairs),
                "asked": precision,
                "precision": ran[precision],
                "changed_labels": changed / sum(one.size for one in classes["float32"]),
                "f1_50": f1[precision],
                "f1_50_float32": f1["float32"],
            }
        )
    return rows


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16"])
    parser.add_argument(
        "--emulate", action="store_true", help="a GPU's precisions on the processor"
    )
    parser.add_argument("--name", help="of the result (default: agreement-DEVICE)")
    given = parser.parse_args()
    model = load_model(given.model)
    rows = []
    for folder in given.folders:
        for row in compare(folder, model, given.device, given.precisions, emulate=given.emulate):
            holds = row["changed_labels"] <= _CHANGED
            holds &= abs(row["f1_50"] - row["f1_50_float32"]) <= _F1
            rows.append(row | {"holds": holds})
            print(json.dumps(rows[-1]), flush=True)
    document = {"environment": environment(given.device), "model": given.model, "rows": rows}
    name = given.name or f"agreement-{'emulated' if given.emulate else given.device}"
    (HERE / "results" / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
