"""The card of a trained network, written beside its weights in half precision; `toolkit.load_trained` reads both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from toolkit.errors import ConfigError
from toolkit.files import sha256, write_atomically
from toolkit.models.load import tensors_of, weights_bytes
from toolkit.training.trained import FIELDS, FORMAT, file_stem, weights_file

if TYPE_CHECKING:
    import pandas as pd

HISTORY_DIGITS = 4


def save_trained(model: nn.Module, card: dict[str, Any], folder: Path) -> Path:
    """Write a network in half precision with its card."""
    content = half_precision(model)
    card = {**card, "sha256": sha256(content)}
    if set(card) != set(FIELDS):
        raise ConfigError(f"The card lacks or does not know {sorted(set(card) ^ set(FIELDS))}.", where=card["name"])
    file = card_file(card["name"], card["seed"], folder)
    write_atomically(weights_file(file, card["sha256"]), content, parents=True)
    return write_atomically(file, written({"format": FORMAT, **card}))


def written(card: dict[str, Any]) -> str:
    """A card as text: a line a field, however long its history is."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in card.items()) + "\n}\n"


def card_file(name: str, seed: int, folder: Path) -> Path:
    """Where the card of a network lies; its weights lie beside it, under their hash."""
    return folder / f"{file_stem(name, seed)}.json"


def half_precision(model: nn.Module) -> bytes:
    """The network's tensors as safetensors, parameters in float16; buffers as they are: variances can exceed its range."""
    parameters = dict(model.named_parameters())
    stored = {key: value.half() if key in parameters else value for key, value in tensors_of(model).items()}
    return weights_bytes(stored)


def short_history(history: pd.DataFrame) -> dict[str, list[Any]]:
    """A run's history as the card holds it: columns of plain values, rounded; what was not logged is None."""
    columns = history.drop(columns=[name for name in history if str(name).startswith("seconds")])
    return {
        str(name): [
            None if value != value else float(f"{value:.{HISTORY_DIGITS}g}") if isinstance(value, float) else value
            for value in columns[name].tolist()
        ]
        for name in columns
    }
