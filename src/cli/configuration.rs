//! `millrace config …`.

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::example;

/// Works with the configuration file.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print a file with every setting, its meaning and its default
    Example,
}

/// Runs the subcommand.
///
/// # Errors
/// None at present.
pub(crate) fn run(command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Example => super::say(example::example().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
