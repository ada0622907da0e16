// The tokens of one answer: each a chip in the colour of a chosen figure; what is not trained is grey and hatched.
import { signal, useSignalEffect } from "@preact/signals";
import { Fragment } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { TokenText } from "./inspector";
import { ends, QUANTITIES, quantity, shade, type AnswerList, type OneAnswer, type Quantity, type TokenColumns } from "./traces";
import { explained, t } from "./words";

const held = signal<number | null>(null); // the token that was clicked
const pointed = signal<number | null>(null); // the token under the pointer
const NAMES = Object.keys(QUANTITIES) as Quantity[];

export function TokenPanel({ one, scales }: { one: OneAnswer; scales: AnswerList["scales"] }) {
  useEffect(() => {
    held.value = pointed.value = null;
  }, [one]);
  const { tokens } = one;
  const known = NAMES.filter((name) => tokens[name].some((value) => value !== null));
  const shown = known.includes(quantity.value) ? quantity.value : (known[0] ?? "advantage");
  const trained = tokens.drawn.filter(Boolean).length;
  return (
    <section class="card glass micro-tokens">
      <header>
        <h2>{t("micro_tokens")}</h2>
        <label class="small">
          {t("micro_colour_by")}{" "}
          <select value={shown} onChange={(event) => (quantity.value = event.currentTarget.value as Quantity)}>
            {known.map((name) => (
              <option key={name} value={name}>
                {t(QUANTITIES[name].word)}
              </option>
            ))}
          </select>
        </label>
      </header>
      <p class="quiet small">{explained(QUANTITIES[shown].word)}</p>
      <Legend shown={shown} scales={scales} />
      <Chips tokens={tokens} shown={shown} scale={scales[shown]} />
      <Detail tokens={tokens} known={known} shown={shown} />
      <p class="quiet small">{t("micro_mask", { trained, n: tokens.drawn.length })}</p>
    </section>
  );
}

function Legend({ shown, scales }: { shown: Quantity; scales: AnswerList["scales"] }) {
  const [low, high] = ends(shown, scales[shown]);
  const kind = QUANTITIES[shown].kind;
  const both = kind === "signed" || kind === "ratio";
  const read = (value: number, digits: number) => String(Number(value.toPrecision(digits)));
  const apart = (digits: number) => read(low, digits) !== read(high, digits) && (kind !== "ratio" || read(high, digits) !== "1");
  const figure = (value: number) => read(value, [2, 3, 4, 5].find(apart) ?? 6);
  return (
    <div class="micro-legend small quiet">
      {kind === "yes" ? (
        <span>
          <i class="chip-mark strong" /> {t("micro_clipped")}
        </span>
      ) : (
        <span class="micro-ramp">
          {figure(low)}
          <i class={both ? "both" : kind} />
          {figure(high)}
        </span>
      )}
      <span>
        <i class="chip-mark untrained" /> {t("micro_untrained")}
      </span>
      <span>
        <i class="chip-mark clipped" /> {t("micro_clipped")}
      </span>
    </div>
  );
}

function Chips({ tokens, shown, scale }: { tokens: TokenColumns; shown: Quantity; scale: [number, number] | undefined }) {
  const chips = useRef<HTMLDivElement>(null);
  const drawn = useMemo(
    () =>
      tokens.text.map((text, i) => {
        const share = tokens.drawn[i] ? shade(shown, tokens[shown][i] ?? null, scale) : null;
        const kind = !tokens.drawn[i] ? "untrained" : share === null ? "undefined" : share < 0 ? "low" : "high";
        return { text, class: `token ${kind} ${tokens.drawn[i] && tokens.clipped[i] ? "clipped" : ""}`, tint: `${Math.round(Math.abs(share ?? 0) * 100)}%` };
      }),
    [tokens, shown, scale],
  );
  const place = (event: Event) => {
    const found = (event.target as Element).closest<HTMLElement>("[data-place]");
    return found ? Number(found.dataset["place"]) : null;
  };
  const walk = (event: KeyboardEvent) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    pointed.value = null;
    held.value = Math.max(0, Math.min(drawn.length - 1, (held.value ?? (by > 0 ? -1 : drawn.length)) + by));
  };
  // by hand: an answer of ten thousand tokens is not drawn again for each click
  const mark = () => {
    chips.current?.querySelector(".held")?.classList.remove("held");
    chips.current?.querySelector(`[data-place="${held.value}"]`)?.classList.add("held");
  };
  useSignalEffect(mark);
  useLayoutEffect(mark, [drawn]);
  return (
    <div
      ref={chips}
      class="micro-chips"
      role="group"
      tabIndex={0}
      aria-label={t("micro_tokens_label")}
      onPointerOver={(event) => event.pointerType === "mouse" && (pointed.value = place(event))}
      onPointerLeave={() => (pointed.value = null)}
      onClick={(event) => (held.value = place(event) === held.value ? null : place(event))}
      onKeyDown={walk}
    >
      {drawn.map((token, i) => (
        <Fragment key={i}>
          <span data-place={i} class={token.class} style={{ "--tint": token.tint }}>
            <ChipText text={token.text} />
          </span>
          {token.text.includes("\n") && <br />}
        </Fragment>
      ))}
    </div>
  );
}

/** As it was said: a space stays a space, and a line that ends leaves a mark. */
function ChipText({ text }: { text: string }) {
  if (/^(<\|.+\|>|\uFFFD*)$/.test(text)) return <TokenText text={text} />;
  return <>{text.replace(/\n/g, "⏎")}</>;
}

/** All numbers of the token under the pointer, else of the clicked one. */
function Detail({ tokens, known, shown }: { tokens: TokenColumns; known: Quantity[]; shown: Quantity }) {
  const i = pointed.value ?? held.value;
  if (i === null || tokens.text[i] === undefined) return <p class="micro-detail quiet small">{t("micro_point")}</p>;
  return (
    <div class="micro-detail small" aria-live="polite">
      <p>
        <strong>
          <TokenText text={tokens.text[i]} />
        </strong>
        <span class="quiet">
          {t("micro_place", { i: tokens.position[i]!, id: tokens.token[i]! })} · {t(tokens.drawn[i] ? "micro_trained" : "micro_untrained")}
        </span>
      </p>
      <dl>
        {known.map((name) => (
          <div key={name} class={name === shown ? "chosen" : ""} title={explained(QUANTITIES[name].word)}>
            <dt>{t(QUANTITIES[name].word)}</dt>
            <dd>{said(tokens[name][i] ?? null)}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

function said(value: number | boolean | null): string {
  if (value === null) return "–";
  return typeof value === "boolean" ? t(value ? "micro_yes" : "micro_no") : value.toFixed(Math.abs(value) < 10 ? 3 : 1);
}
