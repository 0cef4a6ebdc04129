//! A server of the S3 protocol for tests, included by path where one is needed.
//!
//! `s3.sh` installs and starts it. Where that cannot be done, tests that need it say so and end; with
//! `MILLRACE_TEST_REQUIRE_S3=1` that is a failure instead.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use object_store::{ObjectStore, aws::AmazonS3Builder, path::Path as Key, prefix::PrefixStore};

/// The secret of the key that tests use; it must not turn up anywhere.
pub(crate) const SECRET: &str = "not-to-be-shown";

/// A server with one bucket, stopped and forgotten when dropped.
#[derive(Debug)]
pub(crate) struct S3 {
    address: String,
    state: PathBuf,
}

impl S3 {
    /// Starts one; none where it cannot be had.
    pub(crate) fn start() -> Option<Self> {
        let state = std::env::temp_dir().join(format!("millrace-s3-{}", uuid::Uuid::new_v4().simple()));
        match script("start", &state) {
            Ok(address) => Some(Self { address, state }),
            Err(reason) => {
                assert_ne!(
                    std::env::var("MILLRACE_TEST_REQUIRE_S3").as_deref(),
                    Ok("1"),
                    "an S3 server is required and could not be started: {reason}"
                );
                eprintln!("NOTE: no S3 server could be started ({reason}); nothing was tested");
                None
            }
        }
    }

    /// Takes it down without warning.
    pub(crate) fn kill(&self) {
        script("kill", &self.state).unwrap();
    }

    /// Brings it back, at the same address and with what it held.
    pub(crate) fn revive(&self) {
        assert_eq!(script("start", &self.state).unwrap(), self.address);
    }

    /// Process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        std::fs::read_to_string(self.state.join("pid")).unwrap().trim().parse().unwrap()
    }

    /// Settings of a server that keeps its objects below a prefix of the bucket.
    pub(crate) fn settings(&self, prefix: &str) -> Vec<String> {
        vec![
            format!("objects.url = \"s3://millrace/{prefix}\""),
            format!("objects.s3.endpoint = \"http://{}\"", self.address),
            "objects.s3.allow_http = true".to_owned(),
            "objects.s3.access_key_id = \"test\"".to_owned(),
            format!("objects.s3.secret_access_key = {SECRET:?}"),
        ]
    }

    /// The bucket below a prefix, as another program reaches it.
    pub(crate) fn bucket(&self, prefix: &str) -> Arc<dyn ObjectStore> {
        let bucket = AmazonS3Builder::new()
            .with_endpoint(format!("http://{}", self.address))
            .with_allow_http(true)
            .with_bucket_name("millrace")
            .with_access_key_id("test")
            .with_secret_access_key(SECRET)
            .build()
            .unwrap();
        Arc::new(PrefixStore::new(bucket, Key::from(prefix)))
    }

    /// From now on only keys count that the server has given out, which are none; or all, as at first.
    pub(crate) async fn know_keys(&self, known: bool) {
        let count = if known { "inf" } else { "0" };
        let url = format!("http://{}/moto-api/reset-auth", self.address);
        let request = reqwest::Client::new().post(url).header("content-type", "text/plain").body(count);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Err(error) = script("kill", &self.state) {
            eprintln!("{error}");
        }
        drop(std::fs::remove_dir_all(&self.state));
    }
}

fn script(command: &str, state: &Path) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/s3/s3.sh");
    let output = Command::new(script).arg(command).arg(state).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
