//! Mouse, keyboard, fields.

use std::{fs::File, io, time::Duration};

use cortex_wire::browser::Button;
use rustix::fs::{FileType, OFlags, fstat};
use serde_json::{Value, json};

use super::{Turn, keys};
use crate::{
    browser::{Fault, page::Wants},
    shell::command::{beneath, open_folder},
};

/// A file that is given to a page.
const UPLOAD_BYTES: u64 = 512 * 1024 * 1024;
/// For a page to take a mouse button or a key.
const INPUT: Duration = Duration::from_secs(5);
/// For a page to ask for a file.
const CHOOSER: Duration = Duration::from_secs(5);
/// Characters that are typed one by one; more come in one piece.
const TYPED: usize = 1_000;

impl Turn<'_> {
    /// Sends input all at once, and waits until the page has taken it. A page that shows a dialog, goes away or is closed over it has taken it.
    async fn send(&self, method: &str, events: Vec<Value>) -> Result<(), Fault> {
        let page = self.page();
        let session = page.session()?;
        let cdp = self.browser.cdp()?;
        let answers: Vec<_> = events.into_iter().map(|event| cdp.send(&session, method, event)).collect();
        let all = async {
            for answer in answers {
                answer.await?;
            }
            Ok(Value::Null)
        };
        match tokio::time::timeout(INPUT.min(page.left()), page.unless_dialog(all)).await {
            Ok(Err(fault)) if matches!(fault.code.as_str(), "dialog_open" | "tab_closed") => Ok(()),
            Ok(result) => result.map(|_| ()),
            // The page is busy with it.
            Err(_) => Ok(()),
        }
    }

    fn mouse(kind: &str, x: f64, y: f64, button: &str, buttons: u32, clicks: u32, modifiers: u32) -> Value {
        json!({ "type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": clicks, "modifiers": modifiers })
    }

    pub(super) async fn click(&self, target: &str, button: Button, held: &[String], count: u32) -> Result<Value, Fault> {
        let names: Vec<&str> = held.iter().map(String::as_str).collect();
        let held = keys::modifiers(&names).ok_or_else(|| Fault::new("bad_key", "modifiers are Alt, Control, Meta and Shift"))?;
        let found = self.page().element(target, Wants { enabled: true, hit: true, ..Wants::default() }).await?;
        let (button, bit) = match button {
            Button::Left => ("left", 1),
            Button::Right => ("right", 2),
            Button::Middle => ("middle", 4),
        };
        let (x, y) = (found.x, found.y);
        let mut events = vec![Self::mouse("mouseMoved", x, y, "none", 0, 0, held)];
        for click in 1..=count {
            events.push(Self::mouse("mousePressed", x, y, button, bit, click, held));
            events.push(Self::mouse("mouseReleased", x, y, button, 0, click, held));
        }
        self.send("Input.dispatchMouseEvent", events).await?;
        Ok(Value::Null)
    }

    pub(super) async fn hover(&self, target: &str) -> Result<Value, Fault> {
        let found = self.page().element(target, Wants { hit: true, ..Wants::default() }).await?;
        self.send("Input.dispatchMouseEvent", vec![Self::mouse("mouseMoved", found.x, found.y, "none", 0, 0, 0)]).await?;
        Ok(Value::Null)
    }

    /// With the mouse; where the page uses the drag and drop of HTML, what it drags is carried on by hand.
    pub(super) async fn drag(&self, from: &str, to: &str) -> Result<Value, Fault> {
        let page = self.page();
        page.ask("Input.setInterceptDrags", json!({ "enabled": true })).await?;
        let wants = Wants { hit: true, ..Wants::default() };
        let from = page.element(from, wants).await?;
        if let Some(tab) = self.browser.state().tabs.get_mut(&self.tab) {
            tab.drag = None;
        }
        let mouse = |kind: &str, x, y, bit| Self::mouse(kind, x, y, "left", bit, 1, 0);
        let begin = vec![
            mouse("mouseMoved", from.x, from.y, 0),
            mouse("mousePressed", from.x, from.y, 1),
            mouse("mouseMoved", from.x + 6.0, from.y + 6.0, 1),
        ];
        self.send("Input.dispatchMouseEvent", begin).await?;
        // Bringing the goal into view may move what is dragged; the mouse stays where it is.
        let to = page.element(to, Wants::default()).await?;
        let (mx, my) = (f64::midpoint(from.x, to.x), f64::midpoint(from.y, to.y));
        self.send(
            "Input.dispatchMouseEvent",
            vec![mouse("mouseMoved", mx, my, 1), mouse("mouseMoved", to.x, to.y, 1), mouse("mouseMoved", to.x, to.y, 1)],
        )
        .await?;
        let data = self.browser.state().tabs.get_mut(&self.tab).and_then(|tab| tab.drag.take());
        if let Some(data) = data {
            let event = |kind: &str| json!({ "type": kind, "x": to.x, "y": to.y, "data": data });
            self.send("Input.dispatchDragEvent", vec![event("dragEnter"), event("dragOver"), event("drop")]).await?;
        }
        self.send("Input.dispatchMouseEvent", vec![mouse("mouseReleased", to.x, to.y, 0)]).await?;
        page.ask("Input.setInterceptDrags", json!({ "enabled": false })).await?;
        Ok(Value::Null)
    }

    pub(super) async fn scroll(&self, target: Option<&str>, dx: f64, dy: f64) -> Result<Value, Fault> {
        let page = self.page();
        if let (Some(target), true) = (target, dx == 0.0 && dy == 0.0) {
            page.find(target, "(a) => { const r = cortex.prepare({ ...a, wants: { exists: true } }); if (r.failed) return r; cortex.element().scrollIntoView({ block: 'center', behavior: 'instant' }); return {}; }", json!({})).await?;
            return Ok(Value::Null);
        }
        let (x, y) = match target {
            Some(target) => page.element(target, Wants::default()).await.map(|found| (found.x, found.y))?,
            None => {
                let main = page.main().await?;
                let size = page.call(&main, "() => [innerWidth / 2, innerHeight / 2]", &Value::Null).await?;
                (size[0].as_f64().unwrap_or(100.0), size[1].as_f64().unwrap_or(100.0))
            }
        };
        let wheel = json!({ "type": "mouseWheel", "x": x, "y": y, "deltaX": dx, "deltaY": dy });
        self.send("Input.dispatchMouseEvent", vec![wheel]).await?;
        Ok(Value::Null)
    }

    async fn insert(&self, text: &str) -> Result<(), Fault> {
        self.send("Input.insertText", vec![json!({ "text": text })]).await
    }

    pub(super) async fn fill(&self, target: &str, value: &str) -> Result<Value, Fault> {
        let (_, _, said) = self.page().find(target, "(a) => cortex.edit(a)", json!({ "value": value })).await?;
        match said["mode"].as_str() {
            Some("insert") => self.insert(value).await?,
            Some("delete") => self.send_key("Delete").await?,
            _ => {}
        }
        Ok(Value::Null)
    }

    pub(super) async fn type_text(&self, target: &str, text: &str) -> Result<Value, Fault> {
        self.page().find(target, "(a) => cortex.edit(a)", json!({ "value": null })).await?;
        if text.chars().count() > TYPED {
            self.insert(text).await?;
            return Ok(Value::Null);
        }
        for character in text.chars() {
            let name = if character == '\n' { "Enter".to_owned() } else { character.to_string() };
            match keys::key(&name) {
                Some(key) if !key.code.is_empty() => {
                    let held = if character.is_ascii_uppercase() { 8 } else { 0 };
                    self.send("Input.dispatchKeyEvent", key.events(held).to_vec()).await?;
                }
                // No keyboard writes it with one key.
                _ => self.insert(&character.to_string()).await?,
            }
        }
        Ok(Value::Null)
    }

    async fn send_key(&self, written: &str) -> Result<(), Fault> {
        let wrong = || {
            Fault::new(
                "bad_key",
                format!("there is no key {:?}; keys are `Enter`, `a`, `Control+a`, `ArrowDown`", cortex_wire::text::clean(written, 40)),
            )
        };
        let (held, key) = keys::parse(written).ok_or_else(wrong)?;
        self.send("Input.dispatchKeyEvent", key.events(held).to_vec()).await
    }

    pub(super) async fn press(&self, target: Option<&str>, key: &str) -> Result<Value, Fault> {
        if let Some(target) = target {
            let focus = "(a) => { const r = cortex.prepare({ ...a, wants: { enabled: true } }); if (r.failed) return r; cortex.element().focus(); return {}; }";
            self.page().find(target, focus, json!({})).await?;
        }
        self.send_key(key).await?;
        Ok(Value::Null)
    }

    pub(super) async fn select(&self, target: &str, values: &[String]) -> Result<Value, Fault> {
        let (_, _, said) = self.page().find(target, "(a) => cortex.choose(a)", json!({ "values": values })).await?;
        Ok(said)
    }

    pub(super) async fn check(&self, target: &str, checked: bool) -> Result<Value, Fault> {
        let found = self.page().element(target, Wants { enabled: true, ..Wants::default() }).await?;
        if found.said["checked"] != Value::Bool(checked) {
            self.click(target, Button::Left, &[], 1).await?;
            // The name of what was clicked may have changed, so it is not looked for again.
            let now = self.page().call(&found.frame, "() => { const e = cortex.element(); return e.checked === undefined ? e.getAttribute('aria-checked') === 'true' : e.checked; }", &Value::Null).await;
            if matches!(now, Ok(Value::Bool(now)) if now != checked) {
                return Err(Fault::new("not_checked", "it was clicked, and is as it was before"));
            }
        }
        Ok(Value::Null)
    }

    pub(super) async fn upload(&self, target: &str, paths: &[String]) -> Result<Value, Fault> {
        let files = self.copies(paths).await?;
        let page = self.page();
        let found = page.element(target, Wants { exists: true, ..Wants::default() }).await?;
        let session = if found.said["tag"] == "INPUT" && found.said["type"] == "file" {
            let object = page.last(&found.frame).await?;
            page.unless_dialog(self.browser.ask(
                &found.frame.session,
                "DOM.setFileInputFiles",
                json!({ "files": files, "objectId": object }),
            ))
            .await?;
            return Ok(json!({ "files": files.len() }));
        } else {
            if let Some(tab) = self.browser.state().tabs.get_mut(&self.tab) {
                tab.chooser = None;
            }
            self.click(target, Button::Left, &[], 1).await?;
            let tab = self.tab;
            let asked = self.browser.wait(|state| state.tabs.get_mut(&tab).and_then(|tab| tab.chooser.take()));
            tokio::time::timeout(CHOOSER, asked).await
        };
        match session {
            Ok(asked) => {
                let (session, node) = asked?;
                page.unless_dialog(self.browser.ask(&session, "DOM.setFileInputFiles", json!({ "files": files, "backendNodeId": node })))
                    .await?;
                Ok(json!({ "files": files.len() }))
            }
            Err(_) => Err(Fault::new("no_file_field", "that element is no field for files, and did not ask for one when it was clicked")),
        }
    }

    /// Copies of files of the workspace: what the browser opens by name cannot be exchanged for something outside of it.
    async fn copies(&self, paths: &[String]) -> Result<Vec<String>, Fault> {
        let browser = self.browser;
        let (workspace_dir, session, to) =
            (browser.workspace_dir().to_owned(), browser.session, browser.folder.join("uploads").join(self.task.to_string()));
        let paths = paths.to_vec();
        let copied = tokio::task::spawn_blocking(move || {
            let (root, _) = open_folder(&workspace_dir, &session.to_string(), "")?;
            let path_of_root = workspace_dir.join(session.to_string());
            let mut copies = Vec::new();
            for (number, path) in paths.iter().enumerate() {
                let at = |error: io::Error| format!("{path:?} cannot be read in the workspace: {error}");
                let file = beneath(&root, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, &path_of_root)
                    .map_err(|error| at(error.into()))?;
                let about = fstat(&file).map_err(|error| at(error.into()))?;
                if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile
                    || u64::try_from(about.st_size).unwrap_or(u64::MAX) > UPLOAD_BYTES
                {
                    return Err(format!("{path:?} is not a file of at most 512 MiB"));
                }
                let name = path.rsplit('/').next().unwrap_or("file");
                let folder = to.join(number.to_string());
                std::fs::create_dir_all(&folder).map_err(at)?;
                let copy = folder.join(name);
                io::copy(&mut File::from(file), &mut File::create(&copy).map_err(at)?).map_err(at)?;
                copies.push(copy.to_string_lossy().into_owned());
            }
            Ok(copies)
        });
        copied
            .await
            .map_err(|_| Fault::new("bad_file", "the files could not be copied"))?
            .map_err(|reason: String| Fault::new("bad_file", reason))
    }
}
