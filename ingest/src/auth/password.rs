//! Password hashes: argon2id with modest cost, off the asynchronous threads.
//!
//! 8 MiB and one pass take about 8 ms; the cost is paid once every few minutes per caller, and by a guesser every time.

use std::sync::LazyLock;

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version,
    password_hash::{Salt, SaltString},
};
use tokio::sync::Semaphore;

/// Memory in KiB, and passes.
const COST: (u32, u32) = (8 * 1024, 1);

/// Why a password cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not hash a password: {0}")]
pub struct PasswordError(String);

/// Verified against when there is no account, so that the answer takes as long.
static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| hash_now("nobody").ok());

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(COST.0, COST.1, 1, None).map_err(|error| PasswordError(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let fault = |error: argon2::password_hash::Error| PasswordError(error.to_string());
    let salt: [u8; Salt::RECOMMENDED_LENGTH] = rand::random();
    let salt = SaltString::encode_b64(&salt).map_err(fault)?;
    Ok(argon2()?.hash_password(password.as_bytes(), &salt).map_err(fault)?.to_string())
}

/// Hashes that are computed at once: each holds 8 MiB, and an import of many users must leave cores to phones.
static HASHERS: Semaphore = Semaphore::const_new(2);

/// Hashes a password.
///
/// # Errors
/// [`PasswordError`] when it is too long for argon2 or the process is stopping.
pub(crate) async fn hash(password: String) -> Result<String, PasswordError> {
    let _turn = HASHERS.acquire().await.map_err(|error| PasswordError(error.to_string()))?;
    tokio::task::spawn_blocking(move || hash_now(&password)).await.map_err(|error| PasswordError(error.to_string()))?
}

/// Index of the first hash that the password matches. Takes the time of one verification even without hashes.
pub(crate) async fn matching(hashes: Vec<Option<String>>, password: String) -> Option<usize> {
    let verify = move || {
        let matches = |hash: &str| {
            PasswordHash::new(hash)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
        };
        if hashes.iter().all(Option::is_none) {
            // The answer does not matter, its time does.
            let _known = NOBODY.as_deref().is_some_and(matches);
            return None;
        }
        hashes.iter().position(|hash| hash.as_deref().is_some_and(matches))
    };
    tokio::task::spawn_blocking(verify).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_matches_its_password_alone() {
        let hash = hash("correct horse".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert_eq!(matching(vec![None, Some(hash.clone())], "correct horse".to_owned()).await, Some(1));
        assert_eq!(matching(vec![Some(hash)], "wrong".to_owned()).await, None);
        assert_eq!(matching(vec![Some("damaged".to_owned())], "x".to_owned()).await, None);
        assert_eq!(matching(Vec::new(), "x".to_owned()).await, None);
    }
}
