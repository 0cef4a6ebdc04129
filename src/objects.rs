//! The object store of raw forms and attachments: files of this machine, or a bucket that speaks S3's protocol.
//!
//! Either way a write returns only when the object is kept: the form's XML is removed from Postgres behind it.

mod bucket;
mod checkpoints;
mod files;

use std::{path::PathBuf, sync::Arc};

use object_store::{ObjectStore, path::Path};
use schemas::port::CheckpointStore;

use crate::config::Config;

/// Where objects lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Files below a directory.
    Directory(PathBuf),
    /// A bucket, below a prefix that may be empty.
    Bucket { name: String, prefix: Path },
}

impl Place {
    /// Reads the URL of a directory or a bucket.
    ///
    /// # Errors
    /// It is neither; the text says what was expected.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let expected =
            |problem: &str| format!("`{url}` {problem} (expected `file:///absolute/path` or `s3://bucket/prefix`)");
        if let Some(path) = url.strip_prefix("file://") {
            return match path.starts_with('/') {
                true => Ok(Self::Directory(PathBuf::from(path))),
                false => Err(expected("names no absolute path")),
            };
        }
        let Some(rest) = url.strip_prefix("s3://") else {
            return Err(expected("is the URL of neither a directory nor a bucket"));
        };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(expected("names no bucket"));
        }
        let prefix =
            Path::parse(prefix).map_err(|error| expected(&format!("has a prefix that cannot be used: {error}")))?;
        Ok(Self::Bucket { name: name.to_owned(), prefix })
    }
}

/// Opens the configured store without trying it: a directory is made if it is missing, a bucket is not asked for.
///
/// # Errors
/// The settings name no store, or the directory cannot be made or used.
pub(crate) fn open(config: &Config) -> anyhow::Result<Arc<dyn ObjectStore>> {
    match config.objects_place().map_err(anyhow::Error::msg)? {
        Place::Directory(directory) => files::open(&directory),
        Place::Bucket { name, prefix } => bucket::open(&name, &prefix, &config.objects.s3),
    }
}

/// Opens the configured store and, if it is a bucket, does in it once what a server does.
///
/// # Errors
/// The store cannot be used; the text says what was tried and which setting to look at.
pub(crate) async fn open_tried(config: &Config) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let store = open(config)?;
    if let Place::Bucket { name, .. } = config.objects_place().map_err(anyhow::Error::msg)? {
        bucket::try_out(&*store, &name).await?;
    }
    Ok(store)
}

/// Opens the place of the dataflow's checkpoints without trying it.
///
/// # Errors
/// As for [`open`].
pub(crate) fn open_checkpoints(config: &Config) -> anyhow::Result<Arc<dyn CheckpointStore>> {
    let store: Arc<dyn ObjectStore> = match config.checkpoints_place().map_err(anyhow::Error::msg)? {
        Place::Directory(directory) => files::open(&directory)?,
        Place::Bucket { name, prefix } => bucket::open(&name, &prefix, &config.objects.s3)?,
    };
    Ok(Arc::new(checkpoints::Checkpoints(store)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_directories_and_buckets_are_read() {
        let bucket = |name: &str, prefix: &str| Place::Bucket { name: name.to_owned(), prefix: Path::from(prefix) };
        assert_eq!(Place::parse("file:///srv/objects"), Ok(Place::Directory("/srv/objects".into())));
        for url in ["s3://forms", "s3://forms/"] {
            assert_eq!(Place::parse(url), Ok(bucket("forms", "")), "{url}");
        }
        for url in ["s3://forms.of-2026/a/b", "s3://forms.of-2026/a/b/"] {
            assert_eq!(Place::parse(url), Ok(bucket("forms.of-2026", "a/b")), "{url}");
        }
        for url in
            ["file://objects", "s3://", "s3:///prefix", "s3://user:pass@forms", "s3://forms/a//b", "/srv", "gs://b"]
        {
            assert!(Place::parse(url).unwrap_err().contains("expected"), "{url}");
        }
    }
}
