"""`layers`: the layers of a network that can be named, from one observed pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from torch import Tensor, nn

from toolkit.errors import LayerError
from toolkit.features.modules import example_input, failure_explained
from toolkit.features.names import AliasUnknown, find_requests, layer_table, resolve
from toolkit.features.trace import Trace, trace_calls
from toolkit.inference.inputs import as_batches
from toolkit.inference.memory import Passes
from toolkit.inference.network import Predictor
from toolkit.results import DataFrame


def layers(
    model: nn.Module, example: Any = None, *, aliases: Mapping[str, str] | None = None, **passes: Unpack[Passes]
) -> DataFrame:
    """List the layers of a network that can be named, in the order in which they return.

    Layer names are `named_modules()` paths of modules that are called and return one tensor; `path:input` is the
    module's input, `path#2` the second call of a reused module. In globs `*` stays within one dotted segment
    (`decoder.*` is the blocks of `decoder`), `**` spans segments.

    Aliases, for networks that do not state their own in a dict attribute `toolkit_taps`, and have no module of that name:

    * head = the last called convolution or linear layer with kernel 1 whose output has the output's shape; else the later
      of the last with kernel 1 among the finest that make the output's channels (a coarser one is an auxiliary head) and
      the last of any kernel with the output's shape. `head_input` is its input;
    * `pre_activation` = the last normalisation layer called before the head;
    * `bottleneck` = the last module before the head to return the smallest spatial size; single voxels do not count, nor
      identities, position embeddings, side heads, and what is pooled to a fixed size and brought back;
    * `decoder_k` = the stages of the longest climb in size from there to the head, counted from the head: the last module
      of each size. The rule in full: `toolkit.features.ladder.find_ladder`.

    `aliases={"head_input": "out.conv:input"}` overrides them.

    Args:
        model: any network.
        example: an input of the network, in any form that `toolkit.extract` takes; its first image is run, padded or
            cut to a window as in every call. None makes one of zeros from the first convolution's channels.
        aliases: overrides of aliases.
        **passes: select, patch_size, overlap, divisor and precision, see `toolkit.predict` (activation changes nothing here).

    Returns:
        Columns name, aliases, kind, shape, mb (of the output if captured, 10^6 bytes).

    Example:
        >>> tk.layers(model, image)[["name", "aliases", "shape"]].iloc[-1]["name"]
        'head'
    """
    predictor = Predictor(model, **passes)
    return layer_table(predictor.model, observed(predictor, trial_image(predictor, example)), aliases)


def trial_image(predictor: Predictor, example: Any = None) -> Tensor:
    """The first image of an example, or zeros of a usual size: (1, C, *S) as the network takes it."""
    network = predictor.model
    image = example_input(network) if example is None else next(as_batches(example, network, batch_size=1)).image
    return predictor.one_window(image[:1])


def observed(predictor: Predictor, x: Tensor) -> Trace:
    """One observed pass; later look-ups of aliases use it."""
    with failure_explained(predictor.model, x):
        return trace_calls(predictor.model, [x], select=predictor.select)


def layer_names(
    model: nn.Module, layers: str | Sequence[str], example: Any, aliases: Mapping[str, str] | None = None
) -> list[str]:
    """Full names of paths, globs and aliases; the first image of the example is run if an alias needs it."""
    predictor = Predictor(model)
    return resolve(predictor.model, layers, trial_image(predictor, example), aliases)


def one_layer(predictor: Predictor, layer: str, image: Tensor, aliases: Mapping[str, str] | None) -> str:
    """The full name of the one layer that a path, glob or alias means; the first image is run if an alias needs it."""
    prepare_aliases(predictor, layer, image, aliases)
    names = resolve(predictor.model, layer, predictor.one_window(image[:1]), aliases)
    if len(names) != 1:
        raise LayerError(f"{layer!r} matches {len(names)} layers.", fix=f"Name one: {', '.join(names[:8])}.")
    return names[0]


def prepare_aliases(
    predictor: Predictor, layers: str | Sequence[str], image: Tensor, aliases: Mapping[str, str] | None
) -> None:
    """Observe a pass with the caller's `select`, if there is one and an alias among the layers depends on it."""
    if predictor.select is None:
        return
    try:
        find_requests(predictor.model, layers, aliases)
    except AliasUnknown:
        observed(predictor, predictor.one_window(image[:1]))
