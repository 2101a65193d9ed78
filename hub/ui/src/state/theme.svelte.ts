// Dark, light, or as the system says.

export type Theme = "system" | "light" | "dark";
const KEY = "cortex.theme";

class ThemeState {
  choice = $state<Theme>(read());
  #system = matchMedia("(prefers-color-scheme: dark)");
  systemDark = $state(this.#system.matches);

  constructor() {
    this.#system.addEventListener("change", (event) => (this.systemDark = event.matches));
  }

  get dark(): boolean {
    return this.choice === "dark" || (this.choice === "system" && this.systemDark);
  }

  set(choice: Theme): void {
    this.choice = choice;
    localStorage.setItem(KEY, choice);
    this.apply();
  }

  apply(): void {
    if (this.choice === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = this.choice;
  }
}

function read(): Theme {
  const stored = localStorage.getItem(KEY);
  return stored === "light" || stored === "dark" ? stored : "system";
}

export const theme = new ThemeState();
