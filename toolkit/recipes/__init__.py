"""Recipes: the papers' settings as data, with the section of the specification beside each value.

`segreg(task)`, `self_reg_unet(task)`, `latent_augmentation(task)` and `med_disseg(task)` return a `Recipe`:
`.table()` lists every value with its source, `.train(path)` trains all stages, `toolkit.train(**recipe.stages[0])` one.
The subjects of the published ACDC runs are lists of the data set: `load_task("acdc", split_list="ten_subjects_0")`.
"""

from toolkit.recipes.latent_augmentation import latent_augmentation
from toolkit.recipes.med_disseg import med_disseg
from toolkit.recipes.recipe import Recipe, Setting, Stage
from toolkit.recipes.segreg import segreg
from toolkit.recipes.self_reg_unet import self_reg_unet

__all__ = ["Recipe", "Setting", "Stage", "latent_augmentation", "med_disseg", "segreg", "self_reg_unet"]
