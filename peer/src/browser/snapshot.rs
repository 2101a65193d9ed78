//! A page as text: the lines of its frames put together, cut to a budget, compared with what was told before.

use cortex_wire::{browser::Filter, limits};
use serde_json::{Value, json};

use super::{
    Fault,
    page::{FRAMES, Page},
    state::{Frame, Told},
};

/// Lines before a cursor are made again and left out: so many bytes of them at most.
const BEHIND_CURSOR_BYTES: usize = 2 * 1024 * 1024;
/// What goes with a fault.
const GLANCE_BYTES: usize = 2_000;
/// A line, which our script has cut already.
const LINE_BYTES: usize = 4_000;
/// Closed shadow roots that are opened in one snapshot.
const CLOSED_ROOTS: usize = 16;
/// Lines of two snapshots that are compared one by one.
const COMPARED: usize = 1_000_000;

/// What a page is given before it is looked at, for what an action has set off to show itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// Nothing.
    No,
    /// Its handlers run.
    Task,
    /// And a frame is drawn.
    Frame,
}

impl Settle {
    fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Task => "task",
            Self::Frame => "frame",
        }
    }
}

/// What is wanted of a snapshot.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which elements.
    pub filter: Filter,
    /// Only below this one.
    pub scope: Option<String>,
    /// How deep.
    pub depth: Option<u32>,
    /// Lines to leave out.
    pub skip: usize,
    /// Bytes.
    pub budget: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { filter: Filter::Interactive, scope: None, depth: None, skip: 0, budget: limits::BROWSER_SNAPSHOT_BYTES }
    }
}

/// A page as text.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Indented.
    pub lines: Vec<String>,
    /// There is more: the line to go on with.
    pub next: Option<usize>,
    /// Of which document, and its count of changes.
    pub told: Told,
    /// What the page calls itself.
    pub title: String,
    /// Where it is.
    pub url: String,
}

impl Snapshot {
    /// As it is told.
    pub fn to_json(&self) -> Value {
        let mut out = json!({ "snapshot": self.lines.join("\n") });
        if let Some(next) = self.next {
            out["truncated"] = true.into();
            out["next_cursor"] = format!("l{next}").into();
        }
        out
    }
}

/// A line on its way: of which frame the content belongs below it.
struct Line {
    depth: usize,
    text: String,
    frame: u64,
}

impl Page<'_> {
    /// The page as text.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn snapshot(&self, wanted: &Wanted) -> Result<Snapshot, Fault> {
        let budget = if wanted.skip > 0 { BEHIND_CURSOR_BYTES } else { wanted.budget };
        let filter = if wanted.filter == Filter::All { "all" } else { "interactive" };
        let options = json!({ "filter": filter, "skip": 0, "budget": budget, "depth": wanted.depth });
        let (frame, said) = match &wanted.scope {
            Some(scope) => {
                let argument = json!({ "options": options });
                let (_, frame, said) = self.find(scope, "(a) => cortex.snapshot({ ...a.options, gen: a.gen }, a.target)", argument).await?;
                (frame, said)
            }
            None => {
                let frame = self.main().await?;
                let said = self.ask_frame(&frame, &options).await?;
                (frame, said)
            }
        };
        let mut out = Assembly { skip: wanted.skip, budget: wanted.budget, ..Assembly::default() };
        let whole = self.assemble(&frame, &said, 0, &options, &mut out).await?;
        let next = (!whole || out.cut).then_some(wanted.skip + out.lines.len());
        let told = Told { generation: frame.generation, changes: said["changes"].as_u64().unwrap_or_default(), lines: Vec::new() };
        let text = |key: &str| said[key].as_str().map(|text| cortex_wire::text::clean(text, limits::TEXT_BYTES)).unwrap_or_default();
        Ok(Snapshot { lines: out.lines, next, told, title: text("title"), url: text("url") })
    }

    async fn ask_frame(&self, frame: &Frame, options: &Value) -> Result<Value, Fault> {
        let mut options = options.clone();
        options["gen"] = frame.generation.into();
        const FUNCTION: &str = "(a) => cortex.snapshot(a, null)";
        let said = self.call(frame, FUNCTION, &options).await?;
        if said["hosts"].as_u64() > Some(0) && self.open_roots(frame).await? {
            return self.call(frame, FUNCTION, &options).await;
        }
        Ok(said)
    }

    /// Elements with a name of their own may have closed roots, which only the browser can open for us. Whether one had.
    async fn open_roots(&self, frame: &Frame) -> Result<bool, Fault> {
        let mut found = false;
        for _ in 0..CLOSED_ROOTS {
            let Some(host) = self.object(frame, "() => cortex.unopened()", &Value::Null).await? else { break };
            let node =
                self.browser.ask(&frame.session, "DOM.describeNode", json!({ "objectId": host, "depth": 1, "pierce": true })).await?;
            let root = node
                .pointer("/node/shadowRoots")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .find(|root| root["shadowRootType"] == "closed");
            let mut arguments = vec![json!({ "objectId": host }), json!({ "value": null })];
            if let Some(root) = root {
                let context = self.browser.state().contexts.get(&frame.worlds.own).copied();
                let context = json!({ "backendNodeId": root["backendNodeId"], "objectGroup": super::WORLD, "executionContextId": context });
                let resolved = self.browser.ask(&frame.session, "DOM.resolveNode", context).await?;
                arguments[1] = json!({ "objectId": resolved.pointer("/object/objectId") });
                found = true;
            }
            let call = json!({ "functionDeclaration": "(host, root) => cortex.opened(host, root)", "uniqueContextId": frame.worlds.own, "arguments": arguments });
            self.browser.ask(&frame.session, "Runtime.callFunctionOn", call).await?;
        }
        self.browser.order(&frame.session, "Runtime.releaseObjectGroup", json!({ "objectGroup": super::WORLD }));
        Ok(found)
    }

    /// Puts a frame's lines, and those of the frames in it, behind the others. Whether they were all there.
    async fn assemble(&self, frame: &Frame, said: &Value, depth: usize, options: &Value, out: &mut Assembly) -> Result<bool, Fault> {
        let lines: Vec<Line> = said["lines"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|line| Line {
                depth: usize::try_from(line["d"].as_u64().unwrap_or(0)).unwrap_or(0).min(64),
                text: cortex_wire::text::clean(line["t"].as_str().unwrap_or_default(), LINE_BYTES),
                frame: line["f"].as_u64().unwrap_or(0),
            })
            .collect();
        for line in lines {
            if !out.add(depth + line.depth, &line.text) {
                return Ok(true);
            }
            if line.frame > 0 && out.frames < FRAMES {
                out.frames += 1;
                match self.inner(frame, line.frame, options).await {
                    Ok(Some((inner, said))) => {
                        Box::pin(self.assemble(&inner, &said, depth + line.depth + 1, options, out)).await?;
                    }
                    // A frame that goes away meanwhile shows nothing.
                    Ok(None) => {}
                    Err(fault) if matches!(fault.code.as_str(), "navigated" | "refused") => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(said["cut"] != Value::Bool(true))
    }

    /// What an iframe element shows.
    async fn inner(&self, frame: &Frame, element: u64, options: &Value) -> Result<Option<(Frame, Value)>, Fault> {
        let argument = json!({ "n": element, "g": frame.generation });
        let Some(object) = self.object(frame, "(a) => cortex.find({ n: a.n }, a.g)", &argument).await? else { return Ok(None) };
        let node = self.browser.ask(&frame.session, "DOM.describeNode", json!({ "objectId": object })).await?;
        self.browser.order(&frame.session, "Runtime.releaseObject", json!({ "objectId": object }));
        let id = node.pointer("/node/frameId").and_then(Value::as_str).unwrap_or_default();
        let inner = self.browser.state().frames.get(id).cloned().filter(|inner| !inner.worlds.own.is_empty());
        match inner {
            Some(inner) => Ok(Some((inner.clone(), self.ask_frame(&inner, options).await?))),
            None => Ok(None),
        }
    }

    /// A few lines, to go with a fault.
    pub async fn glance(&self) -> Option<String> {
        let wanted = Wanted { budget: GLANCE_BYTES, ..Wanted::default() };
        self.snapshot(&wanted).await.ok().map(|snapshot| snapshot.lines.join("\n"))
    }

    /// What the page looks like compared with what was told of it before; what is told is remembered. `wait`: what an action set off has a moment to show itself.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn change(&self, whole: bool, wait: Settle) -> Result<(Value, String, String), Fault> {
        let frame = self.main().await?;
        let before =
            self.browser.state().tabs.get(&self.tab).and_then(|tab| tab.told.clone()).filter(|told| told.generation == frame.generation);
        let has_frames = self.browser.state().frames_of(self.tab).len() > 1;
        let since = before.as_ref().filter(|_| !whole && !has_frames).map(|told| told.changes);
        // Without a budget nothing is looked at: this only waits, and asks whether anything has changed.
        let argument = json!({ "gen": frame.generation, "since": since, "filter": "interactive", "budget": 0, "wait": wait.word() });
        let said = self.call(&frame, "(a) => cortex.report(a)", &argument).await?;
        if said["same"] == Value::Bool(true) {
            let text = |key: &str| said[key].as_str().map(|text| cortex_wire::text::clean(text, limits::TEXT_BYTES)).unwrap_or_default();
            return Ok((json!({ "unchanged": true }), text("title"), text("url")));
        }
        let snapshot = self.snapshot(&Wanted::default()).await?;
        let told = Told { lines: snapshot.lines.clone(), ..snapshot.told.clone() };
        if let Some(tab) = self.browser.state().tabs.get_mut(&self.tab) {
            tab.told = Some(told);
        }
        let page = match before.filter(|_| !whole) {
            Some(before) if before.lines == snapshot.lines => json!({ "unchanged": true }),
            Some(before) => {
                let changes = difference(&before.lines, &snapshot.lines);
                let cost: usize = changes.iter().map(|line| line.len() + 1).sum();
                let full: usize = snapshot.lines.iter().map(|line| line.len() + 1).sum();
                if cost < full { json!({ "diff": changes.join("\n") }) } else { snapshot.to_json() }
            }
            None => snapshot.to_json(),
        };
        Ok((page, snapshot.title, snapshot.url))
    }
}

/// Reads a cursor.
///
/// # Errors
/// `bad_cursor`.
pub fn cursor(written: Option<&str>) -> Result<usize, Fault> {
    let Some(written) = written else { return Ok(0) };
    let number = written.strip_prefix('l').and_then(|number| number.parse().ok());
    number.ok_or_else(|| Fault::new("bad_cursor", "a cursor is the `next_cursor` of a snapshot"))
}

#[derive(Default)]
struct Assembly {
    lines: Vec<String>,
    skip: usize,
    seen: usize,
    budget: usize,
    bytes: usize,
    frames: usize,
    cut: bool,
}

impl Assembly {
    fn add(&mut self, depth: usize, text: &str) -> bool {
        if self.cut {
            return false;
        }
        self.seen += 1;
        if self.seen <= self.skip {
            return true;
        }
        let cost = text.len() + 2 * depth + 1;
        if self.bytes + cost > self.budget && !self.lines.is_empty() {
            self.cut = true;
            return false;
        }
        self.bytes += cost;
        self.lines.push(format!("{}{text}", "  ".repeat(depth)));
        true
    }
}

/// The lines that went (`- …`) and came (`+ …`), in the order of the new ones.
pub fn difference(old: &[String], new: &[String]) -> Vec<String> {
    let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let went = |line: &String| format!("- {}", line.trim_start());
    let came = |line: &String| format!("+ {line}");
    if a.len().saturating_mul(b.len()) > COMPARED {
        return a.iter().map(went).chain(b.iter().map(came)).collect();
    }
    // common[i][j]: the longest common lines of a[i..] and b[j..].
    let width = b.len() + 1;
    let mut common = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            common[i * width + j] =
                if a[i] == b[j] { common[(i + 1) * width + j + 1] + 1 } else { common[(i + 1) * width + j].max(common[i * width + j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || common[(i + 1) * width + j] >= common[i * width + j + 1]) {
            out.push(went(&a[i]));
            i += 1;
        } else {
            out.push(came(&b[j]));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn a_difference_tells_what_went_and_what_came() {
        assert_eq!(difference(&lines("abcd"), &lines("abxd")), ["- c", "+ x"]);
        assert_eq!(difference(&lines("ab"), &lines("ab")), Vec::<String>::new());
        assert_eq!(difference(&lines(""), &lines("a")), ["+ a"]);
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_to_the_other(old in "[abc]{0,12}", new in "[abc]{0,12}") {
            let (old, new) = (lines(&old), lines(&new));
            let changes = difference(&old, &new);
            let went = changes.iter().filter(|line| line.starts_with('-')).count();
            let came = changes.iter().filter(|line| line.starts_with('+')).count();
            prop_assert_eq!(old.len() - went + came, new.len());
            let mut left: Vec<_> = old.clone();
            for line in changes.iter().filter_map(|line| line.strip_prefix("- ")) {
                let at = left.iter().position(|old| old == line);
                prop_assert!(at.is_some());
                left.remove(at.unwrap());
            }
        }
    }
}
