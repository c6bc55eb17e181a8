"""Draw docs/images/grad_cam.png and docs/images/drift.png from the networks of a finished demo.

make demo && .venv/bin/python benchmarks/readme_pictures.py [runs/demo]
"""

from __future__ import annotations

import sys
from pathlib import Path

from toolkit.apps.demo import BLOCKS
from toolkit.apps.demo_report import PENULTIMATE, explained_case
from toolkit.data.catalogue import load_task
from toolkit.explain.gradcam import grad_cam
from toolkit.explain.targets import Region
from toolkit.inference.extract import extract
from toolkit.measure.drift import drift
from toolkit.show.compose_drift import drifts
from toolkit.show.compose_explain import grad_cams
from toolkit.show.matplotlib_backend import write
from toolkit.training.sequence import resume_sequence

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main(folder: Path) -> None:
    trained = {name: resume_sequence(folder / name.lower(), progress=False) for name in ("plain", "SegReg")}
    task = load_task("phantom-cardiac")
    site = trained["plain"].sites[0]
    case, cases = explained_case(task, site), task.cases("test", site=site)
    cams = [grad_cam(s.model, case, list(BLOCKS), Region("LV", inside="reference")) for s in trained.values()]
    write(grad_cams(cams, list(trained)), IMAGES / "grad_cam.png", dpi=110)
    moved = [
        drift([extract(run.model, cases, [PENULTIMATE], pool="voxels", samples=16) for run in s.stages], PENULTIMATE)
        for s in trained.values()
    ]
    write(drifts(moved, list(trained)), IMAGES / "drift.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
