// The learning curve, drawn by hand: a logarithmic y axis, training minutes (pauses left out) on the x axis.
import { computed, signal } from "@preact/signals";
import { useState } from "preact/hooks";
import { chosenSample } from "./samples";
import type { Point, Run } from "./types";
import { stageTitle, t } from "./words";

type Figure = "bpb" | "loss";
interface Dot {
  x: number;
  y: number;
}
interface Line {
  stage: string;
  raw: Dot[];
  smooth: Dot[];
}

const WIDTH = 360;
const HEIGHT = 190;
const LEFT = 34;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 32;
const PAUSE_SECONDS = 120; // a longer gap in the log is a pause, not training
const figure = signal<Figure>("bpb");
const isBits = computed(() => figure.value === "bpb");

/** Seconds of training at a time of day: gaps longer than a pause count as nothing. */
export function clock(times: number[]): (time: number) => number {
  const sorted = [...times].sort((a, b) => a - b);
  const passed: number[] = [0];
  for (let i = 1; i < sorted.length; i++) {
    const gap = sorted[i]! - sorted[i - 1]!;
    passed.push(passed[i - 1]! + (gap > PAUSE_SECONDS ? 0 : gap));
  }
  return (time) => {
    let i = sorted.findIndex((each) => each > time);
    if (i < 0) i = sorted.length;
    return i === 0 ? 0 : passed[i - 1]! + Math.min(PAUSE_SECONDS, time - sorted[i - 1]!, (passed[i] ?? Infinity) - passed[i - 1]!);
  };
}

/** The mean over a window of a fortieth of the line, centred, so that it does not lag behind; narrower at the ends. */
export function smoothed(dots: Dot[]): Dot[] {
  const sums = [0];
  for (const dot of dots) sums.push(sums.at(-1)! + dot.y);
  return dots.map((dot, i) => {
    const reach = Math.min(Math.floor(dots.length / 80), i, dots.length - 1 - i);
    return { x: dot.x, y: (sums[i + reach + 1]! - sums[i - reach]!) / (2 * reach + 1) };
  });
}

/** Two to five round numbers inside a range. */
export function ticksOf(low: number, high: number): number[] {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5].find((each) => each * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

/** Round numbers on a logarithmic axis: 1, 2, 5 times powers of ten, thinned to a handful; any round ones between two. */
export function logTicks(low: number, high: number): number[] {
  const ticks: number[] = [];
  for (let power = -4; power < 4; power++) for (const digit of [1, 1.5, 2, 3, 5, 7]) ticks.push(Number((digit * 10 ** power).toPrecision(2)));
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  if (inside.length < 2) return ticksOf(low, high);
  const every = Math.ceil(inside.length / 6);
  return inside.filter((_, i) => i % every === 0);
}

export function minuteTicks(minutes: number): number[] {
  const step = [0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240, 480, 1440].find((each) => minutes / each <= 6) ?? minutes / 5;
  return Array.from({ length: Math.floor(minutes / step) + 1 }, (_, i) => i * step);
}

function linesOf(now: Run, at: (time: number) => number): Line[] {
  return now.curves.map(({ stage, points }) => {
    const value = (point: Point) => point[figure.value];
    const good = points.filter((point) => point.time !== null && value(point) !== null && value(point)! > 0);
    const raw = good.map((point) => ({ x: at(point.time!) / 60, y: value(point)! }));
    return { stage, raw, smooth: smoothed(raw) };
  });
}

export function Chart({ now }: { now: Run }) {
  const points = now.curves.flatMap((curve) => curve.points);
  const both = points.some((point) => point.bpb !== null) && points.some((point) => point.loss !== null);
  if (points.length && !points.some((point) => point[figure.value] !== null)) figure.value = isBits.value ? "loss" : "bpb";
  return (
    <section class="card glass">
      <header>
        <h2>{t("curve")}</h2>
        {both && (
          <div class="switch" role="group" aria-label={t("curve")}>
            {(["bpb", "loss"] as const).map((each) => (
              <button key={each} aria-pressed={figure.value === each} onClick={() => (figure.value = each)}>
                {t(`curve_${each}`)}
              </button>
            ))}
          </div>
        )}
      </header>
      {points.length > 1 ? <Plot now={now} points={points} /> : <p class="quiet small">{t("curve_wait")}</p>}
    </section>
  );
}

function Plot({ now, points }: { now: Run; points: Point[] }) {
  const [pointer, setPointer] = useState<number | null>(null);
  const at = clock(points.flatMap((point) => (point.time === null ? [] : [point.time])));
  const lines = linesOf(now, at).filter((line) => line.raw.length);
  const dots = lines.flatMap((line) => line.raw);
  if (!dots.length) return null;
  const minutes = Math.max(0.1, ...dots.map((dot) => dot.x));
  const low = Math.min(...dots.map((dot) => dot.y)) * 0.92;
  const high = Math.max(...dots.map((dot) => dot.y)) * 1.05;
  const x = (value: number) => LEFT + (value / minutes) * (WIDTH - LEFT - RIGHT);
  const y = (value: number) => TOP + ((Math.log(high) - Math.log(value)) / (Math.log(high) - Math.log(low))) * (HEIGHT - TOP - BOTTOM);
  const path = (line: Dot[]) => line.map((dot, i) => `${i ? "L" : "M"}${x(dot.x).toFixed(1)} ${y(dot.y).toFixed(1)}`).join("");
  const samples = now.samples.map((sample) => at(sample.time) / 60);
  const chosen = chosenSample(now);
  const near = pointer === null ? null : nearest(lines, pointer);
  const track = (event: PointerEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    setPointer(((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * minutes);
  };
  const label = t("curve_label", { figure: t(`curve_${figure.value}`) });
  return (
    <>
      <svg class="chart" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={label} onPointerMove={track} onPointerLeave={() => setPointer(null)}>
        {logTicks(low, high).map((tick) => (
          <g key={`y${tick}`}>
            <line class="grid" x1={LEFT} x2={WIDTH - RIGHT} y1={y(tick)} y2={y(tick)} />
            <text x={LEFT - 6} y={y(tick) + 3.5} text-anchor="end">
              {tick}
            </text>
          </g>
        ))}
        {minuteTicks(minutes).map((tick) => (
          <text key={`x${tick}`} x={x(tick)} y={HEIGHT - BOTTOM + 15} text-anchor="middle">
            {tick}
          </text>
        ))}
        <line class="axis" x1={LEFT} x2={WIDTH - RIGHT} y1={HEIGHT - BOTTOM} y2={HEIGHT - BOTTOM} />
        <text x={WIDTH - RIGHT} y={HEIGHT - 3} text-anchor="end" class="axis-name">
          {t("minutes_axis")}
        </text>
        {samples.map((minute, i) => (
          <circle key={i} class={i === chosen ? "sample chosen" : "sample"} cx={x(Math.min(minute, minutes))} cy={HEIGHT - BOTTOM} r={i === chosen ? 3.5 : 2} />
        ))}
        {samples[chosen] !== undefined && <line class="marker" x1={x(Math.min(samples[chosen]!, minutes))} x2={x(Math.min(samples[chosen]!, minutes))} y1={TOP} y2={HEIGHT - BOTTOM} />}
        {lines.map((line, i) => (
          <g key={line.stage} class={`line line-${i % 4}`}>
            <path class="raw" d={path(line.raw)} />
            <path class="smooth" d={path(line.smooth)} />
            {line.raw.length === 1 && <circle class="dot-mark" cx={x(line.raw[0]!.x)} cy={y(line.raw[0]!.y)} r="3" />}
          </g>
        ))}
        {near && <circle class="near" cx={x(near.x)} cy={y(near.y)} r="3.5" />}
      </svg>
      <p class="legend small">
        {lines.map((line, i) => (
          <span key={line.stage} class={`line-${i % 4}`}>
            <i />
            {stageTitle(line.stage)} {line.smooth.at(-1)!.y.toFixed(3)}
          </span>
        ))}
        {near && (
          <span class="near-text">
            {near.x.toFixed(1)} → {near.y.toFixed(3)}
          </span>
        )}
      </p>
    </>
  );
}

function nearest(lines: Line[], minute: number): Dot | null {
  const all = lines.flatMap((line) => line.smooth);
  return all.reduce<Dot | null>((best, dot) => (best && Math.abs(best.x - minute) <= Math.abs(dot.x - minute) ? best : dot), null);
}
