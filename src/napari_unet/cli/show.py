"""``valid-unet show``: what a model is."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from napari_unet.cli.common import (
    Commands,
    Parents,
    add_assume,
    add_json,
    by,
    load_segmentation,
    print_json,
    table,
)


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "show",
        parents=parents,
        help="what a model is: network, classes, training data",
        description="Show what a model is. Without MODEL: list the bundled models.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a bundled model's name, or a checkpoint file of any format that `convert` reads",
    )
    add_assume(parser)
    add_json(parser, "everything as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a model's card, or the list of models."""
    from napari_unet.checkpoint import bundled_models, read_card

    if arguments.model is None:
        models = {name: read_card(name).describe() for name in bundled_models()}
        if arguments.json:
            print_json(models)
        else:
            print("\n".join(f"{name}: {text}" for name, text in models.items()) or "none")
        return 0
    document = _document(arguments.model, dict(arguments.assume))
    if arguments.json:
        print_json(document)
    else:
        print(_text(document))
    return 0


def _document(model: str, assume: dict[str, str]) -> dict[str, Any]:
    """Everything about a model, as JSON types."""
    from napari_unet.checkpoint import (
        file_sha256,
        find_checkpoint,
        is_native,
        load_model,
        read_card,
    )

    path = find_checkpoint(model)
    origin, sha256 = None, ""
    if is_native(path) and not assume:
        card = read_card(path)
    else:
        load_segmentation()  # says what to do where PyTorch is missing
        loaded = load_model(path, assume=assume)
        card, origin, sha256 = loaded.card, loaded.origin, loaded.sha256
    config, geometry = card.config, card.config.geometry
    return {
        "name": card.name,
        "description": card.describe(),
        "path": str(path),
        "bytes": sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file()),
        "sha256": sha256 or file_sha256(path),
        "parameters": config.n_parameters,
        "stride": list(geometry.stride),
        "halo": list(geometry.halo),
        "smallest_tile": list(geometry.size_for(geometry.stride)),
        "spacing_um": None if card.spacing is None else list(card.spacing),
        "classes": [asdict(info) for info in card.classes],
        "normalisation": card.normalisation.to_dict(),
        "settings": dict(card.settings),
        "config": config.to_dict(),
        "provenance": dict(card.provenance),
        "origin": None if origin is None else origin.to_dict(),
    }


def _text(document: dict[str, Any]) -> str:
    """Return the document for people."""
    config, normalisation = document["config"], document["normalisation"]
    scaling = normalisation["kind"]
    if scaling == "percentile":
        scaling += f" {normalisation['low']:g} to {normalisation['high']:g}"
    spacing = document["spacing_um"]
    rows = [
        ("file", f"{document['path']} ({document['bytes'] / 1e6:.1f} MB)"),
        ("SHA-256", document["sha256"]),
        ("channels", f"{config['in_channels']} in"),
        ("features", f"{', '.join(map(str, config['widths']))} per level"),
        (
            "tiles",
            f"from {by(document['smallest_tile'])} px; {by(document['halo'])} px per side "
            f"are read but not written, grid of {by(document['stride'])} px",
        ),
        (
            "pixel size",
            "any" if spacing is None else f"{by(spacing)} µm, images are rescaled to it",
        ),
        ("normalisation", scaling),
        (
            "classes",
            ", ".join(
                f"{c['name']} ({c['role']})" if c["role"] != c["name"] else c["name"]
                for c in document["classes"]
            ),
        ),
        *((f"default {name}", f"{value:g}") for name, value in document["settings"].items()),
        *document["provenance"].items(),
    ]
    return f"{document['name']}: {document['description']}\n\n{table(rows)}"
