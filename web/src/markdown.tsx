// Markdown whose every word stays a token that can be clicked.
//
// marked only reads the text into a tree; the tree is drawn as elements here, never as HTML, so nothing a model writes
// can become markup. Each leaf of the tree is found again in the source (leaves come in the source's order), which tells
// the tokens it is made of. A leaf that is not found is drawn as plain text.
import { Marked, type Token as Mark, Tokenizer, type Tokens } from "marked";
import type { ComponentChildren, JSX } from "preact";
import { memo } from "./memo";
import type { Token } from "./types";

interface Span {
  start: number;
  end: number;
  index: number;
}

/** Where each token's text lies in the answer's text; tokens without text (half a character) have no span. */
export function spansOf(tokens: Token[]): Span[] {
  const spans: Span[] = [];
  let at = 0;
  tokens.forEach((token, index) => {
    if (token.text) spans.push({ start: at, end: at + token.text.length, index });
    at += token.text.length;
  });
  return spans;
}

/** Warmth of a token: 0 for certain, 1 for a probability of 2% or less. */
function doubt(token: Token): number {
  return Math.min(1, -token.logprob / Math.log(50));
}

class Place {
  constructor(
    readonly source: string,
    readonly spans: Span[],
    readonly tokens: Token[],
    readonly selected: number,
    readonly tint: boolean,
    readonly base: number,
    public at: number,
  ) {}

  /** A leaf's text, line by line (indents and quote signs stand between the lines in the source), token by token. */
  leaf(text: string): ComponentChildren {
    return text.split("\n").map((line, i) => [i ? "\n" : null, this.line(line)]);
  }

  private line(text: string): ComponentChildren {
    const start = text ? this.source.indexOf(text, this.at) : -1;
    if (start < 0) return text;
    const end = start + text.length;
    this.at = end;
    const words: ComponentChildren[] = [];
    for (let i = firstAfter(this.spans, start); i < this.spans.length; i++) {
      const span = this.spans[i]!;
      if (span.start >= end) break;
      words.push(this.word(span, this.source.slice(Math.max(span.start, start), Math.min(span.end, end))));
    }
    return words;
  }

  private word(span: Span, text: string): JSX.Element {
    const token = this.tokens[span.index]!;
    const style = this.tint ? { "--doubt": doubt(token).toFixed(2) } : undefined;
    return (
      <span key={span.start} class={span.index === this.selected ? "word selected" : "word"} data-word={this.base + span.index} style={style}>
        {text}
      </span>
    );
  }
}

/** The first span that ends after `start` (binary search). */
function firstAfter(spans: Span[], start: number): number {
  let low = 0;
  let high = spans.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (spans[middle]!.end > start) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Markdown as models mean it: 2*3*4 is a sum, 3~5天，7~9天 are ranges, and 是**“重点”**的 is bold, too. */
const reader = new Marked({
  gfm: true,
  breaks: true,
  tokenizer: {
    // undefined: no markup; false: as marked does it
    del: (source) => (source.startsWith("~~") ? false : undefined),
    emStrong(source, whole, before = "") {
      if (!source.startsWith("*")) return false;
      if (isProduct(source, whole.slice(0, -source.length))) return undefined;
      const opens = BESIDE_CJK.test(before + source);
      return Tokenizer.prototype.emStrong.call(this, source, closingAtCjk(whole), opens ? "" : before);
    },
  },
});

/** Stars between factors, like 2*3*4 or x**2 + y**2; but word**bold** and un**believ**able are words. */
function isProduct(source: string, before: string): boolean {
  if (!AFTER_A_FACTOR.test(before)) return false;
  if (!source.startsWith("**")) return true;
  const [, inner = "", behind = ""] = /^\*\*((?:[^*]|\*(?!\*))+)\*\*(.)/su.exec(source) ?? [];
  return FACTOR.test(behind) && !(/\p{L}{2}$/u.test(before) && /^\p{L}+$/u.test(inner + behind));
}
const FACTOR = /[\p{N}\p{Script=Latin}\p{Script=Greek}([]/u;
const AFTER_A_FACTOR = /[\p{N}\p{Script=Latin}\p{Script=Greek})\]]\**$/u;

// CommonMark's stars want a space where a mark stands on their inner side, which Chinese, Japanese and Korean do not put
// there. So, as in https://github.com/tats-u/markdown-cjk-friendly, their marks count as letters, and beside their
// letters every mark does.
const CJK = "[\\p{sc=Han}\\p{sc=Hira}\\p{sc=Kana}\\p{sc=Hang}\\p{sc=Bopo}\\u3001-\\u303f\\uff01-\\uffef]";
const BESIDE_CJK = new RegExp(`^(${CJK}|.?\\*+${CJK})`, "u");
const MARK_LIKE_A_LETTER = new RegExp(`(?!\\*)[\\p{P}\\p{S}](?=\\*+${CJK})|(?=${CJK})[\\p{P}\\p{S}]`, "gu");

/** Of the text in which the closing stars are looked for; nothing else is read of it. */
const closingAtCjk = (text: string) => text.replace(MARK_LIKE_A_LETTER, (mark) => "a".repeat(mark.length));

/** A line that is alone, like "5." or "- 5": the number that was asked for, and no list, heading or quote. */
const ALONE = ["list", "heading", "blockquote", "hr", "def"];

function marksOf(source: string): Mark[] {
  const marks = reader.lexer(source) as Mark[];
  const [first, ...others] = marks;
  if (!first || others.length || !ALONE.includes(first.type) || source.trim().includes("\n")) return marks;
  return [{ type: "alone", raw: first.raw }];
}

const SAFE_LINK = /^(https?:|mailto:)/i;

function inline(marks: Mark[] | undefined, place: Place): ComponentChildren {
  return marks?.map((mark) => {
    const inner = () => inline((mark as Tokens.Generic).tokens, place);
    switch (mark.type) {
      case "strong":
        return <strong>{inner()}</strong>;
      case "em":
        return <em>{inner()}</em>;
      case "del":
        return <del>{inner()}</del>;
      case "codespan":
        return <code>{place.leaf((mark as Tokens.Codespan).text)}</code>;
      case "br":
        return <br />;
      case "link": {
        const { href } = mark as Tokens.Link;
        if (!SAFE_LINK.test(href)) return <>{inner()}</>;
        return (
          <a href={href} title={href} target="_blank" rel="noopener noreferrer">
            {inner()}
          </a>
        );
      }
      case "checkbox":
        return <input type="checkbox" checked={(mark as Tokens.Checkbox).checked} disabled />;
      case "escape":
        return place.leaf((mark as Tokens.Escape).text);
      case "text":
        return (mark as Tokens.Text).tokens ? inner() : place.leaf(mark.raw);
      default: // html, images and what else there is: as it was written
        return place.leaf(mark.raw);
    }
  });
}

function blocks(marks: Mark[], place: Place): ComponentChildren {
  return marks.map((mark) => block(mark, place));
}

function block(mark: Mark, place: Place): ComponentChildren {
  switch (mark.type) {
    case "space":
    case "def":
      return null;
    case "hr":
      return <hr />;
    case "heading": {
      const Tag = `h${Math.min(6, (mark as Tokens.Heading).depth + 2)}` as "h3";
      return <Tag dir="auto">{inline((mark as Tokens.Heading).tokens, place)}</Tag>;
    }
    case "code":
      return (
        <pre tabIndex={0}>
          <code>{place.leaf((mark as Tokens.Code).text)}</code>
        </pre>
      );
    case "blockquote":
      return <blockquote dir={side((mark as Tokens.Blockquote).text)}>{blocks((mark as Tokens.Blockquote).tokens, place)}</blockquote>;
    case "list": {
      const { ordered, start, items } = mark as Tokens.List;
      if (items.every((item) => !item.text.trim())) return asWritten(mark, place); // numbers, of which nothing would be left
      const drawn = items.map((item) => <li dir={side(item.text)}>{blocks(item.tokens, place)}</li>);
      return ordered ? <ol start={Number(start)}>{drawn}</ol> : <ul>{drawn}</ul>;
    }
    case "table":
      return <Table mark={mark as Tokens.Table} place={place} />;
    case "paragraph":
      return <p dir="auto">{inline((mark as Tokens.Paragraph).tokens, place)}</p>;
    case "text": // the text of a list item
      return <>{(mark as Tokens.Text).tokens ? inline((mark as Tokens.Text).tokens, place) : place.leaf(mark.raw)}</>;
    case "checkbox":
      return inline([mark], place);
    default:
      return asWritten(mark, place);
  }
}

/** Which way text is read, by its first letter: of a block whose paragraphs tell for themselves no browser finds it out. */
function side(text: string): "rtl" | "ltr" {
  const [letter = ""] = /\p{L}/u.exec(text) ?? [];
  return /[\p{sc=Hebr}\p{sc=Arab}\p{sc=Syrc}\p{sc=Thaa}\p{sc=Nkoo}]/u.test(letter) ? "rtl" : "ltr";
}

function asWritten(mark: Mark, place: Place): JSX.Element {
  return <p dir="auto">{place.leaf(mark.raw.replace(/\n+$/, ""))}</p>;
}

function Table({ mark, place }: { mark: Tokens.Table; place: Place }): JSX.Element {
  const head = mark.header.map((cell) => <th dir="auto">{inline(cell.tokens, place)}</th>);
  const body = mark.rows.map((row) => (
    <tr>
      {row.map((cell) => (
        <td dir="auto">{inline(cell.tokens, place)}</td>
      ))}
    </tr>
  ));
  return (
    <div class="table" tabIndex={0}>
      <table>
        <thead>
          <tr>{head}</tr>
        </thead>
        <tbody>{body}</tbody>
      </table>
    </div>
  );
}

interface BlockProps {
  raw: string;
  at: number;
  mark: Mark;
  source: string;
  spans: Span[];
  tokens: Token[];
  selected: number;
  tint: boolean;
  base: number;
}

// While an answer grows only its last block changes; the others are not drawn again.
const Block = memo(
  ({ mark, at, source, spans, tokens, selected, tint, base }: BlockProps) => (
    <>{block(mark, new Place(source, spans, tokens, selected, tint, base, at))}</>
  ),
  (a, b) => a.raw === b.raw && a.mark.type === b.mark.type && a.at === b.at && a.selected === b.selected && a.tint === b.tint,
);

interface Props {
  tokens: Token[];
  selected: number;
  tint: boolean;
  base: number;
}

/** Tokens as markdown. selected: the one shown as chosen, -1 for none. base: how many tokens of the answer stand before. */
export function Markdown({ tokens, selected, tint, base }: Props): JSX.Element {
  const source = tokens.map((token) => token.text).join("");
  const spans = spansOf(tokens);
  let at = 0;
  const drawn = marksOf(source).map((mark, i) => {
    const found = source.indexOf(mark.raw, at);
    const start = found < 0 ? at : found; // not found when marked tidied the text up (line ends, tabs)
    at = found < 0 ? at : found + mark.raw.length;
    const chosen = spans.find((span) => span.index === selected);
    const mine = chosen && chosen.end > start && chosen.start < at ? selected : -1;
    return <Block key={i} raw={mark.raw} at={start} {...{ mark, source, spans, tokens, tint, base }} selected={mine} />;
  });
  return <div class="markdown">{drawn}</div>;
}
