//! What may be asked of a node's browser: one strict JSON document per task.
//!
//! A document instead of one message per action: people and AIs write it as it is, hub and node read it with the same code, and the signature covers its bytes. Unknown keys
//! refuse the whole document, as unknown fields do in a signed message.
//!
//! ```
//! let order = cortex_wire::browser::Order::parse(br#"{"action":{"click":{"target":"s1e4"}},"timeout_ms":5000}"#).unwrap();
//! assert_eq!(order.action.name(), "click");
//! ```

use serde::{Deserialize, Serialize};

use crate::limits;

mod har;

pub use har::har;

/// One action, where, and for how long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What to do.
    pub action: Action,
    /// "t1"; none: the tab that was used last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tab: Option<String>,
    /// How long it may take. None: [`limits::BROWSER_ACTION_MS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What the answer says of the page.
    #[serde(default)]
    pub report: Report,
}

/// What an answer says of the page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// What changed since it was last told.
    #[default]
    Diff,
    /// All of it, up to the budget.
    Full,
    /// Nothing.
    None,
}

/// Which mouse button.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Button {
    /// The usual one.
    #[default]
    Left,
    /// For context menus.
    Right,
    /// For new tabs.
    Middle,
}

/// Which elements a snapshot shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// What can be used, headings, landmarks, and what says something about the state of the page.
    #[default]
    Interactive,
    /// Text, too.
    All,
}

/// How far a page must have come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The answer has begun.
    Commit,
    /// Its document is there.
    Dom,
    /// What belongs to it is there, too.
    #[default]
    Load,
}

/// What is written down for a site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kept {
    /// Tells it.
    Get,
    /// Adds to it.
    Set {
        /// Objects with name, value, and url or domain (cookies), or key and value (storage).
        entries: Vec<Entry>,
    },
    /// Forgets it.
    Clear,
}

/// One cookie or one item of a storage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Entry {
    /// What it is called.
    pub name: String,
    /// What it holds.
    pub value: String,
    /// Of cookies: for which address; none: the page's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Of cookies: for which domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Of cookies: below which path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Of cookies: over HTTPS only.
    pub secure: bool,
    /// Of cookies: not for scripts.
    pub http_only: bool,
    /// Of cookies: when it ends, in seconds since the epoch; none: with the browser.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<f64>,
}

/// What is asked of the record of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Requests {
    /// The last ones.
    List {
        /// Of which the address holds this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// At most so many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    },
    /// What one of them was answered.
    Body {
        /// The `id` of the list.
        id: String,
    },
    /// All that are still known, as a HAR document.
    Har,
}

/// What can be asked of a browser. A `target` is a ref of a snapshot (`s1e4`), `text=…` for the element that shows this text, or a CSS selector, which finds its way into open shadow roots, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Which tabs there are.
    Tabs,
    /// A new tab.
    OpenTab {
        /// What it shows; none: nothing yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
    },
    /// From now on the one that is meant.
    SelectTab {
        /// "t2".
        tab: String,
    },
    /// Closes one.
    CloseTab {
        /// "t2"; none: the one that is meant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tab: Option<String>,
    },
    /// Ends the browser and forgets its profile.
    Close,
    /// Opens an address.
    Navigate {
        /// http, https, data or about:blank.
        url: String,
        /// How far it is waited for.
        #[serde(default)]
        until: Until,
    },
    /// One page back.
    Back,
    /// One page forward.
    Forward,
    /// Loads it again.
    Reload,
    /// The page as text, with refs.
    Snapshot {
        /// What is shown.
        #[serde(default)]
        filter: Filter,
        /// Only what is below this target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// How deep.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        depth: Option<u32>,
        /// Goes on where the snapshot before ended: its `next_cursor`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
        /// In bytes; none: [`limits::BROWSER_SNAPSHOT_BYTES`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        budget: Option<usize>,
    },
    /// Elements that fit, with refs.
    Find {
        /// Whose name holds this, whatever the case.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// Whose name fits this expression.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        regex: Option<String>,
        /// Of this role.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        role: Option<String>,
        /// At most so many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    },
    /// What a person reads there.
    ReadText {
        /// Where; none: the whole page.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// From this character on.
        #[serde(default)]
        offset: usize,
        /// At most so many bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        budget: Option<usize>,
    },
    /// Presses and lets go.
    Click {
        /// On what.
        target: String,
        /// With which button.
        #[serde(default)]
        button: Button,
        /// Keys that are held: Alt, Control, Meta, Shift.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        modifiers: Vec<String>,
    },
    /// Twice.
    DoubleClick {
        /// On what.
        target: String,
    },
    /// Only points.
    Hover {
        /// At what.
        target: String,
    },
    /// Takes one thing to another.
    Drag {
        /// What.
        from: String,
        /// Whereto.
        to: String,
    },
    /// Turns the wheel, or brings something into view.
    Scroll {
        /// Where, or what to bring into view when neither `dx` nor `dy` is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// To the right, in pixels.
        #[serde(default)]
        dx: f64,
        /// Down, in pixels.
        #[serde(default)]
        dy: f64,
    },
    /// Key by key, behind what stands there.
    Type {
        /// Where.
        target: String,
        /// What.
        text: String,
    },
    /// In place of what stands there.
    Fill {
        /// Where.
        target: String,
        /// What.
        value: String,
    },
    /// One key, `Enter` or `Control+a`.
    Press {
        /// Where; none: wherever the focus is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// Which.
        key: String,
    },
    /// Options of a list, by value or by what they say.
    Select {
        /// The list.
        target: String,
        /// Which.
        values: Vec<String>,
    },
    /// A box or a radio button.
    Check {
        /// Which.
        target: String,
        /// Set, or not.
        #[serde(default = "yes")]
        checked: bool,
    },
    /// Gives files of the workspace to a page.
    Upload {
        /// The field, or the button that asks for files.
        target: String,
        /// In the workspace.
        paths: Vec<String>,
    },
    /// Until something is so.
    WaitFor(WaitFor),
    /// Runs a script in the page; a promise is waited for.
    Evaluate {
        /// An expression, or a function of the target.
        expression: String,
        /// Its argument.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// A picture.
    Screenshot {
        /// The whole page instead of what is in view.
        #[serde(default)]
        full: bool,
        /// One element.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// With refs drawn on it.
        #[serde(default)]
        annotated: bool,
    },
    /// The page on paper.
    Pdf {
        /// Wider than high.
        #[serde(default)]
        landscape: bool,
        /// Colours behind the text, too.
        #[serde(default)]
        background: bool,
    },
    /// Of all sites.
    Cookies(Kept),
    /// Of the page's site.
    Storage {
        /// That of the tab instead of that of the site.
        #[serde(default)]
        session: bool,
        /// What about it.
        kept: Kept,
    },
    /// Answers the dialog that is open.
    Dialog {
        /// Yes or no.
        accept: bool,
        /// What was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// What was downloaded.
    Downloads {
        /// Until none is under way.
        #[serde(default)]
        wait: bool,
    },
    /// What scripts said.
    Console {
        /// At most so many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<usize>,
    },
    /// What was asked of servers.
    Network(Requests),
    /// How large the window is.
    Viewport {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// Device pixels in a pixel.
        #[serde(default = "one")]
        scale: f64,
        /// As on a phone.
        #[serde(default)]
        mobile: bool,
    },
    /// What the page believes of its place.
    Emulate(Emulate),
    /// One after the other in the same task; ends with the first that fails.
    Batch {
        /// What.
        steps: Vec<Action>,
        /// Goes on when one fails.
        #[serde(default)]
        keep_going: bool,
    },
}

/// What is waited for; all of it that is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WaitFor {
    /// The page shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The page does not show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
    /// This target is there and visible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The address holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The page has come so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Until>,
    /// No request for half a second.
    pub idle: bool,
    /// This time has passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

/// What a page believes of its place; what is not given stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Emulate {
    /// What the browser calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// de-DE
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Europe/Berlin
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// dark or light
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color_scheme: Option<String>,
    /// As if there were no network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<bool>,
    /// Latitude and longitude.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<(f64, f64)>,
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

/// Why a document is not an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Larger than [`limits::BROWSER_ORDER_BYTES`].
    #[error("the action is larger than {} KiB", limits::BROWSER_ORDER_BYTES / 1024)]
    TooLarge,
    /// Not what this module describes.
    #[error("the action cannot be read: {0}")]
    Malformed(String),
    /// A number or a list is out of bounds.
    #[error("{0}")]
    OutOfBounds(&'static str),
}

impl Order {
    /// Reads a document.
    ///
    /// # Errors
    /// [`OrderError`].
    pub fn parse(document: &[u8]) -> Result<Self, OrderError> {
        if document.len() > limits::BROWSER_ORDER_BYTES {
            return Err(OrderError::TooLarge);
        }
        let order: Self = serde_json::from_slice(document).map_err(|error| OrderError::Malformed(error.to_string()))?;
        order.check()?;
        Ok(order)
    }

    /// How long it may take, in milliseconds.
    pub fn timeout_ms(&self) -> u64 {
        self.timeout_ms.unwrap_or(limits::BROWSER_ACTION_MS)
    }

    fn check(&self) -> Result<(), OrderError> {
        if !(1..=limits::BROWSER_LONGEST_MS).contains(&self.timeout_ms()) {
            return Err(OrderError::OutOfBounds("timeout_ms is from 1 to 1,800,000"));
        }
        self.action.check(false)
    }
}

impl Action {
    /// What it is called in a document.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tabs => "tabs",
            Self::OpenTab { .. } => "open_tab",
            Self::SelectTab { .. } => "select_tab",
            Self::CloseTab { .. } => "close_tab",
            Self::Close => "close",
            Self::Navigate { .. } => "navigate",
            Self::Back => "back",
            Self::Forward => "forward",
            Self::Reload => "reload",
            Self::Snapshot { .. } => "snapshot",
            Self::Find { .. } => "find",
            Self::ReadText { .. } => "read_text",
            Self::Click { .. } => "click",
            Self::DoubleClick { .. } => "double_click",
            Self::Hover { .. } => "hover",
            Self::Drag { .. } => "drag",
            Self::Scroll { .. } => "scroll",
            Self::Type { .. } => "type",
            Self::Fill { .. } => "fill",
            Self::Press { .. } => "press",
            Self::Select { .. } => "select",
            Self::Check { .. } => "check",
            Self::Upload { .. } => "upload",
            Self::WaitFor(_) => "wait_for",
            Self::Evaluate { .. } => "evaluate",
            Self::Screenshot { .. } => "screenshot",
            Self::Pdf { .. } => "pdf",
            Self::Cookies(_) => "cookies",
            Self::Storage { .. } => "storage",
            Self::Dialog { .. } => "dialog",
            Self::Downloads { .. } => "downloads",
            Self::Console { .. } => "console",
            Self::Network(_) => "network",
            Self::Viewport { .. } => "viewport",
            Self::Emulate(_) => "emulate",
            Self::Batch { .. } => "batch",
        }
    }

    /// What it is about, for people; never what is typed.
    pub fn summary(&self) -> String {
        let about = match self {
            Self::Navigate { url, .. } | Self::OpenTab { url: Some(url) } => url.as_str(),
            Self::Click { target, .. }
            | Self::DoubleClick { target }
            | Self::Hover { target }
            | Self::Type { target, .. }
            | Self::Fill { target, .. }
            | Self::Select { target, .. }
            | Self::Check { target, .. }
            | Self::Upload { target, .. } => target.as_str(),
            Self::Evaluate { expression, .. } => expression.as_str(),
            Self::Batch { steps, .. } => return format!("browser batch of {}", steps.len()),
            _ => "",
        };
        format!("browser {} {about}", self.name()).trim_end().to_owned()
    }

    fn check(&self, inside: bool) -> Result<(), OrderError> {
        let bound = |holds: bool, what| if holds { Ok(()) } else { Err(OrderError::OutOfBounds(what)) };
        match self {
            Self::Batch { .. } if inside => Err(OrderError::OutOfBounds("a batch cannot hold a batch")),
            Self::Batch { steps, .. } => {
                bound((1..=limits::BROWSER_BATCH).contains(&steps.len()), "a batch has 1 to 200 steps")?;
                steps.iter().try_for_each(|step| step.check(true))
            }
            Self::Close if inside => Err(OrderError::OutOfBounds("a batch cannot close the browser")),
            Self::Viewport { width, height, scale, .. } => bound(
                (1..=8192).contains(width) && (1..=8192).contains(height) && (0.1..=5.0).contains(scale),
                "a viewport has 1 to 8192 pixels each way and a scale of 0.1 to 5",
            ),
            Self::Upload { paths, .. } => bound(
                !paths.is_empty() && paths.len() <= 32 && paths.iter().all(|path| !path.is_empty() && crate::task::is_inside(path)),
                "an upload has 1 to 32 relative paths inside the workspace",
            ),
            Self::Snapshot { budget: Some(budget), .. } | Self::ReadText { budget: Some(budget), .. } => {
                bound((256..=limits::BROWSER_LARGEST_SNAPSHOT_BYTES).contains(budget), "a budget has 256 to 262,144 bytes")
            }
            Self::Find { text: None, regex: None, role: None, .. } => Err(OrderError::OutOfBounds("find needs text, regex or role")),
            Self::WaitFor(wait) if *wait == WaitFor::default() => Err(OrderError::OutOfBounds("wait_for needs something to wait for")),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_exactly_what_is_known_or_nothing_is_done() {
        let parse = |text: &str| Order::parse(text.as_bytes());
        assert_eq!(parse(r#"{"action":"back"}"#).unwrap().action, Action::Back);
        assert_eq!(parse(r#"{"action":{"press":{"key":"Enter"}},"report":"none"}"#).unwrap().report, Report::None);
        for wrong in [
            "",
            "[]",
            r#"{"action":"fly"}"#,
            r#"{"action":"back","more":1}"#,
            r#"{"action":{"click":{"target":"a","force":true}}}"#,
            r#"{"action":{"click":{}}}"#,
            r#"{"action":{"wait_for":{}}}"#,
            r#"{"action":{"find":{}}}"#,
            r#"{"action":{"upload":{"target":"a","paths":["../b"]}}}"#,
            r#"{"action":{"batch":{"steps":[]}}}"#,
            r#"{"action":{"batch":{"steps":[{"batch":{"steps":["back"]}}]}}}"#,
            r#"{"action":"back","timeout_ms":0}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let many = format!(r#"{{"action":{{"batch":{{"steps":[{}"back"]}}}}}}"#, r#""back","#.repeat(limits::BROWSER_BATCH));
        assert!(parse(&many).is_err());
        assert_eq!(parse(&" ".repeat(limits::BROWSER_ORDER_BYTES + 1)), Err(OrderError::TooLarge));
    }

    #[test]
    fn a_summary_never_tells_what_is_typed() {
        let order = Order::parse(br##"{"action":{"fill":{"target":"#password","value":"hunter2"}}}"##).unwrap();
        assert_eq!(order.action.summary(), "browser fill #password");
    }

    #[test]
    fn an_order_reads_as_it_was_written() {
        let texts = [
            r#"{"action":{"snapshot":{"filter":"all","scope":"s1e2","depth":3,"budget":4000}}}"#,
            r#"{"action":{"cookies":{"set":{"entries":[{"name":"a","value":"b","url":"http://x/"}]}}},"tab":"t1"}"#,
            r#"{"action":{"network":{"body":{"id":"7"}}}}"#,
            r#"{"action":{"emulate":{"offline":true,"location":[1.0,2.0]}}}"#,
            r#"{"action":{"batch":{"steps":[{"fill":{"target":"a","value":"b"}},"reload"],"keep_going":true}}}"#,
        ];
        for text in texts {
            let order = Order::parse(text.as_bytes()).unwrap();
            assert_eq!(Order::parse(&serde_json::to_vec(&order).unwrap()).unwrap(), order);
        }
    }
}
