//! From a posted body to legal XML text.
//!
//! In: bytes. Out: UTF-8 text with `\n` line ends and no character that XML forbids (which Postgres could not store
//! either). Source: forms-and-cases.md §6 rule 1.

use std::borrow::Cow;

use super::ParseError;

/// How far an encoding declaration is looked for.
const DECLARATION_BYTES: usize = 256;

/// Decodes a body by its declared encoding: UTF-8 (also assumed without a declaration), US-ASCII or ISO-8859-1.
///
/// # Errors
/// [`ParseError::BadEncoding`] for another encoding or bytes that are not in it, [`ParseError::NotXml`] for a forbidden
/// character.
pub(super) fn decode(body: &[u8]) -> Result<Cow<'_, str>, ParseError> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let declared = declared_encoding(body).unwrap_or("UTF-8");
    let bad = || ParseError::BadEncoding { encoding: declared.chars().take(40).collect() };
    let text = match declared.to_ascii_uppercase().as_str() {
        "UTF-8" | "UTF8" => Cow::Borrowed(std::str::from_utf8(body).map_err(|_| bad())?),
        "US-ASCII" | "ASCII" if body.is_ascii() => Cow::Borrowed(std::str::from_utf8(body).map_err(|_| bad())?),
        "ISO-8859-1" | "ISO8859-1" | "LATIN-1" | "LATIN1" => Cow::Owned(body.iter().copied().map(char::from).collect()),
        _ => return Err(bad()),
    };
    if let Some((position, byte)) = text.bytes().enumerate().find(|(_, byte)| is_forbidden(*byte)) {
        let message = format!("character U+{byte:04X} is not allowed");
        return Err(ParseError::NotXml { message, position: u64::try_from(position).unwrap_or_default() });
    }
    Ok(if text.contains('\r') { Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")) } else { text })
}

/// True for control characters that XML 1.0 forbids.
const fn is_forbidden(byte: u8) -> bool {
    byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r')
}

/// True if the character may appear in XML 1.0, written out or as a reference.
pub(super) const fn is_legal(character: char) -> bool {
    !matches!(character, '\0'..='\u{8}' | '\u{B}' | '\u{C}' | '\u{E}'..='\u{1F}' | '\u{FFFE}' | '\u{FFFF}')
}

/// The encoding named by an XML declaration at the very beginning.
fn declared_encoding(body: &[u8]) -> Option<&str> {
    let head = body.get(..body.len().min(DECLARATION_BYTES))?;
    let declaration = head.strip_prefix(b"<?xml")?;
    let end = declaration.windows(2).position(|pair| pair == b"?>")?;
    let declaration = std::str::from_utf8(declaration.get(..end)?).ok()?;
    let (_, after) = declaration.split_once("encoding")?;
    let quoted = after.trim_start().strip_prefix('=')?.trim_start();
    let quote = quoted.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    quoted.strip_prefix(quote)?.split(quote).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_encodings_are_honoured() {
        for (body, expected) in [
            (&b"<a/>"[..], Some("<a/>")),
            (b"\xEF\xBB\xBF<a/>", Some("<a/>")),
            (
                b"<?xml version='1.0' encoding='utf-8'?><a>\xC3\xA9</a>",
                Some("<?xml version='1.0' encoding='utf-8'?><a>é</a>"),
            ),
            (
                b"<?xml version='1.0' encoding = \"ISO-8859-1\"?><a>\xE9</a>",
                Some("<?xml version='1.0' encoding = \"ISO-8859-1\"?><a>é</a>"),
            ),
            (b"<?xml version='1.0' encoding='ASCII'?><a>e</a>", Some("<?xml version='1.0' encoding='ASCII'?><a>e</a>")),
            (b"<?xml version='1.0' encoding='ASCII'?><a>\xC3\xA9</a>", None),
            (b"<?xml version='1.0' encoding='EBCDIC'?><a/>", None),
            (b"\xFF\xFE<\0a\0", None),
            (b"<a>\0</a>", None),
            (b"<a>\r\n\r</a>", Some("<a>\n\n</a>")),
        ] {
            assert_eq!(decode(body).ok().as_deref(), expected, "{}", String::from_utf8_lossy(body));
        }
    }
}
