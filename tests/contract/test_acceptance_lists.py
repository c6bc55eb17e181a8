"""Every numbered property of the four methods' acceptance lists has a test that is named after its number."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"
# files, pattern of the names (every group is a number), and the numbers of the list
LISTS: dict[str, tuple[tuple[str, ...], str, set[int]]] = {
    "SelfReg": (
        ("methods/selfreg/test_selfreg_properties.py",),
        r"test_(?:scr|ifd|total)_(\d\d)(?:_and_(\d\d))?_",
        set(range(1, 19)),
    ),
    "SegReg": (  # P17 to P19 concern a trainer of another framework
        (
            "methods/segreg/test_segreg*.py",
            "methods/segreg/test_normal_distances.py",
            "training/test_sequence_drift.py",
        ),
        r"test_p(\d\d)_",
        {*range(1, 17), 20},
    ),
    "latent augmentation": (
        ("methods/latent_augmentation/test_latent_augmentation*.py", "methods/latent_augmentation/test_fast_slow.py"),
        r"test_(\d\d)(?:_and_(\d\d))?_",
        set(range(1, 20)),
    ),
    "dispersive loss": (("methods/med_disseg/test_dispersive*.py",), r"test_9_1_(\d+)_", set(range(1, 14))),
}
# The further lists of Med-DisSeg have no numbers: a test per line, by what it is about.
UNNUMBERED = {
    "9_1_table": ("identical_rows", "far_rows", "orthogonal_rows_and_two_rows", "ranges_and_batch_of_one"),
    "9_2": (
        "structure",
        "outputs_keep_the_size",
        "complementary_range",
        "perfect_predictions",
        "balance",
        "attention_with_zero_weights",
        "telu",
        "telu_gradients_are_finite",
        "aggregation_with_zero_attention",
        "stage_two_takes_exactly_the_encoder",
    ),
    "9_3": (
        "default_spreads",
        "default_cosine_reaches_the_simplex",
        "released_works_inside_its_band",
        "released_is_dead_where_default_is_alive",
        "a_zero_gradient_term_changes_no_weight",
    ),
}


def names_in(*patterns: str) -> list[str]:
    files = [path for pattern in patterns for path in sorted(UNIT.glob(pattern))]
    assert files, patterns
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", LISTS)
def test_every_number_has_a_test(name: str) -> None:
    files, pattern, wanted = LISTS[name]
    found = {
        int(number)
        for test in names_in(*files)
        if (match := re.match(pattern, test))
        for number in match.groups()
        if number
    }
    assert found == wanted, f"missing {sorted(wanted - found)}, unknown {sorted(found - wanted)}"


@pytest.mark.parametrize("section", UNNUMBERED)
def test_every_line_has_a_test(section: str) -> None:
    names = names_in("**/test_*.py")
    missing = [line for line in UNNUMBERED[section] if not any(n.startswith(f"test_{section}_{line}") for n in names)]
    assert not missing
