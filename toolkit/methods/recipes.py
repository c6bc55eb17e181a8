"""Recipes: the papers' settings as data, with the section of the specification beside each value.

`segreg(task)`, `self_reg_unet(task)`, `latent_augmentation(task)` and `med_disseg(task)` return a `Recipe`:
`.table()` lists every value with its source, `.train(path)` trains all stages, `toolkit.train(**recipe.stages[0])` one.
The subjects of the published ACDC runs are lists of the data set: `load_task("acdc", split_list="ten_subjects_0")`.
"""

from toolkit.methods.latent_augmentation.recipe import latent_augmentation
from toolkit.methods.med_disseg.recipe import med_disseg
from toolkit.methods.recipe import Recipe, Setting, Stage
from toolkit.methods.segreg.recipe import segreg
from toolkit.methods.selfreg.recipe import self_reg_unet

__all__ = ["Recipe", "Setting", "Stage", "latent_augmentation", "med_disseg", "segreg", "self_reg_unet"]
