//! HTTP as phones and the administrator speak it: form posts with retry, and the writes that set a domain up.
//!
//! A phone keeps a form until it is acknowledged: 429, 423, 5xx and no answer at all are tried again with growing pauses;
//! any other refusal is final (forms-and-cases.md §5).

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use schemas::{port::Secret, position::Position};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    population::Worker,
    program::form::APP_ID,
    tally::{Retry, Tally},
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(30);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Parts of a multipart body are told apart by this; it occurs in no form.
const BOUNDARY: &str = "------------------------millrace-phone-7f3a91c2";
/// Characters of an answer that an error message shows.
const SHOWN: usize = 300;

/// A server under load, seen over HTTP.
#[derive(Debug)]
pub(crate) struct Server {
    client: Client,
    url: String,
    domain: String,
    username: String,
    password: Secret,
}

/// A write that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The server's answer is final.
    #[error("{what} was refused with {status}: {answer}")]
    Refused {
        /// What was written.
        what: &'static str,
        /// The status.
        status: StatusCode,
        /// The beginning of the answer.
        answer: String,
    },
    /// The run ended first.
    #[error("{what} was given up when the run ended")]
    GivenUp {
        /// What was written.
        what: &'static str,
    },
}

impl Server {
    /// Prepares to speak to a server with at most `connections` connections kept open.
    ///
    /// # Errors
    /// The URL is not one, or the client cannot be made.
    pub(crate) fn new(
        url: &str,
        domain: &str,
        username: &str,
        password: Secret,
        connections: usize,
    ) -> anyhow::Result<Self> {
        let parsed = reqwest::Url::parse(url).with_context(|| format!("`{url}` is not a URL"))?;
        anyhow::ensure!(
            parsed.scheme() == "http",
            "`{url}`: only http:// is spoken; put TLS in front of the server, not here"
        );
        let client = Client::builder()
            .pool_max_idle_per_host(connections)
            .tcp_nodelay(true)
            .timeout(REQUEST_TIMEOUT)
            .user_agent("CommCare/2.54 (millrace load)")
            .build()
            .context("could not prepare the HTTP client")?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { client, url, domain: domain.to_owned(), username: username.to_owned(), password })
    }

    /// The user name under which a worker of this domain signs in.
    pub(crate) fn login(&self, worker: &Worker) -> String {
        format!("{}@{}.commcarehq.org", worker.username, self.domain)
    }

    fn receiver(&self, worker: &Worker) -> RequestBuilder {
        self.client
            .post(format!("{}/a/{}/receiver/secure/{APP_ID}/", self.url, self.domain))
            .basic_auth(self.login(worker), Some(&worker.password))
            .header("X-OpenRosa-Version", "3.0")
    }

    /// Posts a form until it is acknowledged, and returns its receipt if the answer carries one.
    ///
    /// # Errors
    /// [`WriteError`] when the answer is final, or `give_up` fires between two attempts.
    pub(crate) async fn post_form(
        &self,
        worker: &Worker,
        xml: &Arc<str>,
        tally: &Tally,
        give_up: &CancellationToken,
    ) -> Result<Option<Position>, WriteError> {
        let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
        let request = || self.receiver(worker).header(header::CONTENT_TYPE, &content_type).body(multipart(xml));
        self.insist("form", request, tally, give_up).await
    }

    /// Writes a user or place as it stands after a move.
    ///
    /// # Errors
    /// As [`Self::post_form`].
    pub(crate) async fn put_document(
        &self,
        resource: &str,
        id: &str,
        document: &Value,
        tally: &Tally,
        give_up: &CancellationToken,
    ) -> Result<Option<Position>, WriteError> {
        let path = format!("api/v0.5/{resource}/{id}/");
        self.insist("move", || self.admin(Method::PUT, &path).json(document), tally, give_up).await
    }

    async fn insist(
        &self,
        what: &'static str,
        request: impl Fn() -> RequestBuilder,
        tally: &Tally,
        give_up: &CancellationToken,
    ) -> Result<Option<Position>, WriteError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let (why, wait) = match request().send().await {
                Ok(answer) if answer.status().is_success() => return Ok(receipt(&answer)),
                Ok(answer) if answer.status() == StatusCode::TOO_MANY_REQUESTS => {
                    (Retry::Limited, asked_pause(&answer).unwrap_or(pause))
                }
                Ok(answer) if answer.status() == StatusCode::LOCKED || answer.status().is_server_error() => {
                    (Retry::Server, pause)
                }
                Ok(answer) => {
                    let status = answer.status();
                    return Err(WriteError::Refused { what, status, answer: beginning(answer).await });
                }
                Err(error) => {
                    tracing::debug!(%error, "no answer to a {what}");
                    (Retry::Connection, pause)
                }
            };
            tally.retried(why);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = give_up.cancelled() => return Err(WriteError::GivenUp { what }),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Signs a worker in without sending a form, so that the server has the credentials at hand.
    ///
    /// # Errors
    /// The credentials are refused, or there is no answer.
    pub(crate) async fn sign_in(&self, worker: &Worker) -> anyhow::Result<()> {
        // An empty body is refused only after the credentials were checked.
        let answer = self.receiver(worker).header(header::CONTENT_TYPE, "text/xml").body("").send().await?;
        let status = answer.status();
        if status == StatusCode::BAD_REQUEST || status.is_success() {
            return Ok(());
        }
        let answer = beginning(answer).await;
        anyhow::bail!("worker {} could not sign in ({status}): {answer}", self.login(worker))
    }

    fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}/a/{}/{path}", self.url, self.domain))
            .basic_auth(&self.username, Some(&self.password.0))
    }

    /// Sends JSON as the administrator and returns the answer.
    ///
    /// # Errors
    /// Anything but success; the message holds the answer.
    pub(crate) async fn write(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let what = format!("{method} {}/a/{}/{path}", self.url, self.domain);
        let answer =
            self.admin(method, path).json(body).send().await.with_context(|| format!("no answer to {what}"))?;
        let status = answer.status();
        anyhow::ensure!(status.is_success(), "{what} was refused with {status}: {}", beginning(answer).await);
        answer.json().await.with_context(|| format!("could not read the answer to {what}"))
    }

    /// Reads JSON as the administrator; nothing if it does not exist.
    ///
    /// # Errors
    /// Anything but success or 404.
    pub(crate) async fn read(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let what = format!("GET {}/a/{}/{path}", self.url, self.domain);
        let answer = self.admin(Method::GET, path).send().await.with_context(|| format!("no answer to {what}"))?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                Ok(Some(answer.json().await.with_context(|| format!("could not read the answer to {what}"))?))
            }
            status => anyhow::bail!("{what} was refused with {status}: {}", beginning(answer).await),
        }
    }
}

fn receipt(answer: &Response) -> Option<Position> {
    answer.headers().get("x-millrace-position")?.to_str().ok()?.parse().ok()
}

fn asked_pause(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).clamp(FIRST_PAUSE, LONGEST_ASKED_PAUSE))
}

async fn beginning(answer: Response) -> String {
    answer.text().await.unwrap_or_default().chars().take(SHOWN).collect()
}

fn multipart(xml: &str) -> String {
    let mut body = String::with_capacity(xml.len() + 256);
    for part in [
        "--",
        BOUNDARY,
        "\r\nContent-Disposition: form-data; name=\"xml_submission_file\"; filename=\"form.xml\"\r\n\
         Content-Type: text/xml\r\n\r\n",
        xml,
        "\r\n--",
        BOUNDARY,
        "--\r\n",
    ] {
        body.push_str(part);
    }
    body
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Router, extract::State, http::HeaderMap, response::IntoResponse, routing::post};

    use super::*;
    use crate::load::population::Population;

    async fn served(router: Router) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Server::new(&url, "demo", "admin@demo", Secret("pw".to_owned()), 4).unwrap()
    }

    fn worker() -> Worker {
        Population::generate(1, 1, "demo", "secret").workers.remove(0)
    }

    #[tokio::test]
    async fn a_form_is_posted_until_it_is_acknowledged() {
        async fn receive(
            State(calls): State<Arc<AtomicUsize>>,
            headers: HeaderMap,
            body: String,
        ) -> axum::response::Response {
            assert!(headers["authorization"].to_str().unwrap().starts_with("Basic "));
            assert!(body.contains("name=\"xml_submission_file\"; filename=\"form.xml\"") && body.contains("<data/>"));
            match calls.fetch_add(1, Ordering::SeqCst) {
                0 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
                1 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                2 => StatusCode::LOCKED.into_response(),
                _ => (StatusCode::CREATED, [("x-millrace-position", "m1.0-0.7")]).into_response(),
            }
        }
        let path = format!("/a/demo/receiver/secure/{APP_ID}/");
        let server = served(Router::new().route(&path, post(receive)).with_state(Arc::default())).await;
        let tally = Tally::default();
        let receipt =
            server.post_form(&worker(), &Arc::from("<data/>"), &tally, &CancellationToken::new()).await.unwrap();
        assert_eq!(receipt.unwrap().to_string(), "m1.0-0.7");
        assert_eq!(tally.with(|counts| counts.retries), [1, 2, 0]);
    }

    #[tokio::test]
    async fn a_final_refusal_is_not_repeated() {
        let refuse = || async { (StatusCode::UNPROCESSABLE_ENTITY, "no xmlns") };
        let server = served(Router::new().fallback(refuse)).await;
        let tally = Tally::default();
        let error =
            server.post_form(&worker(), &Arc::from("<data/>"), &tally, &CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().contains("422") && error.to_string().contains("no xmlns"), "{error}");
        assert_eq!(tally.with(|counts| counts.retries), [0, 0, 0]);
    }

    #[tokio::test]
    async fn giving_up_ends_the_retries() {
        let server = served(Router::new().fallback(|| async { StatusCode::INTERNAL_SERVER_ERROR })).await;
        let give_up = CancellationToken::new();
        give_up.cancel();
        let posted = server.post_form(&worker(), &Arc::from("<data/>"), &Tally::default(), &give_up).await;
        assert!(matches!(posted, Err(WriteError::GivenUp { .. })));
    }
}
