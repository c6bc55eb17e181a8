"""A results folder of nnU-Net v2 as a network that every call of this toolkit runs as nnU-Net would."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from toolkit.errors import CheckpointError, ConfigError, DataError, choose
from toolkit.features.provenance import mark_trained_with
from toolkit.inference.memory import remember
from toolkit.models.load import load_weights

CHECKPOINTS = ("final", "best", "latest")
_ARCHITECTURES = ("dynamic_network_architectures.", "torch.nn.")  # what plans may name; nothing else is imported


def load_nnunet(folder: str | os.PathLike[str], fold: int | str = 0, checkpoint: str = "final") -> nn.Module:
    """The network of a results folder of nnU-Net v2, in evaluation mode, without deep supervision.

    Files that are passed to any call (`tk.predict`, `tk.grad_cam`, `tk.extract`, ...) are read and preprocessed as nnU-Net
    does: orientation, cropping, spacing, normalisation. Images larger than its patch are run in windows of it. `tk.predict(model,
    files)` gives the labels that `nnUNetv2_predict --disable_tta` writes. Maps and features lie on the preprocessed grid.

    Args:
        folder: `nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION`.
        fold: 0 to 4, or "all".
        checkpoint: "final", "best" or "latest".

    Returns:
        The network; trained with a regularizer of this toolkit, its figures say so.

    Raises:
        ConfigError: nnunetv2 is not installed, or there is no such checkpoint name.
        CheckpointError: files of the folder are missing or unsafe, or the weights do not fit the plans.

    Example:
        >>> model = tk.load_nnunet("nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres")
        >>> tk.predict(model, "hippocampus_001_0000.nii.gz")
    """
    choose("checkpoint", checkpoint, CHECKPOINTS, where="load_nnunet")
    reader = NnUNetFiles(Path(folder))
    model = reader.network()
    weights = Path(folder) / f"fold_{fold}" / f"checkpoint_{checkpoint}.pth"
    if not weights.is_file():
        there = sorted(str(path.relative_to(folder)) for path in Path(folder).glob("fold_*/checkpoint_*.pth"))
        fix = f"There are: {', '.join(there) or 'none'}."
        raise CheckpointError("There is no such checkpoint.", where=weights, fix=fix)
    load_weights(model, weights)
    remember(model, patch_size=reader.patch_size, files=reader, **reader.outputs())
    record = Path(folder) / f"fold_{fold}" / "regularizer.json"  # which a trainer of this toolkit wrote
    if record.is_file():
        mark_trained_with(model, [_read_json(record)["name"]])
    return model.eval()


class NnUNetFiles:
    """Plans and data set of a results folder: its network, its preprocessing of files, its labels of them.

    Args:
        folder: holds `plans.json` and `dataset.json`; the last part of its name is the configuration.
    """

    def __init__(self, folder: Path) -> None:
        plans, self.dataset = _read_json(folder / "plans.json"), _read_json(folder / "dataset.json")
        configuration = folder.resolve().name.rsplit("__", 1)[-1]
        with _quiet():
            try:
                from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
            except ImportError as error:
                fix = 'pip install -e ".[nnunet]"; see the how-to page on nnU-Net for torchvision.'
                raise ConfigError(f"nnU-Net cannot be imported ({error}).", where="load_nnunet", fix=fix) from error
            self.plans = PlansManager(plans)
            if configuration not in self.plans.available_configurations:
                fix = f"The folder's name ends in one of {', '.join(self.plans.available_configurations)}."
                raise CheckpointError(f"The plans have no configuration {configuration!r}.", where=folder, fix=fix)
            self.configuration = self.plans.get_configuration(configuration)
            self.labels_of_plans = self.plans.get_label_manager(self.dataset)
        self.patch_size = tuple(int(side) for side in self.configuration.patch_size)
        self.dims = len(self.patch_size)
        self.channels = len(self.dataset.get("channel_names", self.dataset.get("modality", {})))

    def network(self) -> nn.Module:
        """The architecture that the plans name, with its first weights."""
        names = [self.configuration.network_arch_class_name]
        arguments = self.configuration.network_arch_init_kwargs
        names += [arguments[key] for key in self.configuration.network_arch_init_kwargs_req_import if arguments[key]]
        if foreign := [name for name in names if not str(name).startswith(_ARCHITECTURES)]:
            what = f"The plans name code that is not nnU-Net's: {', '.join(foreign)}."
            fix = "Build that network yourself and call toolkit.load_weights(model, checkpoint)."
            raise CheckpointError(what, where="plans.json", fix=fix)
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        return get_network_from_plans(
            self.configuration.network_arch_class_name,
            arguments,
            self.configuration.network_arch_init_kwargs_req_import,
            self.channels,
            self.labels_of_plans.num_segmentation_heads,
            allow_init=True,
            deep_supervision=False,
        )

    def outputs(self) -> dict[str, Any]:
        """What the network's outputs mean, for `toolkit.inference.memory.remember`."""
        if not self.labels_of_plans.has_regions:
            return {"activation": "softmax"}
        names = [name for name in self.dataset["labels"] if name not in ("background", "ignore")]
        return {"regions": {name: tuple(np.atleast_1d(self.dataset["labels"][name]).tolist()) for name in names}}

    def items(self, paths: Sequence[str], label: str | None = None) -> Iterator[dict[str, Any]]:
        """One item a volume, or one a slice for a 2D network, as nnU-Net's network sees it."""
        data, marks, _ = self._prepared(paths, label)
        stem = Path(paths[0]).name.removesuffix(self.dataset["file_ending"]).removesuffix("_0000")
        spacing = tuple(float(mm) for mm in self.configuration.spacing)
        common = {"volume": stem, "source": str(paths[0]), "spacing": spacing}
        if self.dims == 3:
            yield {"image": data, "label": marks, "id": stem, **common}
            return
        for position in range(data.shape[1]):
            label_here = None if marks is None else marks[position]
            place = {"id": f"{stem}/slice{position:02d}", "position": position}
            yield {"image": data[:, position], "label": label_here, **place, **common}

    def predict(self, model: nn.Module, paths: Sequence[str]) -> np.ndarray:
        """Labels of a volume on the files' own grid, as nnU-Net itself predicts them without mirroring.

        Returns:
            (*S) in the axes closest to right-anterior-superior, as `toolkit.predict` gives volumes.
        """
        import nibabel
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        data, _, properties = self._prepared(paths, None)
        device = next(model.parameters()).device
        state = {name: value.detach() for name, value in model.state_dict().items()}
        with _quiet():
            predictor = nnUNetPredictor(use_mirroring=False, device=device, verbose=False, allow_tqdm=False)
            predictor.manual_initialization(
                model, self.plans, self.configuration, [state], self.dataset, "nnUNetTrainer", None
            )
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
            labels = convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, self.plans, self.configuration, self.labels_of_plans, properties, num_threads_torch=1
            )
            with tempfile.TemporaryDirectory() as folder:  # nnU-Net's writer knows the axes of its reader
                file = os.path.join(folder, "labels" + self.dataset["file_ending"])
                self.plans.image_reader_writer_class().write_seg(labels, file, properties)
                if not file.endswith((".nii", ".nii.gz")):
                    return np.asarray(labels)
                return np.asarray(nibabel.as_closest_canonical(nibabel.load(file)).dataobj).astype(labels.dtype)

    def _prepared(
        self, paths: Sequence[str], label: str | None
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
        if len(paths) != self.channels:
            what = f"{len(paths)} files for {self.channels} channels."
            raise DataError(what, where=str(paths[0]), fix="One file a channel, in order.")
        if missing := [path for path in [*paths, *([label] if label else [])] if not Path(path).is_file()]:
            raise DataError("There is no such file.", where=str(missing[0]))
        try:
            with _quiet():
                preprocessor = self.configuration.preprocessor_class(verbose=False)
                data, marks, properties = preprocessor.run_case(
                    [str(path) for path in paths], label, self.plans, self.configuration, self.dataset
                )
        except Exception as error:  # whatever the readers that nnU-Net calls raise
            what = f"nnU-Net cannot prepare this ({type(error).__name__}: {error})."
            raise DataError(what, where=str(paths[0])) from error
        marks = None if label is None else np.maximum(marks[0], 0)  # -1 is background where the image is 0
        return np.asarray(data, dtype=np.float32), marks, properties


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Without what nnU-Net prints about its folders."""
    return contextlib.redirect_stdout(io.StringIO())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "Pass the folder that holds plans.json, dataset.json and the folds."
        raise CheckpointError(f"{path.name} cannot be read ({type(error).__name__}).", where=path, fix=fix) from error
