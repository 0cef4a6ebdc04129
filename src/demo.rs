//! `millrace demo`: a whole server with a private Postgres, the sample program, and forms that keep coming.
//!
//! Started again on the same data directory it goes on with the forms, cases and people that are there.

mod memory;
mod state;

use std::{net::SocketAddr, process::ExitCode, time::Instant};

use anyhow::Context;
use clap::Args;
use schemas::{port::Secret, sample};
use tokio_util::sync::CancellationToken;

use self::state::DemoState;
use crate::{
    cli::{self, ConfigArgs, serve::StopSignals},
    load::{self, Outcome, Session, Shape, display},
    server::{self, Running},
};

/// Exit code after a forced stop, as shells have it for an interrupt.
const FORCED: u8 = 130;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Listen for HTTP at this address instead of the configured one
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Listen for the Postgres protocol at this address instead of the configured one
    #[arg(long, value_name = "ADDRESS")]
    pg: Option<SocketAddr>,
    #[command(flatten)]
    shape: Shape,
}

/// Runs until Ctrl-C, SIGTERM, or the end of what was asked for.
///
/// # Errors
/// What kept the server or the load from starting.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let json = args.shape.json;
    let mut config = args.config.load()?;
    sample::DOMAIN.clone_into(&mut config.domain);
    config.keep_credentials = true;
    config.listen.http = args.http.unwrap_or(config.listen.http);
    config.listen.postgres = args.pg.unwrap_or(config.listen.postgres);
    let config = config.checked()?;
    let mut signals = StopSignals::listen()?;

    display::say(&format!("starting Millrace with everything it keeps in {} …", config.data_dir.display()));
    let running = tokio::select! {
        running = Box::pin(server::start(config)) => running?,
        () = signals.next() => return Ok(ExitCode::from(FORCED)),
    };
    display::say(&format!("server: listening ({:.1} s)", began.elapsed().as_secs_f64()));

    let stop = CancellationToken::new();
    let outcome = {
        let mut work = Box::pin(session(&running, args.shape, stop.clone()));
        tokio::select! {
            outcome = &mut work => Some(outcome),
            () = signals.next() => {
                if !json {
                    display::say("\nstopping: waiting for answers and for all of it to be visible (again: stop at once)");
                }
                stop.cancel();
                tokio::select! {
                    outcome = &mut work => Some(outcome),
                    () = signals.next() => None,
                }
            }
        }
    };
    let postgres = running.postgres_killer();
    let Some(outcome) = outcome else {
        postgres();
        return Ok(ExitCode::from(FORCED));
    };
    tokio::select! {
        () = Box::pin(running.stop()) => {}
        () = signals.next() => {
            postgres();
            return Ok(ExitCode::from(FORCED));
        }
    }
    match outcome? {
        Some(outcome) => {
            load::report(&outcome, json);
            Ok(if outcome.good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Sets the sample program up and sends its forms. Nothing if it was stopped before the first form.
async fn session(running: &Running, mut shape: Shape, stop: CancellationToken) -> anyhow::Result<Option<Outcome>> {
    let admin = running.admin.as_ref().context("the administrator's password is not known")?;
    let postgres = running.postgres_addr.context("the demonstration needs the `query` role")?;
    let mut kept = match DemoState::read(&running.data_dir)? {
        Some(state) => state,
        None => {
            let workers = u32::try_from(shape.worker_count()).unwrap_or(u32::MAX);
            DemoState { seed: shape.seed, workers, runs: 0 }
        }
    };
    // People stay who they are whatever a later start asks for; the number of the run makes its forms new.
    kept.workers = kept.workers.max(shape.workers.unwrap_or(0));
    kept.runs += 1;
    kept.write(&running.data_dir)?;
    shape.seed = kept.seed;
    shape.workers = Some(kept.workers);
    let json = shape.json;
    let local = |addr: SocketAddr| match addr.ip().is_unspecified() {
        true => SocketAddr::from(([127, 0, 0, 1], addr.port())),
        false => addr,
    };
    let (http, postgres) = (local(running.http_addr), local(postgres));
    let session = Session {
        url: format!("http://{http}"),
        postgres: Some((postgres.ip().to_string(), postgres.port())),
        domain: admin.domain.to_string(),
        username: admin.username.clone(),
        password: admin.password.clone(),
        run: kept.runs,
        shape,
        from: None,
        set_up: true,
    };
    let ready = tokio::select! {
        ready = session.prepare(&display::say) => ready?,
        () = stop.cancelled() => return Ok(None),
    };
    if !json {
        cli::say(to_paste(http, postgres, &admin.domain.to_string(), &admin.username, &admin.password));
    }
    let watched = CancellationToken::new();
    let memory = tokio::spawn(memory::watch(running.postgres_pid(), watched.clone()));
    let outcome = Box::pin(ready.run(stop)).await;
    watched.cancel();
    let peaks = memory.await.context("watching memory failed")?;
    let mut outcome = outcome?;
    if let Some(fields) = outcome.json.as_object_mut() {
        fields.insert("peak_memory".to_owned(), peaks.json());
    }
    Ok(Some(outcome))
}

/// Commands that show the tables, ready to paste, and the address of the status page.
fn to_paste(http: SocketAddr, postgres: SocketAddr, domain: &str, username: &str, password: &Secret) -> String {
    let Secret(password) = password;
    let at = username.replace('@', "%40");
    format!(
        "\nStatus page   http://{http}/\n\n\
         SQL, with any Postgres client:\n  \
         psql \"postgresql://{at}:{password}@{postgres}/{domain}\" -c 'SELECT * FROM views.districts ORDER BY 1'\n\n\
         SQL over HTTP:\n  \
         curl -u '{username}:{password}' http://{http}/a/{domain}/sql -d 'SELECT * FROM ucr.pregnancies ORDER BY inserted_at DESC LIMIT 5'\n\n\
         CommCare's REST API:\n  \
         curl -u '{username}:{password}' 'http://{http}/a/{domain}/api/v0.5/form/?limit=1'\n\n\
         Ctrl-C stops; the same command goes on from there.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_to_paste_hold_addresses_and_credentials() {
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = to_paste(addr(8080), addr(5433), "demo", "admin@demo", &Secret("pw".to_owned()));
        for part in [
            "http://127.0.0.1:8080/\n",
            "psql \"postgresql://admin%40demo:pw@127.0.0.1:5433/demo\"",
            "curl -u 'admin@demo:pw' http://127.0.0.1:8080/a/demo/sql -d",
            "'http://127.0.0.1:8080/a/demo/api/v0.5/form/?limit=1'",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
