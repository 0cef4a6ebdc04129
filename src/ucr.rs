//! `millrace ucr`: the language of data sources from the command line.
//!
//! [`suite`] runs conformance files: [`vector`] evaluates one vector and [`scenario`] one sequence of changes, [`store`]
//! holds the documents that they look up, [`live`] sends the same through a running dataflow. [`explain`] says what is in
//! a definition.

mod explain;
mod live;
mod rows;
mod scenario;
mod store;
mod suite;
#[cfg(test)]
mod tests;
mod typed;
mod vector;

use std::process::ExitCode;

use clap::Subcommand;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum UcrCommand {
    /// Hold the language and the views against files of vectors and freshness scenarios
    Test(suite::TestArgs),
    /// Say what a data source makes of documents, or everything that is wrong with it
    Explain(explain::ExplainArgs),
}

/// Runs the subcommand.
///
/// # Errors
/// A file cannot be read.
pub(crate) async fn run(command: UcrCommand) -> anyhow::Result<ExitCode> {
    match command {
        UcrCommand::Test(args) => suite::run(args).await,
        UcrCommand::Explain(args) => explain::run(&args),
    }
}
