//! HTTP digest authentication (RFC 7616) with MD5, for phones and scripts that speak nothing else.
//!
//! The server keeps MD5(name:realm:password) beside the argon2 hash: whoever reads the account table could sign in with it,
//! which is why `ingest.digest` can switch it off. A challenge is a signed time, so nothing is kept between requests and
//! every process of an installation takes it.

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use schemas::credentials::DigestAnswer;
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Realm of all accounts.
pub(crate) const REALM: &str = "millrace";
/// How long a challenge is good for, in microseconds.
const LIFETIME: i64 = 300_000_000;
/// Hexadecimal digits of a challenge's time, and of its signature.
const DIGITS: (usize, usize) = (16, 32);

/// What the server keeps of a password.
pub(crate) fn stored_hash(username: &str, password: &str) -> String {
    hex(&[username, REALM, password])
}

/// MD5 of parts joined by colons.
fn hex(parts: &[&str]) -> String {
    let digest = Md5::digest(parts.join(":"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// State of a challenge that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Ours, and young enough.
    Fresh,
    /// Ours, and too old.
    Stale,
    /// Not ours.
    Foreign,
}

/// Makes challenges and checks answers.
pub(super) struct Digests {
    secret: String,
}

impl std::fmt::Debug for Digests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digests")
    }
}

impl Digests {
    /// Signs with the installation's secret.
    pub(super) const fn new(secret: String) -> Self {
        Self { secret }
    }

    /// The value of a `WWW-Authenticate` header. `now` is in microseconds since 1970 UTC.
    pub(super) fn challenge(&self, now: i64, stale: bool) -> String {
        let stale = if stale { ", stale=true" } else { "" };
        format!("Digest realm=\"{REALM}\", qop=\"auth\", algorithm=MD5, nonce=\"{}\"{stale}", self.nonce(now))
    }

    fn nonce(&self, at: i64) -> String {
        let time = format!("{at:016x}");
        let signature = self.signature(&time);
        time + &signature
    }

    fn signature(&self, time: &str) -> String {
        // An HMAC takes keys of any length, so making one cannot fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()) else { return String::new() };
        mac.update(time.as_bytes());
        mac.finalize().into_bytes().iter().take(DIGITS.1 / 2).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether the challenge of an answer is one of ours.
    pub(super) fn check(&self, answer: &DigestAnswer, now: i64) -> Challenge {
        let Some((time, signature)) = answer.nonce.split_at_checked(DIGITS.0) else { return Challenge::Foreign };
        let Ok(at) = i64::from_str_radix(time, 16) else { return Challenge::Foreign };
        if answer.realm != REALM || !bool::from(self.signature(time).as_bytes().ct_eq(signature.as_bytes())) {
            return Challenge::Foreign;
        }
        if (0..=LIFETIME).contains(&now.saturating_sub(at)) { Challenge::Fresh } else { Challenge::Stale }
    }
}

/// True if an answer proves the password of a stored hash.
pub(super) fn proves(answer: &DigestAnswer, stored_hash: &str) -> bool {
    let request = hex(&[&answer.method, &answer.uri]);
    let expected = match &answer.protection {
        Some((counter, client_nonce)) => hex(&[stored_hash, &answer.nonce, counter, &client_nonce.0, "auth", &request]),
        None => hex(&[stored_hash, &answer.nonce, &request]),
    };
    expected.as_bytes().ct_eq(answer.response.0.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use schemas::credentials::Secret;

    use super::*;

    /// The example of RFC 2617 §3.5.
    fn example() -> DigestAnswer {
        DigestAnswer {
            username: "Mufasa".to_owned(),
            realm: "testrealm@host.com".to_owned(),
            nonce: "dcd98b7102dd2f0e8b11d0f600bfb0c093".to_owned(),
            uri: "/dir/index.html".to_owned(),
            method: "GET".to_owned(),
            protection: Some(("00000001".to_owned(), Secret("0a4f113b".to_owned()))),
            response: Secret("6629fae49393a05397450978507c4ef1".to_owned()),
        }
    }

    #[test]
    fn the_example_of_the_standard_is_proven() {
        let stored = hex(&["Mufasa", "testrealm@host.com", "Circle Of Life"]);
        assert!(proves(&example(), &stored));
        assert!(!proves(&example(), &hex(&["Mufasa", "testrealm@host.com", "other"])));
    }

    #[test]
    fn a_challenge_is_signed_and_ages() {
        let digests = Digests::new("secret".to_owned());
        let answer = |nonce: String| DigestAnswer { nonce, realm: REALM.to_owned(), ..example() };
        let nonce = digests.nonce(1_000_000);
        assert!(digests.challenge(1_000_000, true).contains(&nonce));
        assert_eq!(digests.check(&answer(nonce.clone()), 1_000_001), Challenge::Fresh);
        assert_eq!(digests.check(&answer(nonce.clone()), 400_000_000), Challenge::Stale);
        assert_eq!(Digests::new("other".to_owned()).check(&answer(nonce), 1_000_001), Challenge::Foreign);
        for nonce in ["", "short", "zzzzzzzzzzzzzzzz0"] {
            assert_eq!(digests.check(&answer(nonce.to_owned()), 0), Challenge::Foreign);
        }
    }
}
