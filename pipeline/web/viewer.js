// A scan on canvases: slices by wheel and keys, gray window, zoom, three planes with a cross, and a mask that can be
// drawn. Slices come from the server as raw gray levels (uint16) and masks (uint8); what is drawn goes back at once.

const LEVELS = 65535;
const TINT = [255, 40, 40];
const LINE = [255, 225, 0]; // yellow on red stays visible to color-blind readers, as in the overlays
const KEPT = 96; // slices of a plane that stay in memory

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// Colors of the heat: black, red, yellow, white; their brightness alone tells the order.
const heatColor = (v) => [Math.min(255, v * 3), clamp(v * 3 - 255, 0, 255), clamp(v * 3 - 510, 0, 255)];

export default {
  template: `
    <div class="tl-viewer" ref="root">
      <div :class="['tl-panes', panesShown.length > 1 ? 'tl-three' : 'tl-one']">
        <figure v-for="(pane, p) in panesShown" :key="pane.axis" class="tl-pane">
          <canvas :ref="'canvas' + p" tabindex="0" role="img" :aria-label="describePane(p)" :data-pane="p"
            @wheel.prevent="wheel(p, $event)" @pointerdown="down(p, $event)" @pointermove="move(p, $event)"
            @pointerup="up(p, $event)" @pointercancel="up(p, $event)" @pointerleave="hover = null; draw(p)"
            @contextmenu.prevent @keydown="key(p, $event)"></canvas>
          <figcaption>
            <span>{{ titleOf(p) }}</span>
            <input v-if="pane.slices > 1" type="range" min="0" :max="pane.slices - 1" :value="indexOf(p)"
              :aria-label="'Slice, ' + pane.name" @input="setIndex(p, +$event.target.value)" />
          </figcaption>
        </figure>
      </div>
      <div class="tl-window">
        <label>Brightness <input type="range" min="0" max="1000" :value="levelShare"
          aria-label="Brightness (window level)" @input="setLevel(+$event.target.value)" /></label>
        <label>Contrast <input type="range" min="0" max="1000" :value="contrastShare"
          aria-label="Contrast (window width)" @input="setContrast(+$event.target.value)" /></label>
        <span class="tl-buttons">
          <button type="button" @click="zoomBy(1.25)" aria-label="Zoom in">+</button>
          <button type="button" @click="zoomBy(0.8)" aria-label="Zoom out">&minus;</button>
          <button type="button" @click="reset()" aria-label="Reset window and zoom">Reset</button>
        </span>
      </div>
      <div class="tl-status" role="status" aria-live="polite">{{ message }}</div>
    </div>`,

  props: {
    base: String,
    facts: Object,
    panes: String, // all or one
    editable: Boolean,
    opacity: Number,
    maskVisible: Boolean,
    heatVisible: Boolean,
    tool: String, // look, brush, eraser or fill
    brush: Number, // diameter in pixels
    undoable: Number,
    redoable: Number,
  },

  data() {
    return {
      position: [], // along each array axis
      low: 0,
      high: LEVELS,
      zoom: 1,
      pan: [0, 0], // in pixels of the first pane's slice
      hover: null,
      message: "",
      current: this.tool || "look",
    };
  },

  computed: {
    panesShown() {
      return this.panes === "one" ? this.facts.panes.slice(0, 1) : this.facts.panes;
    },
    levelShare() {
      return Math.round((1 - (this.low + this.high) / 2 / LEVELS) * 1000);
    },
    contrastShare() {
      return Math.round((1 - Math.sqrt((this.high - this.low) / LEVELS / 2)) * 1000);
    },
  },

  watch: {
    opacity() { this.drawAll(); },
    maskVisible() { this.drawAll(); },
    heatVisible() { this.loadHeat(); },
    brush() { this.drawAll(); },
    tool(value) { this.current = value; this.drawAll(); },
    base() { this.open(); },
    panes() { this.$nextTick(() => this.panesShown.forEach((_, p) => this.load(p))); },
  },

  created() {
    this.gray = new Map(); // "axis/index" -> Uint16Array
    this.masks = new Map(); // "axis/index" -> Uint8Array
    this.loading = new Map();
    this.queue = Promise.resolve(); // edits go to the server one after the other
    this.failed = false;
    this.stroke = null;
    this.drag = null;
    this.heat = null;
  },

  mounted() {
    this.resizing = new ResizeObserver(() => this.drawAll());
    this.resizing.observe(this.$refs.root);
    this.open();
  },

  unmounted() {
    this.resizing.disconnect();
  },

  methods: {
    open() {
      this.gray.clear();
      this.masks.clear();
      this.loading.clear();
      this.heat = null;
      const first = this.facts.panes[0];
      this.position = this.facts.center.map((n, axis) => clamp(Math.round(n), 0, this.facts.shape[axis] - 1));
      if (this.facts.volume) this.position[first.axis] = clamp(this.facts.start, 0, first.slices - 1);
      [this.low, this.high] = this.facts.window;
      if (this.high <= this.low) this.high = this.low + 1;
      this.zoom = 1;
      this.pan = [0, 0];
      this.current = this.tool || "look";
      this.panesShown.forEach((_, p) => this.load(p));
      this.loadHeat();
      this.$nextTick(() => this.drawAll());
    },

    // Places ------------------------------------------------------------------------------------------------------

    pane(p) { return this.panesShown[p]; },
    indexOf(p) { return this.facts.volume ? this.position[this.pane(p).axis] : 0; },
    titleOf(p) {
      const pane = this.pane(p);
      return pane.slices > 1 ? `${pane.name}, slice ${this.indexOf(p)} (0 to ${pane.slices - 1})` : pane.name;
    },
    describePane(p) {
      const edit = this.editable && p === 0 ? " Shift and arrow keys move the cross, space paints there." : "";
      return `Scan, ${this.titleOf(p)}. Arrow up and down change the slice.${edit}`;
    },
    setIndex(p, index) {
      const pane = this.pane(p);
      if (!this.facts.volume || this.stroke) return; // a stroke ends on the slice on which it began
      this.position[pane.axis] = clamp(index, 0, pane.slices - 1);
      this.load(p);
      this.drawAll();
      this.$emit("moved", { position: [...this.position], slice: this.indexOf(0) });
    },
    setSlice(index) { this.setIndex(0, index); },
    cross(p) { // row and column of the position
      const pane = this.pane(p);
      if (!this.facts.volume) return this.position;
      const along = (axis, step) => (step === 1 ? this.position[axis] : this.facts.shape[axis] - 1 - this.position[axis]);
      return [along(pane.row_axis, pane.row_step), along(pane.column_axis, pane.column_step)];
    },
    setCross(p, row, column) {
      const pane = this.pane(p);
      const [r, c] = [clamp(Math.floor(row), 0, pane.rows - 1), clamp(Math.floor(column), 0, pane.columns - 1)];
      if (!this.facts.volume) {
        this.position = [r, c];
      } else {
        this.position[pane.row_axis] = pane.row_step === 1 ? r : pane.rows - 1 - r;
        this.position[pane.column_axis] = pane.column_step === 1 ? c : pane.columns - 1 - c;
        this.panesShown.forEach((_, other) => this.load(other));
      }
      this.drawAll();
      this.$emit("moved", { position: [...this.position], slice: this.indexOf(0) });
    },

    // Data --------------------------------------------------------------------------------------------------------

    async load(p) {
      const { axis, slices } = this.pane(p);
      const index = this.indexOf(p);
      await this.fetchSlice(axis, index);
      this.draw(p);
      for (const next of [index + 1, index - 1]) if (next >= 0 && next < slices) this.fetchSlice(axis, next);
    },
    fetchSlice(axis, index) {
      const key = `${axis}/${index}`;
      if (this.gray.has(key) && this.masks.has(key)) return Promise.resolve();
      if (this.loading.has(key)) return this.loading.get(key);
      const base = this.base;
      const take = async (what) => {
        const answer = await fetch(`${base}/${what}/${key}`);
        if (!answer.ok) throw new Error((await answer.json()).detail || "the slice cannot be shown");
        return answer.arrayBuffer();
      };
      const work = (async () => {
        try {
          const [gray, mask] = await Promise.all([take("slice"), take("mask")]);
          if (base !== this.base) return;
          for (const kept of [this.gray, this.masks]) if (kept.size > KEPT * 3) kept.delete(kept.keys().next().value);
          this.gray.set(key, new Uint16Array(gray));
          this.masks.set(key, new Uint8Array(mask));
        } catch (error) {
          this.message = error.message;
        } finally {
          this.loading.delete(key);
        }
      })();
      this.loading.set(key, work);
      return work;
    },
    async loadHeat() {
      if (this.heatVisible && this.facts.heat && !this.heat) {
        const answer = await fetch(`${this.base}/heat`);
        if (answer.ok) this.heat = new Uint8Array(await answer.arrayBuffer());
      }
      this.drawAll();
    },
    async reloadMasks() {
      const first = this.facts.panes[0].axis;
      const keep = this.masks.get(`${first}/${this.indexOf(0)}`);
      this.masks.clear();
      if (keep) this.masks.set(`${first}/${this.indexOf(0)}`, keep); // no flicker while the new one comes
      await Promise.all(this.panesShown.map(async (pane, p) => {
        const key = `${pane.axis}/${this.indexOf(p)}`;
        const answer = await fetch(`${this.base}/mask/${key}`);
        if (answer.ok) this.masks.set(key, new Uint8Array(await answer.arrayBuffer()));
      }));
      this.drawAll();
    },

    // Drawing on the screen ---------------------------------------------------------------------------------------

    drawAll() { this.panesShown.forEach((_, p) => this.draw(p)); },
    canvas(p) {
      const found = this.$refs["canvas" + p];
      return Array.isArray(found) ? found[0] : found;
    },
    fit(p) { // the place of the slice on the canvas, in canvas pixels
      const pane = this.pane(p);
      const canvas = this.canvas(p);
      const height = pane.rows * pane.aspect;
      const scale = Math.min(canvas.width / pane.columns, canvas.height / height) * this.zoom;
      return {
        scale,
        x: (canvas.width - pane.columns * scale) / 2 + this.pan[0] * scale,
        y: (canvas.height - height * scale) / 2 + this.pan[1] * scale,
      };
    },
    draw(p) {
      const canvas = this.canvas(p);
      if (!canvas) return;
      const pane = this.pane(p);
      const width = Math.max(1, canvas.clientWidth);
      const most = (this.panesShown.length > 1 ? 0.45 : 0.6) * Math.max(window.innerHeight, 500);
      const height = Math.round(Math.min(width * (pane.rows * pane.aspect) / pane.columns, most));
      const ratio = window.devicePixelRatio || 1;
      if (canvas.style.height !== `${height}px`) canvas.style.height = `${height}px`;
      if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
      if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
      const context = canvas.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      const index = this.indexOf(p);
      const gray = this.gray.get(`${pane.axis}/${index}`);
      if (!gray) return;
      const mask = this.stroke && p === 0 ? this.stroke.mask : this.masks.get(`${pane.axis}/${index}`);
      const { scale, x, y } = this.fit(p);
      const place = [x, y, pane.columns * scale, pane.rows * pane.aspect * scale];
      context.imageSmoothingEnabled = scale < 6 * ratio;
      context.drawImage(this.paintGray(pane, gray), ...place);
      if (this.heatVisible && this.heat && p === 0 && index === this.facts.heat_slice) {
        context.drawImage(this.paintHeat(pane), ...place);
      }
      if (mask && this.maskVisible) {
        context.imageSmoothingEnabled = false;
        context.drawImage(this.paintMask(pane, mask), ...place);
        const placed = new Path2D(); // so that the line is as thin on stretched pixels as on square ones
        placed.addPath(this.outline(pane, mask), new DOMMatrix([scale, 0, 0, pane.aspect * scale, x, y]));
        context.lineWidth = 1.5 * ratio;
        context.strokeStyle = `rgb(${LINE})`;
        context.stroke(placed);
      }
      this.drawMarks(context, p, ratio);
      canvas.dataset.slice = index;
    },
    blank(pane) {
      const canvas = new OffscreenCanvas(pane.columns, pane.rows);
      const context = canvas.getContext("2d");
      return [canvas, context, context.createImageData(pane.columns, pane.rows)];
    },
    paintGray(pane, gray) {
      const [canvas, context, image] = this.blank(pane);
      const pixels = new Uint32Array(image.data.buffer);
      const span = 255 / Math.max(1, this.high - this.low);
      for (let i = 0; i < gray.length; i++) {
        const v = clamp((gray[i] - this.low) * span, 0, 255) | 0;
        pixels[i] = 0xff000000 | (v << 16) | (v << 8) | v;
      }
      context.putImageData(image, 0, 0);
      return canvas;
    },
    paintMask(pane, mask) {
      const [canvas, context, image] = this.blank(pane);
      const inside = Math.round(this.opacity * 255);
      for (let i = 0; i < mask.length; i++) {
        if (mask[i]) image.data.set([...TINT, inside], 4 * i);
      }
      context.putImageData(image, 0, 0);
      return canvas;
    },
    outline(pane, mask) { // along the borders of pixels, in pixels
      const { rows, columns } = pane;
      const path = new Path2D();
      const line = (x1, y1, x2, y2) => { path.moveTo(x1, y1); path.lineTo(x2, y2); };
      for (let i = 0; i < mask.length; i++) {
        if (!mask[i]) continue;
        const c = i % columns;
        const r = (i - c) / columns;
        if (c === 0 || !mask[i - 1]) line(c, r, c, r + 1);
        if (c === columns - 1 || !mask[i + 1]) line(c + 1, r, c + 1, r + 1);
        if (r === 0 || !mask[i - columns]) line(c, r, c + 1, r);
        if (r === rows - 1 || !mask[i + columns]) line(c, r + 1, c + 1, r + 1);
      }
      return path;
    },
    paintHeat(pane) {
      const [canvas, context, image] = this.blank(pane);
      for (let i = 0; i < this.heat.length; i++) {
        image.data.set([...heatColor(this.heat[i]), Math.round(this.heat[i] * 0.7)], 4 * i);
      }
      context.putImageData(image, 0, 0);
      return canvas;
    },
    drawMarks(context, p, ratio) {
      const pane = this.pane(p);
      const { scale, x, y } = this.fit(p);
      const at = (row, column) => [x + (column + 0.5) * scale, y + (row + 0.5) * pane.aspect * scale];
      const [row, column] = this.cross(p);
      const [cx, cy] = at(row, column);
      if (this.panesShown.length > 1 || (this.editable && document.activeElement === this.canvas(p))) {
        context.strokeStyle = "rgba(80, 200, 255, 0.65)";
        context.lineWidth = ratio;
        context.beginPath();
        context.moveTo(cx, 0); context.lineTo(cx, context.canvas.height);
        context.moveTo(0, cy); context.lineTo(context.canvas.width, cy);
        context.stroke();
      }
      if (this.editable && p === 0 && ["brush", "eraser"].includes(this.current)) {
        const [hx, hy] = this.hover ? at(this.hover[0] - 0.5, this.hover[1] - 0.5) : [cx, cy];
        context.strokeStyle = "#fff";
        context.lineWidth = ratio;
        context.beginPath();
        context.ellipse(hx, hy, this.brush / 2 * scale, this.brush / 2 * scale, 0, 0, 2 * Math.PI);
        context.stroke();
      }
      if (pane.borders) {
        context.font = `${13 * ratio}px sans-serif`;
        context.textAlign = "center";
        context.textBaseline = "middle";
        const [w, h, rim] = [context.canvas.width, context.canvas.height, 10 * ratio];
        const places = [[rim, h / 2], [w - rim, h / 2], [w / 2, rim], [w / 2, h - rim]].slice(0, h > 6 * rim ? 4 : 2);
        places.forEach(([tx, ty], i) => {
          context.lineWidth = 3 * ratio;
          context.lineJoin = "round";
          context.strokeStyle = "#000";
          context.fillStyle = "#fff";
          context.strokeText(pane.borders[i], tx, ty);
          context.fillText(pane.borders[i], tx, ty);
        });
      }
    },

    // Window and zoom ---------------------------------------------------------------------------------------------

    setWindow(level, width) {
      const half = Math.max(1, width) / 2;
      this.low = level - half;
      this.high = level + half;
      this.drawAll();
    },
    setLevel(share) { this.setWindow((1 - share / 1000) * LEVELS, this.high - this.low); },
    setContrast(share) { this.setWindow((this.low + this.high) / 2, 2 * LEVELS * (1 - share / 1000) ** 2); },
    zoomBy(factor) {
      this.zoom = clamp(this.zoom * factor, 1, 16);
      if (this.zoom === 1) this.pan = [0, 0];
      this.drawAll();
    },
    reset() {
      [this.low, this.high] = this.facts.window;
      this.zoom = 1;
      this.pan = [0, 0];
      this.drawAll();
    },

    // Mouse, pen, finger ------------------------------------------------------------------------------------------

    place(p, event) { // row and column under the pointer, with fractions
      const canvas = this.canvas(p);
      const box = canvas.getBoundingClientRect();
      const { scale, x, y } = this.fit(p);
      const px = (event.clientX - box.left) * canvas.width / box.width;
      const py = (event.clientY - box.top) * canvas.height / box.height;
      return [(py - y) / scale / this.pane(p).aspect, (px - x) / scale];
    },
    wheel(p, event) {
      if (event.ctrlKey) return this.zoomBy(event.deltaY < 0 ? 1.25 : 0.8);
      this.setIndex(p, this.indexOf(p) + Math.sign(event.deltaY));
    },
    down(p, event) {
      const canvas = this.canvas(p);
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      const [row, column] = this.place(p, event);
      const paints = this.editable && p === 0 && event.button === 0 && this.current !== "look";
      if (paints && this.current === "fill") return this.fill(Math.floor(row), Math.floor(column));
      if (paints) {
        if (!this.beginStroke()) return;
        this.stroke.last = [row, column];
        this.stamp(row, column);
        this.draw(p);
        return;
      }
      const kind = event.button === 2 ? "window" : event.button === 1 || this.zoom > 1 ? "pan" : "cross";
      this.drag = { kind, x: event.clientX, y: event.clientY, moved: false, before: [this.low, this.high, ...this.pan] };
      if (kind === "cross") this.setCross(p, row, column);
    },
    move(p, event) {
      const [row, column] = this.place(p, event);
      this.hover = p === 0 ? [row, column] : null;
      if (this.stroke) {
        const [fromRow, fromColumn] = this.stroke.last;
        const steps = Math.max(1, Math.ceil(2 * Math.hypot(row - fromRow, column - fromColumn)));
        for (let i = 1; i <= steps; i++) {
          this.stamp(fromRow + (row - fromRow) * i / steps, fromColumn + (column - fromColumn) * i / steps);
        }
        this.stroke.last = [row, column];
      } else if (this.drag) {
        const [dx, dy] = [event.clientX - this.drag.x, event.clientY - this.drag.y];
        const [low, high, panX, panY] = this.drag.before;
        this.drag.moved ||= Math.hypot(dx, dy) > 3;
        if (this.drag.kind === "window") {
          const scale = LEVELS / 600;
          return this.setWindow((low + high) / 2 - dy * scale, high - low + dx * scale);
        }
        if (this.drag.kind === "cross") return this.setCross(p, row, column);
        const perPixel = (window.devicePixelRatio || 1) / this.fit(p).scale;
        this.pan = [panX + dx * perPixel, panY + dy * perPixel];
        return this.drawAll();
      }
      if (this.stroke || this.editable) this.draw(0);
    },
    up(p, event) {
      if (this.stroke) this.endStroke();
      else if (this.drag && this.drag.kind === "pan" && !this.drag.moved) this.setCross(p, ...this.place(p, event));
      this.drag = null;
    },

    // Keys --------------------------------------------------------------------------------------------------------

    key(p, event) {
      const { key } = event;
      const [row, column] = this.cross(p);
      const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const pages = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.shiftKey && key in arrows) this.setCross(p, row + arrows[key][0], column + arrows[key][1]);
      else if (key in pages) this.setIndex(p, this.indexOf(p) + pages[key]);
      else if (key === "Home") this.setIndex(p, 0);
      else if (key === "End") this.setIndex(p, this.pane(p).slices - 1);
      else if (key === "+") this.zoomBy(1.25);
      else if (key === "-") this.zoomBy(0.8);
      else if (key === "0") this.reset();
      else if (key === " " && this.editable && p === 0 && this.current !== "look") this.paintAtCross(row, column);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
    paintAtCross(row, column) {
      if (this.current === "fill") return this.fill(row, column);
      if (!this.beginStroke()) return;
      this.stamp(row + 0.5, column + 0.5);
      this.endStroke();
    },

    // Drawing the mask --------------------------------------------------------------------------------------------

    maskHere() { return this.masks.get(`${this.pane(0).axis}/${this.indexOf(0)}`); },
    beginStroke() {
      const mask = this.maskHere();
      if (!mask) return false;
      this.stroke = { index: this.indexOf(0), mask: mask.slice(), value: this.current === "eraser" ? 0 : 1 };
      return true;
    },
    stamp(row, column) { // a disc; its center pixel at least
      const { rows, columns, aspect } = this.pane(0);
      const { mask, value } = this.stroke;
      const radius = this.brush / 2;
      const reach = Math.ceil(radius / Math.min(1, aspect)) + 1;
      for (let r = Math.max(0, Math.floor(row) - reach); r <= Math.min(rows - 1, Math.floor(row) + reach); r++) {
        for (let c = Math.max(0, Math.floor(column) - reach); c <= Math.min(columns - 1, Math.floor(column) + reach); c++) {
          const apart = Math.hypot((r + 0.5 - row) * aspect, c + 0.5 - column);
          if (apart <= radius || (r === Math.floor(row) && c === Math.floor(column))) mask[r * columns + c] = value;
        }
      }
    },
    endStroke() {
      const { index, mask } = this.stroke;
      const tool = this.current === "eraser" ? "eraser" : "brush";
      this.masks.set(`${this.pane(0).axis}/${index}`, mask);
      this.stroke = null;
      this.draw(0);
      this.send(`draw/${tool}/${index}`, mask);
    },
    fill(row, column) { // the hole around a pixel, enclosed by an outline
      const { rows, columns } = this.pane(0);
      const mask = this.maskHere();
      const start = row * columns + column;
      if (!mask || row < 0 || column < 0 || row >= rows || column >= columns) return;
      if (mask[start]) { this.message = "This place belongs to the mask already."; return; }
      const filled = mask.slice();
      const stack = [start];
      filled[start] = 1;
      while (stack.length) {
        const i = stack.pop();
        const c = i % columns;
        if (c === 0 || c === columns - 1 || i < columns || i >= (rows - 1) * columns) {
          this.message = "The outline around this place is not closed.";
          return;
        }
        for (const next of [i - 1, i + 1, i - columns, i + columns]) {
          if (!filled[next]) { filled[next] = 1; stack.push(next); }
        }
      }
      const index = this.indexOf(0);
      this.masks.set(`${this.pane(0).axis}/${index}`, filled);
      this.draw(0);
      this.send(`draw/fill/${index}`, filled);
    },
    async settled() { // whether everything that was drawn is saved; waits for what is on its way
      if (this.stroke) this.endStroke();
      await this.queue;
      return !this.failed;
    },
    edit(action) { return this.send(`edit/${action}/${this.indexOf(0)}`); },
    send(path, body) {
      this.message = "Saving ...";
      this.queue = this.queue.then(async () => {
        try {
          const answer = await fetch(`${this.base}/${path}`, { method: "POST", body });
          const content = await answer.json();
          if (!answer.ok) throw new Error(content.detail);
          this.failed = false;
          this.message = content.slices.length ? `Saved (slice ${content.slices.join(", ")}).` : "Nothing to change.";
          this.$emit("edited", content);
          if (!body && content.slices.length && !content.slices.includes(this.indexOf(0))) {
            this.setIndex(0, content.slices[0]);
          }
          if (!body || this.panesShown.length > 1) await this.reloadMasks();
          else for (const key of [...this.masks.keys()]) if (!key.startsWith(`${this.pane(0).axis}/`)) this.masks.delete(key);
        } catch (error) {
          this.failed = true;
          this.message = `Not saved: ${error.message}`;
          this.$emit("failed", { message: error.message });
          await this.reloadMasks();
        }
      });
      return this.queue;
    },
  },
};
