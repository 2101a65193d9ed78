//! Looking at a page: snapshots, searches, text, pictures, paper; and waiting for it.

use std::time::Duration;

use cortex_wire::{
    browser::{Filter, WaitFor},
    limits,
};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{Turn, navigate::stage};
use crate::browser::{
    Fault,
    snapshot::{self, Wanted},
};

/// A picture of a page that is longer is cut.
const HIGHEST: f64 = 16_000.0;
/// And one that is wider.
const WIDEST: f64 = 4_000.0;
/// A value of a script.
const VALUE_BYTES: usize = 256 * 1024;
/// Elements that a search tells.
const FOUND: usize = 200;
/// Between two looks at something that no event tells.
const LOOK_MS: u64 = 100;

impl Turn<'_> {
    pub(super) async fn snapshot(
        &self,
        filter: Filter,
        scope: Option<String>,
        depth: Option<u32>,
        cursor: Option<&str>,
        budget: Option<usize>,
    ) -> Result<Value, Fault> {
        let wanted =
            Wanted { filter, scope, depth, skip: snapshot::cursor(cursor)?, budget: budget.unwrap_or(limits::BROWSER_SNAPSHOT_BYTES) };
        let page = self.page();
        let taken = page.snapshot(&wanted).await?;
        let is_usual = wanted.filter == Filter::Interactive
            && wanted.scope.is_none()
            && wanted.depth.is_none()
            && wanted.skip == 0
            && wanted.budget == limits::BROWSER_SNAPSHOT_BYTES;
        if let (Some(tab), true) = (self.browser.state().tabs.get_mut(&self.tab), is_usual) {
            tab.told = Some(crate::browser::state::Told { lines: taken.lines.clone(), ..taken.told.clone() });
        }
        let mut value = taken.to_json();
        value["title"] = taken.title.as_str().into();
        Ok(value)
    }

    pub(super) async fn find(
        &self,
        text: Option<&str>,
        regex: Option<&str>,
        role: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Value, Fault> {
        let page = self.page();
        page.main().await?;
        let limit = limit.unwrap_or(20).clamp(1, FOUND);
        let (mut found, mut more) = (Vec::new(), 0);
        for (_, frame) in page.frames() {
            let argument = json!({ "text": text, "regex": regex, "role": role, "limit": limit - found.len(), "gen": frame.generation });
            match page.call(&frame, "(a) => cortex.search(a)", &argument).await {
                Ok(said) => {
                    found.extend(said["found"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
                    more += said["more"].as_u64().unwrap_or(0);
                }
                Err(fault) if fault.code == "navigated" => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(json!({ "found": found.join("\n"), "count": found.len(), "more": more }))
    }

    pub(super) async fn read_text(&self, target: Option<&str>, offset: usize, budget: Option<usize>) -> Result<Value, Fault> {
        let page = self.page();
        let budget = budget.unwrap_or(limits::BROWSER_SNAPSHOT_BYTES);
        let argument = json!({ "offset": offset, "budget": budget });
        let said = match target {
            Some(target) => page.find(target, "(a) => cortex.read(a)", argument).await?.2,
            None => page.call(&page.main().await?, "(a) => cortex.read(a)", &argument).await?,
        };
        let mut value = json!({ "text": said["text"], "length": said["length"] });
        if !said["next"].is_null() {
            value["next_offset"] = said["next"].clone();
        }
        Ok(value)
    }

    pub(super) async fn evaluate(&self, expression: &str, target: Option<&str>) -> Result<Value, Fault> {
        let page = self.page();
        let answer = match target {
            None => {
                let frame = page.main().await?;
                let params = json!({
                    "expression": expression, "uniqueContextId": frame.worlds.page, "awaitPromise": true, "returnByValue": true, "userGesture": true,
                });
                page.unless_dialog(self.browser.ask(&frame.session, "Runtime.evaluate", params)).await
            }
            Some(target) => {
                let found = page.element(target, crate::browser::page::Wants { exists: true, ..Default::default() }).await?;
                let object = page.last(&found.frame).await?;
                let node = self.browser.ask(&found.frame.session, "DOM.describeNode", json!({ "objectId": object })).await?;
                // The same element, in the page's own world.
                let theirs = json!({ "backendNodeId": node.pointer("/node/backendNodeId") });
                let theirs = self.browser.ask(&found.frame.session, "DOM.resolveNode", theirs).await?;
                let object = theirs.pointer("/object/objectId");
                let params = json!({
                    "functionDeclaration": expression, "objectId": object, "arguments": [{ "objectId": object }], "awaitPromise": true, "returnByValue": true, "userGesture": true,
                });
                page.unless_dialog(self.browser.ask(&found.frame.session, "Runtime.callFunctionOn", params)).await
            }
        };
        let answer = answer.map_err(Fault::of_context)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            let what = thrown
                .pointer("/exception/description")
                .or(thrown.pointer("/exception/value"))
                .or(thrown.get("text"))
                .map_or(String::new(), |what| what.as_str().map_or_else(|| what.to_string(), str::to_owned));
            return Err(Fault::new("script_error", cortex_wire::text::clean(&what, 1_000)));
        }
        let result = &answer["result"];
        let value = match (result.get("value"), result["unserializableValue"].as_str(), result["description"].as_str()) {
            (Some(value), ..) => value.clone(),
            (None, Some(special), _) => special.into(),
            (None, None, Some(description)) => cortex_wire::text::clean(description, 400).into(),
            _ => Value::Null,
        };
        if value.to_string().len() > VALUE_BYTES {
            return Err(Fault::new("too_large", "the value is larger than 256 KiB; let the script return less"));
        }
        Ok(json!({ "result": value }))
    }

    pub(super) async fn wait_for(&self, wait: &WaitFor) -> Result<Value, Fault> {
        if let Some(ms) = wait.ms {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let page = self.page();
        if let Some(until) = wait.load {
            page.reach(stage(until), None).await?;
        }
        let tab = self.tab;
        if let Some(url) = &wait.url {
            self.browser.wait(|state| state.main(tab).is_none_or(|frame| frame.url.contains(url.as_str())).then_some(())).await?;
        }
        if wait.idle {
            self.browser.wait(|state| state.main(tab).is_none_or(|frame| frame.idle).then_some(())).await?;
        }
        if wait.text.is_some() || wait.gone.is_some() || wait.target.is_some() {
            while !self.holds(wait).await? {
                let main = page.main().await?;
                let _ = page.call(&main, "(a) => cortex.changed(a)", &json!(LOOK_MS)).await;
            }
        }
        Ok(Value::Null)
    }

    /// Whether the page shows what it is to show, and nothing that it is not to show.
    async fn holds(&self, wait: &WaitFor) -> Result<bool, Fault> {
        let page = self.page();
        page.main().await?;
        let (mut text, mut gone, mut target) = (wait.text.is_none(), true, wait.target.is_none());
        for (_, frame) in page.frames() {
            let asks = |function: &'static str, argument: Value| {
                let frame = frame.clone();
                async move {
                    page.call(&frame, function, &argument).await.map_or_else(
                        |fault| if fault.code == "navigated" { Ok(false) } else { Err(fault) },
                        |said| Ok(said == Value::Bool(true)),
                    )
                }
            };
            if let Some(wanted) = &wait.text {
                text |= asks("(a) => cortex.says(a)", wanted.as_str().into()).await?;
            }
            if let Some(unwanted) = &wait.gone {
                gone &= !asks("(a) => cortex.says(a)", unwanted.as_str().into()).await?;
            }
            if let Some(wanted) = &wait.target {
                let argument = match crate::browser::page::Target::parse(wanted) {
                    crate::browser::page::Target::Ref(generation, element) if generation == frame.generation => json!({ "n": element }),
                    crate::browser::page::Target::Ref(..) => continue,
                    crate::browser::page::Target::Text(text) => json!({ "text": text }),
                    crate::browser::page::Target::Css(css) => json!({ "css": css }),
                };
                target |= asks("(a) => cortex.exists(a, 0)", argument).await?;
            }
        }
        Ok(text && gone && target)
    }

    pub(super) async fn screenshot(&self, full: bool, target: Option<&str>, annotated: bool) -> Result<Value, Fault> {
        let page = self.page();
        let mut params = json!({ "format": "png", "optimizeForSpeed": true });
        if let Some(target) = target {
            let (frame, _, rect) = page.find(target, "(a) => cortex.rect(a.target, a.gen)", json!({})).await?;
            let (dx, dy) = page.offset(&frame).await?;
            let side = |key: &str| rect[key].as_f64().unwrap_or_default();
            params["clip"] = json!({ "x": side("x") + dx, "y": side("y") + dy, "width": side("width").clamp(1.0, WIDEST), "height": side("height").clamp(1.0, HIGHEST), "scale": 1 });
            params["captureBeyondViewport"] = true.into();
        } else if full {
            let size = page.ask("Page.getLayoutMetrics", json!({})).await?;
            let side = |key: &str| size["cssContentSize"][key].as_f64().unwrap_or(800.0);
            params["clip"] = json!({ "x": 0, "y": 0, "width": side("width").clamp(1.0, WIDEST), "height": side("height").clamp(1.0, HIGHEST), "scale": 1 });
            params["captureBeyondViewport"] = true.into();
        }
        let main = if annotated { Some(page.main().await?) } else { None };
        if let Some(main) = &main {
            page.call(main, "(a) => cortex.annotate(a)", &main.generation.into()).await?;
        }
        let taken = page.ask("Page.captureScreenshot", params).await;
        if let Some(main) = &main {
            page.call(main, "() => cortex.clear()", &Value::Null).await?;
        }
        let bytes = bytes(&taken?)?;
        let artifact = self.keep(&bytes, "image/png")?;
        let size = png_size(&bytes);
        let url = self.browser.state().main(self.tab).map(|frame| frame.url.clone());
        self.browser
            .tell(json!({ "kind": "screenshot", "tab": self.tab, "artifact": artifact, "url": url, "width": size.0, "height": size.1 }));
        Ok(json!({ "artifact": artifact, "width": size.0, "height": size.1 }))
    }

    pub(super) async fn pdf(&self, landscape: bool, background: bool) -> Result<Value, Fault> {
        let printed = self.page().ask("Page.printToPDF", json!({ "landscape": landscape, "printBackground": background })).await?;
        Ok(json!({ "artifact": self.keep(&bytes(&printed)?, "application/pdf")? }))
    }
}

fn bytes(answer: &Value) -> Result<Vec<u8>, Fault> {
    let data = answer["data"].as_str().unwrap_or_default();
    BASE64.decode(data.as_bytes()).map_err(|_| Fault::new("refused", "the browser's bytes are none"))
}

/// Width and height, as the file says.
fn png_size(bytes: &[u8]) -> (u32, u32) {
    let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes);
    (number(16), number(20))
}
