//! Statement text to tokens.

use crate::{
    coerce::{parse_float, parse_integer},
    value::Value,
};

/// Most tokens of a statement.
const MAX_TOKENS: usize = 4000;

/// The text is not Python, or more of it than is supported.
#[derive(Debug)]
pub(super) struct SyntaxError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Number(Numeral),
    Text(String),
    /// The raw inside of an f-string and whether backslashes stay.
    Template(String, bool),
    Name(String),
    Operator(&'static str),
    /// `;` or the end of a line.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Numeral {
    Integer(i128),
    Float(f64),
}

impl Numeral {
    pub(super) fn value(self) -> Value<'static> {
        match self {
            Self::Integer(value) => Value::Integer(value),
            Self::Float(value) => Value::Float(value),
        }
    }
}

/// Longest first.
const OPERATORS: [&str; 38] = [
    "**=", "//=", ">>=", "<<=", "...", "!=", "==", "<=", ">=", "**", "//", ":=", "<<", ">>", "->", "+=", "-=", "*=",
    "/=", "%=", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]", "{", "}", ",", ":", ".", "=", "~",
];
const BITWISE: [&str; 3] = ["|", "&", "^"];

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim();
    let mut open = 0usize;
    while let Some(c) = rest.chars().next() {
        if tokens.len() > MAX_TOKENS {
            return Err(SyntaxError);
        }
        if c == '#' {
            rest = rest.find('\n').and_then(|end| rest.get(end..)).unwrap_or("");
        } else if c == '\n' || c == ';' {
            if open == 0 || c == ';' {
                tokens.push(Token::End);
            }
            rest = rest.get(1..).unwrap_or("");
        } else if c.is_whitespace() {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\u{c}']);
            if rest.chars().next().is_some_and(|c| c.is_whitespace() && c != '\n') {
                return Err(SyntaxError);
            }
        } else if let Some(after) = rest.strip_prefix("\\\n") {
            rest = after;
        } else if c.is_ascii_digit() || (c == '.' && rest.chars().nth(1).is_some_and(|c| c.is_ascii_digit())) {
            let (number, after) = number(rest)?;
            tokens.push(Token::Number(number));
            rest = after;
        } else if let Some((token, after)) = text_literal(rest)? {
            match (tokens.last_mut(), token) {
                // Adjacent literals are one.
                (Some(Token::Text(before)), Token::Text(more)) => before.push_str(&more),
                (_, token) => tokens.push(token),
            }
            rest = after;
        } else if c.is_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at_checked(end).ok_or(SyntaxError)?;
            tokens.push(Token::Name(name.to_owned()));
            rest = after;
        } else {
            let operator =
                OPERATORS.iter().chain(&BITWISE).find(|operator| rest.starts_with(**operator)).ok_or(SyntaxError)?;
            match *operator {
                "(" | "[" | "{" => open += 1,
                ")" | "]" | "}" => open = open.checked_sub(1).ok_or(SyntaxError)?,
                _ => {}
            }
            tokens.push(Token::Operator(operator));
            rest = rest.strip_prefix(*operator).ok_or(SyntaxError)?;
        }
    }
    if open == 0 { Ok(tokens) } else { Err(SyntaxError) }
}

fn number(text: &str) -> Result<(Numeral, &str), SyntaxError> {
    let bytes = text.as_bytes();
    if let Some(radix) = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => Some(16),
        Some("0o") => Some(8),
        Some("0b") => Some(2),
        _ => None,
    } {
        let body = text.get(2..).ok_or(SyntaxError)?;
        let end = body.find(|c: char| !c.is_alphanumeric()).unwrap_or(body.len());
        let (digits, after) = body.split_at_checked(end).ok_or(SyntaxError)?;
        return Ok((Numeral::Integer(i128::from_str_radix(digits, radix).map_err(|_| SyntaxError)?), after));
    }
    let mut end = 0;
    let mut float = false;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'0'..=b'9' | b'_' => {}
            b'.' if !float => float = true,
            b'e' | b'E' => {
                float = true;
                if matches!(bytes.get(end + 1), Some(b'+' | b'-')) {
                    end += 1;
                }
            }
            _ => break,
        }
        end += 1;
    }
    let (digits, after) = text.split_at_checked(end).ok_or(SyntaxError)?;
    if after.starts_with(|c: char| c.is_alphanumeric()) {
        return Err(SyntaxError);
    }
    let number = if float {
        Numeral::Float(parse_float(digits).ok_or(SyntaxError)?)
    } else {
        Numeral::Integer(parse_integer(digits).ok().flatten().ok_or(SyntaxError)?)
    };
    Ok((number, after))
}

/// A text literal with its prefix, if there is one here.
fn text_literal(text: &str) -> Result<Option<(Token, &str)>, SyntaxError> {
    let Some(quote_at) = text.find(['\'', '"']).filter(|at| *at <= 2) else { return Ok(None) };
    let (prefix, body) = text.split_at_checked(quote_at).ok_or(SyntaxError)?;
    let prefix = prefix.to_ascii_lowercase();
    let (raw, template) = match prefix.as_str() {
        "" | "u" => (false, false),
        "r" => (true, false),
        "f" => (false, true),
        "fr" | "rf" => (true, true),
        "b" | "br" | "rb" => return Err(SyntaxError),
        _ => return Ok(None),
    };
    let quote = if body.starts_with("'''") || body.starts_with("\"\"\"") { body.get(..3) } else { body.get(..1) };
    let quote = quote.ok_or(SyntaxError)?;
    let inside = body.strip_prefix(quote).ok_or(SyntaxError)?;
    let mut at = 0;
    loop {
        let rest = inside.get(at..).ok_or(SyntaxError)?;
        if rest.starts_with(quote) {
            break;
        }
        match rest.chars().next().ok_or(SyntaxError)? {
            '\\' => at += 1 + rest.chars().nth(1).ok_or(SyntaxError)?.len_utf8(),
            '\n' if quote.len() == 1 => return Err(SyntaxError),
            c => at += c.len_utf8(),
        }
    }
    let (content, after) = inside.split_at_checked(at).ok_or(SyntaxError)?;
    let after = after.strip_prefix(quote).ok_or(SyntaxError)?;
    let token = if template {
        Token::Template(content.to_owned(), raw)
    } else {
        Token::Text(if raw { content.to_owned() } else { unescape(content)? })
    };
    Ok(Some((token, after)))
}

/// Resolves backslashes.
pub(super) fn unescape(text: &str) -> Result<String, SyntaxError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match rest.next().ok_or(SyntaxError)? {
            '\n' => {}
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            '0' => out.push('\0'),
            c @ ('\\' | '\'' | '"') => out.push(c),
            kind @ ('x' | 'u' | 'U') => {
                let count = match kind {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits: String = rest.by_ref().take(count).collect();
                let code = u32::from_str_radix(&digits, 16).map_err(|_| SyntaxError)?;
                out.push(char::from_u32(code).ok_or(SyntaxError)?);
            }
            other => {
                out.push('\\');
                out.push(other);
            }
        }
    }
    Ok(out)
}
