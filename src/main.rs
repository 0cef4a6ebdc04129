//! The `millrace` program: parses its arguments and runs one subcommand.
//!
//! The rules of the domain live in the member crates; here they are configured, joined and started.

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

/// One allocator for all threads: rows are made on one and freed on another, and hashing passwords takes aligned blocks of
/// megabytes, which glibc's does not reuse.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
