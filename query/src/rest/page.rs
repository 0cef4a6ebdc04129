//! Pages of version 1 resources: `limit`, `offset`, and the envelope around the objects (rest-api.md §2.1).

use serde_json::{Value, json};

use crate::QueryError;

/// A page that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) limit: usize,
    pub(super) offset: usize,
}

impl Page {
    /// Reads `limit` (default 20; 0 and too much mean `max`) and `offset`.
    ///
    /// # Errors
    /// [`QueryError::Parameter`].
    pub(super) fn read(parameters: &[(String, String)], max: usize) -> Result<Self, QueryError> {
        let number = |name: &str, default: usize| match last(parameters, name) {
            None | Some("") => Ok(default),
            Some(text) => text.trim().parse::<usize>().map_err(|_| {
                QueryError::Parameter(format!("Invalid {name} '{text}' provided. Please provide a positive integer."))
            }),
        };
        let limit = match number("limit", 20)? {
            0 => max,
            limit => limit.min(max),
        };
        Ok(Self { limit, offset: number("offset", 0)? })
    }

    /// The envelope. `next` and `previous` are query strings that begin with `?` and repeat every other parameter.
    pub(super) fn envelope(self, parameters: &[(String, String)], total: usize, objects: &[Value]) -> Value {
        let Self { limit, offset } = self;
        let next = offset.saturating_add(limit);
        let next = (next < total).then(|| self.link(parameters, next));
        let previous = (offset > 0).then(|| self.link(parameters, offset.saturating_sub(limit)));
        json!({
            "meta": { "limit": limit, "offset": offset, "total_count": total, "next": next, "previous": previous },
            "objects": objects,
        })
    }

    fn link(self, parameters: &[(String, String)], offset: usize) -> String {
        let kept = parameters.iter().filter(|(name, _)| name != "limit" && name != "offset");
        let mut pairs: Vec<(String, String)> = kept.cloned().collect();
        pairs.push(("limit".to_owned(), self.limit.to_string()));
        pairs.push(("offset".to_owned(), offset.to_string()));
        format!("?{}", query_string(&pairs))
    }
}

/// The last value of a parameter, which is the one that counts in version 1.
pub(super) fn last<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
}

/// Parameters as form-encoded text.
pub(super) fn query_string(pairs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        encode(&mut text, name);
        text.push('=');
        encode(&mut text, value);
    }
    text
}

/// Writes a text as a part of an address.
pub(super) fn encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn limits_are_capped_and_links_keep_filters() {
        assert_eq!(Page::read(&[], 1000).unwrap(), Page { limit: 20, offset: 0 });
        assert_eq!(Page::read(&pairs(&[("limit", "0")]), 1000).unwrap().limit, 1000);
        assert_eq!(Page::read(&pairs(&[("limit", "5000")]), 1000).unwrap().limit, 1000);
        assert!(Page::read(&pairs(&[("limit", "-1")]), 1000).is_err());
        assert!(Page::read(&pairs(&[("offset", "x")]), 1000).is_err());
        let parameters = pairs(&[("xmlns", "http://x/1"), ("limit", "2"), ("offset", "2")]);
        let page = Page::read(&parameters, 1000).unwrap();
        let envelope = page.envelope(&parameters, 5, &[]);
        assert_eq!(envelope["meta"]["next"], "?xmlns=http%3A%2F%2Fx%2F1&limit=2&offset=4");
        assert_eq!(envelope["meta"]["previous"], "?xmlns=http%3A%2F%2Fx%2F1&limit=2&offset=0");
        assert_eq!(page.envelope(&parameters, 4, &[])["meta"]["next"], Value::Null);
    }
}
