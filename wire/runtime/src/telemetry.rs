//! Logs: structured lines on standard error.
//!
//! ERROR: somebody has to act. WARN: something went wrong and was dealt with. INFO: what an operator wants to see go by. DEBUG: decisions.
//! TRACE: per packet and per chunk. What people typed, printed or named is never above DEBUG.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}

/// The `log` section of every program's settings.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// A level, or a list of directives.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".into() }
    }
}

/// Sends logs to standard error. `filter` is a level or a list of directives such as `info,quinn=debug`. Only the first call counts.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter: EnvFilter = filter.parse().map_err(|error| anyhow::anyhow!("the log filter {filter:?} cannot be read: {error}"))?;
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let layer = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let _ = if json {
        registry.with(layer.json().flatten_event(true).with_current_span(true).with_span_list(false)).try_init()
    } else {
        registry.with(layer.with_target(false).with_ansi(std::io::stderr().is_terminal())).try_init()
    };
    Ok(())
}
