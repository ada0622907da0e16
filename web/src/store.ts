// What the page remembers: in this browser only, never on the server. All of it may be missing.
/** The name in the browser's storage. */
export const keyOf = (name: string) => `liuli.${name}`;

/** Of the whole browser, or of this tab alone, which keeps it over a reload. */
type Owner = "browser" | "tab";
const storage = (owner: Owner) => (owner === "tab" ? sessionStorage : localStorage);

/** The text that is kept under a name, null for none. */
export function read(name: string, owner: Owner = "browser"): string | null {
  try {
    return storage(owner).getItem(keyOf(name));
  } catch {
    return null;
  }
}

export function load<T>(name: string, otherwise: T, owner: Owner = "browser"): T {
  try {
    const text = read(name, owner);
    return text === null ? otherwise : (JSON.parse(text) as T);
  } catch {
    return otherwise;
  }
}

/** False when the browser has no room or does not allow it. */
export function save(name: string, value: unknown, owner: Owner = "browser"): boolean {
  try {
    storage(owner).setItem(keyOf(name), JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function forget(name: string): void {
  try {
    localStorage.removeItem(keyOf(name));
  } catch {
    // what cannot be kept need not be forgotten
  }
}
