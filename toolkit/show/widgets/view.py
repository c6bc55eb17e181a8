"""From an explorer's controls and picture to ipywidgets, and back from the page to its state."""

from __future__ import annotations

import functools
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.show import matplotlib_backend
from toolkit.show.figures import compose

_PICTURE = Path(__file__).with_name("picture.js")  # its style lies beside it
KEYBOARD = "Tab reaches every control and the picture; sliders, lists and the picture follow the arrow keys."

if TYPE_CHECKING:
    from toolkit.show.widgets.state import Control, Explorer


@functools.cache
def _picture_class() -> type[Any]:
    import anywidget
    import traitlets

    class PictureWidget(anywidget.AnyWidget):
        """Bytes of a picture that can be clicked, zoomed, dragged and steered with keys; sends what is done to it."""

        _esm = _PICTURE.with_suffix(".js").read_text(encoding="utf-8")
        _css = _PICTURE.with_suffix(".css").read_text(encoding="utf-8")
        value = traitlets.Bytes(b"").tag(sync=True)
        format = traitlets.Unicode("png").tag(sync=True)
        description = traitlets.Unicode("").tag(sync=True)
        readout = traitlets.Unicode("").tag(sync=True)

    return PictureWidget


class ExplorerView:
    """The page of one explorer: controls above the picture, in step with the explorer's state both ways."""

    def __init__(self, explorer: Explorer) -> None:
        import ipywidgets

        self.explorer = explorer
        self._following = False
        value, form = explorer.compose().encode()  # first: the controls say how long things took
        self.controls: dict[str, Any] = {control.name: self._made(control) for control in explorer.controls()}
        self.picture = _picture_class()(value=value, format=form, description=explorer.title)
        self.picture.on_msg(self._from_picture)
        self.message = ipywidgets.HTML(layout={"min_height": "20px"})  # nothing moves when it speaks
        title = ipywidgets.HTML(f"<b>{html.escape(explorer.title)}</b> <small>{KEYBOARD}</small>")
        groups = ipywidgets.Box(self._groups(), layout={"flex_flow": "row wrap", "width": "100%"})
        self.box = ipywidgets.VBox([title, groups, self.message, self.picture, *explorer.extra_views()])
        self.box.add_class("toolkit-explorer")
        self.box.explorer_view = self  # kept alive as long as the box
        explorer.listen(self.follow, self.announce)

    def _groups(self) -> list[Any]:
        """The controls in one row of boxes, a group each; the buttons stand in the last."""
        import ipywidgets

        groups: dict[str, list[Any]] = {}
        for control in self.explorer.controls():
            groups.setdefault(control.group, []).append(self._row(control))
        last = next(reversed(groups.values()))
        for text, icon, action in self.explorer.actions():
            button = ipywidgets.Button(description=text, icon=icon, layout={"width": "200px"})
            button.on_click(lambda _, action=action: self._guarded(lambda: self.announce(action(), False)))
            last.append(button)
        frame = {"border": "1px solid #dfe4e8", "margin": "0 6px 4px 0", "padding": "2px 4px"}
        return [
            ipywidgets.VBox([ipywidgets.HTML(f"<small>{html.escape(name)}</small>")] * bool(name) + rows, layout=frame)
            for name, rows in groups.items()
        ]

    def _row(self, control: Control) -> Any:
        import ipywidgets

        widget = self.controls[control.name]
        if not control.animated:
            return widget
        play = ipywidgets.Play(min=0, max=10**6, interval=150, show_repeat=False)
        ipywidgets.dlink((play, "value"), (widget, "value"), lambda tick: self._looped(control.name, tick))
        return ipywidgets.HBox([play, widget])

    def _looped(self, name: str, tick: int) -> float:
        """Value of an animated slider at a tick of its play button: up to the end, then from the start again."""
        widget = self.controls[name]
        if tick == 0:
            return float(widget.value)
        following = widget.value + widget.step
        return float(widget.min if following > widget.max + 1e-9 else following)

    def _made(self, control: Control) -> Any:
        import ipywidgets

        slim = {"width": "auto", "min_width": "150px", "max_width": "290px", "margin": "1px 4px 1px 2px"}
        common: dict[str, Any] = {
            "value": self.explorer.state[control.name],
            "description": control.label,
            "tooltip": control.hint or control.label,
            "style": {"description_width": "initial"},
            "layout": slim if control.kind in ("choice", "several", "switch") else {**slim, "width": "280px"},
        }
        if control.kind == "choice":
            widget: Any = ipywidgets.Dropdown(options=list(control.options), **common)
        elif control.kind == "several":
            rows = min(5, max(2, len(control.options)))
            widget = ipywidgets.SelectMultiple(options=list(control.options), rows=rows, **common)
        elif control.kind == "switch":
            widget = ipywidgets.Checkbox(indent=False, **common)
        else:
            kind = ipywidgets.IntSlider if control.kind == "integer" else ipywidgets.FloatSlider
            widget = kind(min=control.low, max=control.high, step=control.step, **common)
        widget.add_class(f"toolkit-{control.name}")
        widget.observe(lambda change: self._from_control(control.name, change["new"]), "value")
        return widget

    def _from_control(self, name: str, value: Any) -> None:
        if not self._following:
            self._guarded(lambda: self.explorer.set(**{name: value}))

    def _from_picture(self, _: Any, content: dict[str, Any], __: Any) -> None:
        kind, (x, y) = content.get("kind"), (float(content.get("x", 0)), float(content.get("y", 0)))
        if kind == "hover":
            self.picture.readout = self.explorer.readout(x, y) if self.explorer.composed else ""
        elif kind == "click":
            self._guarded(lambda: self.explorer.click(x, y))
        elif kind == "key":
            self._guarded(lambda: self.explorer.key(str(content["key"])))
        elif kind == "wheel":
            self._guarded(lambda: self.explorer.turned(x, y, float(content["steps"])))
        elif kind == "drag":
            start, end = ((float(content[name]["x"]), float(content[name]["y"])) for name in ("from", "to"))
            self._guarded(lambda: self.explorer.dragged(start, end))

    def _guarded(self, action: Any) -> None:
        """Run what the page asked for; an error becomes a line above the picture."""
        self.message.value = ""
        self.explorer.attempt(action, self.announce)

    def announce(self, words: str, failed: bool) -> None:
        """Say what the page waits for, or why that did not work out."""
        colour = "#a33" if failed else "#666"
        self.message.value = f"<span class='toolkit-announced' style='color:{colour}'>{html.escape(words)}</span>"
        self._sync()

    def follow(self) -> None:
        self._sync()
        value, form = self.explorer.compose().encode()
        if value != self.picture.value:
            with self.picture.hold_sync():
                self.picture.format = form
                self.picture.value = value
        if "toolkit-announced" in self.message.value:
            self.message.value = ""

    def _sync(self) -> None:
        self._following = True
        try:
            for control in self.explorer.controls():
                self._match(self.controls[control.name], control, self.explorer.state[control.name])
        finally:
            self._following = False

    @staticmethod
    def _match(widget: Any, control: Control, value: Any) -> None:
        if control.kind in ("choice", "several"):
            if tuple(widget.options) != control.options:
                widget.options = list(control.options)
        elif control.kind != "switch" and (widget.min, widget.max) != (control.low, control.high):
            widget.step = control.step
            if control.low > widget.max:
                widget.max, widget.min = control.high, control.low
            else:
                widget.min, widget.max = control.low, control.high
        if widget.value != value:
            widget.value = value


def show(explorer: Explorer) -> None:
    """Display the explorer, and below it the picture as it is now, which outlives the kernel."""
    from IPython.display import HTML, Image, display

    display(explorer.view)
    note = "the picture when this cell was run. It stays when the notebook is reopened without a kernel."
    display(HTML(f"<small>{html.escape(explorer.title)}: {note}</small>"))
    for picture in explorer.static_pictures():
        pixels = int.from_bytes(picture[16:20], "big")  # IHDR: the width is the first field of a PNG
        display(Image(picture, format="png", width=min(pixels, 1000)))


def static_png(result: Any, **options: Any) -> bytes:
    """The static twin of a result's figure."""
    return matplotlib_backend.render(compose(result, **options), "png", dpi=100)
