//! Evaluation of a parsed statement.

use std::cmp::Ordering;

use smallvec::SmallVec;

use super::{
    Arithmetic, MAX_ITEMS, MAX_TEXT, Stop, call, format,
    parse::{Ast, Clause, Comparison, PathArgument, Piece, Trailer},
};
use crate::{
    context::Context,
    error::{EvalError, excerpt},
    expr::{Expression, array::position},
    filter::contains,
    jsonpath::Path,
    value::{Map, Name, Text, Value},
};

pub(super) type Outcome<'a> = Result<Value<'a>, Stop>;

/// Where the names of a statement get their values.
pub(crate) enum Names<'a> {
    /// Context variables, in their fixed places.
    Variables(&'a [Box<str>], SmallVec<[Value<'a>; 4]>),
    /// The properties of the item.
    Item(Value<'a>),
}

impl<'a> Names<'a> {
    /// The names as one mapping.
    fn as_value(&self) -> Value<'a> {
        match self {
            Self::Variables(names, values) => Value::map(
                names
                    .iter()
                    .zip(values)
                    .map(|(name, value)| (Value::Text(Text::Borrowed(name)), value.clone()))
                    .collect(),
            ),
            Self::Item(item) => item.clone(),
        }
    }
}

pub(super) struct Run<'a, 'c, 'r> {
    names: Names<'a>,
    locals: Vec<(&'a str, Value<'a>)>,
    pub(super) context: &'c mut Context<'a, 'r>,
}

impl<'a, 'c, 'r> Run<'a, 'c, 'r> {
    pub(super) fn new(names: Names<'a>, context: &'c mut Context<'a, 'r>) -> Self {
        Self { names, locals: Vec::new(), context }
    }

    pub(super) fn names(&self) -> Value<'a> {
        self.names.as_value()
    }

    pub(super) fn eval(&mut self, ast: &'a Ast) -> Outcome<'a> {
        match ast {
            Ast::Constant(Value::Text(text)) => Ok(Value::Text(Text::Borrowed(text))),
            Ast::Constant(value) => Ok(value.clone()),
            Ast::Name(name, slot) => self.name(name, *slot),
            Ast::Not(value) => Ok(Value::Bool(!self.eval(value)?.is_truthy())),
            Ast::Negate(value) => match self.eval(value)? {
                Value::Integer(value) => Ok(Value::Integer(-value)),
                Value::Bool(value) => Ok(Value::Integer(-i128::from(value))),
                Value::Float(value) => Ok(Value::Float(-value)),
                Value::Decimal(value) => Ok(Value::Decimal(value.negated())),
                Value::Duration(value) => Ok(Value::Duration(-value)),
                _ => Err(Stop::Null),
            },
            Ast::Plus(value) => match self.eval(value)? {
                Value::Bool(value) => Ok(Value::Integer(value.into())),
                value @ (Value::Integer(_) | Value::Float(_) | Value::Decimal(_) | Value::Duration(_)) => Ok(value),
                _ => Err(Stop::Null),
            },
            Ast::Chain(first, rest) => {
                let mut value = self.eval(first)?;
                for (operator, operand) in rest {
                    let operand = self.eval(operand)?;
                    value = match (operator, value, &operand) {
                        // Text that was made here grows in place.
                        (Arithmetic::Add, Value::Text(Text::Owned(mut text)), Value::Text(more))
                            if text.len() + more.len() <= MAX_TEXT =>
                        {
                            text.push_str(more);
                            Value::Text(Text::Owned(text))
                        }
                        (operator, value, operand) => operator.apply(&value, operand)?.ok_or(Stop::Null)?,
                    };
                }
                Ok(value)
            }
            Ast::Compare(first, rest) => self.compare(first, rest),
            Ast::And(all) => self.decide(all, false),
            Ast::Or(all) => self.decide(all, true),
            Ast::Conditional { test, then, otherwise } => {
                if self.eval(test)?.is_truthy() {
                    self.eval(then)
                } else {
                    self.eval(otherwise)
                }
            }
            Ast::Trailers(value, trailers) => {
                let mut value = self.eval(value)?;
                for trailer in trailers {
                    value = self.trailer(&value, trailer)?;
                }
                Ok(value)
            }
            Ast::List(elements) => Ok(Value::list(self.all(elements)?)),
            Ast::Tuple(elements) => Ok(Value::Tuple(self.all(elements)?.into())),
            Ast::Set(elements) => Ok(call::set(self.all(elements)?)),
            Ast::Dict(entries) => {
                let mut out = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    out.push((self.eval(key)?, self.eval(value)?));
                }
                Ok(Value::map(out))
            }
            Ast::Comprehension { element, clauses } => {
                let mut out = Vec::new();
                self.comprehend(element, clauses, &mut out)?;
                Ok(Value::list(out))
            }
            Ast::Template(pieces) => Ok(Value::text(self.template(pieces)?)),
            Ast::Call(function, arguments) => call::call(self, *function, arguments),
            Ast::JsonPath { path, as_list, context } => self.json_path(path, as_list.as_deref(), context.as_deref()),
            Ast::Named { expression, context } => {
                let item = match context {
                    Some(context) => self.eval(context)?,
                    None => self.names(),
                };
                Ok(expression.eval(&item, self.context)?)
            }
            Ast::Refused => Err(Stop::Null),
        }
    }

    fn all(&mut self, elements: &'a [Ast]) -> Result<Vec<Value<'a>>, Stop> {
        elements.iter().map(|element| self.eval(element)).collect()
    }

    fn name(&self, name: &Name, slot: Option<usize>) -> Outcome<'a> {
        if let Some((_, value)) = self.locals.iter().rev().find(|(local, _)| *local == name.as_str()) {
            return Ok(value.clone());
        }
        match (&self.names, slot) {
            (Names::Variables(_, values), Some(slot)) => values.get(slot).cloned(),
            (Names::Variables(..), None) => None,
            (Names::Item(item), _) => item.get(name),
        }
        .ok_or(Stop::Null)
    }

    /// `and` stops at the first falsy value, `or` at the first truthy one; that value is the result.
    fn decide(&mut self, all: &'a [Ast], wanted: bool) -> Outcome<'a> {
        let mut value = Value::Null;
        for ast in all {
            value = self.eval(ast)?;
            if value.is_truthy() == wanted {
                break;
            }
        }
        Ok(value)
    }

    fn compare(&mut self, first: &'a Ast, rest: &'a [(Comparison, Ast)]) -> Outcome<'a> {
        let mut left = self.eval(first)?;
        for (comparison, right) in rest {
            let right = self.eval(right)?;
            if !holds(*comparison, &left, &right)? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn trailer(&mut self, value: &Value<'a>, trailer: &'a Trailer) -> Outcome<'a> {
        match trailer {
            Trailer::Attribute(name) => match value {
                Value::Map(map) => map.get(name).ok_or(Stop::Null),
                _ => Err(Stop::Null),
            },
            Trailer::Index(index) => {
                let index = self.eval(index)?;
                index_into(value, &index)
            }
            Trailer::Slice(start, end, step) => {
                let mut bound = |ast: &'a Option<Ast>| match ast {
                    None => Ok(None),
                    Some(ast) => match self.eval(ast)? {
                        Value::Null => Ok(None),
                        Value::Bool(value) => Ok(Some(value.into())),
                        Value::Integer(value) => Ok(Some(i64::try_from(value).unwrap_or(if value < 0 {
                            i64::MIN / 2
                        } else {
                            i64::MAX / 2
                        }))),
                        _ => Err(Stop::Null),
                    },
                };
                let (start, end, step) = (bound(start)?, bound(end)?, bound(step)?);
                slice(value, start, end, step)
            }
        }
    }

    fn comprehend(&mut self, element: &'a Ast, clauses: &'a [Clause], out: &mut Vec<Value<'a>>) -> Result<(), Stop> {
        let Some((clause, rest)) = clauses.split_first() else {
            if out.len() >= MAX_ITEMS {
                return Err(Stop::Null);
            }
            out.push(self.eval(element)?);
            return Ok(());
        };
        let source = self.eval(&clause.source)?;
        let depth = self.locals.len();
        for value in elements(&source)? {
            self.context.step()?;
            self.bind(&clause.targets, value)?;
            let mut keep = true;
            for condition in &clause.conditions {
                keep = keep && self.eval(condition)?.is_truthy();
            }
            if keep {
                self.comprehend(element, rest, out)?;
            }
            self.locals.truncate(depth);
        }
        Ok(())
    }

    fn bind(&mut self, targets: &'a [Box<str>], value: Value<'a>) -> Result<(), Stop> {
        if let [target] = targets {
            self.locals.push((target, value));
            return Ok(());
        }
        let parts = elements(&value)?;
        if parts.len() != targets.len() {
            return Err(Stop::Raise(EvalError::raised("a comprehension unpacks another number of values")));
        }
        self.locals.extend(targets.iter().map(|target| &**target).zip(parts));
        Ok(())
    }

    fn template(&mut self, pieces: &'a [Piece]) -> Result<String, Stop> {
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Value { value, conversion, spec } => {
                    let mut value = self.eval(value)?;
                    match conversion {
                        Some('r' | 'a') => {
                            let mut text = String::new();
                            value.write_repr(&mut text);
                            value = Value::text(text);
                        }
                        Some(_) => value = Value::Text(value.into_text()),
                        None => {}
                    }
                    let spec = self.template(spec)?;
                    out.push_str(&format::format(&value, &spec)?);
                }
            }
            if out.len() > MAX_TEXT {
                return Err(Stop::Null);
            }
        }
        Ok(out)
    }

    fn json_path(&mut self, path: &'a PathArgument, as_list: Option<&'a Ast>, context: Option<&'a Ast>) -> Outcome<'a> {
        let as_list = match as_list {
            Some(ast) => self.eval(ast)?.is_truthy(),
            None => false,
        };
        let item = match context {
            Some(ast) => self.eval(ast)?,
            None => self.names(),
        };
        let found = |path: &Path| crate::expr::jsonpath::matches(path, &item, None, as_list);
        match path {
            PathArgument::Parsed(path) => Ok(found(path)?),
            PathArgument::Computed(ast) => {
                let Value::Text(text) = self.eval(ast)? else { return Err(Stop::Null) };
                let path = Path::parse(&text).map_err(|problem| {
                    Stop::Raise(EvalError::raised(format!("`{}` is not a JSONPath: {problem}", excerpt(&text))))
                })?;
                Ok(found(&path)?)
            }
        }
    }
}

fn holds(comparison: Comparison, left: &Value<'_>, right: &Value<'_>) -> Result<bool, Stop> {
    let order = |wanted: fn(Ordering) -> bool| match left.compare(right) {
        Ok(order) => Ok(order.is_some_and(wanted)),
        Err(_) => Err(Stop::Null),
    };
    match comparison {
        Comparison::Equal => Ok(left.equals(right)),
        Comparison::NotEqual => Ok(!left.equals(right)),
        Comparison::Less => order(|order| order == Ordering::Less),
        Comparison::LessOrEqual => order(|order| order != Ordering::Greater),
        Comparison::Greater => order(|order| order == Ordering::Greater),
        Comparison::GreaterOrEqual => order(|order| order != Ordering::Less),
        Comparison::In | Comparison::NotIn => {
            let container = matches!(right, Value::List(_) | Value::Tuple(_) | Value::Set(_) | Value::Map(_))
                || matches!((left, right), (Value::Text(_), Value::Text(_)));
            if !container {
                return Err(Stop::Null);
            }
            Ok(contains(right, left) == matches!(comparison, Comparison::In))
        }
        // Identity matters for the singletons; other values are compared.
        Comparison::Is | Comparison::IsNot => {
            let same = std::mem::discriminant(left) == std::mem::discriminant(right) && left.equals(right);
            Ok(same == matches!(comparison, Comparison::Is))
        }
    }
}

fn missing(what: &str, index: &Value<'_>) -> Stop {
    let shown = excerpt(&index.clone().into_text());
    Stop::Raise(EvalError::raised(format!("there is no {what} `{shown}`")))
}

fn index_into<'a>(value: &Value<'a>, index: &Value<'a>) -> Outcome<'a> {
    let at = |length: usize| match index {
        Value::Integer(_) | Value::Bool(_) => position(index, length).ok_or_else(|| missing("element", index)),
        _ => Err(Stop::Null),
    };
    match value {
        Value::List(list) => list.get(at(list.len())?).ok_or(Stop::Null),
        Value::Tuple(values) => values.get(at(values.len())?).cloned().ok_or(Stop::Null),
        Value::Text(text) => {
            let at = at(text.chars().count())?;
            text.chars().nth(at).map(|c| Value::text(c.encode_utf8(&mut [0; 4]) as &str)).ok_or(Stop::Null)
        }
        Value::Map(map) => key_of(map, index).ok_or_else(|| missing("key", index)),
        _ => Err(Stop::Null),
    }
}

fn key_of<'a>(map: &Map<'a>, key: &Value<'a>) -> Option<Value<'a>> {
    match key {
        Value::Text(key) => map.get_text(key),
        other => map.entries().find(|(key, _)| key.equals(other)).map(|(_, value)| value),
    }
}

/// The elements of something that can be iterated over.
pub(super) fn elements<'a>(value: &Value<'a>) -> Result<Vec<Value<'a>>, Stop> {
    Ok(match value {
        Value::List(list) => list.iter().collect(),
        Value::Tuple(values) | Value::Set(values) => values.to_vec(),
        Value::Map(map) => map.entries().map(|(key, _)| key).collect(),
        Value::Text(text) => text.chars().map(|c| Value::text(c.encode_utf8(&mut [0; 4]) as &str)).collect(),
        _ => return Err(Stop::Null),
    })
}

/// First and last position (exclusive) that `[start:end]` selects of a sequence of that length.
fn run_of(length: usize, start: Option<i64>, end: Option<i64>) -> (usize, usize) {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let clamp = |bound: i64| (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(0, length);
    let from = start.map_or(0, clamp);
    let to = end.map_or(length, clamp).max(from);
    (usize::try_from(from).unwrap_or_default(), usize::try_from(to).unwrap_or_default())
}

/// The positions that `[start:end:step]` selects of a sequence of that length.
pub(crate) fn slice_positions(length: usize, start: Option<i64>, end: Option<i64>, step: Option<i64>) -> Vec<usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let step = step.unwrap_or(1);
    if step == 0 {
        return Vec::new();
    }
    let clamp = |bound: Option<i64>, default: i64, low: i64, high: i64| {
        bound.map_or(default, |bound| (if bound < 0 { bound.saturating_add(length) } else { bound }).clamp(low, high))
    };
    let (mut at, stop) = if step > 0 {
        (clamp(start, 0, 0, length), clamp(end, length, 0, length))
    } else {
        (clamp(start, length - 1, -1, length - 1), clamp(end, -1, -1, length - 1))
    };
    let mut positions = Vec::new();
    while (step > 0 && at < stop) || (step < 0 && at > stop) {
        positions.extend(usize::try_from(at));
        at = at.saturating_add(step);
    }
    positions
}

fn slice<'a>(value: &Value<'a>, start: Option<i64>, end: Option<i64>, step: Option<i64>) -> Outcome<'a> {
    if step == Some(0) {
        return Err(Stop::Raise(EvalError::raised("slice step cannot be zero")));
    }
    match value {
        Value::Text(text) if step.is_none_or(|step| step == 1) => {
            let ascii = text.is_ascii();
            let length = if ascii { text.len() } else { text.chars().count() };
            let (from, to) = run_of(length, start, end);
            let byte = |at: usize| {
                if ascii { at } else { text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte) }
            };
            let (from, to) = (byte(from), byte(to));
            match text {
                // A part of a document's text stays borrowed.
                Text::Borrowed(text) => text.get(from..to).map(|part| Value::Text(Text::Borrowed(part))),
                Text::Owned(text) => text.get(from..to).map(Value::text),
            }
            .ok_or(Stop::Null)
        }
        Value::Text(text) => {
            let characters: Vec<char> = text.chars().collect();
            let positions = slice_positions(characters.len(), start, end, step);
            Ok(Value::text(positions.into_iter().filter_map(|at| characters.get(at)).collect::<String>()))
        }
        Value::List(list) => Ok(Value::list(
            slice_positions(list.len(), start, end, step).into_iter().filter_map(|at| list.get(at)).collect(),
        )),
        Value::Tuple(values) => Ok(Value::Tuple(
            slice_positions(values.len(), start, end, step)
                .into_iter()
                .filter_map(|at| values.get(at).cloned())
                .collect(),
        )),
        _ => Err(Stop::Null),
    }
}

#[cfg(test)]
mod tests {
    use schemas::{doc::Doc, position::Stamp};

    use super::*;
    use crate::{context::NothingRelated, expr::named::NamedExpression, python::Program, spec::Compiler, spec::Named};

    fn run(statement: &str, item: &str) -> Result<String, EvalError> {
        let mut compiler = Compiler::new(Named::default());
        let mut named = |name: &str| NamedExpression::resolve(name, "", &mut compiler);
        let (program, _) = Program::parse(statement, &[], &mut named);
        let doc = Doc::from_json(item).unwrap();
        let mut related = NothingRelated;
        let mut context = Context::new(None, Stamp(0), 86_400_000_000 * 19_000, &mut related);
        let value = program.run(Names::Item(Value::from_node(doc.root())), &mut context)?;
        let mut text = String::new();
        value.write_repr(&mut text);
        Ok(text)
    }

    #[test]
    fn statements() {
        for (statement, item, value) in [
            ("1 + 2 * 3 - 4", "{}", "3"),
            ("7 // 2, -7 // 2, -7 % 3, 7 / 2", "{}", "(3, -4, 2, 3.5)"),
            ("2 ** 3", "{}", "None"),
            ("a if a else 'none'", r#"{"a": ""}"#, "'none'"),
            ("a and b or c", r#"{"a": 1, "b": 0, "c": "x"}"#, "'x'"),
            ("not a in b", r#"{"a": "x", "b": ["y"]}"#, "True"),
            ("a not in b", r#"{"a": "x", "b": ["y"]}"#, "True"),
            ("1 < 2 < 3 != 3", "{}", "False"),
            ("a.b.c", r#"{"a": {"b": {"c": 5}}}"#, "5"),
            ("a[-1], a[1:], a[::-1]", r#"{"a": [1, 2, 3]}"#, "(3, [2, 3], [3, 2, 1])"),
            ("a[:7]", r#"{"a": "2020-05-04"}"#, "'2020-05'"),
            ("a[-4:]", r#"{"a": "+919876543210"}"#, "'3210'"),
            ("a[-2:]", r#"{"a": "naïve é"}"#, "' é'"),
            ("a[1:-1], a[5:2], a[2:99], a[::2]", r#"{"a": "naïve"}"#, "('aïv', '', 'ïve', 'nïe')"),
            ("a + ' (' + b[-4:] + ')'", r#"{"a": "Asha", "b": "+911234"}"#, "'Asha (1234)'"),
            ("[x * y for x in a for y in a if x < y]", r#"{"a": [1, 2, 3]}"#, "[2, 3, 6]"),
            ("[k for k, v in [('a', 1), ('b', 2)] if v > 1]", "{}", "['b']"),
            ("{x for x in a}", r#"{"a": [1]}"#, "None"),
            ("lambda: 1", "{}", "None"),
            ("a.upper()", r#"{"a": "x"}"#, "None"),
            ("f'{a!r:>6}|{b:.2f}|{{}}'", r#"{"a": "x", "b": 2.675}"#, "\"   'x'|2.67|{}\""),
            ("'%s is %d%% or %05.1f' % (a, 5, 2)", r#"{"a": null}"#, "'None is 5% or 002.0'"),
            ("'%(a)s!' % {'a': 1}", "{}", "'1!'"),
            ("round(2.5), round(3.5), round(2.675, 2), round(1234, -2)", "{}", "(2, 4, 2.67, 1200)"),
            ("int('12') + int(3.9) + int(True)", "{}", "16"),
            ("float('2.5') * 2", "{}", "5.0"),
            ("str(1.0) + 'x'", "{}", "'1.0x'"),
            ("list('ab') + [1]", "{}", "['a', 'b', 1]"),
            ("range(1, 10, 3)", "{}", "[1, 4, 7]"),
            ("range(100)", "{}", "None"),
            ("days(date('2020-03-01') - date('2020-02-01'))", "{}", "29"),
            ("today()", "{}", "datetime.date(2022, 1, 8)"),
            ("x = 5; y", "{}", "5"),
            ("'a' 'b' + \"c\\n\"", "{}", "'abc\\n'"),
            ("unknown", "{}", "None"),
            ("1 / 0", "{}", "None"),
            ("'a' + 1", "{}", "None"),
            ("a +", "{}", "None"),
            ("'x' * 200000", "{}", "None"),
            ("jsonpath('a.b')", r#"{"a": {"b": 1}}"#, "1"),
            ("named('x', 1", "{}", "None"),
            ("a == None, a is None, a is not None", r#"{"a": null}"#, "(True, True, False)"),
            ("0x10 + 1_000", "{}", "1016"),
            ("a # comment", r#"{"a": 1}"#, "1"),
        ] {
            assert_eq!(run(statement, item).unwrap(), value, "{statement}");
        }
    }

    #[test]
    fn value_key_and_index_errors_go_through() {
        for (statement, item) in [
            ("int('x')", "{}"),
            ("float('x')", "{}"),
            ("a[5]", r#"{"a": [1]}"#),
            ("a['k']", r#"{"a": {}}"#),
            ("date('nonsense')", "{}"),
            ("jsonpath('a[')", "{}"),
            ("a[::0]", r#"{"a": [1]}"#),
        ] {
            assert!(run(statement, item).is_err(), "{statement}");
        }
    }

    #[test]
    fn deep_or_long_statements_are_null() {
        for statement in ["(".repeat(5000), format!("{}1{}", "(".repeat(200), ")".repeat(200)), "-".repeat(500) + "1"] {
            assert_eq!(run(&statement, "{}").unwrap(), "None");
        }
        assert_eq!(run(&vec!["1"; 1500].join("+"), "{}").unwrap(), "1500");
    }
}
