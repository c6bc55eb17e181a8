"""A picture in the notebook that can be clicked and, when it has the focus, steered with the keyboard."""

from __future__ import annotations

import functools
from typing import Any

# The element suppresses JupyterLab's own shortcuts, or the arrow keys would move to another cell.
_SCRIPT = """
const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Enter", " "];
function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true";
  const image = document.createElement("img");
  image.className = "toolkit-picture";
  image.tabIndex = 0;
  let address = null;
  const draw = () => {
    const bytes = model.get("value");
    const next = URL.createObjectURL(new Blob([bytes], { type: "image/" + model.get("format") }));
    image.src = next;
    image.dataset.bytes = String(bytes.byteLength);
    image.alt = model.get("description");
    if (address !== null) URL.revokeObjectURL(address);
    address = next;
  };
  image.addEventListener("click", (event) => {
    image.focus();
    const box = image.getBoundingClientRect();
    model.send({
      kind: "click",
      x: ((event.clientX - box.left) * image.naturalWidth) / box.width,
      y: ((event.clientY - box.top) * image.naturalHeight) / box.height,
    });
  });
  image.addEventListener("keydown", (event) => {
    if (!KEYS.includes(event.key) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    model.send({ kind: "key", key: event.key });
  });
  model.on("change:value", draw);
  draw();
  el.appendChild(image);
  return () => { model.off("change:value", draw); if (address !== null) URL.revokeObjectURL(address); };
}
export default { render };
"""

_STYLE = """
.toolkit-picture { max-width: 100%; height: auto; cursor: pointer; outline: none; border: 2px solid transparent; }
.toolkit-picture:focus { border-color: #56B4E9; }
"""


@functools.cache
def _picture_class() -> type[Any]:
    import anywidget
    import traitlets

    class PictureWidget(anywidget.AnyWidget):
        """Bytes of one picture; sends {"kind": "click", "x", "y"} and {"kind": "key", "key"}."""

        _esm = _SCRIPT
        _css = _STYLE
        value = traitlets.Bytes(b"").tag(sync=True)
        format = traitlets.Unicode("png").tag(sync=True)
        description = traitlets.Unicode("").tag(sync=True)

    return PictureWidget


def picture_widget(value: bytes, picture_format: str, description: str) -> Any:
    """A clickable picture; `description` is its text for screen readers."""
    return _picture_class()(value=value, format=picture_format, description=description)
