// The page's few icons, drawn with one stroke in the text's colour.
const PATHS = {
  close: "M6 6l12 12M18 6L6 18",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
  send: "M12 19V5M5.5 11.5L12 5l6.5 6.5",
  again: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  edit: "M4 20h4L19.5 8.5a2.1 2.1 0 0 0-3-3L5 17z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7",
  settings: "M4 7h9M19 7h1M4 17h1M11 17h9M13 4.5v5M5 14.5v5M16 4.5v5M8 14.5v5",
  plus: "M12 5v14M5 12h14",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  sun: "M12 4V2M12 22v-2M4 12H2M22 12h-2M6.3 6.3L4.9 4.9M19.1 19.1l-1.4-1.4M6.3 17.7l-1.4 1.4M19.1 4.9l-1.4 1.4M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8z",
  calculator: "M6 3h12v18H6zM9 7h6M9 12h.01M12 12h.01M15 12h.01M9 16h.01M12 16h.01M15 16h.01",
  curve: "M4 4v16h16M7 8c2 7 5 8.5 12 9",
  play: "M8 5l11 7-11 7z",
  pause: "M8 5v14M16 5v14",
  up: "M7 11v9H4v-9zM7 11l4-8a2.5 2.5 0 0 1 2.5 2.5V9h5a2 2 0 0 1 2 2.3l-1.2 7a2 2 0 0 1-2 1.7H7",
  down: "M7 13V4H4v9zM7 13l4 8a2.5 2.5 0 0 0 2.5-2.5V15h5a2 2 0 0 0 2-2.3l-1.2-7a2 2 0 0 0-2-1.7H7",
  scales: "M12 4v16M8 20h8M5 7h14M5 7l-3 7a3 3 0 0 0 6 0zM19 7l-3 7a3 3 0 0 0 6 0z",
  history: "M4 5v4.5h4.5M4.5 9.5a8 8 0 1 1-.5 3M12 8v4.5l3 1.8",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 12.5h8L17 7M10.5 11v5M13.5 11v5",
  pair: "M4 5h6.5v14H4zM13.5 5H20v14h-6.5z",
  open: "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
} as const;

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg class="icon-image" viewBox="0 0 24 24" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** The glass cube. */
export function Logo() {
  return <img class="logo" src="./icon.svg" alt="" width="32" height="32" />;
}
