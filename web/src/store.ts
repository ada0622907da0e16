// What the page remembers: in this browser only (localStorage), never on the server. All of it may be missing.
/** The name in localStorage. */
export const keyOf = (name: string) => `liuli.${name}`;

export function load<T>(name: string, otherwise: T): T {
  try {
    const text = localStorage.getItem(keyOf(name));
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

/** False when the browser has no room or does not allow it. */
export function save(name: string, value: unknown): boolean {
  try {
    localStorage.setItem(keyOf(name), JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
