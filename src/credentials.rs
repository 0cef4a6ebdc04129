//! The administrator of the first domain: made at the first start, its password known once.
//!
//! A demonstration needs the password again at its next start; only then is it kept, in a file that its owner alone
//! can read.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use ingest::Ingest;
use rand::{Rng, distr::Alphanumeric};
use schemas::{id::DomainId, port::Secret};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// File in the data directory.
const FILE: &str = "credentials.json";
/// Characters of a password that is made here: some 140 bits.
const PASSWORD_CHARS: usize = 24;

/// An administrator whose password is known.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// The domain.
    pub(crate) domain: DomainId,
    /// The user name.
    pub(crate) username: String,
    /// The password.
    pub(crate) password: Secret,
    /// True if this start made the password.
    pub(crate) new: bool,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    domain: DomainId,
    username: String,
    password: String,
}

/// Makes the configured domain and its administrator if they do not exist.
///
/// # Errors
/// The accounts cannot be written, or a kept password cannot be read.
pub(crate) async fn first_start(config: &Config, ingest: &Arc<Ingest>) -> anyhow::Result<Option<Admin>> {
    let Some(domain) = config.first_domain()? else { return Ok(None) };
    let accounts = ingest.accounts();
    accounts.create_domain(&domain).await.with_context(|| format!("could not create domain `{domain}`"))?;
    let made = accounts
        .ensure_admin(&domain)
        .await
        .with_context(|| format!("could not create the administrator of domain `{domain}`"))?;
    let username = format!("admin@{domain}");
    let path = config.data_dir.join(FILE);
    let keep_new = |password: &Secret| {
        let kept = Kept { domain: domain.clone(), username: username.clone(), password: password.0.clone() };
        keep(&path, &kept).with_context(|| format!("could not keep the administrator's password in {}", path.display()))
    };
    match made {
        Some(password) => {
            if config.keep_credentials {
                keep_new(&password)?;
            }
            Ok(Some(Admin { domain, username, password, new: true }))
        }
        None if config.keep_credentials => {
            let kept = recall(&path).with_context(|| format!("could not read {}", path.display()))?;
            if let Some(kept) = kept.filter(|kept| kept.domain == domain) {
                return Ok(Some(Admin { domain, username, password: Secret(kept.password), new: false }));
            }
            // The first start was cut off before it kept the password, or the file is gone.
            let password = random_password();
            accounts
                .set_password(&username, &password)
                .await
                .context("could not set the administrator's password anew")?;
            keep_new(&password)?;
            Ok(Some(Admin { domain, username, password, new: true }))
        }
        None => Ok(None),
    }
}

/// A password of letters and digits that nobody can guess.
pub(crate) fn random_password() -> Secret {
    Secret(rand::rng().sample_iter(&Alphanumeric).take(PASSWORD_CHARS).map(char::from).collect())
}

fn keep(path: &Path, kept: &Kept) -> anyhow::Result<()> {
    let unfinished = path.with_extension("new");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(serde_json::to_string_pretty(kept)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    Ok(())
}

fn recall(path: &Path) -> anyhow::Result<Option<Kept>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    file.take(1 << 16).read_to_string(&mut text)?;
    Ok(Some(serde_json::from_str(&text)?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn kept_credentials_are_the_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let kept = |password: &str| Kept {
            domain: DomainId::new("demo").unwrap(),
            username: "admin@demo".to_owned(),
            password: password.to_owned(),
        };
        assert!(recall(&path).unwrap().is_none());
        keep(&path, &kept("first")).unwrap();
        keep(&path, &kept("second")).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(recall(&path).unwrap().unwrap().password, "second");
    }
}
