// The page's 3D viewer: an image, its reference as outlines in lighter colours, a prediction.
(function () {
  "use strict";
  const cases = JSON.parse(document.getElementById("viewer-data").textContent);
  const at = (id) => document.getElementById("viewer-" + id);
  const state = at("state");
  const say = (name, text) => { state.dataset.state = name; state.textContent = text; };
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
    one.volumes.filter((v) => v.name !== "reference").forEach((v) => at("model").add(new Option(v.name, v.name)));
    if (one.volumes.some((v) => v.name === chosen)) at("model").value = chosen;
    at("legend").replaceChildren("Reference in lighter colours, prediction in full ones:");
    one.regions.forEach((region, index) => {
      const dot = document.createElement("i");
      dot.style.background = one.colours[index];
      at("legend").append(dot, region);
    });
  }

  async function volume(data, name, options) {
    return niivue.NVImage.loadFromBase64({ base64: data, name: name + ".nii.gz", ...options });
  }

  async function show() {
    const turn = ++shown;
    const one = cases[at("case").value];
    say("loading", "Loading ...");
    while (view.volumes.length) view.removeVolume(view.volumes[0]);
    const wanted = [["image", one.image, { colormap: "gray" }]];
    for (const name of ["reference", at("model").value]) {
      const found = one.volumes.find((v) => v.name === name);
      if (found) wanted.push([name, found.data, { colormap: "red" }]);
    }
    for (const [name, data, options] of wanted) {
      const loaded = await volume(data, name, options);
      if (turn !== shown) return;
      if (name !== "image") loaded.setColormapLabel(labels(one.colours, name === "reference" ? 0.55 : 0));
      view.addVolume(loaded);
    }
    opacity();
    say("ready", one.title + "; prediction: " + at("model").value);
  }

  function opacity() {
    const value = at("opacity").value / 100;
    if (view.volumes.length > 1) view.setOpacity(1, at("reference").checked ? value : 0);
    if (view.volumes.length > 2) view.setOpacity(2, at("prediction").checked ? value : 0);
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
        multiplanarForceRender: true, loadingText: "" });
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
  ["reference", "prediction", "opacity"].forEach((id) => at(id).addEventListener("input", opacity));
  fillModels();
  new IntersectionObserver((seen, watcher) => {
    if (seen.some((entry) => entry.isIntersecting)) { watcher.disconnect(); start(); }
  }).observe(at("box"));
})();
