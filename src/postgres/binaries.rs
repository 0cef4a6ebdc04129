//! Finds the system's Postgres programs.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::PostgresError;

/// Oldest major version whose SQL the store uses.
pub(super) const OLDEST: u32 = 14;

/// A directory with the programs that are needed, and their major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binaries {
    /// The directory.
    pub(crate) directory: PathBuf,
    /// Major version.
    pub(crate) major: u32,
}

impl Binaries {
    /// Finds the newest programs, or those of the version `made_by` that an existing database needs.
    ///
    /// # Errors
    /// [`PostgresError::Missing`], [`PostgresError::Version`].
    pub(crate) async fn find(configured: Option<&Path>, existing: Option<(&Path, u32)>) -> Result<Self, PostgresError> {
        let places = match configured {
            Some(directory) => vec![directory.to_owned()],
            None => usual_places().await,
        };
        let mut found = BTreeMap::new();
        for directory in &places {
            if let Some(major) = version(directory).await
                && major >= OLDEST
            {
                found.entry(major).or_insert_with(|| directory.clone());
            }
        }
        let looked = || {
            let shown: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
            if shown.is_empty() { "PATH".to_owned() } else { shown.join(", ") }
        };
        match existing {
            _ if found.is_empty() => Err(PostgresError::Missing { looked: looked() }),
            Some((pgdata, made_by)) => match found.remove(&made_by) {
                Some(directory) => Ok(Self { directory, major: made_by }),
                None => Err(PostgresError::Version {
                    pgdata: pgdata.to_owned(),
                    made_by,
                    found: found.keys().map(u32::to_string).collect::<Vec<_>>().join(", "),
                }),
            },
            None => match found.pop_last() {
                Some((major, directory)) => Ok(Self { directory, major }),
                None => Err(PostgresError::Missing { looked: looked() }),
            },
        }
    }

    /// The path of one of the programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Major version of the programs in a directory, if all that are needed are there.
async fn version(directory: &Path) -> Option<u32> {
    if !["initdb", "postgres", "pg_ctl"].iter().all(|name| directory.join(name).is_file()) {
        return None;
    }
    let output = Command::new(directory.join("postgres")).arg("--version").output().await.ok()?;
    major(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian …)`, `17beta1` and the like.
fn major(text: &str) -> Option<u32> {
    let number = text.split_once(')')?.1.trim_start();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

async fn usual_places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output().await {
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.trim().is_empty() {
            places.push(PathBuf::from(text.trim()));
        }
    }
    // Debian and Ubuntu, then Homebrew; Fedora's packages of postgresql.org lie in /usr/pgsql-*.
    for (parent, start) in [
        ("/usr/lib/postgresql", ""),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/usr", "pgsql-"),
    ] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
        places.extend(named.map(|entry| entry.path().join("bin")).filter(|bin| bin.is_dir()));
    }
    if let Some(path) = std::env::var_os("PATH") {
        let holding = std::env::split_paths(&path).map(|directory| directory.join("postgres"));
        // A link in PATH leads to the directory that holds the rest.
        places.extend(holding.filter_map(|program| program.canonicalize().ok()?.parent().map(Path::to_owned)));
    }
    let mut unique: Vec<PathBuf> = Vec::new();
    for place in places {
        if !unique.contains(&place) {
            unique.push(place);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta2"), Some(18));
        assert_eq!(major("command not found"), None);
    }

    #[tokio::test]
    async fn a_directory_without_programs_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = Binaries::find(Some(directory.path()), None).await.unwrap_err().to_string();
        assert!(error.contains(&directory.path().display().to_string()), "{error}");
        assert!(error.contains("apt-get install postgresql"), "{error}");
    }
}
