//! What a browser keeps and what it has seen: cookies, storages, dialogs, downloads, console, requests; and what pages believe of their place.

use cortex_wire::browser::{Emulate, Kept, Requests, har};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::Turn;
use crate::browser::Fault;

/// Bodies that are told in the answer; larger ones are kept beside it.
const INLINE_BYTES: usize = 64 * 1024;
/// Entries that are told unless more are asked for.
const LISTED: usize = 50;

impl Turn<'_> {
    pub(super) async fn cookies(&self, kept: &Kept) -> Result<Value, Fault> {
        match kept {
            Kept::Get => {
                let all = self.browser.ask("", "Storage.getCookies", json!({})).await?;
                let keys = ["name", "value", "domain", "path", "expires", "httpOnly", "secure", "sameSite"];
                let plain = |cookie: &Value| {
                    Value::Object(keys.iter().filter_map(|key| Some(((*key).to_owned(), cookie.get(key)?.clone()))).collect())
                };
                Ok(json!({ "cookies": all["cookies"].as_array().into_iter().flatten().map(plain).collect::<Vec<_>>() }))
            }
            Kept::Set { entries } => {
                let here = self.browser.state().main(self.tab).map(|frame| frame.url.clone()).unwrap_or_default();
                let cookies: Vec<Value> = entries
                    .iter()
                    .map(|entry| {
                        let mut cookie =
                            json!({ "name": entry.name, "value": entry.value, "secure": entry.secure, "httpOnly": entry.http_only });
                        for (key, value) in [("domain", &entry.domain), ("path", &entry.path)] {
                            if let Some(value) = value {
                                cookie[key] = value.as_str().into();
                            }
                        }
                        match (&entry.url, &entry.domain) {
                            (Some(url), _) => cookie["url"] = url.as_str().into(),
                            (None, None) => cookie["url"] = here.as_str().into(),
                            (None, Some(_)) => {}
                        }
                        if let Some(expires) = entry.expires {
                            cookie["expires"] = expires.into();
                        }
                        cookie
                    })
                    .collect();
                self.browser.ask("", "Storage.setCookies", json!({ "cookies": cookies })).await?;
                Ok(Value::Null)
            }
            Kept::Clear => {
                self.browser.ask("", "Storage.clearCookies", json!({})).await?;
                Ok(Value::Null)
            }
        }
    }

    pub(super) async fn storage(&self, session: bool, kept: &Kept) -> Result<Value, Fault> {
        let page = self.page();
        let main = page.main().await?;
        let argument = match kept {
            Kept::Get => json!({ "session": session }),
            Kept::Set { entries } => json!({ "session": session, "entries": entries }),
            Kept::Clear => json!({ "session": session, "wipe": true }),
        };
        let said = page.call(&main, "(a) => cortex.store(a)", &argument).await?;
        Ok(if *kept == Kept::Get { json!({ "entries": said }) } else { Value::Null })
    }

    pub(super) async fn dialog(&self, accept: bool, text: Option<&str>) -> Result<Value, Fault> {
        let Some(dialog) = self.page().dialog() else { return Err(Fault::new("no_dialog", "no dialog is open")) };
        let mut params = json!({ "accept": accept });
        if let Some(text) = text {
            params["promptText"] = text.into();
        }
        self.browser.ask(&dialog.session, "Page.handleJavaScriptDialog", params).await?;
        let tab = self.tab;
        self.browser.wait(|state| state.tabs.get(&tab).is_none_or(|tab| tab.dialog.is_none()).then_some(())).await?;
        Ok(json!({ "type": dialog.kind, "message": dialog.message }))
    }

    pub(super) async fn downloads(&self, wait: bool) -> Result<Value, Fault> {
        if wait {
            self.browser.wait(|state| state.downloads.values().all(super::super::state::Download::is_over).then_some(())).await?;
        }
        let state = self.browser.state();
        Ok(json!({ "downloads": state.downloads().iter().map(|download| download.to_json()).collect::<Vec<_>>() }))
    }

    pub(super) fn console(&self, limit: Option<usize>) -> Value {
        let state = self.browser.state();
        let limit = limit.unwrap_or(LISTED);
        json!({ "messages": state.console.iter().skip(state.console.len().saturating_sub(limit)).collect::<Vec<_>>() })
    }

    pub(super) async fn network(&self, requests: &Requests) -> Result<Value, Fault> {
        match requests {
            Requests::List { url, limit } => {
                let state = self.browser.state();
                let fits = |entry: &&Value| url.as_ref().is_none_or(|url| entry["url"].as_str().unwrap_or_default().contains(url.as_str()));
                let mut listed: Vec<Value> = state.requests.iter().rev().filter(fits).take(limit.unwrap_or(LISTED)).cloned().collect();
                listed.reverse();
                for entry in listed.iter_mut().filter_map(Value::as_object_mut) {
                    entry.retain(|key, _| !key.ends_with("_headers") && key != "kind");
                }
                Ok(json!({ "requests": listed }))
            }
            Requests::Body { id } => {
                let known = id.parse().ok().and_then(|id: u64| self.browser.state().bodies.get(&id).cloned());
                let Some((session, request)) = known else {
                    return Err(Fault::new("no_such_request", "that request is not known (any more); ask for the list"));
                };
                let answer = self.browser.ask(&session, "Network.getResponseBody", json!({ "requestId": request })).await?;
                let text = answer["body"].as_str().unwrap_or_default();
                let bytes = if answer["base64Encoded"] == Value::Bool(true) {
                    BASE64.decode(text.as_bytes()).unwrap_or_default()
                } else {
                    text.as_bytes().to_vec()
                };
                match std::str::from_utf8(&bytes) {
                    Ok(text) if bytes.len() <= INLINE_BYTES => Ok(json!({ "body": text })),
                    _ => Ok(json!({ "artifact": self.keep(&bytes, "application/octet-stream")? })),
                }
            }
            Requests::Har => {
                let document = har(self.browser.state().requests.iter()).to_string();
                Ok(json!({ "artifact": self.keep(document.as_bytes(), "application/json")? }))
            }
        }
    }

    pub(super) async fn viewport(&self, width: u32, height: u32, scale: f64, mobile: bool) -> Result<Value, Fault> {
        let page = self.page();
        page.ask(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile }),
        )
        .await?;
        page.ask("Emulation.setTouchEmulationEnabled", json!({ "enabled": mobile })).await?;
        Ok(Value::Null)
    }

    pub(super) async fn emulate(&self, emulate: &Emulate) -> Result<Value, Fault> {
        let page = self.page();
        let Emulate { user_agent, locale, timezone, color_scheme, offline, location } = emulate;
        if user_agent.is_some() || locale.is_some() {
            // One command says both; what is not given stays as it was at the start.
            let version = self.browser.ask("", "Browser.getVersion", json!({})).await?;
            let mut params = json!({ "userAgent": user_agent.as_deref().or(version["userAgent"].as_str()) });
            if let Some(locale) = locale {
                params["acceptLanguage"] = locale.as_str().into();
                page.ask("Emulation.setLocaleOverride", json!({ "locale": locale })).await?;
            }
            page.ask("Emulation.setUserAgentOverride", params).await?;
        }
        if let Some(timezone) = timezone {
            page.ask("Emulation.setTimezoneOverride", json!({ "timezoneId": timezone })).await?;
        }
        if let Some(scheme) = color_scheme {
            page.ask("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] })).await?;
        }
        if let Some(offline) = offline {
            page.ask(
                "Network.emulateNetworkConditions",
                json!({ "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 }),
            )
            .await?;
        }
        if let Some((latitude, longitude)) = location {
            self.browser.ask("", "Browser.grantPermissions", json!({ "permissions": ["geolocation"] })).await?;
            page.ask("Emulation.setGeolocationOverride", json!({ "latitude": latitude, "longitude": longitude, "accuracy": 10 })).await?;
        }
        Ok(Value::Null)
    }
}
