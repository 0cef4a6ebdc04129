//! The command line: one subcommand per file, and what they share.

mod account;
mod check;
mod configuration;
mod import;
mod rebuild;
pub(crate) mod serve;
mod shards;

use std::{fmt::Display, io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{bench, config, demo, load, telemetry, ucr};

/// CommCare's data pipeline as a streaming system: forms in, live report tables out, within milliseconds.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, about, long_about = None)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::ServeArgs),
    /// Run the server with a sample program, live load and a status page
    Demo(demo::DemoArgs),
    /// Send forms to a running server and measure how long they take to become visible
    Load(load::LoadArgs),
    /// Measure a part of the pipeline alone
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Work with definitions of UCR data sources
    #[command(subcommand)]
    Ucr(ucr::UcrCommand),
    /// Say everything that is wrong with the configuration and this machine
    Check(check::CheckArgs),
    /// Work with the configuration file
    #[command(subcommand)]
    Config(configuration::ConfigCommand),
    /// Manage domains (project spaces)
    #[command(subcommand)]
    Domain(account::DomainCommand),
    /// Manage web users
    #[command(subcommand)]
    User(account::UserCommand),
    /// Manage API keys
    #[command(subcommand)]
    Apikey(account::ApikeyCommand),
    /// Manage bearer tokens
    #[command(subcommand)]
    Token(account::TokenCommand),
    /// Import recorded submissions into a running server
    Import(import::ImportArgs),
    /// Compute cases again from their stored transactions
    Rebuild(rebuild::RebuildArgs),
    /// Show the databases: their shards, sizes, and how far their lanes are
    Shards(shards::ShardsArgs),
}

/// Where settings come from; shared by every subcommand that needs them.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML); `millrace config example` prints one
    #[arg(long, env = "MILLRACE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory for everything that is kept; wins over the file
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl ConfigArgs {
    /// Reads file, environment and arguments.
    ///
    /// # Errors
    /// Every problem of the configuration at once.
    pub(crate) fn load(&self) -> Result<config::Config, config::ConfigError> {
        let mut config = config::load(self.config.as_deref())?;
        if let Some(directory) = &self.data_dir {
            config.data_dir.clone_from(directory);
        }
        Ok(config)
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Whatever stopped it; the caller prints the chain.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(args) => Box::pin(serve::run(args)).await,
        Command::Demo(args) => {
            telemetry::start(&config::LogConfig::quiet()?)?;
            Box::pin(demo::run(args)).await
        }
        Command::Load(args) => {
            telemetry::start(&config::LogConfig::quiet()?)?;
            Box::pin(load::run(args)).await
        }
        Command::Bench(command) => {
            telemetry::start(&config::LogConfig::quiet()?)?;
            Box::pin(bench::run(command)).await
        }
        Command::Ucr(command) => {
            telemetry::start(&config::LogConfig::quiet()?)?;
            Box::pin(ucr::run(command)).await
        }
        Command::Check(args) => check::run(args).await,
        Command::Config(command) => configuration::run(command),
        Command::Domain(command) => Box::pin(account::domain(command)).await,
        Command::User(command) => Box::pin(account::user(command)).await,
        Command::Apikey(command) => Box::pin(account::apikey(command)).await,
        Command::Token(command) => Box::pin(account::token(command)).await,
        Command::Import(args) => Box::pin(import::run(args)).await,
        Command::Rebuild(args) => Box::pin(rebuild::run(args)).await,
        Command::Shards(args) => Box::pin(shards::run(args)).await,
    }
}

/// Writes a line for the person at the terminal to standard output; a closed pipe is not an error.
pub(crate) fn say(line: impl Display) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        tracing::debug!("standard output is closed");
    }
}

/// Writes an error and its causes to standard error.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    if writeln!(out, "millrace: {error:#}").is_err() {
        tracing::debug!("standard error is closed");
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_well_formed() {
        Cli::command().debug_assert();
    }
}
