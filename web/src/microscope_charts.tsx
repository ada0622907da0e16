// Small charts of a stage's figures, side by side: one pointer reads them all at the same step, a click opens the step.
import { signal } from "@preact/signals";
import { smoothed, ticksOf } from "./chart";
import { chooseStep, type Figure, type Figures, type Stage } from "./traces";
import { explained, t, type Word } from "./words";

const WIDTH = 240;
const HEIGHT = 104;
const LEFT = 46; // room for "0.0125"
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;

/** In the order in which they are read. floor, ceiling: always inside the chart. */
const CHARTS: { figure: Figure; word: Word; floor?: number; ceiling?: number }[] = [
  { figure: "score", word: "micro_score" },
  { figure: "true_score", word: "micro_true_score" },
  { figure: "kl", word: "micro_kl", floor: 0 },
  { figure: "entropy", word: "micro_entropy", floor: 0 },
  { figure: "length", word: "micro_length", floor: 0 },
  { figure: "stop_rate", word: "micro_stop_rate", floor: 0, ceiling: 1 },
  { figure: "explained_variance", word: "micro_explained_variance", floor: 0, ceiling: 1 },
  { figure: "clip_fraction", word: "micro_clip_fraction", floor: 0 },
];

const pointed = signal<number | null>(null); // the step under the pointer, in all charts

function short(value: number): string {
  return Math.abs(value) >= 1000 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(3)));
}

export function SmallCharts({ stage, step }: { stage: Stage; step: number | null }) {
  const drawn = CHARTS.filter(({ figure }) => stage.figures.some((point) => point[figure] !== null));
  return (
    <div class="micro-charts">
      {drawn.map((chart) => (
        <SmallChart key={chart.figure} {...chart} stage={stage} step={step} />
      ))}
    </div>
  );
}

type Properties = (typeof CHARTS)[number] & { stage: Stage; step: number | null };

function SmallChart({ figure, word, floor, ceiling, stage, step }: Properties) {
  const points = stage.figures.filter((point) => point[figure] !== null);
  const read = closest(points, pointed.value ?? step ?? points.at(-1)!.step);
  const [low, high] = range([...points.map((point) => point[figure]!), ...[floor, ceiling].filter((each) => each !== undefined)]);
  const first = stage.figures[0]!.step;
  const last = Math.max(first + 1, stage.figures.at(-1)!.step);
  const x = (value: number) => LEFT + ((value - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value: number) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const seen = (value: number) => short(Math.abs(value) < (high - low) / 1000 ? 0 : value); // what is nothing here reads 0
  const dots = points.map((point) => ({ x: point.step, y: point[figure]! }));
  const path = (line: typeof dots) => line.map((dot, i) => `${i ? "L" : "M"}${x(dot.x).toFixed(1)} ${y(dot.y).toFixed(1)}`).join("");
  const at = (event: MouseEvent) => {
    const box = (event.currentTarget as SVGElement).getBoundingClientRect();
    return first + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first);
  };
  const openStep = (event: MouseEvent) => {
    if (stage.steps.length) chooseStep(stage.steps.reduce((best, each) => (Math.abs(each - at(event)) < Math.abs(best - at(event)) ? each : best)));
  };
  return (
    <figure class="card glass" data-figure={figure} title={explained(word)}>
      <figcaption>
        {t(word)} <b>{seen(read[figure]!)}</b>
      </figcaption>
      <svg
        class="chart line-0"
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        role="img"
        aria-label={t("micro_chart_label", { figure: t(word), first: seen(dots[0]!.y), last: seen(dots.at(-1)!.y) })}
        onPointerMove={(event) => (pointed.value = at(event))}
        onPointerLeave={() => (pointed.value = null)}
        onClick={openStep}
      >
        {ticksOf(low, high).map((tick) => (
          <g key={tick}>
            <line class="grid" x1={LEFT} x2={WIDTH - RIGHT} y1={y(tick)} y2={y(tick)} />
            <text x={LEFT - 5} y={y(tick) + 3.5} text-anchor="end">
              {short(tick)}
            </text>
          </g>
        ))}
        <line class="axis" x1={LEFT} x2={WIDTH - RIGHT} y1={HEIGHT - BOTTOM} y2={HEIGHT - BOTTOM} />
        <text x={LEFT} y={HEIGHT - 4}>
          {first.toLocaleString("en")}
        </text>
        <text x={WIDTH - RIGHT} y={HEIGHT - 4} text-anchor="end">
          {last.toLocaleString("en")}
        </text>
        {step !== null && step >= first && step <= last && <line class="marker" x1={x(step)} x2={x(step)} y1={TOP} y2={HEIGHT - BOTTOM} />}
        <path class="raw" d={path(dots)} />
        <path class="smooth" d={path(smoothed(dots))} />
        {dots.length <= 30 && dots.map((dot) => <circle key={dot.x} class="dot-mark" cx={x(dot.x)} cy={y(dot.y)} r="2" />)}
        {stage.steps.map((each) => each >= first && each <= last && <circle key={each} class={each === step ? "sample chosen" : "sample"} cx={x(each)} cy={HEIGHT - BOTTOM} r={each === step ? 3.5 : 1.8} />)}
        {pointed.value !== null && <circle class="near" cx={x(read.step)} cy={y(read[figure]!)} r="3.5" />}
      </svg>
    </figure>
  );
}

/** The range of values with a little air, never empty. */
function range(values: number[]): [number, number] {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - (low === 0 ? 0 : air), high + air];
}

function closest(points: Figures[], step: number): Figures {
  return points.reduce((best, point) => (Math.abs(point.step - step) < Math.abs(best.step - step) ? point : best));
}
