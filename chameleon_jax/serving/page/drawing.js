// A small canvas, for pen, finger and keys.

import { byId } from "./elements.js";

const PAPER = "#faf8f2";
const STEP = 12;

const strokes = []; // {colour, width, points: [x, y] each}
let pen = { x: 192, y: 192, down: false };
let stroke;

/** Opens the canvas from a button, and hands on the drawing as a data URL. */
export function prepare(onDrawn) {
  const dialog = byId("drawing");
  const paper = byId("paper");
  byId("draw").addEventListener("click", () => {
    pen = { x: paper.width / 2, y: paper.height / 2, down: false };
    strokes.length = 0;
    dialog.showModal();
    show();
    paper.focus();
  });
  paper.addEventListener("pointerdown", (event) => {
    paper.setPointerCapture(event.pointerId);
    pen.down = false;
    begin(placeOf(event));
  });
  paper.addEventListener("pointermove", (event) => {
    if (!stroke || !paper.hasPointerCapture(event.pointerId)) return;
    stroke.points.push(placeOf(event));
    show();
  });
  paper.addEventListener("lostpointercapture", () => (stroke = undefined));
  paper.addEventListener("keydown", onKey);
  paper.addEventListener("blur", show);
  byId("undo").addEventListener("click", () => {
    strokes.pop();
    show();
  });
  byId("clear").addEventListener("click", () => {
    strokes.length = 0;
    show();
  });
  byId("give-up").addEventListener("click", () => dialog.close());
  byId("use").addEventListener("click", () => {
    stroke = undefined;
    draw(false);
    const url = paper.toDataURL("image/png");
    dialog.close();
    onDrawn(url);
  });
}

function placeOf(event) {
  const paper = byId("paper");
  const box = paper.getBoundingClientRect();
  return [((event.clientX - box.left) * paper.width) / box.width, ((event.clientY - box.top) * paper.height) / box.height];
}

function begin(point) {
  stroke = { colour: byId("colour").value, width: Number(byId("width").value), points: [point] };
  strokes.push(stroke);
  show();
}

function onKey(event) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const move = moves[event.key];
  if (move) {
    const limit = (value) => Math.min(byId("paper").width, Math.max(0, value));
    pen.x = limit(pen.x + move[0] * STEP);
    pen.y = limit(pen.y + move[1] * STEP);
    if (pen.down) stroke.points.push([pen.x, pen.y]);
  } else if (event.key === " ") {
    pen.down = !pen.down;
    if (pen.down) begin([pen.x, pen.y]);
    else stroke = undefined;
    byId("pen").firstChild.textContent = pen.down ? "The pen is down." : "The pen is up.";
  } else return;
  event.preventDefault();
  show();
}

const show = () => draw(document.activeElement === byId("paper") && byId("paper").matches(":focus-visible"));

function draw(withPen) {
  const paper = byId("paper");
  const context = paper.getContext("2d");
  context.fillStyle = PAPER;
  context.fillRect(0, 0, paper.width, paper.height);
  context.lineCap = context.lineJoin = "round";
  for (const { colour, width, points } of strokes) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
  if (!withPen) return;
  context.strokeStyle = "#000";
  context.lineWidth = 2;
  context.beginPath();
  context.arc(pen.x, pen.y, pen.down ? 5 : 9, 0, 7);
  context.stroke();
}
