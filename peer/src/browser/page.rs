//! Asking a page: scripts in our own world of a frame, targets, and where on the screen a frame is.

use std::time::{Duration, Instant};

use cortex_wire::text;
use serde_json::{Value, json};

use super::{
    Fault,
    running::Browser,
    state::{Dialog, Frame, Stage},
    transport::CdpError,
};

/// How long an element that is named by a selector or a text is waited for.
const APPEAR: Duration = Duration::from_secs(5);
/// How long an element that is named by its ref may be covered, invisible or disabled.
const BECOME_READY: Duration = Duration::from_secs(1);
/// Between two looks at a page in which nothing seems to change: sizes change without it.
const LOOK_AGAIN_MS: u64 = 200;
/// Frames that are searched and shown.
pub const FRAMES: usize = 16;

/// What an action names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Of a snapshot: the document's number and the element's.
    Ref(u64, u64),
    /// What it says.
    Text(String),
    /// A selector.
    Css(String),
}

impl Target {
    /// Reads what was written.
    pub fn parse(written: &str) -> Self {
        let reference = || {
            let (generation, element) = written.strip_prefix('s')?.split_once('e')?;
            Some(Self::Ref(generation.parse().ok()?, element.parse().ok()?))
        };
        if let Some(text) = written.strip_prefix("text=") {
            return Self::Text(text.to_owned());
        }
        reference().unwrap_or_else(|| Self::Css(written.strip_prefix("css=").unwrap_or(written).to_owned()))
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Ref(_, element) => json!({ "n": element }),
            Self::Text(text) => json!({ "text": text }),
            Self::Css(css) => json!({ "css": css }),
        }
    }
}

/// What an element must be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wants {
    /// In the page is enough.
    pub exists: bool,
    /// It reacts.
    pub enabled: bool,
    /// A click there reaches it.
    pub hit: bool,
}

/// An element that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// In which frame.
    pub frame: Frame,
    /// In the tab's viewport.
    pub x: f64,
    /// In the tab's viewport.
    pub y: f64,
    /// What the script said of it.
    pub said: Value,
}

/// One tab, for one action.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The browser.
    pub browser: &'a Browser,
    /// The tab's number.
    pub tab: u32,
    /// When the action is over whatever happens.
    pub deadline: Instant,
}

impl Page<'_> {
    /// The tab's session of the protocol.
    ///
    /// # Errors
    /// When the tab is closed or its page has crashed.
    pub fn session(&self) -> Result<String, Fault> {
        let state = self.browser.state();
        let tab = state.tabs.get(&self.tab).ok_or_else(|| Fault::new("tab_closed", format!("the tab t{} is closed", self.tab)))?;
        if tab.crashed {
            return Err(Fault::new("page_crashed", "the page has crashed; reload it or navigate somewhere else"));
        }
        Ok(tab.session.clone())
    }

    /// Asks the tab.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn ask(&self, method: &str, params: Value) -> Result<Value, Fault> {
        let session = self.session()?;
        self.unless_dialog(self.browser.ask(&session, method, params)).await
    }

    /// The dialog that is open in the tab.
    pub fn dialog(&self) -> Option<Dialog> {
        // Alerts are answered already.
        self.browser
            .state()
            .tabs
            .get(&self.tab)
            .and_then(|tab| tab.dialog.clone())
            .filter(|dialog| matches!(dialog.kind.as_str(), "confirm" | "prompt"))
    }

    /// While a dialog is open no page answers.
    ///
    /// # Errors
    /// `dialog_open`, or what the browser said.
    pub async fn unless_dialog(&self, answer: impl Future<Output = Result<Value, CdpError>>) -> Result<Value, Fault> {
        let opened = self.browser.wait(|state| {
            let tab = state.tabs.get(&self.tab);
            if tab.is_none_or(|tab| tab.crashed) {
                return Some(None);
            }
            let dialog = tab.and_then(|tab| tab.dialog.clone()).filter(|dialog| matches!(dialog.kind.as_str(), "confirm" | "prompt"))?;
            Some(Some(dialog))
        });
        tokio::select! {
            biased;
            answer = answer => Ok(answer?),
            opened = opened => match opened? {
                Some(dialog) => Err(dialog_open(&dialog)),
                None => self.session().and(Err(Fault::new("tab_closed", "the tab was closed meanwhile"))),
            },
        }
    }

    /// Calls one of our functions in a frame; what it finds wrong is a fault.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn call(&self, frame: &Frame, function: &str, argument: &Value) -> Result<Value, Fault> {
        if frame.worlds.own.is_empty() {
            return Err(Fault::navigated());
        }
        let params = json!({
            "functionDeclaration": function, "uniqueContextId": frame.worlds.own, "arguments": [{ "value": argument }],
            "returnByValue": true, "awaitPromise": true,
        });
        let answer =
            self.unless_dialog(self.browser.ask(&frame.session, "Runtime.callFunctionOn", params)).await.map_err(Fault::of_context)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            let what = thrown.pointer("/exception/description").or(thrown.get("text")).and_then(Value::as_str).unwrap_or("something");
            return Err(Fault::new("page_error", text::clean(what, 400)));
        }
        let value = answer.pointer("/result/value").cloned().unwrap_or(Value::Null);
        match value["failed"].as_str() {
            Some(code) => Err(Fault {
                code: code.into(),
                message: value["message"].as_str().unwrap_or_default().into(),
                more: value.get("candidates").cloned(),
                snapshot: None,
            }),
            None => Ok(value),
        }
    }

    /// An object of one of our functions, to be named to the browser.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn object(&self, frame: &Frame, function: &str, argument: &Value) -> Result<Option<String>, Fault> {
        let params = json!({
            "functionDeclaration": function, "uniqueContextId": frame.worlds.own, "arguments": [{ "value": argument }], "objectGroup": super::WORLD,
        });
        let answer =
            self.unless_dialog(self.browser.ask(&frame.session, "Runtime.callFunctionOn", params)).await.map_err(Fault::of_context)?;
        Ok(answer.pointer("/result/objectId").and_then(Value::as_str).map(str::to_owned))
    }

    /// The main frame, once it can be asked.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn main(&self) -> Result<Frame, Fault> {
        if let Some(dialog) = self.dialog() {
            return Err(dialog_open(&dialog));
        }
        let found = self.browser.wait(|state| match state.tabs.get(&self.tab) {
            None => Some(None),
            Some(tab) if tab.crashed || tab.dialog.is_some() => Some(None),
            Some(_) => {
                state.main(self.tab).filter(|frame| !frame.worlds.own.is_empty() && !frame.worlds.page.is_empty()).cloned().map(Some)
            }
        });
        match tokio::time::timeout(self.left(), found).await {
            Ok(frame) => frame?.ok_or_else(|| match (self.session(), self.dialog()) {
                (Err(fault), _) => fault,
                (_, Some(dialog)) => dialog_open(&dialog),
                _ => Fault::navigated(),
            }),
            Err(_) => Err(Fault::new("timed_out", "the page shows nothing that could be looked at")),
        }
    }

    /// What is left of the action's time.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The frames that are searched, the main one first.
    pub fn frames(&self) -> Vec<(String, Frame)> {
        let mut frames = self.browser.state().frames_of(self.tab);
        frames.retain(|(_, frame)| !frame.worlds.own.is_empty());
        frames.truncate(FRAMES);
        frames
    }

    /// Finds an element and runs `function` on it in its frame, again and again until the element is as it has to be.
    ///
    /// # Errors
    /// [`Fault`]; with a small snapshot when the target is the reason.
    pub async fn find(&self, written: &str, function: &str, mut argument: Value) -> Result<(String, Frame, Value), Fault> {
        let target = Target::parse(written);
        argument["target"] = target.to_json();
        let patience = if matches!(target, Target::Ref(..)) { BECOME_READY } else { APPEAR };
        let until = self.deadline.min(Instant::now() + patience);
        loop {
            let main = self.main().await?;
            let fault = match self.find_once(&target, function, &mut argument).await {
                Ok(found) => return Ok(found),
                Err(fault) => fault,
            };
            let may_become = match fault.code.as_str() {
                "not_found" | "not_visible" | "covered_by" | "disabled" | "ambiguous_target" | "navigated" => true,
                "stale_ref" | "bad_target" => false,
                _ => return Err(fault),
            };
            let left = until.saturating_duration_since(Instant::now());
            if !may_become || left.is_zero() || (fault.code == "ambiguous_target" && left + Duration::from_millis(300) < patience) {
                return Err(self.with_snapshot(fault).await);
            }
            let wait = LOOK_AGAIN_MS.min(u64::try_from(left.as_millis()).unwrap_or(0) + 1);
            let _ = self.call(&main, "(a) => cortex.changed(a)", &json!(wait.min(50))).await;
        }
    }

    async fn find_once(&self, target: &Target, function: &str, argument: &mut Value) -> Result<(String, Frame, Value), Fault> {
        let frames = match target {
            Target::Ref(generation, _) => {
                let found = self.browser.state().of_generation(*generation).filter(|(_, frame)| frame.tab == self.tab);
                vec![found.ok_or_else(|| Fault::new("stale_ref", "the page of that ref is not shown any more"))?]
            }
            _ => self.frames(),
        };
        let mut fault = Fault::new("not_found", "nothing on the page fits that target");
        for (id, frame) in frames {
            argument["gen"] = frame.generation.into();
            match self.call(&frame, function, argument).await {
                Ok(said) => return Ok((id, frame, said)),
                Err(next) if next.code == "not_found" => {}
                // A frame that goes away meanwhile holds nothing.
                Err(next) if next.code == "navigated" && frame.parent.is_some() => {}
                Err(next) => fault = next,
            }
            if !matches!(fault.code.as_str(), "not_found" | "not_visible") {
                return Err(fault);
            }
        }
        Err(fault)
    }

    async fn with_snapshot(&self, mut fault: Fault) -> Fault {
        fault.snapshot = tokio::time::timeout(Duration::from_secs(2), Box::pin(self.glance())).await.ok().flatten();
        fault
    }

    /// An element that is ready, and where it is.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn element(&self, written: &str, wants: Wants) -> Result<Found, Fault> {
        let Wants { exists, enabled, hit } = wants;
        let argument = json!({ "wants": { "exists": exists, "enabled": enabled, "hit": hit } });
        let (frame_id, frame, said) = self.find(written, "(a) => cortex.prepare(a)", argument).await?;
        let (dx, dy) = self.offset(&frame_id).await?;
        let x = said["x"].as_f64().unwrap_or_default() + dx;
        let y = said["y"].as_f64().unwrap_or_default() + dy;
        if wants.hit && frame.parent.is_some() {
            let main = self.main().await?;
            if self.call(&main, "(a) => cortex.at(a[0], a[1])", &json!([x, y])).await? == Value::Bool(false) {
                return Err(self.with_snapshot(Fault::new("covered_by", "something of the page around it is over its frame")).await);
            }
        }
        Ok(Found { frame, x, y, said })
    }

    /// The element that was found last in the frame, to be named to the browser.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn last(&self, frame: &Frame) -> Result<String, Fault> {
        self.object(frame, "() => cortex.element()", &Value::Null).await?.ok_or_else(|| Fault::new("stale_ref", "that element is gone"))
    }

    /// Where a frame's corner is in the tab's viewport.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn offset(&self, frame_id: &str) -> Result<(f64, f64), Fault> {
        let (mut x, mut y) = (0.0, 0.0);
        let mut id = frame_id.to_owned();
        for _ in 0..FRAMES {
            // Boxes count from the corner of the outermost frame of the same process.
            let (parent, session, root) = {
                let state = self.browser.state();
                let Some(parent) = state.frames.get(&id).and_then(|frame| frame.parent.clone()) else { return Ok((x, y)) };
                let Some(session) = state.frames.get(&parent).map(|frame| frame.session.clone()) else { return Ok((x, y)) };
                let mut root = parent.clone();
                while let Some(above) = state.frames.get(&root).and_then(|frame| frame.parent.clone()) {
                    if state.frames.get(&above).is_none_or(|frame| frame.session != session) {
                        break;
                    }
                    root = above;
                }
                (parent, session, root)
            };
            let _ = parent;
            let owner = self.unless_dialog(self.browser.ask(&session, "DOM.getFrameOwner", json!({ "frameId": id }))).await?;
            let around = self
                .unless_dialog(self.browser.ask(&session, "DOM.getBoxModel", json!({ "backendNodeId": owner["backendNodeId"] })))
                .await?;
            let corner = |n: usize| around.pointer(&format!("/model/content/{n}")).and_then(Value::as_f64).unwrap_or_default();
            x += corner(0);
            y += corner(1);
            id = root;
        }
        Ok((x, y))
    }

    /// Waits until the tab's document has come so far; `loader`: which one, if that is known.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn reach(&self, stage: Stage, loader: Option<&str>) -> Result<(), Fault> {
        let reached = self.browser.wait(|state| {
            let tab = state.tabs.get(&self.tab)?;
            if tab.crashed || tab.dialog.as_ref().is_some_and(|dialog| matches!(dialog.kind.as_str(), "confirm" | "prompt")) {
                return Some(());
            }
            let frame = state.main(self.tab)?;
            (loader.is_none_or(|loader| frame.loader == loader) && frame.stage >= stage && !(loader.is_none() && tab.navigating))
                .then_some(())
        });
        match tokio::time::timeout(self.left(), reached).await {
            Ok(reached) => Ok(reached?),
            Err(_) => Err(Fault::new("timed_out", "the page did not load in time; what is there can be looked at")),
        }
    }
}

fn dialog_open(dialog: &Dialog) -> Fault {
    Fault::new(
        "dialog_open",
        format!("a dialog waits for an answer ({} {:?}); answer it with the action `dialog`", dialog.kind, dialog.message),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_names_a_ref_a_text_or_a_selector() {
        assert_eq!(Target::parse("s12e7"), Target::Ref(12, 7));
        assert_eq!(Target::parse("text=Sign in"), Target::Text("Sign in".into()));
        assert_eq!(Target::parse("css=s1e2"), Target::Css("s1e2".into()));
        for css in ["section", "#id", "s1e", "se1", "s1e2x", ""] {
            assert_eq!(Target::parse(css), Target::Css(css.into()));
        }
    }
}
