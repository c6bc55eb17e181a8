"""The table of all data sets as a page: what is confirmed, what is not, how one gets them, what proves the layout.

python scripts/data_sets_page.py > docs/data_sets.md
"""

from __future__ import annotations

from toolkit.data.generated import generator
from toolkit.data.manifest import FACTS, Manifest, find_manifest, manifest_names

_HEAD = """# Data sets

Made from `data_manifests/*.toml` by `python scripts/data_sets_page.py`; a test holds that it is current. A fact counts as
confirmed unless the manifest names a doubt about it; there are {count} facts: {facts}.

| data set | dims | classes | access | confirmed | not confirmed | layout proved by |
|---|---|---|---|---|---|---|
"""
_EMBEDDED = """Drawn by the toolkit, the same bytes on every machine; no person was scanned. Rows are sites, with (subjects in training /
validation / test); outlines are the reference labels. `benchmarks/phantom_difficulty.py TASK` measures what a site's
shift costs, `benchmarks/phantom_speed.py` how quickly they are drawn.
"""


def page() -> str:
    """The page `docs/data_sets.md`."""
    manifests = [find_manifest(name) for name in manifest_names()]
    head = _HEAD.format(count=len(FACTS), facts=", ".join(FACTS).replace("_", " "))
    doubts = "".join(_doubts(manifest) for manifest in manifests if manifest.unconfirmed)
    table = "".join(_line(manifest) for manifest in manifests)
    embedded = "".join(_sheet(manifest) for manifest in manifests if manifest.generated)
    return f"{head}{table}\n## Embedded tasks\n\n{_EMBEDDED}{embedded}\n## Doubts\n{doubts}"


def _sheet(manifest: Manifest) -> str:
    """Picture, sites and splits of a generated task."""
    task, sites = generator(manifest.name), []
    for site in manifest.sites:
        counts = " / ".join(str(len(numbers)) for numbers in task.subjects[site].values())
        sites.append(f"* {site} ({counts}): {task.descriptions[site]}.\n")
    picture = f"images/{manifest.name.replace('-', '_')}.png"
    return f"\n### `{manifest.name}`\n\n{manifest.title}.\n\n![{manifest.name}]({picture})\n\n{''.join(sites)}"


def _line(manifest: Manifest) -> str:
    confirmed = f"{len(FACTS) - len(manifest.unconfirmed)} of {len(FACTS)}"
    doubts = ", ".join(fact.replace("_", " ") for fact in manifest.unconfirmed) or "-"
    classes = str(len(manifest.classes) - 1)
    cells = [f"`{manifest.name}`", str(manifest.dims), classes, manifest.access.kind, confirmed]
    return f"| {' | '.join([*cells, doubts, _proof(manifest)])} |\n"


def _proof(manifest: Manifest) -> str:
    if manifest.generated:
        return "`test_generated.py`"
    if not manifest.files:
        return "`test_real_packs.py` (the real files)"
    return f"`test_official_layouts.py::test_official_layout[{manifest.name}]`"


def _doubts(manifest: Manifest) -> str:
    lines = "".join(f"* {fact.replace('_', ' ')}: {what}\n" for fact, what in manifest.unconfirmed.items())
    return f"\n### `{manifest.name}`\n\n{lines}"


if __name__ == "__main__":
    print(page(), end="")
