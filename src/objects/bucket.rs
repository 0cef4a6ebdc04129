//! Objects in a bucket of Amazon S3, or of any store that speaks its protocol.
//!
//! What the settings leave empty comes from the AWS_* variables that every such program reads, and credentials that are in
//! neither from the machine's role. A request that fails is tried again for [`RETRY_FOR`] only: the mover goes on with the
//! pack later by itself, and a phone with a large attachment is told to.

use std::{error::Error as _, sync::Arc, time::Duration};

use anyhow::Context;
use futures::TryStreamExt;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    StaticCredentialProvider,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential},
    client::HttpError,
    path::Path,
    prefix::PrefixStore,
};
use schemas::port::Secret;
use uuid::Uuid;

use crate::config::S3Config;

/// How long the store may take to accept a connection.
const CONNECT_WITHIN: &str = "5s";
/// How long it may take over one request; attachments of 15 MB have to pass.
const ANSWER_WITHIN: &str = "30s";
/// How long and how often a failed request is tried again.
const RETRY_FOR: Duration = Duration::from_secs(10);
const RETRIES: usize = 4;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long the trial at the start may take as a whole.
const TRY_WITHIN: Duration = Duration::from_secs(30);
/// Where the trial writes: beside the objects, where nothing sweeps.
const TRIALS: &str = "trial";

/// Opens a bucket without asking for it.
///
/// # Errors
/// The settings contradict each other.
pub(super) fn open(name: &str, prefix: &Path, config: &S3Config) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), CONNECT_WITHIN)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), ANSWER_WITHIN)
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: LONGEST_PAUSE, ..BackoffConfig::default() },
            max_retries: RETRIES,
            retry_timeout: RETRY_FOR,
        });
    if !config.endpoint.is_empty() {
        // The more specific of the two that the environment may set.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, &config.endpoint);
    }
    if !config.region.is_empty() {
        builder = builder.with_region(&config.region);
    }
    if config.allow_http {
        builder = builder.with_allow_http(true);
    }
    if let (key_id, Secret(secret)) = (&config.access_key_id, &config.secret_access_key)
        && !key_id.is_empty()
    {
        // Whole: a session token of the environment belongs to the environment's key.
        let credential = AwsCredential { key_id: key_id.clone(), secret_key: secret.clone(), token: None };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
    }
    let bucket = builder.build().with_context(|| format!("could not set up bucket `{name}`; check [objects.s3]"))?;
    Ok(Arc::new(PrefixStore::new(bucket, prefix.clone())))
}

/// What a server does in its bucket, and the permission that it needs for it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write,
    Read,
    List,
    Delete,
}

impl Step {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Write => ("write", "s3:PutObject"),
            Self::Read => ("read", "s3:GetObject"),
            Self::List => ("list", "s3:ListBucket"),
            Self::Delete => ("delete", "s3:DeleteObject"),
        }
    }
}

/// Writes, reads, lists and deletes an object, so that a start fails where the first form would.
///
/// # Errors
/// One of them failed; the text says which, why, and which setting to look at.
pub(super) async fn try_out(store: &dyn ObjectStore, name: &str) -> anyhow::Result<()> {
    let trial = async {
        let path = Path::from(format!("{TRIALS}/{}", Uuid::new_v4().simple()));
        let failed = |step: Step| move |error: Error| anyhow::Error::msg(reason(step, &error));
        store.put(&path, PutPayload::from_static(b"trial")).await.map_err(failed(Step::Write))?;
        store.get_range(&path, 0..1).await.map_err(failed(Step::Read))?;
        store.list(Some(&Path::from(TRIALS))).try_next().await.map_err(failed(Step::List))?;
        store.delete(&path).await.map_err(failed(Step::Delete))
    };
    match tokio::time::timeout(TRY_WITHIN, trial).await {
        Ok(tried) => tried,
        Err(_) => Err(anyhow::anyhow!("it does not answer within {TRY_WITHIN:?}; check `objects.s3.endpoint`")),
    }
    .with_context(|| format!("could not use bucket `{name}` as object store"))
}

/// Error codes of the protocol, what they mean here, and where to look.
const CODES: &[(&str, &str, &str)] = &[
    ("NoSuchBucket", "there is no such bucket", "`objects.url`"),
    ("InvalidAccessKeyId", "the store does not know the access key", "`objects.s3.access_key_id` or AWS_ACCESS_KEY_ID"),
    (
        "SignatureDoesNotMatch",
        "the secret is not that of the access key",
        "`objects.s3.secret_access_key` or AWS_SECRET_ACCESS_KEY",
    ),
    (
        "//169.254.",
        "no access key is set, and this machine has no role that gives one",
        "`objects.s3.access_key_id` or AWS_ACCESS_KEY_ID",
    ),
    ("ExpiredToken", "the session token is no longer valid", "AWS_SESSION_TOKEN"),
    ("InvalidToken", "the session token is not valid", "AWS_SESSION_TOKEN"),
    ("AuthorizationHeaderMalformed", "the bucket is in another region", "`objects.s3.region` or AWS_REGION"),
    ("PermanentRedirect", "the bucket is in another region", "`objects.s3.region` or AWS_REGION"),
    ("incorrectly configured region", "the bucket is in another region", "`objects.s3.region` or AWS_REGION"),
    ("RequestTimeTooSkewed", "the store's clock and this machine's differ", "the clock of this machine"),
];

/// Says why a step failed, without what the store's answer repeats of the request.
fn reason(step: Step, error: &Error) -> String {
    let (verb, permission) = step.names();
    let text = error.to_string();
    if let Some((_, meaning, look_at)) = CODES.iter().find(|(code, _, _)| text.contains(code)) {
        return format!("could not {verb} an object: {meaning}; check {look_at}");
    }
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            format!("could not {verb} an object: the access key lacks the permission {permission}")
        }
        _ if is_connection(error) => format!(
            "could not {verb} an object: {}; check `objects.s3.endpoint` and `objects.s3.allow_http`, or AWS_ENDPOINT_URL",
            root(error)
        ),
        _ => format!("could not {verb} an object: {text}; check `objects.url` and [objects.s3]"),
    }
}

/// True if no answer came.
fn is_connection(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.is::<HttpError>() {
            return true;
        }
        source = cause.source();
    }
    false
}

/// The cause behind all others.
fn root(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_that_does_not_answer_is_said_with_its_setting() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = S3Config {
            endpoint: format!("http://{closed}"),
            allow_http: true,
            access_key_id: "key".to_owned(),
            secret_access_key: Secret("hunter2".to_owned()),
            ..S3Config::default()
        };
        let store = open("forms", &Path::from("a"), &config).unwrap();
        let text = format!("{:#}", try_out(&*store, "forms").await.unwrap_err());
        for part in ["bucket `forms`", "write", "refused", "`objects.s3.endpoint`"] {
            assert!(text.contains(part), "{part} is missing from {text}");
        }
        assert!(!format!("{text} {store} {config:?} {store:?}").contains("hunter2"));
    }

    #[test]
    fn answers_of_the_store_lead_to_the_setting() {
        let answer = |code: &str| Error::PermissionDenied {
            path: "p".to_owned(),
            source: format!("403: <Code>{code}</Code><StringToSign>x-amz-security-token</StringToSign>").into(),
        };
        for (code, expected) in [
            ("InvalidAccessKeyId", "objects.s3.access_key_id"),
            ("SignatureDoesNotMatch", "objects.s3.secret_access_key"),
            ("NoSuchBucket", "objects.url"),
            ("AccessDenied", "s3:GetObject"),
        ] {
            let text = reason(Step::Read, &answer(code));
            assert!(text.contains(expected) && !text.contains("token"), "{code}: {text}");
        }
    }
}
