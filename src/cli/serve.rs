//! `millrace serve`: runs until it is told to stop.

use std::process::ExitCode;

use clap::Args;
use dataflow::Workers;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ConfigArgs;
use crate::{
    config::{Role, Roles},
    server, telemetry,
};

/// Exit code after a forced stop, as shells have it for an interrupt.
const FORCED: u8 = 130;

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Run only these parts (comma-separated); all of them by default
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLE")]
    role: Vec<Role>,
    /// Threads that keep the tables; wins over the file
    #[arg(long, value_name = "THREADS")]
    workers: Option<Workers>,
}

/// Starts the server and waits for SIGTERM or Ctrl-C; a second one does not wait for requests to finish.
///
/// # Errors
/// What kept the server from starting.
pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let mut config = args.config.load()?;
    if !args.role.is_empty() {
        config.roles = Roles(args.role);
    }
    if let Some(workers) = args.workers {
        config.dataflow.workers = workers;
    }
    let config = config.checked()?;
    telemetry::start(&config.log)?;
    let mut stop = StopSignals::listen()?;

    let running = tokio::select! {
        running = Box::pin(server::start(config)) => running?,
        () = stop.next() => return Ok(ExitCode::from(FORCED)),
    };
    if let Some(admin) = running.admin.as_ref().filter(|admin| admin.new) {
        super::say(format_args!(
            "\nDomain {} is ready. Its administrator, shown this once:\n\n  user      {}\n  password  {}\n",
            admin.domain, admin.username, admin.password.0
        ));
    }
    super::say(format_args!("HTTP      http://{}", running.http_addr));
    if let Some(addr) = running.postgres_addr {
        super::say(format_args!("Postgres  postgresql://{addr}/<domain>"));
    }

    stop.next().await;
    let postgres = running.postgres_killer();
    tokio::select! {
        () = Box::pin(running.stop()) => Ok(ExitCode::SUCCESS),
        () = stop.next() => {
            tracing::warn!("told twice: stopping without waiting");
            postgres();
            Ok(ExitCode::from(FORCED))
        }
    }
}

/// SIGTERM and Ctrl-C.
#[derive(Debug)]
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Begins to listen; from now on the signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal of either kind.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
