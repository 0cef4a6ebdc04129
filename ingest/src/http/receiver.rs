//! The submission endpoints that devices post to (forms-and-cases.md §1-§5).
//!
//! In: a POST, raw or multipart, gzipped or not. Out: an OpenRosa answer once the form is durable.
//! Device logs are stored beside the forms (§12.7).

mod admission;
mod request;

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{ConnectInfo, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use md5::{Digest, Md5};
use schemas::{
    id::{DomainId, FormId},
    port::{Permission, Principal},
    time::parse_micros,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    HttpState, both,
    caller::Asked,
    envelope::{self, Version},
};
use crate::{
    casexml::touched_case_ids,
    config::IngestConfig,
    devicelog,
    error::WriteError,
    store::compress,
    submit::{Attachment, Content, Envelope, Purpose, Rules, Submission},
    xform::{self, ParseError, ParseLimits, ParsedForm},
};
use admission::{Admission, Options};
use request::File;

/// Bodies above this are parsed away from the threads that serve requests.
const LARGE: usize = 128 * 1024;

/// Adds the routes. Static names win over `{app_id}`.
pub(super) fn routes(router: Router<HttpState>) -> Router<HttpState> {
    let router = both(router, "/a/{domain}/receiver", post(open));
    let router = both(router, "/a/{domain}/receiver/submission", post(open));
    let router = both(router, "/a/{domain}/receiver/secure", post(secure));
    let router = both(router, "/a/{domain}/receiver/api", post(api));
    let router = both(router, "/a/{domain}/receiver/secure/{app_id}", post(secure));
    both(router, "/a/{domain}/receiver/{app_id}", post(open))
}

#[derive(Debug, Deserialize)]
struct Target {
    domain: String,
    app_id: Option<String>,
}

/// The kinds of address a form can be posted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// Credentials are demanded if the domain's settings say so.
    Open,
    /// Always.
    Secure,
    /// Always, with the permission to edit data; never tagged with an app.
    Api,
}

async fn open(state: State<HttpState>, target: Path<Target>, options: Query<Options>, request: Request) -> Response {
    receive(state.0, Door::Open, target.0, options.0, request).await.unwrap_or_else(|response| *response)
}

async fn secure(state: State<HttpState>, target: Path<Target>, options: Query<Options>, request: Request) -> Response {
    receive(state.0, Door::Secure, target.0, options.0, request).await.unwrap_or_else(|response| *response)
}

async fn api(state: State<HttpState>, target: Path<Target>, options: Query<Options>, request: Request) -> Response {
    receive(state.0, Door::Api, target.0, options.0, request).await.unwrap_or_else(|response| *response)
}

/// A refusal, ready to send.
type Refusal = Box<Response>;

pub(super) fn refuse(status: StatusCode, text: impl Into<String>) -> Refusal {
    Box::new((status, text.into()).into_response())
}

/// The order of work for a submission.
async fn receive(
    state: HttpState,
    door: Door,
    target: Target,
    options: Options,
    request: Request,
) -> Result<Response, Refusal> {
    let received_on = state.ingest.clock.now_micros();
    let unknown = || Box::new(envelope::refused(&WriteError::UnknownDomain(target.domain.clone())));
    let domain = DomainId::new(&target.domain).map_err(|_| unknown())?;
    let settings =
        state.ingest.domains.find(&domain).await.map_err(|error| Box::new(envelope::refused(&error.into())))?;
    let settings = settings.ok_or_else(unknown)?;
    state.ingest.limiter.admit(&domain, &*state.ingest.clock).await.map_err(|limited| too_many(limited.retry_after))?;
    let permission = if door == Door::Api { Permission::EditData } else { Permission::Submit };
    let demanded = door != Door::Open || settings.secure_submissions;
    let asked = Asked::of(&request);
    let admission = Admission::of(&state, &domain, demanded, &options, &asked, permission).await?;
    let headers = request.headers().clone();
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
    let parts = request::read(request, &state.ingest.config, &state.room).await?;

    let version = version(&headers);
    let read = read(parts.form, &state.ingest.config).await?;
    if let Ok(form) = &read.parsed {
        if options.is_demo() && !form.is_device_log && !admission::is_demo_user(form) {
            return Ok(envelope::ignored());
        }
        if matches!(admission, Admission::Waived)
            && !options.is_demo()
            && !admission::demo_may(&state, &domain, form).await?
        {
            return Err(refuse(StatusCode::FORBIDDEN, "Bad auth"));
        }
    }
    let content = match read.parsed {
        Ok(form) if form.is_device_log => return device_log(&state, &domain, &form, received_on).await,
        Ok(form) => Content::Form(form),
        Err(ParseError::TooLarge { .. }) => return Err(too_large(&state.ingest.config)),
        Err(error) => Content::Broken { id: random_form_id()?, problem: error.to_string() },
    };
    let envelope = Envelope {
        app_id: target.app_id,
        received_on: submit_time(&headers, &state.ingest.config).unwrap_or(received_on),
        auth_context: admission.context(&domain),
        openrosa_headers: openrosa_headers(&headers),
        last_sync_token: text_header(&headers, "x-commcarehq-lastsynctoken"),
        date_header: date_header(&headers),
        submit_ip: address,
        author: admission.caller().map(|caller| caller.user_id.as_str().to_owned()),
    };
    let attachments = attachments(&state, &domain, parts.files).await?;
    let submission = Submission {
        domain,
        content,
        xml_md5: read.md5,
        xml_key: Uuid::new_v4(),
        xml_zstd: read.zstd,
        envelope,
        attachments,
        rules: settings.rules,
        purpose: Purpose::Store,
    };
    let cases = changed_cases(&submission);
    let target = submission.domain.clone();
    let stored = state.ingest.lanes.submit(settings.lane, submission).await;
    drop(parts.held);
    match stored {
        Ok(receipt) => {
            state.ingest.limiter.report(&target, cases, received_on);
            Ok(envelope::stored(&receipt, version))
        }
        Err(error) => Ok(envelope::refused(&error)),
    }
}

/// The domain is over its rate limit; the phone tries again later.
fn too_many(seconds: u64) -> Refusal {
    let mut refusal = refuse(StatusCode::TOO_MANY_REQUESTS, "too many submissions to this domain; try again later");
    refusal.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    refusal
}

/// How many cases a submission is about.
fn changed_cases(submission: &Submission) -> usize {
    match &submission.content {
        Content::Form(form) => form.case_blocks.as_ref().map_or(0, |blocks| touched_case_ids(blocks).len()),
        Content::Broken { .. } => 0,
    }
}

/// Stores what a phone logged about itself.
async fn device_log(
    state: &HttpState,
    domain: &DomainId,
    form: &ParsedForm,
    received_on: i64,
) -> Result<Response, Refusal> {
    let entries = devicelog::entries(&form.json);
    let stored = async {
        let client = state.ingest.domains.pool(domain).await?.get().await?;
        devicelog::store(&client, domain, &form.form_id, received_on, &entries).await?;
        Ok::<(), WriteError>(())
    };
    stored.await.map_err(|error| Box::new(envelope::refused(&error)))?;
    Ok(envelope::accepted())
}

/// The submission of a form that was recorded elsewhere; `received_on` is when it was received there, believed only where
/// the configuration says so.
///
/// # Errors
/// [`WriteError`] if the bytes are a device log or larger than a form may be.
pub(super) async fn recorded(
    state: &HttpState,
    domain: &DomainId,
    rules: Rules,
    caller: &Principal,
    bytes: Bytes,
    received_on: Option<i64>,
) -> Result<Submission, WriteError> {
    let config = &state.ingest.config;
    let read = read(bytes, config).await.map_err(|_| WriteError::Internal)?;
    let content = match read.parsed {
        Ok(form) if form.is_device_log => {
            return Err(WriteError::Invalid("device logs are posted one at a time".to_owned()));
        }
        Ok(form) => Content::Form(form),
        Err(error @ ParseError::TooLarge { .. }) => return Err(WriteError::Invalid(error.to_string())),
        Err(error) => {
            let id = random_form_id().map_err(|_| WriteError::Internal)?;
            Content::Broken { id, problem: error.to_string() }
        }
    };
    let received_on = received_on.filter(|_| config.trust_submit_time);
    Ok(Submission {
        domain: domain.clone(),
        content,
        xml_md5: read.md5,
        xml_key: Uuid::new_v4(),
        xml_zstd: read.zstd,
        envelope: Envelope {
            app_id: None,
            received_on: received_on.unwrap_or_else(|| state.ingest.clock.now_micros()),
            auth_context: Admission::Caller(caller.clone()).context(domain),
            openrosa_headers: Value::Object(Map::new()),
            last_sync_token: None,
            date_header: None,
            submit_ip: None,
            author: Some(caller.user_id.as_str().to_owned()),
        },
        attachments: Vec::new(),
        rules,
        purpose: Purpose::Import,
    })
}

/// The submission of a stored form, to be applied again as it was received.
///
/// # Errors
/// [`WriteError`] if the bytes are no form, or not the one that is stored under `id`.
pub(super) async fn again(
    state: &HttpState,
    domain: &DomainId,
    rules: Rules,
    id: &FormId,
    bytes: Bytes,
) -> Result<Submission, WriteError> {
    let read = read(bytes, &state.ingest.config).await.map_err(|_| WriteError::Internal)?;
    let no_form = || WriteError::Conflict(format!("{id} is not an error form that could be processed again"));
    let form = read.parsed.ok().filter(|form| form.form_id == *id).ok_or_else(no_form)?;
    Ok(Submission {
        domain: domain.clone(),
        content: Content::Form(form),
        xml_md5: read.md5,
        xml_key: Uuid::new_v4(),
        xml_zstd: read.zstd,
        envelope: Envelope {
            app_id: None,
            received_on: state.ingest.clock.now_micros(),
            auth_context: Value::Null,
            openrosa_headers: Value::Null,
            last_sync_token: None,
            date_header: None,
            submit_ip: None,
            author: None,
        },
        attachments: Vec::new(),
        rules,
        purpose: Purpose::Reprocess,
    })
}

fn too_large(config: &IngestConfig) -> Refusal {
    refuse(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("Form exceeds {}MB size limit", config.max_form_bytes / (1024 * 1024)),
    )
}

fn random_form_id() -> Result<FormId, Refusal> {
    FormId::new(&Uuid::new_v4().to_string())
        .map_err(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "could not make a form id"))
}

/// A form's bytes, parsed, hashed and compressed.
struct Read {
    parsed: Result<Box<ParsedForm>, ParseError>,
    md5: [u8; 16],
    zstd: Vec<u8>,
}

async fn read(body: Bytes, config: &IngestConfig) -> Result<Read, Refusal> {
    let limits = ParseLimits { max_bytes: config.max_form_bytes, ..ParseLimits::default() };
    let large = body.len() > LARGE;
    let work = move || {
        let parsed = xform::parse(&body, &limits, &|| Uuid::new_v4().to_string()).map(Box::new);
        Ok(Read { parsed, md5: Md5::digest(&body).into(), zstd: compress::pack(&body)? })
    };
    let done = if large {
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped)))
    } else {
        work()
    };
    done.map_err(|error| internal(&error))
}

fn internal(error: &std::io::Error) -> Refusal {
    tracing::error!(%error, "a submission could not be read or compressed");
    Box::new(envelope::refused(&WriteError::Internal))
}

/// Compresses small attachments for the commit, and puts large ones into the object store.
async fn attachments(state: &HttpState, domain: &DomainId, files: Vec<File>) -> Result<Vec<Attachment>, Refusal> {
    let mut attachments = Vec::with_capacity(files.len());
    for File { name, content_type, bytes } in files {
        let (key, length) = (Uuid::new_v4(), bytes.len());
        let inline_zstd = if length <= state.ingest.config.inline_attachment_bytes {
            Some(compress::pack(&bytes).map_err(|error| internal(&error))?)
        } else {
            state.ingest.blobs.put_attachment(domain, key, bytes).await.map_err(|error| {
                tracing::warn!(%error, "an attachment could not be stored");
                Box::new(envelope::refused(&WriteError::Unavailable))
            })?;
            None
        };
        attachments.push(Attachment { name, content_type, length, key, inline_zstd });
    }
    Ok(attachments)
}

fn text_header(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn version(headers: &HeaderMap) -> Version {
    match headers.get("x-openrosa-version").map(|value| value.as_bytes()) {
        Some(b"3.0") => Version::Three,
        _ => Version::Two,
    }
}

/// Time of receipt as trusted tooling states it.
fn submit_time(headers: &HeaderMap, config: &IngestConfig) -> Option<i64> {
    if !config.trust_submit_time {
        return None;
    }
    parse_micros(&text_header(headers, "x-submit-time")?)
}

/// `Mon, 11 Apr 2011 18:24:43 GMT`
fn date_header(headers: &HeaderMap) -> Option<i64> {
    let text = text_header(headers, header::DATE.as_str())?;
    match jiff::fmt::rfc2822::parse(&text) {
        Ok(at) => Some(at.timestamp().as_microsecond()),
        Err(error) => {
            tracing::info!(%error, "a submission's date header could not be read");
            None
        }
    }
}

fn openrosa_headers(headers: &HeaderMap) -> Value {
    let kept = [
        ("x-openrosa-version", "HTTP_X_OPENROSA_VERSION"),
        ("date", "HTTP_DATE"),
        ("accept-language", "HTTP_ACCEPT_LANGUAGE"),
    ];
    let values =
        kept.into_iter().filter_map(|(name, kept)| Some((kept.to_owned(), text_header(headers, name)?.into())));
    Value::Object(values.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn headers_are_read_as_the_contract_says() {
        let mut headers = HeaderMap::new();
        headers.insert("date", HeaderValue::from_static("Mon, 11 Apr 2011 18:24:43 GMT"));
        headers.insert("x-openrosa-version", HeaderValue::from_static("3.0"));
        headers.insert("x-submit-time", HeaderValue::from_static("2020-01-02T03:04:05.000000Z"));
        assert_eq!(date_header(&headers).map(schemas::time::format_micros).unwrap(), "2011-04-11T18:24:43.000000Z");
        assert_eq!(version(&headers), Version::Three);
        assert_eq!(openrosa_headers(&headers)["HTTP_DATE"], "Mon, 11 Apr 2011 18:24:43 GMT");
        let trusting = IngestConfig { trust_submit_time: true, ..IngestConfig::default() };
        assert_eq!(submit_time(&headers, &trusting), parse_micros("2020-01-02T03:04:05Z"));
        assert_eq!(submit_time(&headers, &IngestConfig::default()), None);
        headers.insert("date", HeaderValue::from_static("yesterday"));
        headers.insert("x-openrosa-version", HeaderValue::from_static("3"));
        assert_eq!((date_header(&headers), version(&headers)), (None, Version::Two));
    }
}
