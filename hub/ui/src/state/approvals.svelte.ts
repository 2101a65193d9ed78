// Tasks that wait for a person's word, and words that are remembered: read when the hub says that something about them is different.
import { all, get, type Page, type Schemas } from "../api/client";
import { hub } from "./hub.svelte";

export type Waiting = Schemas["WaitingView"];
export type Grant = Schemas["GrantView"];
export type Reach = Schemas["ApprovalReach"];

class Approvals {
  waiting = $state.raw<Waiting[]>([]);
  remembered = $state.raw<Grant[]>([]);
  loaded = $state(false);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #round = 0;

  constructor() {
    hub.listen(({ kind, data }) => {
      const settled = kind === "task" && data.state !== "awaiting_approval" && this.waiting.some(({ task_id }) => task_id === data.id);
      if (kind === "approval" || settled) this.#soon();
    });
  }

  /** Those that the person at this page can answer. */
  get mine(): Waiting[] {
    return this.waiting.filter((waiting) => waiting.may_answer);
  }

  of(task: string): Waiting | undefined {
    return this.waiting.find(({ task_id }) => task_id === task);
  }

  async load(): Promise<void> {
    const round = ++this.#round;
    try {
      const [waiting, remembered] = await Promise.all([all<Waiting>("/api/approvals"), get<Page<Grant>>("/api/approvals/remembered?limit=1000")]);
      // An answer that was overtaken by a later question says nothing.
      if (round !== this.#round) return;
      this.waiting = waiting;
      this.remembered = remembered.items;
      this.loaded = true;
    } catch {
      // The link says when the hub is back, and it is read then.
    }
  }

  forget(): void {
    this.#round += 1;
    this.waiting = [];
    this.remembered = [];
    this.loaded = false;
  }

  #soon(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      void this.load();
    }, 30);
  }
}

export const approvals = new Approvals();
