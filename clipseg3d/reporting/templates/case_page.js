"use strict";
/* Draws the slices of a case page. Volumes are stored in the page, compressed; x runs fastest. */
(async () => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const [sizeX, sizeY] = data.shape;
  const strides = [1, sizeX, sizeX * sizeY];
  // LPS order: x grows to the patient's left, y to the back, z upwards. With "up", z is drawn upwards.
  const planes = {
    axial: { normal: 2, across: 0, down: 1, up: false, edges: ["R", "L", "A", "P"], from: "from the bottom" },
    coronal: { normal: 1, across: 0, down: 2, up: true, edges: ["R", "L", "S", "I"], from: "from the front" },
    sagittal: { normal: 0, across: 1, down: 2, up: true, edges: ["A", "P", "S", "I"], from: "from the right" },
  };
  for (const plane of Object.values(planes)) {
    plane.width = data.shape[plane.across];
    plane.height = data.shape[plane.down];
    plane.wideMm = plane.width * data.spacing[plane.across];
    plane.highMm = plane.height * data.spacing[plane.down];
    plane.buffer = new OffscreenCanvas(plane.width, plane.height);
  }
  const sequenceNames = Object.fromEntries(data.sequences);
  const regions = data.regions.map(([name, colour], i) => ({ name, colour, rgb: channels(colour), bit: 1 << i }));
  const paler = (region) => `rgb(${region.rgb.map((c) => c + 0.5 * (255 - c))})`;
  const pictures = [...document.querySelectorAll("canvas.picture")].map((canvas) => ({
    canvas,
    planeName: canvas.dataset.plane,
    plane: planes[canvas.dataset.plane],
    sequence: canvas.dataset.sequence,
    ownMap: canvas.dataset.map,
    inViewer: canvas.closest("#viewer") !== null,
  }));
  const slices = [...data.start];
  const phone = matchMedia("(max-width: 520px)"); // as in the style
  // The only pictures shown, such as "t1ce" or "t1ce-axial"; all if empty. A phone has room for one.
  const onlyAtFirst = phone.matches ? `${data.background}-axial` : "";
  let only = onlyAtFirst;
  let density = 0; // bitmap pixels per CSS pixel; 0 takes that of the screen

  const volumes = {};
  for (const holder of document.querySelectorAll('script[type="application/octet-stream"]')) {
    volumes[holder.id] = await unpack(holder.textContent);
    holder.remove();
  }
  // A bit per region: the prediction, then the reference; eight bits in each volume.
  const regionVolumes = Object.keys(volumes).filter((name) => name.startsWith("regions-")).map((name) => volumes[name]);
  // A bit per prompt, likewise.
  const prompts = data.prompts.map((colour, i) => ({ colour, rgb: channels(colour), number: i + 1, bit: 1 << (i % 8), volume: volumes[`prompts-${i >> 3}`] }));
  for (const map of data.maps) map.rgb = map.colours.map(channels);

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const volume = new Uint8Array(await new Response(stream).arrayBuffer());
    for (let row = 0; row < volume.length; row += sizeX)
      for (let i = row + 1; i < row + sizeX; i++) volume[i] += volume[i - 1];
    return volume;
  }

  function channels(colour) {
    return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  }

  function isChosen(region) {
    return $(`show-${region.name}`).checked;
  }

  function chosenPrompts() {
    return prompts.filter((prompt) => $(`prompt-${prompt.number - 1}`).checked);
  }

  /* One slice of a volume, row by row as it is shown. */
  function cutSlice(volume, plane) {
    const out = new Uint8Array(plane.width * plane.height);
    const start = slices[plane.normal] * strides[plane.normal];
    for (let row = 0, to = 0; row < plane.height; row++) {
      let from = start + (plane.up ? plane.height - 1 - row : row) * strides[plane.down];
      for (let column = 0; column < plane.width; column++, from += strides[plane.across]) out[to++] = volume[from];
    }
    return out;
  }

  /* Closed outlines of the voxels that have a bit, in voxels; they run halfway between voxel centres. */
  function outline(bits, bit, plane) {
    const { width, height } = plane;
    const inside = (row, column) =>
      row >= 0 && column >= 0 && row < height && column < width && (bits[row * width + column] & bit) !== 0;
    // Midpoints of the sides of a cell: top, right, bottom, left; in half voxels from its first corner.
    const sides = [[1, 0], [2, 1], [1, 2], [0, 1]];
    // Lines from side to side, with the inside on the right, for each code of the corners inside:
    // top left 8, top right 4, bottom right 2, bottom left 1.
    const segments = [
      [], [[3, 2]], [[2, 1]], [[3, 1]], [[1, 0]], [[1, 0], [3, 2]], [[2, 0]], [[3, 0]],
      [[0, 3]], [[0, 2]], [[0, 3], [2, 1]], [[0, 1]], [[1, 3]], [[1, 2]], [[2, 3]], [],
    ];
    const pitch = 2 * width + 4;
    const next = new Map();
    for (let row = -1; row < height; row++)
      for (let column = -1; column < width; column++) {
        const corners =
          8 * inside(row, column) + 4 * inside(row, column + 1) + 2 * inside(row + 1, column + 1) + inside(row + 1, column);
        for (const [a, b] of segments[corners]) {
          const at = ([x, y]) => (2 * row + 3 + y) * pitch + 2 * column + 3 + x;
          next.set(at(sides[a]), at(sides[b]));
        }
      }
    const path = new Path2D();
    while (next.size) {
      const points = [];
      let [key] = next.keys();
      while (next.has(key)) {
        const following = next.get(key);
        next.delete(key);
        points.push([((key % pitch) - 2) / 2, (Math.floor(key / pitch) - 2) / 2]);
        key = following;
      }
      const midpoint = ([x, y], [u, v]) => [(x + u) / 2, (y + v) / 2];
      path.moveTo(...midpoint(points.at(-1), points[0]));
      points.forEach((point, i) => path.quadraticCurveTo(...point, ...midpoint(point, points[(i + 1) % points.length])));
      path.closePath();
    }
    return path;
  }

  /* The pixels of a slice: grey values, then the map, then the colours of regions and prompts. */
  function colourPlane(picture, map, bits, cutPrompts) {
    const { plane, inViewer } = picture;
    const image = new ImageData(plane.width, plane.height);
    const pixels = image.data;
    const grey = cutSlice(volumes[`image-${picture.sequence}`], plane);
    const values = map && cutSlice(volumes[map.id], plane);
    const contrast = 2 ** (Number($("contrast").value) / 50);
    const shift = 127.5 + 1.275 * Number($("brightness").value);
    const opacity = map ? Number($("opacity").value) / 100 : 0;
    const fill = inViewer ? Number($("fill").value) / 100 : 0;
    // The last region that a voxel is in gives it its colour; of nested ones, that is the innermost.
    const chosen = regions.filter(isChosen).reverse();
    const predicted = (1 << regions.length) - 1; // the bits of the prediction
    const regionColours = Array.from({ length: predicted + 1 }, (_, b) => chosen.find((region) => b & region.bit)?.rgb);
    const promptColour = (i) => cutPrompts.findLast((cut) => cut.bits[i] & cut.prompt.bit)?.prompt.rgb;
    for (let i = 0; i < grey.length; i++) {
      let brightness = grey[i] === 0 ? 0 : Math.min(255, Math.max(0, (grey[i] - 127.5) * contrast + shift));
      let share = 0;
      let mapColour = null;
      if (map && values[i] > 0) {
        const level = (values[i] - 1) / 254;
        // The nearer a value is to 0, the more transparent is the map; the scan under it is darkened.
        share = opacity * Math.min(1, 2 * (map.low < 0 ? Math.abs(2 * level - 1) : level));
        mapColour = map.rgb[values[i] - 1];
        brightness *= 1 - 0.4 * opacity;
      }
      const regionColour = fill ? (promptColour(i) ?? regionColours[bits[i] & predicted]) : undefined;
      for (let c = 0; c < 3; c++) {
        let value = mapColour ? brightness + share * (mapColour[c] - brightness) : brightness;
        if (regionColour) value += fill * (regionColour[c] - value);
        pixels[4 * i + c] = value;
      }
      pixels[4 * i + 3] = 255;
    }
    return image;
  }

  function draw(picture, cut) {
    const { canvas, plane } = picture;
    const pixels = density || Math.max(1, window.devicePixelRatio);
    canvas.width = Math.round(picture.wide * pixels);
    canvas.height = Math.round(picture.high * pixels);
    const context = canvas.getContext("2d");
    const index = picture.inViewer ? $("map")?.value : picture.ownMap;
    const map = index ? data.maps[index] : null;
    const shownPrompts = picture.inViewer ? chosenPrompts().map((prompt) => cutPrompt(prompt, plane)).filter((cut) => cut.outlined) : [];
    plane.buffer.getContext("2d").putImageData(colourPlane(picture, map, cut.bits, shownPrompts), 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(plane.buffer, 0, 0, canvas.width, canvas.height);

    const scale = new DOMMatrix([canvas.width / plane.width, 0, 0, canvas.height / plane.height, 0, 0]);
    const lineWidth = picture.inViewer && only ? 2 : 1.4;
    for (const [i, region] of regions.entries()) {
      if (!picture.inViewer && map.region && map.region !== region.name) continue;
      if (!isChosen(region)) continue;
      for (const isReference of [false, true]) {
        if (isReference && !$("show-reference")?.checked) continue;
        const path = new Path2D();
        path.addPath(cut.outlines[isReference ? i + regions.length : i], scale);
        context.strokeStyle = isReference ? paler(region) : region.colour;
        context.lineWidth = lineWidth * pixels;
        context.setLineDash(isReference ? [4 * pixels, 3 * pixels] : []);
        context.stroke(path);
      }
    }
    context.setLineDash([]);
    for (const { prompt, outlined } of shownPrompts) {
      const path = new Path2D();
      path.addPath(outlined, scale);
      context.strokeStyle = prompt.colour;
      context.lineWidth = lineWidth * pixels;
      context.stroke(path);
    }
    if (picture.inViewer && $("crosshair").checked) drawCrosshair(context, plane, pixels);
    drawLetters(context, picture, pixels);
    const position = `${picture.planeName} slice ${slices[plane.normal] + 1} of ${data.shape[plane.normal]}`;
    const found = regions.filter((region) => cut.found & region.bit).map((region) => region.name);
    const contents = found.length ? `with ${found.join(" ")}` : "nothing segmented";
    canvas.setAttribute("aria-label", [sequenceNames[picture.sequence], position, contents, map?.title].filter(Boolean).join(", "));
  }

  function drawCrosshair(context, plane, pixels) {
    const { width, height } = context.canvas;
    const x = ((slices[plane.across] + 0.5) * width) / plane.width;
    const y = ((shownRow(plane, slices[plane.down]) + 0.5) * height) / plane.height;
    const gap = 7 * pixels;
    context.strokeStyle = "rgb(226 231 236 / 45%)";
    context.lineWidth = pixels;
    context.beginPath();
    for (const [fromX, fromY, toX, toY] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
      context.moveTo(fromX, fromY);
      context.lineTo(toX, toY);
    }
    context.stroke();
  }

  function shownRow(plane, voxel) {
    return plane.up ? plane.height - 1 - voxel : voxel;
  }

  function drawLetters(context, picture, pixels) {
    const { width, height } = context.canvas;
    const [left, right, top, bottom] = picture.plane.edges;
    const edge = 4 * pixels;
    context.font = `${11 * pixels}px system-ui, sans-serif`;
    context.fillStyle = "#c3ccd5";
    context.shadowColor = "#000";
    context.shadowBlur = 3 * pixels;
    const labels = [
      [left, edge, height / 2, "left", "middle"],
      [right, width - edge, height / 2, "right", "middle"],
      [top, width / 2, edge, "center", "top"],
      [bottom, width / 2, height - edge, "center", "bottom"],
    ];
    if (picture.inViewer) labels.push([sequenceNames[picture.sequence], edge, edge, "left", "top"]);
    for (const [label, x, y, align, baseline] of labels) {
      context.textAlign = align;
      context.textBaseline = baseline;
      context.fillText(label, x, y);
    }
    const bar = (20 * width) / picture.plane.wideMm;
    if (bar < 0.5 * width) {
      context.fillRect(width - edge - bar, height - edge - pixels, bar, 1.5 * pixels);
      context.textAlign = "right";
      context.textBaseline = "bottom";
      context.fillText("20 mm", width - edge, height - edge - 2 * pixels);
    }
    context.shadowBlur = 0;
  }

  /* All pictures have the same scale, the largest that fits beside the controls. Each plane is a row;
     the planes of a single sequence are shown side by side. On a phone, where the page is scrolled anyway,
     two pictures or a single one fill the width. */
  function layOut() {
    const viewer = $("viewer");
    const shown = pictures.filter((picture) => picture.inViewer && isShown(picture));
    const rows = [...new Set(shown.map((picture) => picture.plane))];
    const perRow = shown.length / rows.length;
    const beside = perRow === 1 && !phone.matches;
    const columns = beside ? rows.length : phone.matches ? Math.min(2, perRow) : perRow;
    const widest = Math.max(...rows.map((plane) => plane.wideMm));
    const heights = rows.map((plane) => plane.highMm);
    const highest = beside ? Math.max(...heights) : heights.reduce((sum, mm) => sum + mm, 0);
    const controls = 38 + (beside ? 52 : 34 * rows.length); // the choice of pictures, and the sliders
    const roomBeside = viewer.clientWidth - 6 * (columns - 1);
    const roomBelow = phone.matches ? Infinity : Math.max(420, window.innerHeight - viewer.offsetTop - 8) - controls;
    const scale = Math.min(roomBeside / (columns * widest), roomBelow / highest);
    viewer.classList.toggle("beside", beside);
    viewer.style.setProperty("--columns", perRow);
    viewer.style.setProperty("--cell", scale * widest);
    for (const picture of pictures) {
      const { canvas, plane } = picture;
      const shownScale = picture.inViewer ? (phone.matches && columns === 1 ? roomBeside / plane.wideMm : scale) : mapScale(canvas);
      [picture.wide, picture.high] = [plane.wideMm * shownScale, plane.highMm * shownScale];
      canvas.style.setProperty("--wide", picture.wide);
      canvas.style.setProperty("--high", picture.high);
      canvas.style.setProperty("--share", plane.wideMm / widest);
      if (picture.inViewer) canvas.parentElement.hidden = !isShown(picture);
    }
    for (const name of Object.keys(planes)) $(`plane-${name}`).hidden = !rows.includes(planes[name]);
  }

  function mapScale(canvas) {
    const { wideMm, highMm } = planes.axial;
    if (!phone.matches) return 190 / Math.max(wideMm, highMm);
    const columns = Math.min(2, canvas.closest(".row").childElementCount);
    return (canvas.closest(".groups").clientWidth - 6 * (columns - 1)) / columns / wideMm;
  }

  function nameOf(picture) {
    return `${picture.sequence}-${picture.planeName}`;
  }

  function isShown(picture) {
    return !only || only === picture.sequence || only === nameOf(picture);
  }

  /* Bits and outlines of the regions in the current slice of a plane: prediction, then reference. */
  function cutRegions(plane) {
    const slice = slices[plane.normal];
    if (plane.cut?.slice !== slice) {
      const bits = new Uint32Array(plane.width * plane.height);
      for (const [number, volume] of regionVolumes.entries()) {
        cutSlice(volume, plane).forEach((byte, i) => { bits[i] |= byte << (8 * number); });
      }
      const found = bits.reduce((sum, voxel) => sum | voxel, 0);
      plane.cut = { slice, bits, found, outlines: [...Array(2 * regions.length).keys()].map((i) => outline(bits, 1 << i, plane)), prompts: new Map() };
    }
    return plane.cut;
  }

  /* Bits and outline, if there is any of it, of a prompt in the current slice; made when it is first shown. */
  function cutPrompt(prompt, plane) {
    const known = cutRegions(plane).prompts;
    if (!known.has(prompt)) {
      const bits = cutSlice(prompt.volume, plane);
      const outlined = bits.some((byte) => byte & prompt.bit) ? outline(bits, prompt.bit, plane) : null;
      known.set(prompt, { prompt, bits, outlined });
    }
    return known.get(prompt);
  }

  function drawAll() {
    for (const picture of pictures) if (!picture.inViewer || isShown(picture)) draw(picture, cutRegions(picture.plane));
    for (const [name, plane] of Object.entries(planes)) {
      const slice = slices[plane.normal];
      const mm = (slice * data.spacing[plane.normal]).toFixed(1);
      const position = `${slice + 1} of ${data.shape[plane.normal]} · ${mm} mm ${plane.from}`;
      $(name).value = slice + 1;
      $(name).setAttribute("aria-valuetext", position);
      document.querySelector(`output[for="${name}"]`).textContent = position;
    }
    $("position").textContent = describePosition();
    drawBar($("map-bar"), $("map")?.value);
    for (const bar of document.querySelectorAll(".groups .bar")) drawBar(bar, bar.dataset.map);
  }

  /* What is under the crosshair, in words. */
  function describePosition() {
    const voxel = slices.reduce((sum, slice, axis) => sum + slice * strides[axis], 0);
    const bits = regionVolumes.reduce((sum, volume, number) => sum | (volume[voxel] << (8 * number)), 0);
    const names = (shift) => regions.filter((r) => bits & (r.bit << shift)).map((r) => r.name).join(" ") || "none";
    const parts = [`Crosshair: voxel ${slices.join(", ")} of the brain box`, `prediction ${names(0)}`];
    if ($("show-reference")) parts.push(`reference ${names(regions.length)}`);
    const asked = prompts.filter((prompt) => prompt.volume[voxel] & prompt.bit).map((prompt) => prompt.number);
    if (prompts.length) parts.push(`prompts ${asked.join(" ") || "none"}`);
    const map = data.maps[$("map")?.value];
    if (map) {
      const level = volumes[map.id][voxel];
      const value = map.low + ((level - 1) / 254) * (map.high - map.low);
      parts.push(`${map.title} ${level ? short(value) : "outside the brain"}`);
    }
    return parts.join(" · ");
  }

  function short(value) {
    return value.toPrecision(2).replace("-", "−");
  }

  function drawBar(bar, index) {
    if (!bar) return;
    bar.hidden = !index;
    if (!index) return;
    const map = data.maps[index];
    bar.querySelector(".low").textContent = short(map.low);
    bar.querySelector(".high").textContent = short(map.high);
    const context = bar.querySelector("canvas").getContext("2d");
    map.colours.forEach((colour, i) => {
      context.fillStyle = colour;
      context.fillRect(i, 0, 1, 1);
    });
  }

  let scheduled = false;
  function update() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      layOut();
      drawAll();
    });
  }

  function move(axis, slice) {
    slices[axis] = Math.min(data.shape[axis] - 1, Math.max(0, slice));
    writeAddress();
    update();
  }

  /* The part of the address after "#" says what is shown, so that a link can lead to a slice. */
  function writeAddress() {
    const state = new URLSearchParams();
    for (const [name, plane] of Object.entries(planes)) state.set(name, slices[plane.normal] + 1);
    if ($("map")?.value) state.set("map", $("map").value);
    if (only !== onlyAtFirst) state.set("only", only);
    history.replaceState(null, "", `#${state}`);
  }

  function readAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [name, plane] of Object.entries(planes)) {
      const slice = parseInt(state.get(name), 10);
      if (slice >= 1 && slice <= data.shape[plane.normal]) slices[plane.normal] = slice - 1;
    }
    if ($("map") && data.maps[state.get("map")]) $("map").value = state.get("map");
    if ([...$("only").options].some((option) => option.value === state.get("only"))) only = state.get("only");
    $("only").value = only;
    update();
  }

  function showOnly(name) {
    only = name;
    $("only").value = name;
    writeAddress();
    update();
  }

  for (const [name, plane] of Object.entries(planes)) {
    $(name).max = data.shape[plane.normal];
    $(name).addEventListener("input", (event) => move(plane.normal, Number(event.target.value) - 1));
  }
  for (const picture of pictures.filter((p) => p.inViewer)) {
    const { canvas, plane, planeName } = picture;
    let wheelDistance = 0;
    let drag = null; // the newest: where it began, in which slice, and whether it is more than a click
    canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, slice: slices[plane.normal], isLong: false }; });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag || !event.buttons) return;
      const distance = event.clientX - drag.x;
      if (!drag.isLong && Math.abs(distance) < 8) return;
      drag.isLong = true;
      canvas.setPointerCapture(event.pointerId);
      // A drag over the whole width leads through all slices, if each then has four pixels.
      move(plane.normal, drag.slice + Math.round(distance / Math.max(4, canvas.clientWidth / data.shape[plane.normal])));
    });
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // zooms the page
      event.preventDefault();
      wheelDistance += event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? 1 : 40);
      if (Math.abs(wheelDistance) < 40) return;
      move(plane.normal, slices[plane.normal] - Math.sign(wheelDistance));
      wheelDistance = 0;
    }, { passive: false });
    canvas.addEventListener("click", (event) => {
      if (drag?.isLong) return;
      const row = Math.floor((event.offsetY / canvas.clientHeight) * plane.height);
      move(plane.across, Math.floor((event.offsetX / canvas.clientWidth) * plane.width));
      move(plane.down, shownRow(plane, row));
      $(planeName).focus({ preventScroll: true });
    });
    canvas.addEventListener("dblclick", () => showOnly(only === nameOf(picture) ? "" : nameOf(picture)));
  }
  $("only").addEventListener("change", (event) => showOnly(event.target.value));
  for (const button of document.querySelectorAll("button[data-slices]"))
    button.addEventListener("click", () => button.dataset.slices.split(" ").forEach((slice, axis) => move(axis, Number(slice))));
  for (const control of document.querySelectorAll("aside input")) control.addEventListener("input", update);
  $("map")?.addEventListener("change", () => {
    writeAddress();
    update();
  });
  window.addEventListener("hashchange", readAddress);
  window.addEventListener("resize", update);
  new ResizeObserver(update).observe($("viewer"));
  for (const [when, pixels] of [["beforeprint", 3], ["afterprint", 0]])
    window.addEventListener(when, () => {
      density = pixels;
      drawAll();
    });
  readAddress();
  requestAnimationFrame(() => document.body.setAttribute("data-ready", ""));
})().catch((error) => {
  const problem = document.getElementById("problem");
  problem.textContent =
    `The pictures cannot be shown (${error}). Open this file in a current Chrome, Edge, Firefox or Safari, or create it again.`;
  problem.hidden = false;
});
