// The element suppresses JupyterLab's own shortcuts, or the arrow keys would move to another cell.
const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Enter", " "];
function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true";
  const image = document.createElement("img");
  image.className = "toolkit-picture";
  image.tabIndex = 0;
  let address = null;
  const draw = () => {
    const bytes = model.get("value");
    const [next, before] = [URL.createObjectURL(new Blob([bytes], { type: "image/" + model.get("format") })), address];
    image.src = next;
    image.dataset.bytes = String(bytes.byteLength);
    image.alt = model.get("description");
    address = next;
    const forget = () => { if (before !== null) URL.revokeObjectURL(before); };
    image.decode().then(forget, forget); // an address that is still being read would be an error on the console
  };
  const readout = document.createElement("div");
  readout.className = "toolkit-readout";
  const say = () => { readout.textContent = model.get("readout") || "\u00a0"; };
  const place = (event) => {
    const box = image.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) * image.naturalWidth) / box.width,
      y: ((event.clientY - box.top) * image.naturalHeight) / box.height,
    };
  };
  let start = null, moved = false, last = 0;
  image.draggable = false;
  image.addEventListener("pointerdown", (event) => {
    start = place(event);
    moved = false;
    if (event.isPrimary) image.setPointerCapture(event.pointerId);
  });
  image.addEventListener("pointermove", (event) => {
    if (event.timeStamp - last < 40) return; // the kernel answers each of these
    last = event.timeStamp;
    const now = place(event);
    if (start === null) {
      model.send({ kind: "hover", ...now });
    } else if (moved || Math.hypot(now.x - start.x, now.y - start.y) > 5) {
      model.send({ kind: "drag", from: start, to: now });
      moved = true;
      start = now;
    }
  });
  image.addEventListener("pointerup", (event) => {
    const now = place(event), from = start;
    start = null;
    if (moved && from) model.send({ kind: "drag", from, to: now });
  });
  image.addEventListener("pointercancel", () => { start = null; });
  image.addEventListener("pointerleave", () => model.send({ kind: "hover", x: -1, y: -1 }));
  image.addEventListener("click", (event) => {
    image.focus();
    if (!moved) model.send({ kind: "click", ...place(event) });
  });
  image.addEventListener("wheel", (event) => {
    if (document.activeElement !== image) return; // or nobody could scroll past
    event.preventDefault();
    model.send({ kind: "wheel", steps: -Math.sign(event.deltaY), ...place(event) });
  }, { passive: false });
  image.addEventListener("keydown", (event) => {
    if (!KEYS.includes(event.key) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    event.preventDefault();
    event.stopPropagation();
    model.send({ kind: "key", key: event.key });
  });
  model.on("change:value", draw);
  model.on("change:readout", say);
  draw();
  say();
  el.append(image, readout);
  return () => { model.off("change:value", draw); model.off("change:readout", say); if (address !== null) URL.revokeObjectURL(address); };
}
export default { render };
