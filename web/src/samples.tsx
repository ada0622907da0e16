// What the model answers to the same questions, snapshot after snapshot; a slider goes back in time.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Icon } from "./icons";
import type { Run } from "./types";
import { language, stageTitle, t } from "./words";

/** The sample that was chosen by its time; null follows the newest. */
const chosenTime = signal<number | null>(null);
const playing = signal(false);
const PLAY_MS = 900;

export function chosenSample(now: Run): number {
  const last = now.samples.length - 1;
  if (chosenTime.value === null) return last;
  const found = now.samples.findIndex((sample) => sample.time >= chosenTime.value!);
  return found < 0 ? last : found;
}

function choose(now: Run, index: number): void {
  chosenTime.value = index >= now.samples.length - 1 ? null : (now.samples[index]?.time ?? null);
}

export function Samples({ now }: { now: Run }) {
  const index = chosenSample(now);
  const last = now.samples.length - 1;
  useEffect(() => {
    if (!playing.value) return;
    if (index >= last) {
      playing.value = false;
      return;
    }
    const timer = setTimeout(() => choose(now, index + 1), PLAY_MS);
    return () => clearTimeout(timer);
  }, [playing.value, index, last]);
  const sample = now.samples[index];
  return (
    <section class="card glass samples">
      <header>
        <h2>{t("samples")}</h2>
        {sample && (
          <span class="quiet small">
            {t("samples_at", { stage: stageTitle(sample.stage), step: sample.step })}
            {index === last && ` · ${t("samples_newest")}`}
          </span>
        )}
      </header>
      {sample ? (
        <>
          {last > 0 && <Slider now={now} index={index} last={last} />}
          <Answers now={now} index={index} />
          <p class="quiet small">{t("samples_more")}</p>
        </>
      ) : (
        <p class="quiet small">{t("samples_wait")}</p>
      )}
    </section>
  );
}

function Slider({ now, index, last }: { now: Run; index: number; last: number }) {
  const play = () => {
    if (!playing.value && index === last) choose(now, 0);
    playing.value = !playing.value;
  };
  const label = t(playing.value ? "samples_pause" : "samples_play");
  return (
    <div class="slider">
      <button class="icon" aria-label={label} title={label} onClick={play}>
        <Icon name={playing.value ? "pause" : "play"} />
      </button>
      <input
        type="range"
        min={0}
        max={last}
        value={index}
        aria-label={t("samples_slider")}
        aria-valuetext={`${index + 1} / ${last + 1}`}
        onInput={(event) => {
          playing.value = false;
          choose(now, Number(event.currentTarget.value));
        }}
      />
    </div>
  );
}

/** The page's language first. */
function Answers({ now, index }: { now: Run; index: number }) {
  const mine = (each: { language?: string }) => (each.language === language.value ? 0 : 1);
  const answers = [...(now.samples[index]?.answers ?? [])].sort((a, b) => mine(a) - mine(b));
  return (
    <dl class="said">
      {answers.map(({ prompt, answer }) => (
        <div key={prompt}>
          <dt>{prompt}</dt>
          <dd>{answer.trim() || t("no_answer")}</dd>
        </div>
      ))}
    </dl>
  );
}
