//! The `millrace` program: parses its arguments and runs one subcommand.
//!
//! The rules of the domain live in the member crates; here they are configured, joined and started.

mod allocator;
mod assemble;
mod bench;
mod cli;
mod config;
mod credentials;
mod demo;
mod health;
mod load;
mod objects;
mod pipeline;
mod postgres;
mod server;
mod status;
mod telemetry;
mod ucr;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::settle();
    run()
}

#[tokio::main]
async fn run() -> ExitCode {
    match cli::run(cli::Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
