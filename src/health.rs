//! Whether the server is up (`/serverup.txt`), whether it is of use (`/readyz`), and its metrics (`/metrics`).

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::port::ViewReader;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Role, Roles},
    postgres::PostgresState,
};

/// A lane of the change log that has not been heard of for this long counts as stalled. It reports every 100 ms when healthy.
const STALLED_AFTER_MICROS: i64 = 10_000_000;

/// What readiness is judged by.
#[derive(Debug)]
pub(crate) struct HealthState {
    /// Published snapshots.
    pub(crate) views: Arc<dyn ViewReader>,
    /// The private Postgres, if there is one.
    pub(crate) postgres: Option<watch::Receiver<PostgresState>>,
    /// Renders the metrics.
    pub(crate) metrics: PrometheusHandle,
    /// What this process does.
    pub(crate) roles: Roles,
    /// Cancelled when the server stops.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    reasons: Vec<String>,
    /// Lanes that are silent while others are not: what is said of their domains may be out of date.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stalled: Vec<String>,
    roles: Roles,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<SnapshotAge>,
}

#[derive(Debug, Serialize)]
struct SnapshotAge {
    tick: u64,
    as_of: String,
    complete_through: String,
}

/// The routes.
pub(crate) fn routes(state: Arc<HealthState>) -> Router {
    Router::new()
        // Phones and load balancers know this address from CommCare.
        .route("/serverup.txt", get(async || "success"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state)
}

async fn readyz(State(state): State<Arc<HealthState>>) -> impl IntoResponse {
    let readiness = state.judge(jiff::Timestamp::now().as_microsecond());
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

async fn metrics(State(state): State<Arc<HealthState>>) -> impl IntoResponse {
    state.tell_lag(jiff::Timestamp::now().as_microsecond());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render())
}

impl HealthState {
    /// Sets what is told of the lag of lanes and domains. That is done when somebody looks: a source that is silent makes
    /// nobody else do it.
    fn tell_lag(&self, now_micros: i64) {
        if !self.roles.has(Role::Dataflow) {
            return;
        }
        let snapshot = self.views.snapshot();
        for (lane, seen_at) in snapshot.lanes() {
            let silent = u64::try_from(now_micros.saturating_sub(seen_at)).unwrap_or_default();
            let lag = metrics::gauge!("millrace_dataflow_lag_seconds", "lane" => lane.to_string());
            lag.set(Duration::from_micros(silent).as_secs_f64());
        }
        let behind = snapshot.domains.values().filter(|tables| tables.behind.is_some()).count();
        metrics::gauge!("millrace_dataflow_behind_domains").set(f64::from(u32::try_from(behind).unwrap_or(u32::MAX)));
    }

    fn judge(&self, now_micros: i64) -> Readiness {
        let mut reasons = Vec::new();
        if self.stop.is_cancelled() {
            reasons.push("the server is stopping".to_owned());
        }
        if let Some(postgres) = &self.postgres
            && let PostgresState::Down { reason } = &*postgres.borrow()
        {
            reasons.push(format!("Postgres is down: {reason}"));
        }
        let snapshot = self.roles.has(Role::Dataflow).then(|| self.views.snapshot());
        let mut stalled = Vec::new();
        if let Some(snapshot) = &snapshot {
            let silence = |seen_at: i64| now_micros.saturating_sub(seen_at);
            let seen_at = snapshot.lanes().map(|(_, seen_at)| seen_at).max();
            let silent = silence(seen_at.unwrap_or(snapshot.sources_seen_at));
            if !self.views.ready() {
                reasons.push("the tables are being filled from the store".to_owned());
            } else if silent > STALLED_AFTER_MICROS {
                reasons.push(format!("the change log has been silent for {} s", silent / 1_000_000));
            } else {
                let silent = snapshot.lanes().map(|(lane, seen_at)| (lane, silence(seen_at)));
                let silent = silent.filter(|(_, silent)| *silent > STALLED_AFTER_MICROS);
                stalled.extend(
                    silent.map(|(lane, silent)| format!("lane {lane} has been silent for {} s", silent / 1_000_000)),
                );
            }
        }
        Readiness {
            ready: reasons.is_empty(),
            reasons,
            stalled,
            roles: self.roles.clone(),
            snapshot: snapshot.map(|snapshot| SnapshotAge {
                tick: snapshot.moment.tick.0,
                as_of: schemas::time::format_micros(snapshot.moment.as_of),
                complete_through: snapshot.moment.complete_through.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use schemas::{
        id::DomainId,
        port::WaitError,
        position::{LaneId, Position, Sequence},
        table::{DomainTables, Moment, Snapshot},
    };

    use super::*;

    #[derive(Debug)]
    struct Views {
        ready: bool,
        sources_seen_at: i64,
        lanes_seen_at: &'static [(u16, i64)],
    }

    #[async_trait]
    impl ViewReader for Views {
        fn snapshot(&self) -> Arc<Snapshot> {
            let mut snapshot = Snapshot { sources_seen_at: self.sources_seen_at, ..Snapshot::default() };
            for (database, seen_at) in self.lanes_seen_at {
                let lane = LaneId { database: *database, writer: 0 };
                snapshot.moment.complete_through.advance(Position { lane, sequence: Sequence(1) });
                snapshot.lanes_seen_at.insert(lane, *seen_at);
            }
            for (domain, behind) in [("level", None), ("late", Some(Moment::default()))] {
                let tables = DomainTables { behind, ..DomainTables::default() };
                snapshot.domains.insert(DomainId::new(domain).unwrap(), Arc::new(tables));
            }
            Arc::new(snapshot)
        }
        fn ready(&self) -> bool {
            self.ready
        }
        async fn wait_for(&self, _: &DomainId, _: Position, _: Duration) -> Result<Arc<Snapshot>, WaitError> {
            Err(WaitError::Stopping)
        }
    }

    #[test]
    fn lag_is_told_of_every_lane() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let told = |now, roles: &[Role]| {
            let state = HealthState {
                views: Arc::new(Views { ready: true, sources_seen_at: 0, lanes_seen_at: &[(0, 0), (1, 59_500_000)] }),
                postgres: None,
                metrics: recorder.handle(),
                roles: Roles(roles.to_vec()),
                stop: CancellationToken::new(),
            };
            metrics::with_local_recorder(&recorder, || state.tell_lag(now));
            state.metrics.render()
        };
        assert!(!told(0, &[Role::Ingest]).contains("millrace_dataflow"));
        let text = told(60_000_000, &[Role::Dataflow]);
        for line in [
            r#"millrace_dataflow_lag_seconds{lane="0-0"} 60"#,
            r#"millrace_dataflow_lag_seconds{lane="1-0"} 0.5"#,
            "millrace_dataflow_behind_domains 1",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn readiness_names_every_reason() {
        let (postgres, watched) = watch::channel(PostgresState::Up { pid: 1 });
        let state = |views: Views, roles: &[Role]| HealthState {
            views: Arc::new(views),
            postgres: Some(watched.clone()),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            roles: Roles(roles.to_vec()),
            stop: CancellationToken::new(),
        };
        let live = Views { ready: true, sources_seen_at: 100, lanes_seen_at: &[] };
        assert!(state(live, &[Role::Dataflow]).judge(200).ready);
        let at_sixty = |views: Views| state(views, &[Role::Dataflow]).judge(60_000_000);
        let stalled = at_sixty(Views { ready: true, sources_seen_at: 0, lanes_seen_at: &[] });
        assert_eq!(stalled.reasons, ["the change log has been silent for 60 s"]);
        let all = at_sixty(Views { ready: true, sources_seen_at: 0, lanes_seen_at: &[(0, 0), (1, 1_000_000)] });
        assert_eq!(all.reasons, ["the change log has been silent for 59 s"]);
        let one = at_sixty(Views { ready: true, sources_seen_at: 0, lanes_seen_at: &[(0, 0), (1, 59_000_000)] });
        assert!(one.ready, "the domains of the other lanes are served");
        assert_eq!(one.stalled, ["lane 0-0 has been silent for 60 s"]);
        let filling = Views { ready: false, sources_seen_at: 0, lanes_seen_at: &[] };
        assert!(state(Views { ..filling }, &[Role::Ingest]).judge(60_000_000).ready);
        postgres.send_replace(PostgresState::Down { reason: "gone".to_owned() });
        let both = state(filling, &[Role::Dataflow]);
        both.stop.cancel();
        assert_eq!(both.judge(0).reasons.len(), 3);
    }
}
