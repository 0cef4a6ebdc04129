//! Transforms: the last step of an `expression` indicator before its datatype (ucr.md §7.6).

use schemas::change::DocKind;
use serde_json::Value as Json;

use crate::{
    coerce::{to_date, to_decimal, to_integer},
    context::{Context, Relation},
    date::{day_of, format},
    error::EvalError,
    expr::{ethiopian, related_doc::Finder},
    python::{self, Arithmetic},
    spec::{Compiler, Spec, json_kind},
    value::{Decimal, Name, Text, Value},
};

/// Language of translations where no user is.
const LANGUAGE: &str = "en";

/// A compiled transform.
#[derive(Debug)]
pub struct Transform(Kind);

#[derive(Debug)]
enum Kind {
    Custom(Custom),
    DateFormat(Box<str>),
    NumberFormat(Box<str>),
    Translation { texts: Vec<(Box<str>, Box<str>)>, delimiter: Option<Box<str>> },
    Prefix(Box<str>),
    Hyperlink(Box<str>),
    Nested(Box<Transform>, Box<Transform>),
    Unchanged,
}

#[derive(Debug)]
enum Custom {
    Month,
    DaysElapsed,
    ShortDecimal,
    ToGregorian,
    FromGregorian,
    WithoutDomain,
    Person { finders: Vec<(Finder, Vec<Name>)> },
}

fn person(finders: &[(Relation, &[&str])], pointer: &str, compiler: &mut Compiler<'_>) -> Custom {
    let finders = finders.iter().map(|(relation, names)| {
        // The key is the value that is transformed.
        let demand = compiler.demand(relation.clone(), None, pointer);
        compiler.reads_of(demand, names);
        (Finder::new(relation.clone()), names.iter().map(|name| Name::new(name)).collect())
    });
    Custom::Person { finders: finders.collect() }
}

fn custom(name: &str, pointer: &str, compiler: &mut Compiler<'_>) -> Option<Custom> {
    let users = (Relation::Document(DocKind::User), &["username"][..]);
    let web_users = (Relation::OtherDocument("WebUser".into()), &["username"][..]);
    let groups = (Relation::OtherDocument("Group".into()), &["name"][..]);
    let places = (Relation::Document(DocKind::Location), &["name"][..]);
    Some(match name {
        "month_display" => Custom::Month,
        "days_elapsed_from_date" => {
            compiler.reads_the_clock();
            Custom::DaysElapsed
        }
        "short_decimal_display" => Custom::ShortDecimal,
        "ethiopian_date_to_gregorian_date" => Custom::ToGregorian,
        "gregorian_date_to_ethiopian_date" => Custom::FromGregorian,
        "user_without_domain_display" => Custom::WithoutDomain,
        "user_display" => person(&[users, web_users], pointer, compiler),
        "user_display_including_name" => {
            let names = &["username", "first_name", "last_name"][..];
            person(&[(users.0, names), (web_users.0, names)], pointer, compiler)
        }
        "owner_display" => person(&[users, groups, places], pointer, compiler),
        _ => return None,
    })
}

/// Compiles a transform.
pub(crate) fn compile(json: &Json, pointer: &str, compiler: &mut Compiler<'_>) -> Transform {
    let Some(fields) = json.as_object() else {
        compiler.problem(pointer, format!("a transform must be a mapping, not {}", json_kind(json)));
        return Transform(Kind::Unchanged);
    };
    let spec = Spec::new(fields, pointer);
    let owned = |text: Option<&str>| Box::<str>::from(text.unwrap_or_default());
    let kind = match spec.text("type", compiler) {
        Some("custom") => {
            let name = spec.text("custom_type", compiler).unwrap_or_default();
            let found = custom(name, pointer, compiler);
            if found.is_none() && !name.is_empty() {
                compiler.unknown_type(&spec.at("custom_type"), name, format!("`{name}` is not a custom transform"));
            }
            found.map_or(Kind::Unchanged, Kind::Custom)
        }
        Some("date_format") => Kind::DateFormat(owned(spec.text("format", compiler))),
        Some("number_format") => Kind::NumberFormat(owned(spec.text("format_string", compiler))),
        Some("translation") => translation(&spec, None, compiler),
        Some("multiple_value_string_translation") => {
            let delimiter = owned(spec.text("delimiter", compiler));
            translation(&spec, Some(delimiter), compiler)
        }
        Some("prefix_string") => Kind::Prefix(owned(spec.text("prefix", compiler))),
        Some("hyperlink") => Kind::Hyperlink(owned(spec.text("link_text", compiler))),
        Some("nested") => {
            let mut part = |key: &str| match spec.required(key, compiler) {
                Some(json) => Box::new(compile(json, &spec.at(key), compiler)),
                None => Box::new(Transform(Kind::Unchanged)),
            };
            Kind::Nested(part("inner_expression"), part("outer_expression"))
        }
        Some(other) => {
            compiler.unknown_type(&spec.at("type"), other, format!("`{other}` is not a transform type"));
            Kind::Unchanged
        }
        None => Kind::Unchanged,
    };
    Transform(kind)
}

fn translation(spec: &Spec<'_>, delimiter: Option<Box<str>>, compiler: &mut Compiler<'_>) -> Kind {
    match spec.optional_text("mobile_or_web", compiler) {
        None | Some("web") => {}
        // Phones translate for themselves.
        Some("mobile") => return Kind::Unchanged,
        Some(other) => {
            compiler.problem(&spec.at("mobile_or_web"), format!("`{other}` is neither `mobile` nor `web`"));
        }
    }
    let mut texts = Vec::new();
    for (value, json) in spec.mapping("translations", compiler).into_iter().flatten() {
        match translated(json) {
            Some(text) => texts.push((Box::from(value.as_str()), Box::from(text))),
            None => compiler.problem(&spec.at("translations"), format!("`{value}` has no translation")),
        }
    }
    Kind::Translation { texts, delimiter }
}

/// A text, or the text for the language in a map of languages, else the first by language.
fn translated(json: &Json) -> Option<&str> {
    let mut languages: Vec<(&str, &str)> = match json {
        Json::String(text) => return Some(text),
        Json::Object(map) => {
            map.iter().filter_map(|(language, text)| Some((language.as_str(), text.as_str()?))).collect()
        }
        Json::Array(pairs) => {
            pairs.iter().filter_map(|pair| Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?))).collect()
        }
        _ => return None,
    };
    languages.sort_unstable();
    languages.iter().find(|(language, _)| *language == LANGUAGE).or(languages.first()).map(|(_, text)| *text)
}

impl Transform {
    /// Compiles a transform on its own.
    ///
    /// # Errors
    /// Every problem of the specification.
    pub fn compile(json: &Json) -> Result<Self, crate::error::SpecErrors> {
        let mut compiler = Compiler::new(crate::spec::Named::default());
        let transform = compile(json, "", &mut compiler);
        compiler.finish(transform).map(|(transform, _)| transform)
    }

    /// The transformed value.
    ///
    /// # Errors
    /// Where the original raises.
    pub fn apply<'a>(&'a self, value: Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        Ok(match &self.0 {
            Kind::Unchanged => value,
            Kind::Custom(custom) => return custom.apply(value, context),
            Kind::DateFormat(pattern) => match &value {
                Value::Date(day) => Value::text(format::strftime(crate::date::midnight(*day), pattern)),
                Value::Datetime(at) => Value::text(format::strftime(*at, pattern)),
                Value::Text(_) => match to_date(&value) {
                    Some(day) => Value::text(format::strftime(crate::date::midnight(day), pattern)),
                    None => value,
                },
                _ => value,
            },
            Kind::NumberFormat(template) => {
                let number = match &value {
                    Value::Text(text) => match Decimal::parse(text) {
                        Ok(Some(number)) => Value::Decimal(number),
                        _ => return Ok(value),
                    },
                    Value::Null => return Ok(value),
                    other => other.clone(),
                };
                python::format::format_one(template, &number).map_or(value, Value::text)
            }
            Kind::Translation { texts, delimiter: None } => match &value {
                Value::Text(text) => match find(texts, text) {
                    Some(translated) => Value::Text(Text::Borrowed(translated)),
                    None => value,
                },
                _ => value,
            },
            Kind::Translation { texts, delimiter: Some(delimiter) } => match &value {
                Value::Text(text) => {
                    let parts: Vec<&str> =
                        text.split(&**delimiter).map(|part| find(texts, part).unwrap_or(part)).collect();
                    Value::text(parts.join(delimiter))
                }
                other => {
                    return Err(EvalError::raised(format!(
                        "only text can be translated in parts, found {}",
                        other.kind()
                    )));
                }
            },
            Kind::Prefix(prefix) => Value::text(format!("{prefix}{}", &*value.into_text())),
            Kind::Hyperlink(label) => {
                Value::text(format!("<a href='{}'>{}</a>", escaped(&value.into_text()), escaped(label)))
            }
            Kind::Nested(inner, outer) => {
                let value = inner.apply(value, context)?;
                return outer.apply(value, context);
            }
        })
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

fn find<'t>(texts: &'t [(Box<str>, Box<str>)], value: &str) -> Option<&'t str> {
    texts.iter().find(|(known, _)| **known == *value).map(|(_, text)| &**text)
}

impl Custom {
    fn apply<'a>(&'a self, value: Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        Ok(match self {
            Self::Month => {
                let number = match to_integer(&value) {
                    Ok(Some(0) | None) | Err(_) => return Ok(Value::text("")),
                    Ok(Some(number)) => number,
                };
                let index = if (-12..0).contains(&number) { number + 12 } else { number - 1 };
                let name = usize::try_from(index).ok().and_then(|index| format::MONTHS.get(index));
                match name {
                    Some(name) => Value::Text(Text::Borrowed(name)),
                    None => return Err(EvalError::raised(format!("there is no month {number}"))),
                }
            }
            Self::DaysElapsed => match to_date(&value) {
                Some(day) => Value::Integer(i128::from(day_of(context.now)) - i128::from(day)),
                None => Value::Null,
            },
            Self::ShortDecimal => short_decimal(value),
            Self::ToGregorian => ethiopian::to_gregorian(&value),
            Self::FromGregorian => ethiopian::from_gregorian(&value),
            Self::WithoutDomain => match &value {
                Value::Text(text) => match text.split_once('@') {
                    Some((name, _)) => Value::text(name),
                    None => value,
                },
                _ => value,
            },
            Self::Person { finders } => {
                for (finder, names) in finders {
                    if let Some(doc) = finder.find(&value, context) {
                        let doc = Value::from_doc(doc);
                        return Ok(Value::text(shown(&doc, names)));
                    }
                }
                value
            }
        })
    }
}

/// The first name of a person without its domain, the others behind it.
fn shown(doc: &Value<'_>, names: &[Name]) -> String {
    let texts: Vec<String> = names
        .iter()
        .filter_map(|name| match doc.get(name) {
            Some(Value::Text(text)) if !text.is_empty() => Some(text.to_string()),
            _ => None,
        })
        .collect();
    let Some((first, rest)) = texts.split_first() else { return String::new() };
    let first = first.split_once('@').map_or(first.as_str(), |(name, _)| name);
    if rest.is_empty() { first.to_owned() } else { format!("{first} \"{}\"", rest.join(" ")) }
}

fn short_decimal(value: Value<'_>) -> Value<'_> {
    let whole = Arithmetic::Modulo.apply(&value, &Value::Integer(1)).ok().flatten();
    match (whole, &value) {
        (None, _) | (_, Value::Text(_)) => value,
        (Some(rest), _) if !rest.is_truthy() => match to_integer(&value) {
            Ok(Some(number)) => Value::Integer(number),
            _ => value,
        },
        (Some(_), Value::Float(number)) => match Decimal::from_f64(*number).rounded_to(2) {
            Ok(rounded) => Value::Float(rounded.to_f64()),
            Err(_) => value,
        },
        (Some(_), other) => match to_decimal(other) {
            Ok(Some(number)) => number.rounded_to(2).map_or(value, Value::Decimal),
            _ => value,
        },
    }
}

#[cfg(test)]
mod tests {
    use schemas::position::Stamp;
    use serde_json::json;

    use super::*;
    use crate::{coerce::constant_json, context::NothingRelated};

    #[test]
    fn transforms() {
        let month = json!({"type": "custom", "custom_type": "month_display"});
        let number = json!({"type": "number_format", "format_string": "{0:.2f}"});
        let nested = json!({"type": "nested", "inner_expression": number, "outer_expression": {"type": "prefix_string", "prefix": "$"}});
        for (spec, value, shown) in [
            (&month, json!("3"), json!("March")),
            (&month, json!(0), json!("")),
            (&month, json!("x"), json!("")),
            (&number, json!("1.005"), json!("1.00")),
            (&number, json!("n/a"), json!("n/a")),
            (&nested, json!(2), json!("$2.00")),
            (
                &json!({"type": "translation", "translations": {"a": {"es": "A-es", "en": "A-en"}}}),
                json!("a"),
                json!("A-en"),
            ),
            (&json!({"type": "date_format", "format": "%d/%m/%Y"}), json!("2020-02-29"), json!("29/02/2020")),
            (&json!({"type": "custom", "custom_type": "short_decimal_display"}), json!(1.239), json!(1.24)),
            (&json!({"type": "custom", "custom_type": "short_decimal_display"}), json!(2.0), json!(2)),
        ] {
            let transform = Transform::compile(spec).unwrap();
            let mut related = NothingRelated;
            let mut context = Context::new(None, Stamp(0), 0, &mut related);
            let value = transform.apply(constant_json(&value), &mut context).unwrap();
            assert_eq!(value.into_text().to_string(), constant_json(&shown).into_text().to_string(), "{spec}");
        }
        let transform = Transform::compile(&month).unwrap();
        let mut related = NothingRelated;
        assert!(transform.apply(Value::Integer(13), &mut Context::new(None, Stamp(0), 0, &mut related)).is_err());
    }
}
