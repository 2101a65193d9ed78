//! `cortex-bench`: Cortex Mesh measured beside other tools, in one run.
//!
//! Real release programs on loopback, contenders that alternate, medians. What cannot be measured here is said, and never filled in.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`bench`] | the benchmarks: one module each |
//! | [`contest`] | measuring side by side |
//! | [`corpus`] | trees of files that are synchronised |
//! | [`report`], [`table`] | figures as JSON, and as a table for people |
//! | [`other`] | what we compare with: ssh, rsync, a bare spawn, plain QUIC through the relay |
//! | [`stack`] | hub, relay and peer as processes |
//! | [`process`], [`http`] | a process that is watched and ended; a client that costs next to nothing |
//! | [`interrupt`] | Ctrl-C ends a run in good order |

mod bench;
mod contest;
mod corpus;
mod fleet;
mod http;
mod interrupt;
mod machine;
mod other;
mod process;
mod report;
mod stack;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, builder::PossibleValuesParser};
use cortex_runtime::telemetry::{self, LogFormat};

use crate::{
    bench::{BENCHES, Bench, Setting},
    report::Report,
};

/// Benchmarks of Cortex Mesh against other tools.
///
/// Runs the release programs beside this one on loopback. Some comparisons need root and openssh-server; what is missing is named with the line
/// that installs it.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  cortex-bench list                        what there is
  cortex-bench dispatch --quick            a first impression, in less than 50 seconds
  cortex-bench dispatch --json             one JSON object on standard output
  cortex-bench all                         everything; writes bench/results/*.json and docs/benchmarks.md
  CORTEX_LOG=warn cortex-bench reconnect   also what simulated nodes have to say, on standard error"
)]
struct Cli {
    /// A benchmark, `all` or `list`.
    #[arg(value_parser = PossibleValuesParser::new(BENCHES.iter().map(|bench| bench.name).chain(["all", "list"])))]
    name: String,
    /// Fewer runs: ends within 50 seconds on two cores.
    #[arg(long)]
    quick: bool,
    /// Print the figures as JSON, one object for each benchmark.
    #[arg(long)]
    json: bool,
    /// Compare with these tools only.
    #[arg(long, value_name = "TOOL", num_args = 1..)]
    against: Vec<String>,
    /// A folder for everything that is written; on tmpfs when not given and there is one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cortex-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if cli.name == "list" {
        for bench in BENCHES {
            println!("{:<10} {} (against {})", bench.name, bench.what, bench.against.join(", "));
        }
        return Ok(());
    }
    machine::own_network();
    if let Ok(filter) = std::env::var("CORTEX_LOG") {
        telemetry::start(LogFormat::Text, &filter)?;
    }
    interrupt::watch()?;
    let load_before = machine::load();
    let all = cli.name == "all";
    let mut reports = Vec::new();
    for bench in BENCHES.iter().filter(|bench| all || bench.name == cli.name) {
        let setting = Setting::new(bench, &cli.against, cli.quick, cli.dir.clone())?;
        eprintln!("{}: {} …", bench.name, bench.what);
        let report = measure(bench, setting, load_before)?;
        if cli.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            println!("{}", table::of(&report));
        }
        reports.push(report);
    }
    if all { keep(&reports) } else { Ok(()) }
}

fn measure(bench: &Bench, setting: Setting, load_before: f64) -> anyhow::Result<Report> {
    let mut report = Report::new(bench.name, setting.quick, &setting.folder_description(), load_before);
    (bench.run)(&setting, &mut report).with_context(|| format!("the benchmark {} could not be run", bench.name))?;
    Ok(report)
}

/// Writes the figures where the repository keeps them.
fn keep(reports: &[Report]) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace is gone")?;
    let results = root.join("bench/results");
    fs::create_dir_all(&results)?;
    for report in reports {
        fs::write(results.join(format!("{}.json", report.bench)), serde_json::to_string_pretty(report)? + "\n")?;
    }
    fs::create_dir_all(root.join("docs"))?;
    fs::write(root.join("docs/benchmarks.md"), table::page(reports))?;
    eprintln!("written: bench/results/*.json, docs/benchmarks.md");
    Ok(())
}
