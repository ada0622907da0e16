// Two models side by side: the switch that asks both, the name over an answer, the word on which one is better.
import { shownAnswer } from "./conversations";
import { Icon } from "./icons";
import { comparing, newestTwo, run } from "./run";
import { save } from "./store";
import { prefer } from "./talk";
import type { Answer, Model, Side, Turn } from "./types";
import { answerText } from "./wire";
import { stageTitle, t } from "./words";

export function CompareSwitch() {
  if (!newestTwo()) return null;
  const toggle = () => {
    comparing.value = !comparing.value;
    save("compare", comparing.value);
  };
  return (
    <p class="compare">
      <button class="pill" aria-pressed={comparing.value} title={t("compare_more")} onClick={toggle}>
        <Icon name="pair" />
        {t("compare")}
      </button>
      {comparing.value && <span class="quiet small">{t("compare_more")}</span>}
    </p>
  );
}

export function ModelTitle({ model }: { model: Model | undefined }) {
  if (!model) return null;
  const stage = stageTitle(model.stage);
  return (
    <header>
      <h3>{model.finished ? t("compare_after", { stage }) : t("samples_at", { stage, step: model.step })}</h3>
      <span class="quiet small">{model.stage}</span>
    </header>
  );
}

/** Only two different answers that are over can be told apart; what was said once is kept. */
export function Better({ turn, place, side }: { turn: Turn; place: number; side: Side }) {
  const main = shownAnswer(turn);
  if (!run.value?.judging || !main?.other || !differ(main, main.other)) return null;
  return (
    <button class="pill" aria-pressed={main.better === side} disabled={main.better !== undefined} onClick={() => void prefer(place, side)}>
      {main.better === side && <Icon name="check" />}
      {t("label_better")}
    </button>
  );
}

function differ(main: Answer, other: Answer): boolean {
  const over = [main, other].every((each) => each.state !== "writing" && each.state !== "failed" && answerText(each).trim());
  return over && answerText(main).trim() !== answerText(other).trim();
}
