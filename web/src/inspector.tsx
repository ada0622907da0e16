// The pane that opens on a click on a word: what else the model could have said there, with probabilities.
import { effect, signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { conversation, shownAnswer, turns } from "./conversations";
import { Icon } from "./icons";
import type { Side, Token } from "./types";
import { t } from "./words";

/** The word that is open: which turn, which of its answers where two are compared, which token of all its text. */
export interface Opened {
  turn: number;
  side: Side;
  token: number;
}

export const opened = signal<Opened | null>(null);
effect(() => {
  if (conversation.value) opened.value = null; // the words of another one are others
});

/** All text tokens of the shown answer of a turn, or of the one it is compared with. */
export function tokensOf(turn: number, side: Side): Token[] {
  const each = turns.value[turn];
  const main = each && shownAnswer(each);
  const answer = side === "main" ? main : main?.other;
  return answer?.parts.flatMap((part) => (part.kind === "text" ? part.tokens : [])) ?? [];
}

export function move(by: number): void {
  const now = opened.value;
  if (!now) return;
  const token = Math.min(tokensOf(now.turn, now.side).length - 1, Math.max(0, now.token + by));
  opened.value = { ...now, token };
}

/** Which way the open word is read: the arrows go where the eye does. */
function isLeftToRight(): boolean {
  const word = document.querySelector(".word.selected");
  return !word || getComputedStyle(word).direction === "ltr";
}

/** In percent, finer towards both ends: only what is certain is 100%, and nothing that may happen is 0%. */
export function percent(probability: number): string {
  const share = probability * 100;
  if (share < 0.1) return "<0.1%";
  if (share > 99.9 && share < 100) return ">99.9%";
  return `${share.toFixed(share < 100 && (share < 9.95 || share >= 99) ? 1 : 0)}%`;
}

/** A token as it can be seen: spaces and control tokens get a name. */
export function TokenText({ text }: { text: string }) {
  const control = /^<\|(.+)\|>$/.exec(text);
  if (control) return <em class="control">{control[1] === "end" ? t("end_mark") : control[1]}</em>;
  if (/^\uFFFD*$/.test(text)) return <em class="control">{t("token_part")}</em>;
  if (/^ +$/.test(text)) return <em class="control">{t("token_space")}</em>;
  if (/^\s*\n\s*$/.test(text)) return <em class="control">{t("token_newline")}</em>;
  return <span class="token-text">{text.replace(/\n/g, "⏎").replace(/^ /, "␣")}</span>;
}

interface Row {
  key: string;
  token: { text: string } | null;
  probability: number;
  chosen: boolean;
}

/** The alternatives, the likeliest first; the chosen token among them even when it was an unlikely one; then the rest. */
export function rowsOf(token: Token): Row[] {
  const rows: Row[] = token.alternatives.map((other) => ({
    key: String(other.id),
    token: other.id === token.id && token.text ? token : other,
    probability: Math.exp(other.logprob),
    chosen: other.id === token.id,
  }));
  if (!rows.some((row) => row.chosen)) {
    rows.push({ key: String(token.id), token, probability: Math.exp(token.logprob), chosen: true });
  }
  const rest = 1 - rows.reduce((sum, row) => sum + row.probability, 0);
  if (rest > 0.0005) rows.push({ key: "rest", token: null, probability: rest, chosen: false });
  return rows;
}

function Bars({ token }: { token: Token }) {
  return (
    <ul class="bars">
      {rowsOf(token).map((row) => (
        <li key={row.key} class={row.chosen ? "chosen" : row.token ? "" : "rest"} data-probability={row.probability.toFixed(4)}>
          <span class="bar" style={{ width: `${Math.max(0.6, row.probability * 100)}%` }} />
          <span class="what">
            {row.token ? <TokenText text={row.token.text} /> : t("inspect_others")}
            {row.chosen && <span class="sr-only"> ({t("inspect_chosen")})</span>}
          </span>
          <span class="percent">{percent(row.probability)}</span>
        </li>
      ))}
    </ul>
  );
}

let placedAt = 0; // how far the conversation was scrolled then

/** The pane stays where it was placed: it closes when its word is scrolled away. A sheet at the bottom need not. */
export function closeWhenScrolled(scroller: HTMLElement): void {
  if (opened.value && !isSheet() && scroller.scrollTop !== placedAt) opened.value = null;
}

const isSheet = () => innerWidth < 640;

/** Scroll until the word can be seen, above the sheet. */
function reveal(word: Element, pane: DOMRect): void {
  const scroller = word.closest(".scroll");
  if (!scroller) return;
  word.scrollIntoView({ block: "nearest" });
  if (isSheet()) scroller.scrollTop += Math.max(0, word.getBoundingClientRect().bottom + 12 - pane.top);
  placedAt = scroller.scrollTop;
}

interface Place {
  left: number;
  top: number;
  maxHeight: number;
}

const EDGE = 8; // pixels to the window's
const GAP = 10; // to the word

/** Below the word or above it, in a low window beside it, in a low and narrow one where there is more room: never over it. */
function placeAt(word: DOMRect, width: number, height: number): Place {
  const left = Math.min(innerWidth - width - 12, Math.max(12, word.left - 24));
  const below = innerHeight - EDGE - GAP - word.bottom;
  const above = word.top - GAP - EDGE;
  const beside = [word.right + GAP, word.left - GAP - width].find((x) => x >= EDGE && x + width <= innerWidth - EDGE);
  if (height > Math.max(below, above) && beside !== undefined) {
    const top = Math.max(EDGE, Math.min(word.top, innerHeight - EDGE - height));
    return { left: beside, top, maxHeight: innerHeight - 2 * EDGE };
  }
  if (height <= below || below > above) return { left, top: word.bottom + GAP, maxHeight: below };
  return { left, top: Math.max(EDGE, word.top - GAP - height), maxHeight: above };
}

/** On a phone the pane is a sheet at the bottom and needs no place. */
function usePlace(now: Opened | null, pane: { current: HTMLElement | null }) {
  const [place, setPlace] = useState<Place>();
  const [size, setSize] = useState(""); // of the window: a phone is turned
  useEffect(() => {
    const measure = () => setSize(`${innerWidth} ${innerHeight}`);
    addEventListener("resize", measure);
    return () => removeEventListener("resize", measure);
  }, []);
  useLayoutEffect(() => {
    const word = now && document.querySelector(`[data-turn="${now.turn}"][data-side="${now.side}"] [data-word="${now.token}"]`);
    const box = pane.current?.getBoundingClientRect();
    if (word && box) reveal(word, box);
    if (!word || !box || isSheet()) return;
    const bars = pane.current!.querySelector(".bars");
    const hidden = bars ? bars.scrollHeight - bars.clientHeight : 0;
    setPlace(placeAt(word.getBoundingClientRect(), box.width, box.height + hidden));
  }, [now?.turn, now?.side, now?.token, size]);
  if (!place || isSheet()) return undefined;
  return { left: `${place.left}px`, top: `${place.top}px`, maxHeight: `${place.maxHeight}px` };
}

export function Inspector() {
  const now = opened.value;
  const pane = useRef<HTMLElement>(null);
  const place = usePlace(now, pane);
  const tokens = now ? tokensOf(now.turn, now.side) : [];
  const token = now && tokens[now.token];

  useEffect(() => {
    if (!now) return;
    const key = (event: KeyboardEvent) => {
      if (event.key === "Escape") opened.value = null;
      else if (event.target instanceof HTMLElement && event.target.closest("textarea, input")) return;
      else if (event.key === "ArrowRight" || event.key === "ArrowLeft") move((event.key === "ArrowRight") === isLeftToRight() ? 1 : -1);
      else return;
      event.preventDefault();
    };
    const away = (event: PointerEvent) => {
      if (event.target instanceof Element && !event.target.closest(".inspector, [data-word]")) opened.value = null;
    };
    addEventListener("keydown", key);
    addEventListener("pointerdown", away);
    return () => {
      removeEventListener("keydown", key);
      removeEventListener("pointerdown", away);
    };
  }, [now !== null]);

  if (!now || !token) return null;
  return (
    <section class="inspector glass" ref={pane} style={place} role="dialog" aria-label={t("inspect_title")}>
      <header>
        <h2>{t("inspect_title")}</h2>
        <button class="icon" aria-label={t("close")} title={t("close")} onClick={() => (opened.value = null)}>
          <Icon name="close" />
        </button>
      </header>
      {token.alternatives.length ? <Bars token={token} /> : <p class="quiet">{t("inspect_none")}</p>}
      <p class="quiet small">{t(token.forced ? "inspect_forced" : "inspect_more")}</p>
      <footer>
        <button class="icon" aria-label={t("inspect_previous")} title={t("inspect_previous")} disabled={now.token === 0} onClick={() => move(-1)}>
          <Icon name="left" />
        </button>
        <span aria-live="polite">{t("inspect_place", { i: now.token + 1, n: tokens.length })}</span>
        <button
          class="icon"
          aria-label={t("inspect_next")}
          title={t("inspect_next")}
          disabled={now.token === tokens.length - 1}
          onClick={() => move(1)}
        >
          <Icon name="right" />
        </button>
      </footer>
    </section>
  );
}
