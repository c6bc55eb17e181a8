"""Data: manifests, volumes and their geometry, tasks, loaders and embedded phantoms.

Importing this package registers the tasks that a run directory can name; nothing heavy is loaded.
"""

from __future__ import annotations

from toolkit.data.arrays import task_from_arrays
from toolkit.data.augment import Augmentation
from toolkit.data.case import Case
from toolkit.data.catalogue import list_tasks, load_task
from toolkit.data.dataset import task_from_dataset
from toolkit.data.folder import task_from_folder
from toolkit.data.join import join_tasks
from toolkit.data.loader import Loader
from toolkit.data.nnunet import task_from_nnunet
from toolkit.data.normalise import normalise
from toolkit.data.table import task_from_table
from toolkit.data.task import Task
from toolkit.data.volumes import read_volume, write_nifti

__all__ = [
    "Augmentation",
    "Case",
    "Loader",
    "Task",
    "join_tasks",
    "list_tasks",
    "load_task",
    "normalise",
    "read_volume",
    "task_from_arrays",
    "task_from_dataset",
    "task_from_folder",
    "task_from_nnunet",
    "task_from_table",
    "write_nifti",
]
