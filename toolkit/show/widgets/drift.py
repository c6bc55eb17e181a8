"""`drift_explorer`: the features of one layer over training stages, with their voxels on the image and drift numbers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ConfigError, ResultError
from toolkit.features.store import Features
from toolkit.inference.extract import extract
from toolkit.inference.pooling import VOXELS, areas_of
from toolkit.measure.drift import Drift, drift
from toolkit.measure.pairing import KEYS
from toolkit.measure.projection import Projection, project
from toolkit.results import DataFrame
from toolkit.show.colours import FAINT, hex_colour
from toolkit.show.compose_drift import MEASURE_NAMES, NULLS, repeat_of
from toolkit.show.slices import choose_view
from toolkit.show.widgets.canvas import ACCENT, Canvas, enlarged, fitted, grey
from toolkit.show.widgets.image_explorer import Page, label_of, trained_pair
from toolkit.show.widgets.state import Control, Explorer, Key, TimedResults
from toolkit.show.widgets.view import static_png

PROJECTIONS = (("PCA", "pca"), ("UMAP (slow: 10 s at first)", "umap"), ("Fisher's discriminants", "lda"))
BASES = (("all stages", "shared"), ("first stage", "stage1"), ("each stage, aligned", "per_stage"))
MOST_POINTS, MOST_IMAGES, RINGS = 1500, 4, 5
_SIDE, _LEFT = 210, 14
_NUMBERS = Path(__file__).with_name("numbers.html.jinja")


class DriftExplorer(Explorer):
    """Explore how features move over training stages: a projection with a stage slider, its voxels, and drift numbers.

    Distances in a projection can mislead; the numbers beside it are measured in the full feature space. Use `.state`,
    `.set(...)`, `.select(rows)`, `.numbers()` and `.compose()`; `selected` holds rows of the features.

    Args:
        features: one store per stage, of the same rows (same cases, same seed); None = those of two trained networks
            that come with the project, on cases of their task.
        cases: a task, the cases, or the dicts of one image (C, *S) that the features come from, for the images of points.
        stages: names of the stages.
        bootstrap: replicates of the intervals of the drift numbers.
        repeat: stage 1 once more (another training, or `toolkit.extract(..., jitter=0.01)`), a yardstick on the same
            patients beside the halves of stage 1's patients; see `toolkit.drift`.

    Raises:
        ConfigError: fewer than two stages, or names that do not fit.
        ResultError: stages of different rows.
    """

    title = "Drift of the features"

    def __init__(
        self,
        features: Sequence[Features] | None = None,
        cases: Any = None,
        *,
        stages: Sequence[str] | None = None,
        bootstrap: int = 100,
        repeat: Features | None = None,
    ) -> None:
        if features is None:
            trained, cases = trained_pair(cases)
            stages = stages or list(trained)
            layers = ["head_input", "bottleneck"]
            features = [extract(one, cases, layers, pool="voxels", samples=8) for one in trained.values()]
        self.features = list(features)
        self.stages = [f"stage {n}" for n in range(1, len(self.features) + 1)] if stages is None else list(stages)
        if len(self.features) < 2 or len(self.stages) != len(self.features):
            what = f"There are {len(self.features)} stages and {len(self.stages)} names."
            raise ConfigError(what, where="drift_explorer", fix="Pass two stages or more, and one name for each.")
        super().__init__(stage=1.0, layer=self.features[0].layers[0], method="pca", basis="shared")
        images = list(cases.cases() if callable(getattr(cases, "cases", None)) else cases or [])
        names = [one.get("id", f"image{n:04d}") if isinstance(one, dict) else one.id for n, one in enumerate(images)]
        self.cases = dict(zip(map(str, names), images, strict=True))
        self.bootstrap, self.repeat = bootstrap, repeat
        self.rows: DataFrame = self.features[0].cases
        places = [one.cases[list(KEYS)].to_numpy() for one in self.features]
        if not all(np.array_equal(one, places[0]) for one in places):
            fix = "Extract the same cases in the same order with the same seed at every stage."
            raise ResultError("The stages hold different rows.", fix=fix)
        self.memory = TimedResults(24, {("projection", "umap"): 10.0})  # mostly compiling, the first time
        self.shown = np.unique(np.linspace(0, len(self.rows) - 1, min(MOST_POINTS, len(self.rows))).astype(int))
        classes = tuple(sorted({int(index) for index in self.rows["class"]}))
        self.selected: tuple[int, ...] = tuple(np.flatnonzero(self.rows["case"] == self.rows["case"].iloc[0]))
        self._sites = tuple(dict.fromkeys(map(str, self.rows["site"])))
        self._values.update(classes=classes, sites=self._sites)

    def controls(self) -> list[Control]:
        named = self.rows.groupby("class", sort=True)["class_name"].first()
        classes = tuple((str(name), int(str(index))) for index, name in named.items())
        sites = tuple((name or "unknown", name) for name in self._sites)
        bases = BASES if self._values["method"] != "umap" else BASES[:2]
        layers = tuple((name, name) for name in self.features[0].layers)
        between = "positions between two stages are interpolated, for the eye only"
        compiled = "the first UMAP of a session is compiled before it runs"
        view, points, last = "projection", "points", len(self.features)
        return [
            Control("stage", "stage", "real", low=1, high=last, step=0.1, animated=True, group=view, hint=between),
            Control("layer", "layer", "choice", layers, group=view),
            Control("method", "projection", "choice", PROJECTIONS, hint=compiled, group=view),
            Control("basis", "axes from", "choice", bases, group=view),
            Control("classes", "classes", "several", classes, group=points),
            Control("sites", "sites", "several", sites, group=points),
        ]

    def adapt(self, changed: set[str]) -> None:
        """See `Explorer`: UMAP has no axes of each stage."""
        if self._values["method"] == "umap" and self._values["basis"] == "per_stage":
            self._values["basis"] = "stage1"

    def select(self, rows: Iterable[int]) -> DriftExplorer:
        """Show the voxels of these rows on their images.

        Raises:
            ConfigError: a row that does not exist.
        """
        chosen = tuple(sorted({int(row) for row in rows}))
        if chosen and not (chosen[0] >= 0 and chosen[-1] < len(self.rows)):
            raise ConfigError(f"Rows go from 0 to {len(self.rows) - 1}.", where="explorer.select(rows)")
        if chosen != self.selected:
            self.selected = chosen
            self.changed()
        return self

    def pressed(self, key: str) -> None:
        """See `Explorer`: left and right walk from case to case."""
        names = list(dict.fromkeys(self.rows["case"]))
        step = {"ArrowLeft": -1, "ArrowRight": 1}.get(key)
        if step is not None:
            now = self.rows["case"].iloc[self.selected[0]] if self.selected else names[0]
            self.select(np.flatnonzero(self.rows["case"] == names[(names.index(now) + step) % len(names)]))

    def projection(self) -> Projection:
        """The `Projection` of the current state, kept for later."""
        projected, _ = self._keys()
        (_, method), layer, basis = projected
        return self.memory.get(projected, lambda: project(self.features, layer, method, basis))

    def _keys(self) -> tuple[tuple[tuple[str, str], str, str], tuple[str, str]]:
        """Of the projection and of the drift."""
        method, layer, basis = (self._values[name] for name in ("method", "layer", "basis"))
        return (("projection", method), layer, basis), ("drift", layer)

    def wanted(self) -> list[tuple[TimedResults, Key]]:
        return [(self.memory, key) for key in self._keys()]

    def numbers(self) -> DataFrame:
        """`drift(...)` of the current layer: all rows pooled, one row per measure and pair of stages."""
        table = self.drift().table()
        return table[(table["class"] == "pooled") & (table["from"] > 0) & table["value"].notna()]

    def drift(self) -> Drift:
        """The `Drift` of the current layer, kept for later."""
        (_, key), count = self._keys(), self.bootstrap
        return self.memory.get(
            key, lambda: drift(self.features, key[1], bootstrap=count, null_splits=count, repeat=self.repeat)
        )

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, positions (n, 2)) of the points that the filters leave, at the current stage."""
        values = self._values
        keep = self.rows["class"].isin(values["classes"]) & self.rows["site"].astype(str).isin(values["sites"])
        rows = self.shown[keep.to_numpy()[self.shown]]
        return rows, self.positions()[rows]

    def positions(self) -> np.ndarray:
        """(N, 2) of all rows at the current stage, between two stages on the straight line."""
        coordinates, (first, share) = self.projection().coordinates, divmod(self._values["stage"] - 1, 1)
        ends = (min(int(first) + more, len(coordinates) - 1) for more in (0, 1))
        here, there = (np.asarray(coordinates[end], dtype=float)[:, :2] for end in ends)
        return here * (1 - share) + there * share

    def stage_name(self) -> str:
        """Name of the current stage, or what it lies between."""
        first, share = int(self._values["stage"]) - 1, self._values["stage"] % 1
        if share <= 1e-9:
            return self.stages[first]
        return f"{share:.0%} of the way from {self.stages[first]} to {self.stages[first + 1]} (interpolated)"

    def draw(self) -> Canvas:
        """See `Explorer`: the images of the selected points, most points first."""
        canvas = Canvas(2 * _LEFT + MOST_IMAGES * (_SIDE + 14), _SIDE + 88)
        chosen = self.rows.iloc[list(self.selected)]
        counts = chosen.groupby("case", sort=False).size().sort_values(ascending=False, kind="stable")
        canvas.heading(
            f"{len(chosen)} selected points of {len(counts)} case{'s' * (len(counts) != 1)}",
            "Click a point of the figure or draw a loop around several; the arrow keys walk from case to case here.",
        )
        for place, name in enumerate(counts.index[:MOST_IMAGES]):
            self._voxels(canvas, _LEFT + place * (_SIDE + 14), str(name), chosen[chosen["case"] == name])
        return canvas

    def _voxels(self, canvas: Canvas, left: int, name: str, rows: DataFrame) -> None:
        canvas.text(left, 48, f"{name}: {len(rows)}", size=12, width=_SIDE)
        case = self.cases.get(name)
        if case is None:
            canvas.text(left, 90, "pass cases=... to see the image", size=12, colour=FAINT)
            return
        image, flat, classes = Page(case, name, None).image, rows["index"].to_numpy(), rows["class"].to_numpy()
        spacing = case.get("spacing") if isinstance(case, dict) else case.spacing
        size, label = image.shape[1:], label_of(case)
        pool = self.features[0].provenance.get("parameters", {}).get("pool", "per-class" if -1 in flat else "voxels")
        if pool in VOXELS:
            places = np.stack(np.unravel_index(flat, size), axis=1)
        else:  # pooled rows: every voxel of their areas
            known = pool == "grid" or (pool != "global" and label is not None)
            maps, owners = areas_of(pool, size, label) if known else (np.full(size, -1), {})
            places = np.argwhere(np.isin(maps, np.where(flat < 0, classes, flat) if known else -1))
            classes = np.array([owners.get(int(area), -1) for area in maps[tuple(places.T)]])
        position = None
        if len(size) == 3:
            position = int(np.bincount(places[:, 0], minlength=1).argmax())
            keep = places[:, 0] == position
            places, classes = places[keep], classes[keep]
        view = choose_view(tuple(size), tuple(size), position=position, spacing=spacing, largest=10**6)
        picture = grey(view.picture(image))
        tile = fitted(picture.shape[:2], view.aspect, _SIDE)
        canvas.paste(enlarged(picture, tile), left, 66)
        side = max(3, round(tile[0] / picture.shape[0]) + 2)
        for (row, column), index in zip(places[:, -2:], classes, strict=True):
            x = left + round((column + 0.5) * tile[1] / picture.shape[1]) - side // 2
            y = 66 + round((row + 0.5) * tile[0] / picture.shape[0]) - side // 2
            canvas.fill(x, y, side, side, hex_colour(int(index)) if index > 0 else "#bebebe")
            if len(places) <= RINGS:
                canvas.frame(x - 5, y - 5, side + 10, side + 10, ACCENT, 2)
        if len(places) == 1:
            row, column = places[0][-2:]
            mm = f", {(row + 0.5) * spacing[-2]:.1f} x {(column + 0.5) * spacing[-1]:.1f} mm" if spacing else ""
            canvas.text(left, 68 + tile[0], f"row {row}, column {column}{mm}", size=12, colour=FAINT, width=_SIDE)

    def extra_views(self) -> list[Any]:
        """See `Explorer`: the scatter and the numbers beside it."""
        return [ScatterView(self).box]

    def static_pictures(self) -> list[bytes]:
        """See `Explorer`: the images of the selection, and the projection of all stages."""
        return [static_png(self.projection(), stages=self.stages), *super().static_pictures()]


class ScatterView:
    """One trace for all points: the colours say the class, lasso and box select."""

    def __init__(self, explorer: DriftExplorer) -> None:
        import ipywidgets
        import plotly.graph_objects as go

        self.explorer, self._numbers_of = explorer, ""
        self.rows, places = explorer.points()
        # made with its points: what is sent before the page has loaded the figure's script is lost
        marker = {"size": 6, "color": self._colours()}
        points = go.Scatter(x=places[:, 0], y=places[:, 1], text=self._texts(), mode="markers", marker=marker)
        points.hovertemplate = "%{text}<extra></extra>"
        layout = go.Layout(width=620, height=460, dragmode="lasso", template="plotly_white", showlegend=False)
        layout.update(title={"text": self._title()}, margin={"l": 50, "r": 10, "t": 60, "b": 40}, **self._axes())
        self.figure: Any = go.FigureWidget(points, layout=layout)
        self._outline = self._outlining = False
        self.figure.data[0].on_selection(self._outlined)
        self.figure.data[0].on_click(self._from_page)
        self.numbers = ipywidgets.HTML()
        self.box = ipywidgets.HBox([self.figure, self.numbers], layout={"align_items": "flex-start"})
        self.follow()
        explorer.listen(self.follow)

    def _from_page(self, _: Any, points: Any, *__: Any) -> None:
        if points.point_inds:  # the page also reports an empty selection when an outline is taken away
            self.explorer.select(self.rows[list(points.point_inds)])

    def _outlined(self, *message: Any) -> None:
        """A lasso or a box was drawn: its outline stays until something else is selected or shown."""
        self._outlining = True
        self._outline = bool(message[1].point_inds)
        try:
            self._from_page(*message)
        finally:
            self._outlining = False

    def follow(self) -> None:
        rows, places = self.explorer.points()
        chosen = set(self.explorer.selected)
        inside = [place for place, row in enumerate(rows) if row in chosen]
        trace = self.figure.data[0]
        if self._outline and not self._outlining:
            self._outline = False
            self.figure.plotly_relayout({"selections": []})
            trace.selectedpoints = None  # the page forgets them with the outline, and only changes are sent
        with self.figure.batch_update():
            if not np.array_equal(rows, self.rows):
                self.rows = rows
                trace.marker.color, trace.text = self._colours(), self._texts()
            trace.x, trace.y = places[:, 0], places[:, 1]
            trace.selectedpoints = inside or None
            self.figure.layout.title.text = self._title()
            self.figure.update_layout(**self._axes())
        if self.explorer.state["layer"] != self._numbers_of:
            self._numbers_of = self.explorer.state["layer"]
            self.numbers.value = numbers_table(self.explorer)

    def _colours(self) -> list[str]:
        return [hex_colour(int(index)) for index in self.explorer.rows["class"].to_numpy()[self.rows]]

    def _texts(self) -> list[str]:
        part = self.explorer.rows.iloc[self.rows]
        return [f"{case}, {name}" for case, name in zip(part["case"], part["class_name"], strict=True)]

    def _title(self) -> str:
        values, stage = self.explorer.state, html.escape(self.explorer.stage_name())
        points = f"{len(self.rows)} of {len(self.explorer.rows)} points"
        return f"{values['layer']}, {values['method'].upper()}<br><sub>{stage}; {points}</sub>"

    def _axes(self) -> dict[str, Any]:
        """The same range at every stage, or movement could not be seen."""
        projection = self.explorer.projection()
        everything = np.concatenate([np.asarray(one, dtype=float)[:, :2] for one in projection.coordinates])
        low, high = everything.min(0), everything.max(0)
        margin = 0.05 * (high - low) + 1e-9
        ends = [[float(a), float(b)] for a, b in zip(low - margin, high + margin, strict=True)]
        return {"xaxis": {"range": ends[0]}, "yaxis": {"range": ends[1]}}


def numbers_table(explorer: DriftExplorer) -> str:
    """HTML of the drift numbers, with their interval and that of the null."""
    import jinja2

    def interval(row: Any, name: str) -> str:
        low, high = row.get(f"{name}low", np.nan), row.get(f"{name}high", np.nan)
        return f"{low:.3g} to {high:.3g}" if np.isfinite(low) else ""

    columns = 3 if explorer.repeat is not None else 2
    rows = []
    for _, row in explorer.numbers().iterrows():
        stages = f"{explorer.stages[int(row['from']) - 1]} to {explorer.stages[int(row['to']) - 1]}"
        cells = [MEASURE_NAMES.get(row["measure"], row["measure"]), stages, f"{row['value']:.3g}"]
        rows.append(cells + [interval(row, name) for name in ("", "null_", "repeat_")[:columns]])
    classes = explorer.rows.groupby("class", sort=True)["class_name"].first()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_NUMBERS.read_text(encoding="utf-8")).render(
        classes=[(hex_colour(int(str(index))), name) for index, name in classes.items()],
        columns=("measure", "stages", "value", "interval", "null", "repeat")[: 3 + columns],
        rows=rows,
        note=NULLS + repeat_of(explorer.drift()),
    )
