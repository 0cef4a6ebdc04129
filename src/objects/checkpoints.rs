//! The dataflow's checkpoints as objects below a place of their own.

use std::sync::Arc;

use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use schemas::port::{CheckpointStore, CheckpointStoreError};

/// Objects directly below the root of a store.
#[derive(Debug)]
pub(super) struct Checkpoints(pub(super) Arc<dyn ObjectStore>);

fn failed(doing: &'static str, name: &str) -> impl Fn(Error) -> CheckpointStoreError {
    move |error| CheckpointStoreError { doing, name: name.to_owned(), problem: error.to_string() }
}

#[async_trait]
impl CheckpointStore for Checkpoints {
    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointStoreError> {
        self.0.put(&Path::from(name), PutPayload::from(bytes)).await.map(drop).map_err(failed("write", name))
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointStoreError> {
        match self.0.get(&Path::from(name)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed("read", name))?.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("read", name)(error)),
        }
    }

    async fn list(&self) -> Result<Vec<String>, CheckpointStoreError> {
        let objects: Vec<_> = self.0.list(None).try_collect().await.map_err(failed("list", "checkpoints"))?;
        Ok(objects.iter().filter_map(|object| object.location.filename()).map(str::to_owned).collect())
    }

    async fn delete(&self, name: &str) -> Result<(), CheckpointStoreError> {
        match self.0.delete(&Path::from(name)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete", name)(error)),
        }
    }
}
