//! JSONPath in the dialect of `jsonpath-ng` with its extensions (ucr.md §2.2).
//!
//! Children, descendants, indexes, slices, unions, filters, sorting, arithmetic and the functions `len`, `keys`,
//! `str()`, `sorted`, `sub(/re/, replacement)`, `split(c, n, max)`. `parent` is not supported.

mod parse;

use std::cmp::Ordering;

use crate::{
    coerce::{parse_integer, to_integer},
    filter::Operator,
    pattern, python,
    value::{List, Text, Value, sort::stable_sort},
};

/// Most values one path may match.
const MAX_MATCHES: usize = 10_000;

/// A parsed path.
#[derive(Debug)]
pub(crate) struct Path(Step);

#[derive(Debug)]
enum Step {
    /// `$`, `@`, `` `this` ``. Paths run on one item, which is both.
    This,
    /// `name`, `'name'`, `['a', 'b']`.
    Fields(Vec<Box<str>>),
    /// `*` as a name.
    AllFields,
    /// `[n]`.
    Index(Vec<i64>),
    /// `[a:b:c]`, `[*]`.
    Slice { start: Option<i64>, end: Option<i64>, step: Option<i64> },
    /// `left.right`.
    Child(Box<Step>, Box<Step>),
    /// `left..right`.
    Descendants(Box<Step>, Box<Step>),
    /// `left | right`.
    Union(Box<Step>, Box<Step>),
    /// `left where right`.
    Where(Box<Step>, Box<Step>),
    /// `[?…]`.
    Filter(Vec<Condition>),
    /// `[/a, \b]`: by fields, ascending or descending.
    Sorted(Vec<(Step, bool)>),
    /// A backquoted function.
    Function(Function),
    /// `left + right` and so on.
    Arithmetic(Box<Step>, python::Arithmetic, Box<Step>),
    /// A text or number in arithmetic.
    Literal(Value<'static>),
}

#[derive(Debug)]
struct Condition {
    target: Step,
    test: Option<(Comparison, Value<'static>)>,
}

#[derive(Clone, Copy, Debug)]
enum Comparison {
    Is(Operator),
    Matches,
}

#[derive(Debug)]
enum Function {
    Len,
    Keys,
    Str,
    Sorted,
    Sub { pattern: Box<str>, replacement: Box<str> },
    Split { separator: Box<str>, segment: usize, limit: Option<usize> },
}

impl Path {
    /// Parses a path.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        parse::parse(text).map(Self)
    }

    /// The values the path leads to, in document order.
    pub(crate) fn find<'a>(&self, item: &Value<'a>) -> Vec<Value<'a>> {
        let mut found = Vec::new();
        self.0.find(item, &mut found);
        found.truncate(MAX_MATCHES);
        found
    }
}

fn sorted<'a>(elements: Vec<Value<'a>>, order: impl Fn(&Value<'a>, &Value<'a>) -> Ordering) -> Vec<Value<'a>> {
    stable_sort(elements, &|a, b| Ok::<_, std::convert::Infallible>(order(a, b))).unwrap_or_default()
}

impl Step {
    fn all<'a>(&self, item: &Value<'a>) -> Vec<Value<'a>> {
        let mut found = Vec::new();
        self.find(item, &mut found);
        found
    }

    fn find<'a>(&self, item: &Value<'a>, found: &mut Vec<Value<'a>>) {
        if found.len() > MAX_MATCHES {
            return;
        }
        match self {
            Self::This => found.push(item.clone()),
            Self::Fields(names) => {
                if let Value::Map(map) = item {
                    found.extend(names.iter().filter_map(|name| map.get_text(name)));
                }
            }
            Self::AllFields => match item {
                Value::Map(map) => found.extend(map.entries().map(|(_, value)| value)),
                Value::List(list) => found.extend(list.iter()),
                _ => {}
            },
            Self::Index(indexes) => {
                if let Value::List(list) = item {
                    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                    for index in indexes {
                        let index = if *index < 0 { index + length } else { *index };
                        found.extend(usize::try_from(index).ok().and_then(|index| list.get(index)));
                    }
                }
            }
            Self::Slice { start, end, step } => match item {
                Value::List(list) => found.extend(slice(list, *start, *end, *step)),
                // The original takes anything else for a list of one.
                Value::Null => {}
                other if start.is_none() && end.is_none() => found.push(other.clone()),
                _ => {}
            },
            Self::Child(left, right) => {
                for value in left.all(item) {
                    right.find(&value, found);
                }
            }
            Self::Descendants(left, right) => {
                for value in left.all(item) {
                    descend(right, &value, found);
                }
            }
            Self::Union(left, right) => {
                left.find(item, found);
                right.find(item, found);
            }
            Self::Where(left, right) => {
                found.extend(left.all(item).into_iter().filter(|value| !right.all(value).is_empty()))
            }
            Self::Filter(conditions) => {
                let elements: Vec<Value<'a>> = match item {
                    Value::List(list) => list.iter().collect(),
                    Value::Map(map) => map.entries().map(|(_, value)| value).collect(),
                    _ => return,
                };
                let passes = |element: &Value<'a>| conditions.iter().all(|condition| condition.holds(element));
                found.extend(elements.into_iter().filter(passes));
            }
            Self::Sorted(keys) => {
                if let Value::List(list) = item {
                    let elements: Vec<Value<'a>> = list.iter().collect();
                    found.push(Value::list(sorted(elements, |a, b| order_by(keys, a, b))));
                }
            }
            Self::Function(function) => found.extend(function.apply(item)),
            Self::Arithmetic(left, operator, right) => arithmetic(left, *operator, right, item, found),
            Self::Literal(value) => found.push(value.clone()),
        }
    }
}

fn slice<'a>(list: &List<'a>, start: Option<i64>, end: Option<i64>, step: Option<i64>) -> Vec<Value<'a>> {
    python::slice_positions(list.len(), start, end, step).into_iter().filter_map(|index| list.get(index)).collect()
}

fn descend<'a>(right: &Step, item: &Value<'a>, found: &mut Vec<Value<'a>>) {
    right.find(item, found);
    match item {
        Value::List(list) => list.iter().for_each(|value| descend(right, &value, found)),
        Value::Map(map) => map.entries().for_each(|(_, value)| descend(right, &value, found)),
        _ => {}
    }
}

fn order_by<'a>(keys: &[(Step, bool)], a: &Value<'a>, b: &Value<'a>) -> Ordering {
    for (key, descending) in keys {
        let order = match (key.all(a).first(), key.all(b).first()) {
            (Some(a), Some(b)) => a.compare(b).ok().flatten().unwrap_or(Ordering::Equal),
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        if order != Ordering::Equal {
            return if *descending { order.reverse() } else { order };
        }
    }
    Ordering::Equal
}

/// Element by element if both sides match equally often; anything that does not fit gives nothing.
fn arithmetic<'a>(
    left: &Step,
    operator: python::Arithmetic,
    right: &Step,
    item: &Value<'a>,
    found: &mut Vec<Value<'a>>,
) {
    let (lefts, rights) = (left.all(item), right.all(item));
    let fixed = |step: &Step| matches!(step, Step::Literal(_));
    let count = if fixed(left) { rights.len() } else { lefts.len() };
    let fits = |step: &Step, values: &[Value<'_>]| fixed(step) || values.len() == count;
    if count == 0 || !fits(left, &lefts) || !fits(right, &rights) {
        return;
    }
    let before = found.len();
    for i in 0..count {
        let at = |step: &Step, values: &[Value<'a>]| values.get(if fixed(step) { 0 } else { i }).cloned();
        let result = match (at(left, &lefts), at(right, &rights)) {
            (Some(a), Some(b)) => operator.apply(&a, &b).ok().flatten(),
            _ => None,
        };
        match result {
            Some(value) => found.push(value),
            None => return found.truncate(before),
        }
    }
}

impl Condition {
    fn holds(&self, element: &Value<'_>) -> bool {
        let targets = self.target.all(element);
        let Some((comparison, wanted)) = &self.test else { return !targets.is_empty() };
        targets.into_iter().any(|value| {
            // A number to compare with makes numbers of what is compared.
            let value = match wanted {
                Value::Integer(_) => match to_integer(&value) {
                    Ok(Some(number)) => Value::Integer(number),
                    _ => return false,
                },
                _ => value,
            };
            match comparison {
                Comparison::Is(operator) => operator.apply(&value, wanted).unwrap_or(false),
                Comparison::Matches => match (&value, wanted) {
                    (Value::Text(text), Value::Text(regex)) => {
                        pattern::compiled(&format!("^(?:{})", &**regex)).is_some_and(|regex| regex.is_match(text))
                    }
                    _ => false,
                },
            }
        })
    }
}

impl Function {
    fn apply<'a>(&self, item: &Value<'a>) -> Option<Value<'a>> {
        match (self, item) {
            (Self::Len, Value::List(list)) => length(list.len()),
            (Self::Len, Value::Map(map)) => length(map.len()),
            (Self::Len, Value::Text(text)) => length(text.chars().count()),
            (Self::Keys, Value::Map(map)) => Some(Value::list(map.entries().map(|(key, _)| key).collect())),
            (Self::Str, value) => Some(Value::Text(value.clone().into_text())),
            (Self::Sorted, Value::List(list)) => {
                let elements: Vec<Value<'a>> = list.iter().collect();
                let order = |a: &Value<'a>, b: &Value<'a>| a.compare(b).ok().flatten().unwrap_or(Ordering::Equal);
                Some(Value::list(sorted(elements, order)))
            }
            (Self::Sorted, Value::Map(map)) => {
                let mut names: Vec<String> = map
                    .entries()
                    .filter_map(|(key, _)| if let Value::Text(key) = key { Some(key.to_string()) } else { None })
                    .collect();
                names.sort_unstable();
                Some(Value::list(names.into_iter().map(Value::text).collect()))
            }
            (Self::Sub { pattern, replacement }, Value::Text(text)) => {
                let regex = pattern::compiled(pattern)?;
                Some(Value::text(regex.replace_all(text, &**replacement)))
            }
            (Self::Split { separator, segment, limit }, Value::Text(text)) => {
                let part = match limit {
                    Some(limit) => text.splitn(limit + 1, &**separator).nth(*segment),
                    None => text.split(&**separator).nth(*segment),
                };
                part.map(Value::text)
            }
            _ => None,
        }
    }
}

fn length<'a>(count: usize) -> Option<Value<'a>> {
    i128::try_from(count).ok().map(Value::Integer)
}

/// A literal in a filter or in arithmetic.
fn literal(text: &str) -> Value<'static> {
    match text {
        "true" | "True" => Value::Bool(true),
        "false" | "False" => Value::Bool(false),
        _ => match (parse_integer(text), text.parse::<f64>()) {
            (Ok(Some(number)), _) => Value::Integer(number),
            (_, Ok(number)) if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => Value::Float(number),
            _ => Value::Text(Text::Owned(text.into())),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::coerce::constant_json;

    #[test]
    fn paths() {
        let doc = constant_json(&json!({
            "a": {"b": 1, "c": [{"b": 2, "k": "x"}, {"b": 3, "k": "y"}]},
            "text": "foo5+3bar", "n": [3, 1, 2], "odd name": 7
        }));
        for (path, matches) in [
            ("a.b", json!([1])),
            ("$.a.b", json!([1])),
            ("a..b", json!([1, 2, 3])),
            ("a.c[*].b", json!([2, 3])),
            ("a.c[0].k", json!(["x"])),
            ("a.c[-1].k", json!(["y"])),
            ("n[1:]", json!([1, 2])),
            ("'odd name'", json!([7])),
            ("$['odd name']", json!([7])),
            ("a.c[?k='y'].b", json!([3])),
            ("a.c[?(@.b > 2)].k", json!(["y"])),
            ("a.c[?b>1 & k='x'].k", json!(["x"])),
            ("a.c[?k =~ 'X|x'].k", json!(["x"])),
            ("$.text + '_' + $.a.b", json!([])),
            ("$.text + '_'", json!(["foo5+3bar_"])),
            ("$.n[0] * 2", json!([6])),
            ("n.`len`", json!([3])),
            ("n.`sorted`", json!([[1, 2, 3]])),
            ("a.c[\\b].`len`", json!([2])),
            ("text.`sub(/(foo\\\\d+)\\\\+(\\\\d+bar)/, \\\\2-\\\\1)`", json!(["3bar-foo5"])),
            ("text.`split(+, 1, -1)`", json!(["3bar"])),
            ("a.c.k", json!([])),
            ("a.*", json!([1, [{"b": 2, "k": "x"}, {"b": 3, "k": "y"}]])),
            ("n | text", json!([[3, 1, 2], "foo5+3bar"])),
        ] {
            let found = Value::list(Path::parse(path).unwrap().find(&doc));
            assert!(found.equals(&constant_json(&matches)), "{path}: {found:?}");
        }
        for bad in ["", "find(\"a\" in \"b\")", "a.", "a[", "a[?", "'a", "a b", "a.`parent`", "]"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
    }
}
