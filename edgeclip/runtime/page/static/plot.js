// Series of [at_s, value] in, lines on a canvas out. A null value or a gap longer than `gap_s` breaks the line.

const WINDOW_S = 60;

export function colour(slot) {
  return getComputedStyle(document.documentElement).getPropertyValue(slot === null ? "--quiet" : `--c${slot % 8}`).trim();
}

function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

export function plot(canvas, series, { now, floor = 0, gap_s = 3 }) {
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const style = getComputedStyle(document.documentElement);
  const line = style.getPropertyValue("--line"), quiet = style.getPropertyValue("--quiet");
  const values = series.flatMap((one) => one.points.filter(([at, v]) => v !== null && at >= now - WINDOW_S).map(([, v]) => v));
  const high = niceTop(values.reduce((most, value) => Math.max(most, value), floor));
  const left = 38, right = width - 8, upper = 8, lower = height - 22;
  const x = (at) => left + (right - left) * (1 - (now - at) / WINDOW_S);
  const y = (value) => lower - (lower - upper) * Math.min(value / high, 1);

  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = quiet;
  pen.lineWidth = 1;
  pen.strokeStyle = line;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (let step = 0; step <= 4; step += 2) {
    const value = (high * step) / 4;
    pen.beginPath();
    pen.moveTo(left, Math.round(y(value)) + 0.5);
    pen.lineTo(right, Math.round(y(value)) + 0.5);
    pen.stroke();
    pen.fillText(high >= 10 ? Math.round(value).toString() : Number(value.toPrecision(2)).toString(), left - 6, y(value));
  }
  pen.textBaseline = "top";
  for (const back of [60, 45, 30, 15, 0]) {
    pen.textAlign = back === 60 ? "left" : back ? "center" : "right";
    pen.fillText(back ? `−${back} s` : "now", x(now - back), lower + 7);
  }

  pen.save();
  pen.beginPath();
  pen.rect(left, upper - 3, right - left, lower - upper + 6);
  pen.clip();
  pen.lineWidth = 1.75;
  pen.lineJoin = "round";
  for (const one of series) {
    pen.strokeStyle = pen.fillStyle = colour(one.slot);
    pen.beginPath();
    let before = null, run = 0;
    for (const [at, value] of one.points) {
      if (value === null || at < now - WINDOW_S - gap_s) { before = null; continue; }
      if (before === null || at - before > gap_s) { pen.moveTo(x(at), y(value)); run = 0; } else pen.lineTo(x(at), y(value));
      before = at;
      run += 1;
    }
    pen.stroke();
    if (run === 1 && one.points.length) {  // a lone point has no line
      const [at, value] = one.points[one.points.length - 1];
      if (value !== null) { pen.beginPath(); pen.arc(x(at), y(value), 2.5, 0, 7); pen.fill(); }
    }
  }
  pen.restore();
}
