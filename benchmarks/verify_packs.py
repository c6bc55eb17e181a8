"""Read every case of the public packs ($TOOLKIT_DATA) and store what `verify` found, one entry per pack (names as arguments: only these)."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from toolkit import list_tasks, load_task

OUT = Path(__file__).parent / "results" / "data_verify.json"


def main(names: list[str]) -> None:
    table = list_tasks()
    packs = json.loads(OUT.read_text()) if OUT.is_file() else {}
    for name in names or table.name[table.ready & (table.access != "embedded")]:
        begun = time.perf_counter()
        rows = load_task(name).verify()
        notes: dict[str, int] = {}
        for note in rows.notes[rows.notes != ""].str.split("; ").explode():
            kind = re.sub(r"\d+", "n", re.sub(r"same image as .*", "same image as another", note))
            notes[kind] = notes.get(kind, 0) + 1
        odd = rows[rows.verdict != "ok"]
        packs[name] = {
            "rows": len(rows),
            "verdicts": rows.verdict.value_counts().to_dict(),
            "checksums": rows.checksum.value_counts().to_dict(),
            "shapes": int(rows["shape"].nunique()),
            "lowest": float(rows.low.replace("", float("nan")).astype(float).min()),
            "highest": float(rows.high.replace("", float("nan")).astype(float).max()),
            "notes": dict(sorted(notes.items())),
            "not_ok": [
                f"{case}: {verdict}. {detail}"
                for case, verdict, detail in odd[["case", "verdict", "detail"]].to_numpy()
            ][:20],
            "seconds": round(time.perf_counter() - begun, 1),
        }
        print(name, packs[name], flush=True)
        OUT.write_text(json.dumps(dict(sorted(packs.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
