"""One full cooperative step through the training step, in two backward passes, against reference numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.methods.latent_augmentation.network import FastSlowNetwork, fast_slow_network
from toolkit.methods.latent_augmentation.objective import FastSlowObjective
from toolkit.methods.latent_augmentation.regularizer import Draw, LatentAugmentation
from toolkit.training.step import TrainingStep

from .golden_fast_slow import buffers, entry, our_name, read_case, weights

GOLDEN_PROCESSOR = torch.backends.cpu.get_cpu_capability() == "AVX512"
CASES = ["step_standard", "step_channel", "step_spatial", "step_dropout", "step_separate"]


@dataclasses.dataclass(frozen=True)
class GivenNoise(FastSlowObjective):
    given: Tensor | None = None

    def draw_noise(self, image: Tensor, generator: torch.Generator) -> Tensor:
        assert self.given is not None
        return self.given


@dataclasses.dataclass(frozen=True)
class GivenDraws(LatentAugmentation):
    case: dict[str, Any] = dataclasses.field(default_factory=dict)
    made: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def draw(self, which: str, code: Tensor, generator: torch.Generator) -> Draw:
        scheme = self.case["schemes"][which]
        if scheme == "dropout":
            return Draw(scheme, 0.5, mask=self.case[f"{which}_code_keep"] * 2.0)
        fraction = 0.5 * float(self.case[f"{which}_code_percentile_uniform"])
        return Draw(scheme, fraction, 0.5 * self.case[f"{which}_code_annealing_uniform"])

    def mask(self, which: str, code: Tensor, *rest: Any) -> Tensor:
        mask = super().mask(which, code, *rest)
        self.made[f"{which}_code_mask"] = mask
        self.made[f"{which}_code_masked"] = code * mask
        return mask

    def hard_examples(self, context: Any) -> tuple[Tensor, Tensor | None]:
        self.made["x_hat"], logits = super().hard_examples(context)
        assert logits is not None
        self.made["p_hat"] = logits
        return self.made["x_hat"], logits


def run_step(case: str, part_ended: Callable[[FastSlowNetwork], None] | None = None) -> Any:
    common, expected, settings = (read_case("step_common"), read_case(case), entry(case))
    hyper = settings["hyperparameters"]
    network = fast_slow_network(1, 4, width=2)
    network.load_state_dict(weights(common))
    schemes = {"image": hyper["image_code_scheme"], "shape": hyper["shape_code_scheme"]}
    hard = GivenDraws(separate_training=hyper["separate_training"], case={**expected, "schemes": schemes})
    objective = GivenNoise(separate_training=hyper["separate_training"], given=common["noise"])
    step = TrainingStep(network, objective, [hard] if hyper["hard_examples"] else [])
    optimizer = torch.optim.Adam(network.parameters(), lr=hyper["lr"])
    batch = {"image": common["images"], "label": common["labels"].unsqueeze(1)}
    terms: dict[str, Tensor] = {}
    for number in range(step.parts(0)):
        part = step(batch, part=number)
        assert part.total is not None
        part.total.backward()
        terms |= part.terms
        if part_ended:
            part_ended(network)
    gradients = {n: p.grad for n, p in network.named_parameters()}
    optimizer.step()
    return network, terms, gradients, hard.made, expected, batch


@pytest.mark.parametrize("case", CASES)
def test_one_step_equals_the_reference(case: str) -> None:
    network, terms, gradients, made, expected, batch = run_step(case)
    names = {
        "loss_seg": "fast_slow/segmentation",
        "loss_rec": "fast_slow/reconstruction",
        "loss_shape_gt": "fast_slow/shape_label",
        "loss_shape_pred": "fast_slow/shape_prediction",
        "hard_loss_seg": "latent_augmentation/hard_segmentation",
        "hard_loss_rec": "latent_augmentation/hard_reconstruction",
        "hard_loss_shape_pred": "latent_augmentation/hard_shape_prediction",
        "hard_loss_shape_corrupted": "latent_augmentation/hard_shape_corrupted",
    }
    present = {ours: expected[theirs] for theirs, ours in names.items() if theirs in expected}
    assert set(present) == set(terms)
    for name, value in present.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=0, msg=name)
    torch.testing.assert_close(sum(terms.values()), expected["loss_total"], rtol=1e-4, atol=0)
    for name in made.keys() & expected.keys():
        torch.testing.assert_close(made[name], expected[name], rtol=0, atol=1e-4, msg=name)
    assert case == "step_standard" or {"x_hat", "p_hat", "image_code_masked"} <= made.keys() & expected.keys()

    order = [our_name(name) for name in entry("step_standard")["parameter_order"]]
    assert sorted(order) == sorted(gradients)
    norms = torch.stack([torch.zeros(()) if gradients[n] is None else gradients[n].norm() for n in order])
    meaningful = expected["grad_norms"] > 1e-5
    # Gradients through a decoded hard example hang on the last digits of single precision: two ways to compute a
    # convolution on one machine differ by 7 % in the worst of the 214 and by 1 % in all together.
    # The golden numbers were made with AVX-512: there the narrow bounds hold.
    rough = not GOLDEN_PROCESSOR and case in ("step_channel", "step_spatial", "step_dropout")
    published = expected["grad_norms"].float()[meaningful]
    torch.testing.assert_close(norms[meaningful], published, rtol=0.15 if rough else 1e-2, atol=1e-6)
    assert (norms[meaningful] - published).norm() < 0.01 * published.norm()
    for key in (key for key in expected if key.startswith("grad/")):
        name = our_name(key.removeprefix("grad/"))
        if meaningful[order.index(name)]:
            if rough:
                assert (gradients[name] - expected[key]).norm() < 0.15 * expected[key].norm(), name
            else:
                torch.testing.assert_close(gradients[name], expected[key], rtol=1e-2, atol=1e-6, msg=name)

    state = dict(network.named_buffers())
    running = buffers(expected, "after/buffers/")
    assert len(running) == len(state)
    for name, value in running.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)
    parameters = dict(network.named_parameters())
    sums = torch.stack([parameters[n].detach().sum() for n in order])
    torch.testing.assert_close(sums, expected["after_param_sums"].float(), rtol=0, atol=2e-3)
    lengths = torch.stack([parameters[n].detach().norm() for n in order])
    torch.testing.assert_close(lengths, expected["after_param_norms"].float(), rtol=1e-3, atol=2e-3)
    compare_predictions(network.eval(), batch["image"], expected)


def compare_predictions(network: FastSlowNetwork, image: Tensor, expected: dict[str, Tensor]) -> None:
    with torch.no_grad():
        fast = network(image)
        network.refined = True
        refined = network(image)
    found = {
        "after/fast_logits": fast,
        "after/refined_logits": refined,
        "after/fast_logits_mean": fast.mean((2, 3)),
        "after/refined_logits_mean": refined.mean((2, 3)),
    }
    compared = found.keys() & expected.keys()
    assert len(compared) == 2
    for name in compared:
        torch.testing.assert_close(
            found[name], expected[name], rtol=0, atol=1e-2 if GOLDEN_PROCESSOR else 5e-2, msg=name
        )
        assert (found[name] - expected[name]).norm() < 5e-3 * expected[name].norm(), name
