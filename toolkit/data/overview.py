"""The table of all data sets as a page: what is confirmed, what is not, how one gets them, what proves the layout."""

from __future__ import annotations

from toolkit.data.catalogue import find_manifest
from toolkit.data.manifest import FACTS, Manifest, manifest_names

_HEAD = """# Data sets

Made from `data_manifests/*.toml` by `python -m toolkit data table`; a test holds that it is current. A fact counts as
confirmed unless the manifest names a doubt about it; there are {count} facts: {facts}.

| data set | dims | classes | access | files | confirmed | not confirmed | layout proved by |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page `docs/data_sets.md`."""
    manifests = [find_manifest(name) for name in manifest_names()]
    head = _HEAD.format(count=len(FACTS), facts=", ".join(FACTS).replace("_", " "))
    doubts = "".join(_doubts(manifest) for manifest in manifests if manifest.unconfirmed)
    return head + "".join(_line(manifest) for manifest in manifests) + "\n## Doubts\n" + doubts


def _line(manifest: Manifest) -> str:
    confirmed = f"{len(FACTS) - len(manifest.unconfirmed)} of {len(FACTS)}"
    doubts = ", ".join(fact.replace("_", " ") for fact in manifest.unconfirmed) or "-"
    classes = str(len(manifest.classes) - 1)
    cells = [
        f"`{manifest.name}`",
        str(manifest.dims),
        classes,
        manifest.access.kind,
        manifest.layout.kind,
        confirmed,
    ]
    return f"| {' | '.join([*cells, doubts, _proof(manifest)])} |\n"


def _proof(manifest: Manifest) -> str:
    if manifest.layout.kind == "generated":
        return "`test_generated.py`"
    if manifest.layout.rows == "table":
        return "`test_real_packs.py` (the real files)"
    return f"`test_official_layouts.py::test_official_layout[{manifest.name}]`"


def _doubts(manifest: Manifest) -> str:
    lines = "".join(f"* {fact.replace('_', ' ')}: {what}\n" for fact, what in manifest.unconfirmed.items())
    return f"\n### `{manifest.name}`\n\n{lines}"
