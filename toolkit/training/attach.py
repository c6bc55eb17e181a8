"""`attach`: a regularizer in anybody's training loop, through hooks on the layers that it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, ProtocolError
from toolkit.features.capture import Recorder, Tape
from toolkit.features.modules import unwrap
from toolkit.training.health import gradient_ratio, status_of
from toolkit.training.protocol import Objective, Regularizer, StepContext, as_regularizers
from toolkit.training.sampling import process
from toolkit.training.step import PartialLoss, TrainingStep, squared_norm


def attach(
    regularizer: Regularizer | Sequence[Regularizer],
    model: nn.Module,
    *,
    seed: int = 0,
    aliases: Mapping[str, str] | None = None,
) -> Attached:
    """Hook a regularizer to a network that some other loop trains: plain PyTorch, Lightning, MONAI, Hugging Face.

    After each forward pass, `loss = criterion(outputs, y) + reg.loss({"image": x, "label": y})`. The gradients are
    those of `toolkit.train` on the same batches. The hooks act on training passes only: a pass without gradient
    (validation) is neither recorded nor changed. Correct under gradient accumulation, several forward passes before
    one backward (each followed by its `loss`), mixed precision, channels-last, DistributedDataParallel with equal
    shares (attach to the network, wrap it before or after) and `torch.compile` of the network afterwards.

    Args:
        regularizer: one or several.
        model: the network; hooks on its layers are all that changes.
        seed: key of the regularizers' draws, with the step.
        aliases: layer names for aliases, for example {"head_input": "final:input"}.

    Returns:
        The handle: `loss`, `terms`, `health`, `state_dict`, `remove`.

    Raises:
        ConfigError: a network that is compiled already or in DataParallel.
        LayerError: a layer that does not exist.
        ProtocolError: the network does not offer what a regularizer needs.

    Example:
        >>> import torch, toolkit as tk
        >>> model = tk.unet(1, 2, channels=(4, 8))
        >>> reg = tk.attach(tk.SegReg(weight=0.1), model)
        >>> x, y = torch.randn(2, 1, 16, 16), torch.ones(2, 1, 16, 16).long()
        >>> loss = torch.nn.functional.cross_entropy(model(x), y[:, 0]) + reg.loss({"image": x, "label": y})
        >>> loss.backward()
        >>> reg.remove()
    """
    return Attached(as_regularizers(regularizer), model, seed, aliases)


class Attached:
    """Regularizers on a network in somebody's loop; see `attach`.

    Attributes:
        step: what the next `loss` is keyed by; it counts the calls of `loss`, unless `step=` is given.
        terms: unweighted values of the last `loss`, by "owner/term", without graph.
    """

    def __init__(
        self, regularizers: list[Regularizer], model: nn.Module, seed: int, aliases: Mapping[str, str] | None
    ) -> None:
        kinds = {type(module).__name__ for module in model.modules()}
        calls = [getattr(module, "_compiled_call_impl", None) for module in model.modules()]
        if "OptimizedModule" in kinds or any(call is not None for call in calls):
            fix = "Attach first, then compile: reg = toolkit.attach(reg, model); model = torch.compile(model)."
            raise ConfigError("A network that is compiled already skips new hooks.", where="attach", fix=fix)
        if "DataParallel" in kinds:
            fix = "Use DistributedDataParallel."
            raise ConfigError("In DataParallel a network runs as copies.", where="attach", fix=fix)
        self.model = unwrap(model)
        self.regularizers = regularizers
        self.step = 0
        self.terms: dict[str, Tensor] = {}
        self._training = TrainingStep(self.model, Objective(), regularizers, seed=seed, aliases=aliases)
        self._added: list[tuple[Regularizer, Tensor, Sequence[Tensor], Sequence[Tensor]]] = []
        wanted = list(dict.fromkeys(tap for r in regularizers for tap in self._training.wanted(r)))
        self._hooks: _TrainingPasses | None = _TrainingPasses(self.model, wanted, aliases, self._added)
        self._hooks.attach()

    @property
    def objective_weight(self) -> float:
        """What your own loss is to be multiplied with at this step: 1, or 1 - weight of a convex combination."""
        return math.prod((r.objective_weight(self.step) for r in self._active(self.step)), start=1.0)

    def loss(self, batch: Mapping[str, Any], *, outputs: Any = None, step: int | None = None) -> Tensor:
        """The weighted terms of the network's latest training pass, to be added to your loss.

        Args:
            batch: `image` (B, C, *S) and, for regularizers that ask for it, `label` (B, 1, *S).
            outputs: the network's outputs, if they are not what its `forward` returned.
            step: key of this step's draws and weights; None = one more than last time.

        Returns:
            A scalar in float32 with graph; 0 at steps where every weight is 0.

        Raises:
            ProtocolError: no training pass since the last `loss`, the hooks were removed, or no gradient can ever come.
        """
        value = self._collect(self._active(self._begin(step)), batch, outputs, keep_graph=True)
        self.step += 1
        return value

    def backward(
        self, batch: Mapping[str, Any], *, outputs: Any = None, step: int | None = None, scale: Any = 1.0
    ) -> None:
        """Instead of `loss`, after your own `backward`: back-propagate what makes passes of its own, with less memory.

        For regularizers such as the latent augmentation, which need the features of your pass as constants only; the
        gradients are added to those that are there.

        Args:
            batch: as for `loss`.
            outputs: as for `loss`.
            step: as for `loss`.
            scale: factor on the loss, such as `scaler.get_scale()`, or 1 / (number of accumulated batches).

        Raises:
            ProtocolError: a regularizer that shares the graph of your pass, or several processes; use `loss` there.
        """
        sharing = [r.name for r in self.regularizers if not r.deferred]
        if sharing or process()[1] > 1:
            reason = f"{', '.join(sharing)} share the graph of your pass" if sharing else "several processes train"
            what = f"A backward pass apart cannot be made: {reason}."
            raise ProtocolError(what, fix="Add reg.loss(batch) to your loss.")
        for index, regularizer in enumerate(self._active(self._begin(step))):
            value = self._collect([regularizer], batch, outputs, keep_graph=False, first=index == 0)
            (value * scale).backward()
        self.step += 1

    def health(self, loss: Tensor | None = None) -> dict[str, dict[str, Any]]:
        """How strongly each regularizer of the last `loss` pulls; to be asked before `backward`.

        Args:
            loss: your own loss of the same pass, as it enters the sum, without the regularizers.

        Returns:
            By name: `gradient` (norm at its `gradient_probes`, mostly the layers it reads), with `loss` also `ratio` and
            `status` ("ok", "dead", "dominant", "undefined"), and the regularizer's own diagnostics.
        """
        report: dict[str, dict[str, Any]] = {}
        for regularizer, value, probes, shared in self._added:
            own = float(squared_norm(value, probes))
            row: dict[str, Any] = {"gradient": own**0.5, **regularizer.diagnostics()}
            if loss is not None:
                row["ratio"] = gradient_ratio(own, float(squared_norm(loss, shared)))
                row["status"] = status_of(row["ratio"])
            report[regularizer.name] = row
        return report

    def state_dict(self) -> dict[str, Any]:
        """The step and the regularizers' own state, for your checkpoint."""
        return {"step": self.step, "regularizers": {r.name: r.state_dict() for r in self.regularizers}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.step = int(state["step"])
        for regularizer in self.regularizers:
            regularizer.load_state_dict(state["regularizers"].get(regularizer.name, {}))

    def remove(self) -> None:
        """Take the hooks off the network."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None
        self._added.clear()

    def _active(self, step: int) -> list[Regularizer]:
        return [r for r in self.regularizers if r.active(step)]

    def _begin(self, step: int | None) -> int:
        self.step = self.step if step is None else step
        self._added.clear()
        self.terms = {}
        return self.step

    def _collect(
        self, active: list[Regularizer], batch: Mapping[str, Any], outputs: Any, keep_graph: bool, first: bool = True
    ) -> Tensor:
        if self._hooks is None:
            raise ProtocolError("The regularizer was removed from the network.", fix="Attach it again.")
        tape = self._hooks.latest(bool(active) and first)
        outputs = self._hooks.outputs if outputs is None else outputs
        context = StepContext(batch=batch, model=self.model, outputs=outputs, step=self.step)
        result = PartialLoss(total=batch["image"].new_zeros((), dtype=torch.float32), terms={})
        self._hooks.paused = True  # passes of the regularizers themselves are not recorded
        try:
            for regularizer in active:
                own, there = (self._training.context_for(regularizer, context, t) for t in (tape.detached(), tape))
                value, probes = self._training.add(result, regularizer, own if regularizer.deferred else there)
                if keep_graph:
                    self._added.append((regularizer, value, probes, regularizer.gradient_probes(there)))
        finally:
            self._hooks.paused = False
        self.terms |= result.terms
        assert result.total is not None
        return result.total


class _TrainingPasses(Recorder):
    """Hooks that stay: they keep the activations of the latest pass with gradient until the next one."""

    def __init__(
        self, model: nn.Module, wanted: list[str], aliases: Mapping[str, str] | None, added: list[Any]
    ) -> None:
        super().__init__(model, wanted, aliases)
        self.outputs: Any = None
        self._added, self._inside, self._ran, self.paused = added, False, False, False
        self._rooted = False  # whether the loop calls the network itself, not only methods of it such as `encode`

    def attach(self) -> None:
        super().attach()
        self.handles.append(self.model.register_forward_hook(self._end))

    def latest(self, needed: bool) -> Tape:
        """The tape of the latest training pass, once."""
        if needed:
            if self.wanted and not (self._ran or self.done):
                fix = "Run the network with gradient before each reg.loss(...), once."
                raise ProtocolError("There is no training pass to take features from.", where="reg.loss(...)", fix=fix)
            self.check()
        self._ran = False
        self.done.clear()
        self.counts.clear()  # a network that is called through its own methods never begins
        return self.tape

    def __deepcopy__(self, _: Any) -> _TrainingPasses:
        return self  # hooks of a copied network stay with the original, which ignores the copy's passes

    def _begin(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.paused or self.observing or module is not self.model:
            return  # observing: the pass that finds the layers of aliases, made within the first one
        self._rooted, self._inside = True, torch.is_grad_enabled()
        if self._inside:
            self._added.clear()
            super()._begin(module, arguments, keywords)

    def _end(self, module: nn.Module, _: Any, outputs: Any) -> None:
        if self.paused or self.observing or module is not self.model:
            return
        if self._inside:
            self.outputs, self._ran = outputs, True
        self._inside = False

    def _hits(self, path: str, port: str, requests: list[Any]) -> list[Any]:
        recording = not self.paused and (self._inside if self._rooted else torch.is_grad_enabled())
        return super()._hits(path, port, requests) if recording else []
