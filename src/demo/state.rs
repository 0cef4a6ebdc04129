//! What a demonstration remembers between starts: `demo.json` in the data directory.

use std::{fs, io, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// File in the data directory.
const FILE: &str = "demo.json";

/// The population in the data directory, and how often forms were sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DemoState {
    /// Seed that the places and workers were made from.
    pub(crate) seed: u64,
    /// Number of workers.
    pub(crate) workers: u32,
    /// Runs so far, this one included: forms of different runs have different ids.
    pub(crate) runs: u64,
}

impl DemoState {
    /// Reads the file of a data directory; nothing if this is its first start.
    ///
    /// # Errors
    /// The file is there but cannot be read.
    pub(crate) fn read(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
        };
        let state = serde_json::from_str(&text);
        state
            .map(Some)
            .with_context(|| format!("could not read {}; delete it to begin with a new population", path.display()))
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(crate) fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = data_dir.join(FILE);
        let unfinished = path.with_extension("json.new");
        let written =
            fs::write(&unfinished, serde_json::to_vec_pretty(self)?).and_then(|()| fs::rename(&unfinished, &path));
        written.with_context(|| format!("could not write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_a_start() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(DemoState::read(directory.path()).unwrap(), None);
        let state = DemoState { seed: 4, workers: 100, runs: 3 };
        state.write(directory.path()).unwrap();
        assert_eq!(DemoState::read(directory.path()).unwrap(), Some(state));
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(format!("{:#}", DemoState::read(directory.path()).unwrap_err()).contains(FILE));
    }
}
