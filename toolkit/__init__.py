"""Train regularised segmentation networks and look at what they have learnt.

`import toolkit as tk` gives every public call; each is imported from its module on first use, so that the import
itself costs little more than torch. See the README for a tour.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from typing import Any

from toolkit import errors, results
from toolkit.arguments import at_the_door
from toolkit.registry import offer

__version__ = "0.1.0"

_PUBLIC: dict[str, tuple[str, ...]] = {
    "toolkit.errors": tuple(name for name in vars(errors) if name.endswith(("Error", "Warning"))),
    "toolkit.registry": ("register",),
    "toolkit.results": ("Result", "load_result"),
    "toolkit.data.artefacts": ("with_artefacts",),
    "toolkit.data.augment": ("Augmentation",),
    "toolkit.data.case": ("Case",),
    "toolkit.data.catalogue": ("list_tasks", "load_task"),
    "toolkit.data.dataset": ("task_from_dataset",),
    "toolkit.data.folder": ("task_from_folder", "task_from_nnunet"),
    "toolkit.data.join": ("join_tasks",),
    "toolkit.data.table": ("task_from_arrays", "task_from_table"),
    "toolkit.data.task": ("Task",),
    "toolkit.methods.latent_augmentation.network": ("fast_slow_network",),
    "toolkit.models.load": ("load_weights",),
    "toolkit.methods.med_disseg": ("load_backbone", "med_disseg", "med_disseg_stage_one", "transfer_encoder"),
    "toolkit.methods.selfreg.unet": ("self_reg_unet",),
    "toolkit.methods.selfreg.swin_unet": ("load_swin", "swin_unet"),
    "toolkit.models.unet": ("unet",),
    "toolkit.features.capture": ("capture",),
    "toolkit.features.store": ("Features", "open_features"),
    "toolkit.inference.extract": ("extract",),
    "toolkit.inference.layers": ("layers",),
    "toolkit.methods.latent_augmentation.objective": ("FastSlowObjective",),
    "toolkit.methods.med_disseg.objective": ("MedDisSegObjective", "MedDisSegStageOneObjective"),
    "toolkit.training.segmentation": ("LossObjective", "SegmentationObjective"),
    "toolkit.methods.latent_augmentation.image_space": ("augment_image",),
    "toolkit.methods.med_disseg.regularizer": ("Dispersive",),
    "toolkit.methods.latent_augmentation.image_baselines": (
        *("AdversarialBias", "AdversarialNoise", "RandomConvolution", "RandomWindows"),
    ),
    "toolkit.methods.latent_augmentation.regularizer": ("LatentAugmentation",),
    "toolkit.methods.segreg.regularizer": ("SegReg",),
    "toolkit.methods.selfreg.regularizer": ("SelfReg",),
    "toolkit.explain.attribute": ("attribute",),
    "toolkit.explain.faithfulness": ("faithfulness",),
    "toolkit.explain.gradcam": ("grad_cam",),
    "toolkit.explain.masking": ("mask_latent",),
    "toolkit.explain.sanity": ("randomised_weights",),
    "toolkit.explain.targets": (
        *("BoundaryBand", "ClassSum", "ErrorRegion", "LesionComponent"),
        *("NormalisedClassSum", "Region", "Target", "Voxel"),
    ),
    "toolkit.measure.classifier_variability": ("classifier_variability",),
    "toolkit.measure.collapse": ("collapse",),
    "toolkit.inference.predict": ("predict",),
    "toolkit.measure.evaluate": ("evaluate",),
    "toolkit.measure.drift": ("drift",),
    "toolkit.measure.layer_similarity": ("layer_similarity",),
    "toolkit.measure.projection": ("project",),
    "toolkit.measure.regularizer_health": ("regularizer_health",),
    "toolkit.measure.segmentation": ("aggregate", "image_scores", "segmentation_metrics"),
    "toolkit.measure.gaussianity": ("gaussianity",),
    "toolkit.measure.similarity": ("channel_similarity",),
    "toolkit.measure.statistics": ("compare_methods", "compare_scores"),
    "toolkit.measure.transfer": ("score_matrix", "transfer_metrics"),
    "toolkit.training.attach": ("Attached", "attach"),
    "toolkit.training.calibrate": ("calibrate",),
    "toolkit.training.config": ("TrainConfig",),
    "toolkit.training.load": ("load_model", "load_run"),
    "toolkit.training.trained": (
        *("claim_rows", "list_claims", "list_trained"),
        *("load_trained", "load_trained_arms", "trained_scores"),
    ),
    "toolkit.training.protocol": ("Objective", "Regularizer", "StepContext"),
    "toolkit.training.run": ("Run",),
    "toolkit.training.sequence": ("Stages", "resume_sequence", "train_sequence"),
    "toolkit.training.train": ("resume", "train"),
    "toolkit.training.step": ("TrainingStep",),
    "toolkit.training.study": ("Arm", "Study", "compare"),
    "toolkit.integrations.bundle": ("load_bundle",),
    "toolkit.integrations.onnx_export": ("export_onnx",),
    "toolkit.integrations.nnunet.results": ("load_nnunet",),
    "toolkit.show.report": ("report",),
}

# Used by their own name: toolkit.recipes.segreg(task), toolkit.figures.drifts(...), toolkit.widgets.cam_explorer(...).
_SUBMODULES = {
    "loggers": "toolkit.integrations.loggers",
    "recipes": "toolkit.methods.recipes",
    "figures": "toolkit.show.figures",
    "show": "toolkit.show",
    "widgets": "toolkit.show.widgets",
    "workshop": "toolkit.apps.workshop",
}


class _Doors(importlib.abc.MetaPathFinder):
    """Checks the public calls of each module of the toolkit the moment it is imported, by whatever road.

    Public are the names that `toolkit` offers (by module), functions in a package's `__all__`, and those of figures.
    """

    def __init__(self) -> None:
        for name in sys.modules.keys() & _PUBLIC.keys():
            self.install(sys.modules[name])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module as Python finds it, with a loader that ends in `install`."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name.startswith("toolkit.") else None
        loader: Any = spec and spec.loader
        if loader is not None:
            run = loader.exec_module

            def run_and_install(module: types.ModuleType) -> None:
                run(module)
                self.install(module)

            loader.exec_module = run_and_install
        return spec

    def install(self, module: types.ModuleType) -> None:
        """Put the checked calls in the place of the others; constructors are changed in their class."""
        names, here = _PUBLIC.get(module.__name__, ()), vars(module)
        figures = module.__name__.startswith("toolkit.show.compose")
        functions = [name for name in here if name[0] != "_"] if figures else here.get("__all__", ())
        for name in {*names, *functions} & {*here}:
            if name in names or inspect.isfunction(here[name]):
                here[name] = at_the_door(here[name])


sys.meta_path.insert(0, _Doors())
_HOME = {name: module for module, public in _PUBLIC.items() for name in public}
__all__ = sorted([*_HOME, *_SUBMODULES])


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(_SUBMODULES[name])
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'toolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


offer("toolkit.data", "toolkit.models", "toolkit.training", "toolkit.methods")
results.drawing = lambda: importlib.import_module("toolkit.show.draw")
