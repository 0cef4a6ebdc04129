//! What the program says about itself: log lines on standard error, metrics as Prometheus text.

use std::{sync::OnceLock, time::Duration};

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{LogConfig, LogFormat};

/// How often the process looks at itself.
const SAMPLE: Duration = Duration::from_secs(1);

/// Upper bounds of every histogram, in seconds: from memory reads to a backfill.
const BUCKETS: &[f64] =
    &[0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Forms per group commit.
const GROUP_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Begins to write log lines.
///
/// # Errors
/// The filter is wrong, or logging has begun already.
pub(crate) fn start(log: &LogConfig) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&log.filter).with_context(|| format!("could not read log filter `{}`", log.filter))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Human => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!("could not start logging: {error}"))
}

/// The process's metrics; the first call installs the recorder.
///
/// # Errors
/// Another recorder is installed.
pub(crate) fn metrics() -> anyhow::Result<PrometheusHandle> {
    if let Some(handle) = METRICS.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets(BUCKETS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full("millrace_ingest_group_jobs".to_owned()), GROUP_BUCKETS)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .context("could not install the metrics recorder")?;
    metrics::describe_gauge!("millrace_process_resident_bytes", "memory of this process that is in RAM");
    metrics::describe_gauge!("millrace_process_resident_peak_bytes", "the most it has been");
    metrics::describe_gauge!(
        "millrace_process_event_loop_lag_seconds",
        "how late a timer of the request threads fired just now"
    );
    metrics::describe_gauge!(
        "millrace_dataflow_lag_seconds",
        "how long ago a lane of the change log last proved that nothing newer was missing"
    );
    metrics::describe_gauge!(
        "millrace_dataflow_behind_domains",
        "domains whose tables stay as they were while very many rows follow a change"
    );
    Ok(METRICS.get_or_init(|| handle).clone())
}

/// Samples the process once a second, on a request thread so that its lateness shows, and lets old samples go.
pub(crate) async fn sample(handle: PrometheusHandle, stop: CancellationToken) {
    let resident = metrics::gauge!("millrace_process_resident_bytes");
    let peak = metrics::gauge!("millrace_process_resident_peak_bytes");
    let lag = metrics::gauge!("millrace_process_event_loop_lag_seconds");
    loop {
        let due = tokio::time::Instant::now() + SAMPLE;
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = stop.cancelled() => return,
        }
        lag.set(due.elapsed().as_secs_f64());
        handle.run_upkeep();
        if let Ok(status) = tokio::fs::read_to_string("/proc/self/status").await {
            for (name, gauge) in [("VmRSS:", &resident), ("VmHWM:", &peak)] {
                if let Some(kb) = kilobytes(&status, name) {
                    gauge.set(kb * 1024.0);
                }
            }
        }
    }
}

/// The value of a line such as `VmRSS:     1234 kB`.
fn kilobytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_status_file() {
        assert_eq!(kilobytes("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t  42 kB\n", "VmRSS:"), Some(42.0));
        assert_eq!(kilobytes("Name:\tx\n", "VmRSS:"), None);
    }
}
