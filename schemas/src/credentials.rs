//! What a caller presents, and how it is read from an HTTP request's `Authorization` header.
//!
//! Schemes: Basic, Digest (RFC 7616 with MD5, as old phones speak it), ApiKey and Bearer (forms-and-cases.md §2).

use std::fmt;

use base64::Engine;

/// A secret that prints as `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What a caller presents.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// User name and password.
    Password {
        /// `name` of a web user, `name@domain.commcarehq.org` or `name@domain` of a mobile worker.
        username: String,
        /// The password.
        password: Secret,
    },
    /// User name and API key.
    ApiKey {
        /// As above.
        username: String,
        /// The key.
        key: Secret,
    },
    /// A token that stands for a user.
    Token(Secret),
    /// An answer to a digest challenge.
    Digest(Box<DigestAnswer>),
}

/// An answer to a digest challenge, with the request that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestAnswer {
    /// User name, exactly as it is in the account.
    pub username: String,
    /// Realm of the challenge.
    pub realm: String,
    /// Nonce of the challenge.
    pub nonce: String,
    /// Path and query as the client signed them.
    pub uri: String,
    /// Method of the request.
    pub method: String,
    /// Counter and client's nonce, with quality of protection `auth`.
    pub protection: Option<(String, Secret)>,
    /// The hash that proves the password.
    pub response: Secret,
}

impl Credentials {
    /// Reads the value of an `Authorization` header, scheme names in any case. `method` and `target` (path and query) are the
    /// request's own. `None` if it cannot be read.
    #[must_use]
    pub fn of_header(value: &str, method: &str, target: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            let bytes = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (username, password) = text.split_once(':')?;
            Some(Self::Password { username: username.to_owned(), password: Secret(password.to_owned()) })
        } else if scheme.eq_ignore_ascii_case("apikey") {
            let (username, key) = rest.split_once(':')?;
            Some(Self::ApiKey { username: username.to_owned(), key: Secret(key.to_owned()) })
        } else if scheme.eq_ignore_ascii_case("bearer") {
            (!rest.is_empty()).then(|| Self::Token(Secret(rest.to_owned())))
        } else if scheme.eq_ignore_ascii_case("digest") {
            let answer = digest(rest, method)?;
            // The signed address has to be the one that is asked for.
            (answer.uri == target).then(|| Self::Digest(Box::new(answer)))
        } else {
            None
        }
    }
}

fn digest(text: &str, method: &str) -> Option<DigestAnswer> {
    let fields = fields(text)?;
    let get =
        |name: &str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
    if get("algorithm").is_some_and(|algorithm| !algorithm.eq_ignore_ascii_case("md5")) {
        return None;
    }
    let protection = match get("qop") {
        None => None,
        Some(qop) if qop.eq_ignore_ascii_case("auth") => Some((get("nc")?, Secret(get("cnonce")?))),
        Some(_) => return None,
    };
    Some(DigestAnswer {
        username: get("username")?,
        realm: get("realm")?,
        nonce: get("nonce")?,
        uri: get("uri")?,
        method: method.to_owned(),
        protection,
        response: Secret(get("response")?),
    })
}

/// `name="value", name=value …`; a backslash in quotes takes the next character as it is.
fn fields(text: &str) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let mut value = String::new();
        let end = if let Some(quoted) = after.strip_prefix('"') {
            let mut end = None;
            let mut chars = quoted.char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        end = Some(at + 2);
                        break;
                    }
                    '\\' => value.push(chars.next()?.1),
                    c => value.push(c),
                }
            }
            end?
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after.get(..end)?.trim());
            end
        };
        fields.push((name.trim().to_owned(), value));
        rest = after.get(end..)?.trim_start().trim_start_matches(',').trim_start();
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<(&'static str, String, String)> {
        Some(match Credentials::of_header(value, "GET", "/dir/index.html")? {
            Credentials::Password { username, password } => ("password", username, password.0),
            Credentials::ApiKey { username, key } => ("key", username, key.0),
            Credentials::Token(token) => ("token", String::new(), token.0),
            Credentials::Digest(answer) => ("digest", answer.username, answer.response.0),
        })
    }

    #[test]
    fn schemes_are_read_in_any_case() {
        let is = |kind, user: &str, secret: &str| Some((kind, user.to_owned(), secret.to_owned()));
        assert_eq!(read("bAsIc YWRtaW5AZGVtbzphOmI="), is("password", "admin@demo", "a:b"));
        assert_eq!(read("ApiKey me@x.org:k1"), is("key", "me@x.org", "k1"));
        assert_eq!(read("apikey me:k:2"), is("key", "me", "k:2"));
        assert_eq!(read("Bearer abc"), is("token", "", "abc"));
        let digest = "Digest username=\"Mu\\\"fasa\", realm=\"r@x\", nonce=\"n\", uri=\"/dir/index.html\", qop=auth, \
             nc=00000001,cnonce=\"0a4f\", response=\"6629\", opaque=\"5ccc\"";
        assert_eq!(read(digest), is("digest", "Mu\"fasa", "6629"));
        assert_eq!(read(&digest.replace("index", "other")), None, "signed for another address");
        assert_eq!(read(&digest.replace("qop=auth", "qop=auth-int")), None);
        for bad in ["Bearer", "Basic ???", "ApiKey nokey", "Basic", "Digest username=\"x", "Negotiate x"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
