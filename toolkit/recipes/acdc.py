"""The lists of subjects that the latent-augmentation runs on ACDC used (subjects 001 to 100)."""

from __future__ import annotations

import numpy as np

from toolkit.errors import ConfigError

# latent_augmentation 4.3: four subjects of every diagnosis group are tested, others form the pool for few subjects
_TEST = tuple(first + block for block in range(0, 100, 20) for first in (7, 8, 9, 10))
_POOL = tuple(first + block for block in range(0, 100, 20) for first in (1, 2, 3, 4, 5, 6, 12, 13))
_VALIDATION = (
    (11, 71, 62, 82, 95), (2, 11, 22, 71, 95), (2, 11, 62, 71, 95), (11, 22, 62, 71, 95), (11, 22, 62, 71, 82),
)  # fmt: skip
_LARGE_VALIDATION = (5, 20, 23, 37, 42, 46, 66, 78, 82, 97)


def acdc_splits(split: int = 0, size: str = "ten_subjects", *, clean: bool = False) -> dict[str, list[str]]:
    """Subjects to train, validate and test on, as three-digit names.

    In split 1 the published validation subjects 002 and 022 are trained on too (and others in splits 2 to 4), so the
    choice of the best epoch sees training data; `clean=True` leaves such subjects out of the validation.

    Args:
        split: 0 to 4; the published runs used 0, 1 and 2. The large setting has one split only.
        size: "ten_subjects" (10 / 5 / 20) or "large" (70 / 10 / 20).
        clean: remove training subjects from the validation.

    Raises:
        ConfigError: no such split.
    """
    if size not in ("ten_subjects", "large") or split not in range(len(_VALIDATION)):
        raise ConfigError(
            f"There is no split {split!r} of size {size!r}.",
            fix="split is 0 to 4, size 'ten_subjects' or 'large'.",
        )
    if size == "large":
        validate: tuple[int, ...] = _LARGE_VALIDATION
        train = [number for number in range(1, 101) if number not in (*_TEST, *validate)]
    else:
        validate = _VALIDATION[split]
        order = np.random.RandomState(split).permutation(len(_POOL))
        train = [_POOL[index] for index in order[30:40]]
    if clean:
        validate = tuple(number for number in validate if number not in train)
    lists = {"train": train, "validate": validate, "test": _TEST}
    return {name: [f"{number:03d}" for number in numbers] for name, numbers in lists.items()}
