"""Write the index tables of the embedded data sets again: `python scripts/phantom_index.py [name ...]`."""

from __future__ import annotations

import csv
import sys

from toolkit.data.generated import GENERATORS, made_rows
from toolkit.data.manifest import find_manifest
from toolkit.files import replacing

COLUMNS = ("site", "subject", "split", "group", "slices", "row_mm", "column_mm", "slice_mm", "sha256", "generator")

for name in sys.argv[1:] or GENERATORS:
    manifest = find_manifest(name)
    with replacing(manifest.table_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(made_rows(manifest))
    print(manifest.table_path)
