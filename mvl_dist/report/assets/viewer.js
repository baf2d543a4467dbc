// The page's 3D viewer: an image; over it the reference, a prediction and where that is wrong.
(function () {
  "use strict";
  const cases = JSON.parse(document.getElementById("viewer-data").textContent);
  const at = (id) => document.getElementById("viewer-" + id);
  const state = at("state");
  const say = (name, text) => { state.dataset.state = name; state.textContent = text; };
  const errorNames = ["missed", "false", "another region"];
  const errorColours = ["#3b5bff", "#ff2bd6", "#ffffff"];
  const overlays = ["reference", "prediction", "errors"];
  let view = null;
  let shown = 0;

  cases.forEach((one, index) => at("case").add(new Option(one.title, index)));

  const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  function labels(colours, towardsWhite) {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    colours.forEach((colour, index) => {
      const [r, g, b] = rgb(colour).map((c) => Math.round(c + (255 - c) * towardsWhite));
      table.R.push(r); table.G.push(g); table.B.push(b); table.A.push(255);
      table.I.push(index + 1); table.labels.push("");
    });
    return table;
  }

  function fillModels() {
    const one = cases[at("case").value];
    const chosen = at("model").value;
    at("model").replaceChildren();
    one.volumes.filter((v) => v.name !== "reference" && !v.name.startsWith("errors of ")).forEach((v) => at("model").add(new Option(v.name, v.name)));
    if (one.volumes.some((v) => v.name === chosen)) at("model").value = chosen;
    at("legend").replaceChildren();
    const legend = (head, names, colours) => {
      at("legend").append(head);
      names.forEach((name, index) => {
        const entry = document.createElement("span");
        const dot = document.createElement("i");
        dot.style.background = colours[index];
        entry.append(dot, name);
        at("legend").append(" ", entry);
      });
    };
    legend("Regions (reference in lighter colours):", one.regions, one.colours);
    legend(". Errors:", errorNames, errorColours);
  }

  async function volume(data, name, options) {
    return niivue.NVImage.loadFromBase64({ base64: data, name: name + ".nii.gz", ...options });
  }

  async function show() {
    const turn = ++shown;
    const one = cases[at("case").value];
    say("loading", "Loading ...");
    while (view.volumes.length) view.removeVolume(view.volumes[0]);
    const model = at("model").value;
    const light = labels(one.colours, 0.55), full = labels(one.colours, 0);
    const wanted = [
      ["image", one.image, null],
      ["reference", find(one, "reference"), light],
      [model, find(one, model), full],
      ["errors", find(one, "errors of " + model), labels(errorColours, 0)],
    ];
    for (const [name, data, colours] of wanted) {
      if (!data) continue;
      const loaded = await volume(data, name, { colormap: colours ? "red" : "gray" });
      if (turn !== shown) return;
      if (colours) loaded.setColormapLabel(colours);
      view.addVolume(loaded);
    }
    opacity();
    say("ready", one.title + "; prediction: " + model);
  }

  const find = (one, name) => (one.volumes.find((v) => v.name === name) || {}).data;

  function opacity() {
    const value = at("opacity").value / 100;
    overlays.forEach((name, index) => {
      if (view.volumes.length > index + 1) view.setOpacity(index + 1, at(name).checked ? value : 0);
    });
  }

  function type() {
    const types = {
      multiplanar: view.sliceTypeMultiplanar, render: view.sliceTypeRender, axial: view.sliceTypeAxial,
      coronal: view.sliceTypeCoronal, sagittal: view.sliceTypeSagittal,
    };
    view.setSliceType(types[at("view").value]);
  }

  async function start() {
    if (view) return;
    if (!document.createElement("canvas").getContext("webgl2")) {
      say("failed", "This browser gives the page no WebGL 2, which the viewer needs.");
      return;
    }
    try {
      view = new niivue.Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: true, isColorbar: false,
        multiplanarForceRender: true, crosshairWidth: 0.12, loadingText: "" });
      window.reportViewer = view;
      await view.attachToCanvas(at("canvas"));
      view.setInterpolation(true);
      type();
      fillModels();
      await show();
    } catch (error) {
      say("failed", "The viewer could not start: " + error);
    }
  }

  at("case").addEventListener("change", () => { fillModels(); start().then(show); });
  at("model").addEventListener("change", () => show());
  at("view").addEventListener("change", type);
  [...overlays, "opacity"].forEach((id) => at(id).addEventListener("input", opacity));
  fillModels();
  new IntersectionObserver((seen, watcher) => {
    if (seen.some((entry) => entry.isIntersecting)) { watcher.disconnect(); start(); }
  }).observe(at("box"));
})();
