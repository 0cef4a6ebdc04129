//! The live status page: `GET /` is one HTML file, `GET /status.json` what it shows, polled once a second.
//!
//! In: published snapshots and the process's metrics. Out: freshness and throughput of the last five minutes, the sample
//! program's tables with their rows, view builds, errors. Both need no login and are therefore answered to this machine
//! alone, unless the configuration opens them: names and counts of tables are not for everyone.

mod report;
mod sampler;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use schemas::port::ViewReader;

use self::sampler::History;

const PAGE: &str = include_str!("status/index.html");
/// Nothing on the page comes from elsewhere, and nothing may.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Who may see the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Programs on this machine.
    Local,
    /// Everyone who reaches the listener.
    Everyone,
}

#[derive(Clone, Debug)]
struct StatusState {
    views: Arc<dyn ViewReader>,
    metrics: PrometheusHandle,
    history: Arc<History>,
}

/// The page and its data. Sampling begins at once and ends when the router is dropped.
pub(crate) fn routes(views: Arc<dyn ViewReader>, metrics: PrometheusHandle, audience: Audience) -> Router {
    let history = Arc::new(History::default());
    tokio::spawn(sampler::sample(Arc::clone(&views), Arc::downgrade(&history)));
    let state = StatusState { views, metrics, history };
    Router::new()
        .route("/", get(page))
        .route("/status.json", get(status))
        .layer(middleware::from_fn_with_state(audience, guard))
        .with_state(state)
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(PAGE))
}

async fn status(State(state): State<StatusState>) -> impl IntoResponse {
    let snapshot = state.views.snapshot();
    let now = jiff::Timestamp::now().as_microsecond();
    let report = report::report(&snapshot, state.views.ready(), &state.history, &state.metrics.render(), now);
    ([(header::CACHE_CONTROL, "no-store")], Json(report))
}

async fn guard(State(audience): State<Audience>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    if audience == Audience::Everyone || is_local(peer, request.headers()) {
        return next.run(request).await;
    }
    let text = "the status page is shown to this machine only; set `listen.status_public = true` to open it\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

/// True if the request comes from a program on this machine that asked for this machine by name. A proxy in front says
/// so in its headers; a foreign page that had its own name pointed here still says that name.
fn is_local(peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let here = name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    !forwarded && here && peer.is_some_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        is_local(peer.parse().ok(), &map)
    }

    #[test]
    fn only_this_machine_is_answered() {
        for host in ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "127.0.0.1"] {
            assert!(asked("127.0.0.1", &[("host", host)]), "{host}");
            assert!(asked("::ffff:127.0.0.1", &[("host", host)]), "{host}");
            assert!(!asked("192.168.1.4", &[("host", host)]), "{host}");
        }
        assert!(!asked("127.0.0.1", &[("host", "evil.example:8080")]));
        assert!(!asked("127.0.0.1", &[("host", "localhost"), ("x-forwarded-for", "192.0.2.1")]));
        assert!(!asked("127.0.0.1", &[]));
        assert!(!asked("no peer", &[("host", "localhost")]));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for foreign in ["http://", "https://", "src=", "@import", "<link"] {
            let page = PAGE.replace("http://www.w3.org/2000/svg", "");
            assert!(!page.contains(foreign), "the page holds {foreign}");
        }
    }
}
