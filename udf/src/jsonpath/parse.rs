//! The grammar of JSONPath: a recursive descent over characters.

use std::{iter::Peekable, str::Chars};

use super::{Comparison, Condition, Function, Operator, Step, literal};
use crate::python::Arithmetic;

/// Deepest nesting of a path.
const MAX_DEPTH: usize = 64;

/// Parses a whole path.
pub(super) fn parse(text: &str) -> Result<Step, String> {
    let mut parser = Parser { rest: text.chars().peekable(), depth: 0 };
    let step = parser.arithmetic()?;
    match parser.next_token() {
        None => Ok(step),
        Some(c) => Err(format!("unexpected `{c}`")),
    }
}

struct Parser<'t> {
    rest: Peekable<Chars<'t>>,
    depth: usize,
}

impl Parser<'_> {
    fn space(&mut self) {
        while self.rest.next_if(|c| c.is_whitespace()).is_some() {}
    }

    /// The next character that is not a space, taken.
    fn next_token(&mut self) -> Option<char> {
        self.space();
        self.rest.next()
    }

    fn peek_token(&mut self) -> Option<char> {
        self.space();
        self.rest.peek().copied()
    }

    fn take(&mut self, c: char) -> bool {
        self.peek_token() == Some(c) && self.rest.next().is_some()
    }

    fn must(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(format!("expected `{c}`")) }
    }

    fn arithmetic(&mut self) -> Result<Step, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("nested too deep".to_owned());
        }
        let mut left = self.product()?;
        loop {
            let operator = match self.peek_token() {
                Some('+') => Arithmetic::Add,
                Some('-') => Arithmetic::Subtract,
                _ => break,
            };
            self.rest.next();
            left = combine(left, operator, self.product()?);
        }
        self.depth -= 1;
        Ok(left)
    }

    fn product(&mut self) -> Result<Step, String> {
        let mut left = self.descendants()?;
        loop {
            let operator = match self.peek_token() {
                Some('*') => Arithmetic::Multiply,
                Some('/') => Arithmetic::Divide,
                _ => break,
            };
            self.rest.next();
            left = combine(left, operator, self.descendants()?);
        }
        Ok(left)
    }

    fn descendants(&mut self) -> Result<Step, String> {
        let mut left = self.union()?;
        while self.peek_token() == Some('.') {
            self.rest.next();
            let deep = self.rest.next_if_eq(&'.').is_some();
            let right = Box::new(self.union()?);
            left = if deep { Step::Descendants(Box::new(left), right) } else { Step::Child(Box::new(left), right) };
        }
        Ok(left)
    }

    fn union(&mut self) -> Result<Step, String> {
        let mut left = self.element()?;
        while self.take('|') {
            left = Step::Union(Box::new(left), Box::new(self.element()?));
        }
        Ok(left)
    }

    /// A name, `$`, function, literal or parenthesis, with its brackets.
    fn element(&mut self) -> Result<Step, String> {
        let mut step = match self.peek_token() {
            Some('$') => {
                self.rest.next();
                Step::This
            }
            Some('*') => {
                self.rest.next();
                Step::AllFields
            }
            Some('(') => {
                self.rest.next();
                let inner = self.arithmetic()?;
                self.must(')')?;
                inner
            }
            Some('`') => self.function()?,
            Some('[') => Step::This,
            Some(quote @ ('\'' | '"')) => Step::Fields(vec![self.quoted(quote)?.into()]),
            Some(c) if c.is_ascii_digit() => Step::Literal(literal(&self.word())),
            Some(c) if c.is_alphabetic() || matches!(c, '_' | '@' | '#') => {
                let name = self.word();
                if name == "@" { Step::This } else { Step::Fields(vec![name.into()]) }
            }
            Some(c) => return Err(format!("unexpected `{c}`")),
            None => return Err("it ends too early".to_owned()),
        };
        loop {
            if self.peek_token() == Some('[') {
                self.rest.next();
                step = Step::Child(Box::new(step), Box::new(self.bracket()?));
            } else if self.rest.peek() == Some(&'w') {
                let word = self.word();
                if word != "where" {
                    return Err(format!("unexpected `{word}`"));
                }
                step = Step::Where(Box::new(step), Box::new(self.element()?));
            } else {
                return Ok(step);
            }
        }
    }

    fn word(&mut self) -> String {
        self.space();
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '@' | '#' | '-')) {
            word.push(c);
        }
        word
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.must(quote)?;
        let mut text = String::new();
        loop {
            match self.rest.next() {
                Some('\\') => text.extend(self.rest.next()),
                Some(c) if c == quote => return Ok(text),
                Some(c) => text.push(c),
                None => return Err(format!("`{quote}` is not closed")),
            }
        }
    }

    /// What stands between brackets, the closing one included.
    fn bracket(&mut self) -> Result<Step, String> {
        let step = match self.peek_token() {
            Some('?') => {
                self.rest.next();
                Step::Filter(self.conditions()?)
            }
            Some('*') => {
                self.rest.next();
                Step::Slice { start: None, end: None, step: None }
            }
            Some('/' | '\\') => self.sorting()?,
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | ':') => self.indexes()?,
            Some(_) => {
                let mut names = Vec::new();
                loop {
                    let name = match self.peek_token() {
                        Some(quote @ ('\'' | '"')) => self.quoted(quote)?,
                        _ => self.word(),
                    };
                    if name.is_empty() {
                        return Err("expected a name".to_owned());
                    }
                    names.push(name.into());
                    if !self.take(',') {
                        break;
                    }
                }
                Step::Fields(names)
            }
            None => return Err("`[` is not closed".to_owned()),
        };
        self.must(']')?;
        Ok(step)
    }

    fn number(&mut self) -> Result<Option<i64>, String> {
        self.space();
        let mut digits = String::new();
        digits.extend(self.rest.next_if_eq(&'-'));
        while let Some(c) = self.rest.next_if(char::is_ascii_digit) {
            digits.push(c);
        }
        if digits.is_empty() {
            Ok(None)
        } else {
            digits.parse().map(Some).map_err(|_| format!("`{digits}` is no index"))
        }
    }

    fn indexes(&mut self) -> Result<Step, String> {
        let first = self.number()?;
        if self.peek_token() == Some(':') {
            self.rest.next();
            let end = self.number()?;
            let step = if self.take(':') { self.number()? } else { None };
            return Ok(Step::Slice { start: first, end, step });
        }
        let mut indexes = vec![first.ok_or("expected an index")?];
        while self.take(',') {
            indexes.push(self.number()?.ok_or("expected an index")?);
        }
        Ok(Step::Index(indexes))
    }

    fn sorting(&mut self) -> Result<Step, String> {
        let mut keys = Vec::new();
        loop {
            let descending = match self.next_token() {
                Some('/') => false,
                Some('\\') => true,
                _ => return Err("expected `/` or `\\`".to_owned()),
            };
            keys.push((self.descendants()?, descending));
            if !self.take(',') {
                return Ok(Step::Sorted(keys));
            }
        }
    }

    fn conditions(&mut self) -> Result<Vec<Condition>, String> {
        let parenthesis = self.take('(');
        let mut conditions = Vec::new();
        loop {
            if self.peek_token() == Some('(') {
                self.rest.next();
                conditions.extend(self.conditions()?);
                self.must(')')?;
            } else {
                conditions.push(self.condition()?);
            }
            if !self.take('&') {
                break;
            }
            self.take('&');
        }
        if parenthesis {
            self.must(')')?;
        }
        Ok(conditions)
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let target = self.descendants()?;
        let comparison = match self.peek_token() {
            Some('=') => {
                self.rest.next();
                if self.rest.next_if_eq(&'~').is_some() {
                    Comparison::Matches
                } else {
                    self.rest.next_if_eq(&'=');
                    Comparison::Is(Operator::Eq)
                }
            }
            Some('!') => {
                self.rest.next();
                self.must('=')?;
                Comparison::Is(Operator::NotEq)
            }
            Some('<') => {
                self.rest.next();
                Comparison::Is(if self.rest.next_if_eq(&'=').is_some() { Operator::Lte } else { Operator::Lt })
            }
            Some('>') => {
                self.rest.next();
                Comparison::Is(if self.rest.next_if_eq(&'=').is_some() { Operator::Gte } else { Operator::Gt })
            }
            _ => return Ok(Condition { target, test: None }),
        };
        let wanted = match self.peek_token() {
            Some(quote @ ('\'' | '"')) => crate::value::Value::text(self.quoted(quote)?),
            _ => {
                let mut word = self.word();
                if self.rest.next_if_eq(&'.').is_some() {
                    word.push('.');
                    word.push_str(&self.word());
                }
                if word.is_empty() {
                    return Err("expected a value to compare with".to_owned());
                }
                literal(&word)
            }
        };
        Ok(Condition { target, test: Some((comparison, wanted)) })
    }

    fn function(&mut self) -> Result<Step, String> {
        let text = self.quoted('`')?;
        let function = match text.as_str() {
            "this" => return Ok(Step::This),
            "len" => Function::Len,
            "keys" => Function::Keys,
            "sorted" => Function::Sorted,
            "str()" => Function::Str,
            _ => arguments(&text).ok_or_else(|| format!("`{text}` is not a function"))?,
        };
        Ok(Step::Function(function))
    }
}

/// The functions that have arguments.
fn arguments(text: &str) -> Option<Function> {
    if let Some(body) = text.strip_prefix("sub(/").and_then(|body| body.strip_suffix(')')) {
        let (pattern, replacement) = body.rsplit_once("/,")?;
        return Some(Function::Sub {
            pattern: pattern.into(),
            replacement: replacement_template(replacement.trim_start()).into(),
        });
    }
    let body = text.strip_prefix("split(")?.strip_suffix(')')?;
    let mut parts = body.rsplitn(3, ',').map(str::trim);
    let limit: i64 = parts.next()?.parse().ok()?;
    let segment = parts.next()?.parse().ok()?;
    let separator = body.chars().next()?.to_string().into();
    parts.next()?;
    Some(Function::Split { separator, segment, limit: usize::try_from(limit).ok() })
}

/// Python's `\1` as `${1}`.
fn replacement_template(python: &str) -> String {
    let mut out = String::new();
    let mut rest = python.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('$', _) => out.push_str("$$"),
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                out.push_str("${");
                while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                    out.push(digit);
                }
                out.push('}');
            }
            ('\\', Some(_)) => out.extend(rest.next()),
            _ => out.push(c),
        }
    }
    out
}

/// A bare name next to an operator is a text, as in the original.
fn combine(left: Step, operator: Arithmetic, right: Step) -> Step {
    let operand = |step: Step| match step {
        Step::Fields(names) if names.len() == 1 => match names.into_iter().next() {
            Some(name) => Step::Literal(literal_text(&name)),
            None => Step::This,
        },
        other => other,
    };
    Step::Arithmetic(Box::new(operand(left)), operator, Box::new(operand(right)))
}

fn literal_text(name: &str) -> crate::value::Value<'static> {
    crate::value::Value::text(name)
}
