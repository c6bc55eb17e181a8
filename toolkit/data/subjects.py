"""Whose image a file is, as far as names tell: persons of whom there are several files must not be divided."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence

from toolkit.errors import ToolkitWarning

# "patient012_frame03", "sub-01/ses-2_T1w", "north/P7-left": a word for a person with a number, then more of that person.
_PERSON = re.compile(
    r"^((?:.*?/)??(?:sub-[a-z0-9]+|(?:sub(?:ject)?|pat(?:ient)?|person|case|animal|mouse|p|s)[-_ ]?\d+))[-_ ./]", re.I
)
# "ann_slice03", "x17_z12": whatever stands before a word for a part with a number.
_PART = re.compile(r"^(.+?)[-_ ./](?:slice|sl|frame|fr|z|t|tile|patch|crop|view|visit|ses|phase)[-_ ]?\d+$", re.I)
_NUMBER = re.compile(r"^(.+?)[-_ .]\d+$")


def inferred_subjects(names: Sequence[str]) -> list[str]:
    """The subject of every case by its name, where the pattern is plain; else every name is its own subject.

    Plain is a word for a person with a number at the start (`patient012_...`, `sub-01_...`, also as a folder), or a
    word for a part with a number at the end (`..._slice03`, `..._frame2`).
    """
    subjects = [person_of(name) for name in names]
    counts = Counter(subjects)
    if 1 < len(counts) < len(names):
        example = next(name for name, subject in zip(names, subjects, strict=True) if counts[subject] > 1)
        warnings.warn(
            f"Subjects were read from the names: {len(counts)} in {len(names)} images ({example!r} is of the subject "
            f"{person_of(example)!r}); splits keep each together. Pass subjects=, or a column subject, to say otherwise.",
            ToolkitWarning,
            stacklevel=4,
        )
        return subjects
    together = Counter(match[1] for name in names if (match := _NUMBER.match(name)))
    one = len(names) > 1 and len(counts) == 1
    if one or (len(together) > 1 and max(together.values()) > 1 and any(map(str.isdigit, "".join(together)))):
        prefix = subjects[0] if one else together.most_common(1)[0][0]
        some = ", ".join([name for name in names if name.startswith(prefix)][:3])
        warnings.warn(
            f"Several names begin alike ({some}). If they are of one person, training and test would share that person: "
            "pass subjects=, or a column subject.",
            ToolkitWarning,
            stacklevel=4,
        )
    return list(names)


def person_of(name: str) -> str:
    """The subject that a plain name tells, else the name itself."""
    match = _PERSON.match(name) or _PART.match(name)
    return match[1] if match else name
