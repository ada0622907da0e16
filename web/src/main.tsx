// The entry: theme and language first, then the page.
import { render } from "preact";
import { App } from "./app";
import { watch } from "./run";
import "./theme";
import { language, setLanguage } from "./words";

setLanguage(language.value);
render(<App />, document.getElementById("app")!);
watch();
