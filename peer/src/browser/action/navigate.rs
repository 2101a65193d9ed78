//! Tabs, and from page to page.

use cortex_wire::browser::Until;
use serde_json::{Value, json};

use super::{Turn, no_such_tab, tab_number};
use crate::browser::{Fault, state::Stage};

/// The same, as it is followed.
pub(super) fn stage(until: Until) -> Stage {
    match until {
        Until::Commit => Stage::Begun,
        Until::Dom => Stage::Dom,
        Until::Load => Stage::Loaded,
    }
}

/// Only what cannot read this machine.
fn check_address(url: &str) -> Result<(), Fault> {
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.trim().to_ascii_lowercase()).unwrap_or_default();
    match scheme.as_str() {
        "http" | "https" | "data" => Ok(()),
        "about" if url.eq_ignore_ascii_case("about:blank") => Ok(()),
        "" => Err(Fault::new("bad_address", "an address begins with http:// or https://")),
        _ => Err(Fault::new(
            "address_refused",
            format!(
                "addresses of the kind `{}:` are not opened; http, https, data and about:blank are",
                cortex_wire::text::clean(&scheme, 32)
            ),
        )),
    }
}

impl Turn<'_> {
    pub(super) fn tabs(&self) -> Value {
        let state = self.browser.state();
        let tab = |(number, tab): (&u32, &crate::browser::state::Tab)| json!({ "tab": format!("t{number}"), "url": state.main(*number).map_or("", |frame| frame.url.as_str()), "current": *number == state.current, "crashed": tab.crashed });
        json!({ "tabs": state.tabs.iter().map(tab).collect::<Vec<_>>() })
    }

    pub(super) async fn open_tab(&mut self, url: Option<&str>) -> Result<Value, Fault> {
        url.map_or(Ok(()), check_address)?;
        if self.browser.state().tabs.len() >= crate::browser::state::TABS {
            return Err(Fault::new("too_many_tabs", "20 tabs are open; close one first"));
        }
        let created = self.browser.ask("", "Target.createTarget", json!({ "url": "about:blank" })).await?;
        let target = created["targetId"].as_str().unwrap_or_default().to_owned();
        self.tab = self
            .browser
            .wait(|state| state.tabs.iter().find(|(_, tab)| tab.target == target && tab.ready).map(|(number, _)| *number))
            .await?;
        self.browser.state().current = self.tab;
        match url {
            Some(url) => self.navigate(url, Until::Load).await,
            None => Ok(Value::Null),
        }
    }

    pub(super) async fn select_tab(&mut self, named: &str) -> Result<Value, Fault> {
        let target = {
            let mut state = self.browser.state();
            let number =
                tab_number(named).filter(|tab| state.tabs.contains_key(tab)).ok_or_else(|| no_such_tab(named, state.tabs.keys()))?;
            self.tab = number;
            state.current = number;
            state.tabs.get(&number).map(|tab| tab.target.clone()).unwrap_or_default()
        };
        self.browser.ask("", "Target.activateTarget", json!({ "targetId": target })).await?;
        Ok(Value::Null)
    }

    pub(super) async fn close_tab(&mut self, named: Option<&str>) -> Result<Value, Fault> {
        let (number, target, is_last) = {
            let state = self.browser.state();
            let number = named.map_or(Some(self.tab), tab_number);
            let tab = number.and_then(|number| Some((number, state.tabs.get(&number)?.target.clone())));
            let (number, target) = tab.ok_or_else(|| no_such_tab(named.unwrap_or_default(), state.tabs.keys()))?;
            (number, target, state.tabs.len() == 1)
        };
        if is_last {
            // A browser without a page may end.
            self.open_tab(None).await?;
        }
        self.browser.ask("", "Target.closeTarget", json!({ "targetId": target })).await?;
        self.browser.wait(|state| (!state.tabs.contains_key(&number)).then_some(())).await?;
        self.tab = self.browser.state().current;
        Ok(self.tabs())
    }

    pub(super) async fn navigate(&mut self, url: &str, until: Until) -> Result<Value, Fault> {
        check_address(url)?;
        let page = self.page();
        if let Some(tab) = self.browser.state().tabs.get_mut(&self.tab) {
            tab.crashed = false;
        }
        let answer = page.ask("Page.navigate", json!({ "url": url })).await.map_err(|fault| match fault.code.as_str() {
            "refused" => Fault::new("bad_address", format!("the browser does not take that address: {}", fault.message)),
            _ => fault,
        })?;
        if answer["isDownload"] == Value::Bool(true) {
            self.follow(None).await;
            return Ok(json!({ "download": true }));
        }
        if let Some(error) = answer["errorText"].as_str().filter(|error| !error.is_empty()) {
            return Err(self.why_not(error));
        }
        let Some(loader) = answer["loaderId"].as_str().filter(|loader| !loader.is_empty()) else {
            return Ok(Value::Null);
        };
        page.reach(stage(until), Some(loader)).await?;
        Ok(Value::Null)
    }

    /// Why a page did not come, in words that help.
    fn why_not(&self, error: &str) -> Fault {
        let refused = self.browser.state().refused.last().cloned();
        match (error, refused) {
            (_, Some((host, port, kind))) if error.contains("SOCKS") => Fault::new(
                "address_refused",
                format!("{host}:{port} is a {kind} address; this node's owner can allow it in peer.yaml under browser.allow_addresses"),
            ),
            ("net::ERR_SOCKS_CONNECTION_FAILED", None) => {
                Fault::new("unreachable", "nobody answers at that address, or its name does not exist")
            }
            ("net::ERR_ABORTED", _) => {
                Fault::new("aborted", "the page was stopped before it came, or it is a file or an answer without a page")
            }
            ("net::ERR_TOO_MANY_REDIRECTS", _) => Fault::new("too_many_redirects", "the address leads from one to the next without an end"),
            _ => Fault::new("unreachable", cortex_wire::text::clean(error, 200)),
        }
    }

    pub(super) async fn go(&self, by: i64) -> Result<Value, Fault> {
        let page = self.page();
        let history = page.ask("Page.getNavigationHistory", json!({})).await?;
        let wanted = history["currentIndex"].as_i64().unwrap_or_default() + by;
        let entry = usize::try_from(wanted).ok().and_then(|wanted| history["entries"].get(wanted));
        let Some(entry) = entry else { return Err(Fault::new("no_history", "there is no page in that direction")) };
        let before = self.navigations();
        page.ask("Page.navigateToHistoryEntry", json!({ "entryId": entry["id"] })).await?;
        self.arrive(before).await
    }

    pub(super) async fn reload(&self) -> Result<Value, Fault> {
        if let Some(tab) = self.browser.state().tabs.get_mut(&self.tab) {
            tab.crashed = false;
        }
        let before = self.navigations();
        self.page().ask("Page.reload", json!({})).await?;
        self.arrive(before).await
    }

    fn navigations(&self) -> u64 {
        self.browser.state().tabs.get(&self.tab).map_or(0, |tab| tab.navigations)
    }

    async fn arrive(&self, before: u64) -> Result<Value, Fault> {
        let tab = self.tab;
        self.browser
            .wait(|state| state.tabs.get(&tab).is_none_or(|tab| tab.navigations > before || tab.dialog.is_some()).then_some(()))
            .await?;
        self.page().reach(Stage::Loaded, None).await?;
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_read_nothing_of_this_machine_are_opened() {
        for url in ["http://a/", "https://a/", "HTTP://a", "data:text/html,x", "about:blank"] {
            assert!(check_address(url).is_ok(), "{url}");
        }
        for url in [
            "file:///etc/passwd",
            "FILE:///x",
            " file:///x",
            "view-source:file:///x",
            "chrome://version",
            "javascript:alert(1)",
            "devtools://x",
            "about:version",
            "x",
            "filesystem:http://a",
            "blob:null/x",
        ] {
            assert!(check_address(url).is_err(), "{url}");
        }
    }
}
