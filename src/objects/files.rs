//! Objects as files of this machine that are on disk once written.
//!
//! The store of the `object_store` crate leaves flushing to the system; a form whose XML has been moved here is removed
//! from Postgres, so here a write returns only behind `fsync` of the file and of its directories.

use std::{
    fmt,
    fs::File,
    os::unix::fs::DirBuilderExt,
    path::{Path as FsPath, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem, path::Path,
};

/// Opens the store in a directory, made if it is missing and then closed to others.
///
/// # Errors
/// The directory cannot be made or used.
pub(super) fn open(directory: &FsPath) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let context = || format!("could not open the object store in {}", directory.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(context)?;
    let root = directory.canonicalize().with_context(context)?;
    let files = LocalFileSystem::new_with_prefix(&root).with_context(context)?;
    Ok(Arc::new(DurableFiles { root, files }))
}

/// Files that are flushed before a write is acknowledged.
#[derive(Debug)]
struct DurableFiles {
    root: PathBuf,
    files: LocalFileSystem,
}

impl fmt::Display for DurableFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "files in {}", self.root.display())
    }
}

impl DurableFiles {
    /// Flushes the file and every directory between it and the root, any of which may be new.
    async fn flush(&self, location: &Path) -> Result<()> {
        let path = self.files.path_to_filesystem(location)?;
        let root = self.root.clone();
        let flushed = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            File::open(&path)?.sync_all()?;
            for directory in path.ancestors().skip(1).take_while(|directory| directory.starts_with(&root)) {
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        });
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic { store: "files", source };
        flushed.await.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))
    }
}

#[async_trait]
impl ObjectStore for DurableFiles {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = self.files.put_opts(location, payload, options).await?;
        self.flush(location).await?;
        Ok(put)
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        // Objects are written whole here; without the flush at the end, parts would break the promise above.
        Err(Error::NotImplemented { operation: "upload in parts".to_owned(), implementer: self.to_string() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await?;
        self.flush(to).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    #[tokio::test]
    async fn objects_are_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("new").join("objects")).unwrap();
        let key = Path::from("packs/2024/one");
        store.put(&key, PutPayload::from_static(b"content")).await.unwrap();
        assert_eq!(&*store.get(&key).await.unwrap().bytes().await.unwrap(), b"content");
        store.copy(&key, &Path::from("copy")).await.unwrap();
        store.delete(&key).await.unwrap();
        assert!(matches!(store.get(&key).await, Err(Error::NotFound { .. })));
        assert!(store.put_multipart(&key).await.is_err());
    }
}
