//! A domain's named expressions and filters, which every data source of the domain may use (ucr.md §3.4).

use std::{collections::BTreeMap, fmt};

use schemas::change::DocKind;
use serde_json::Value as Json;

use crate::{
    error::{SpecErrors, SpecProblem},
    spec::{Compiler, Named},
};

/// Where a document of the registry has its specification.
pub(crate) const DEFINITION: &str = "definition";

/// What a name stands for. An expression and a filter may have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NameKind {
    /// A named expression.
    Expression,
    /// A named filter.
    Filter,
}

impl NameKind {
    /// What documents of a kind give names to, if they do.
    #[must_use]
    pub const fn of(kind: DocKind) -> Option<Self> {
        match kind {
            DocKind::NamedExpression => Some(Self::Expression),
            DocKind::NamedFilter => Some(Self::Filter),
            _ => None,
        }
    }
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expression => "named expression",
            Self::Filter => "named filter",
        })
    }
}

/// The named expressions and filters of a domain.
///
/// A part is compiled where it is used, so that one that is not valid is a problem of those who use it only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registry {
    parts: BTreeMap<(NameKind, String), Json>,
}

impl Registry {
    /// Takes in a document, whose `definition` is the specification; true if that is another than before.
    pub fn put(&mut self, kind: NameKind, name: &str, document: &Json) -> bool {
        let definition = document.get(DEFINITION).cloned().unwrap_or_default();
        let key = (kind, name.to_owned());
        if self.parts.get(&key) == Some(&definition) {
            return false;
        }
        self.parts.insert(key, definition);
        true
    }

    /// Forgets a name; true if it was there.
    pub fn remove(&mut self, kind: NameKind, name: &str) -> bool {
        self.parts.remove(&(kind, name.to_owned())).is_some()
    }

    /// Checks one part together with what it uses.
    ///
    /// # Errors
    /// Every problem, with its place in the part's document.
    pub fn check(&self, kind: NameKind, name: &str) -> Result<(), SpecErrors> {
        let missing = self.parts.get(&(kind, name.to_owned())).is_none_or(Json::is_null);
        if missing {
            let problem = SpecProblem { pointer: String::new(), message: format!("`{DEFINITION}` is required") };
            return Err(SpecErrors { problems: vec![problem] });
        }
        let mut compiler = Compiler::new(Named { domain: Some(self), ..Named::default() });
        compiler.part(kind, name);
        compiler.finish(()).map(|_| ())
    }

    /// The parts of a kind with their names.
    pub(crate) fn of_kind(&self, kind: NameKind) -> impl Iterator<Item = (&str, &Json)> {
        self.parts.iter().filter(move |((of, _), _)| *of == kind).map(|((_, name), json)| (name.as_str(), json))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::DataSource;

    fn registry(parts: &[(NameKind, &str, Json)]) -> Registry {
        let mut registry = Registry::default();
        for (kind, name, definition) in parts {
            assert!(registry.put(*kind, name, &json!({ "definition": definition })));
        }
        registry
    }

    fn named(name: &str) -> Json {
        json!({"type": "named", "name": name})
    }

    fn property(name: &str) -> Json {
        json!({"type": "property_name", "property_name": name})
    }

    fn is(expression: &Json, value: &str) -> Json {
        json!({"type": "boolean_expression", "operator": "eq", "expression": expression, "property_value": value})
    }

    fn source(filter: &Json, expression: &Json, own: &Json) -> Json {
        json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "CommCareCase", "configured_filter": filter,
            "named_expressions": own, "configured_indicators": [
                {"type": "expression", "column_id": "n", "datatype": "string", "expression": expression}]})
    }

    fn cell(source: &DataSource) -> Option<String> {
        let doc = json!({"_id": "c", "domain": "demo", "doc_type": "CommCareCase", "kind": "a", "x": "X", "y": "Y"});
        let doc = schemas::doc::Doc::from_value(&doc).unwrap();
        let rows = source.evaluate(&doc, schemas::position::Stamp(1), 0, &mut crate::NothingRelated).unwrap();
        match &rows.first()?[2] {
            schemas::row::Cell::Text(text) => Some(text.to_string()),
            other => panic!("{other:?}"),
        }
    }

    use NameKind::{Expression, Filter};

    #[test]
    fn data_sources_use_the_names_of_their_domain() {
        let domain = registry(&[
            (Expression, "x", property("x")),
            (
                Expression,
                "twice",
                json!({"type": "evaluator", "statement": "a + named('x')", "context_variables": {"a": named("x")}}),
            ),
            (Expression, "kind", property("kind")),
            (Filter, "is_a", is(&named("kind"), "a")),
            (Filter, "x", is(&property("kind"), "b")),
        ]);
        let compiled = DataSource::compile_in(&source(&named("is_a"), &named("x"), &json!({})), &domain).unwrap();
        assert_eq!(cell(&compiled).as_deref(), Some("X"));
        for (kind, name, uses) in [
            (Expression, "x", true),
            (Expression, "kind", true),
            (Filter, "is_a", true),
            (Filter, "x", false),
            (Expression, "twice", false),
        ] {
            assert_eq!(compiled.uses(kind, name), uses, "{kind} {name}");
        }
        let other = DataSource::compile_in(&source(&named("x"), &named("x"), &json!({})), &domain).unwrap();
        assert_eq!(cell(&other), None, "a filter has the same name as an expression");
        assert!(DataSource::compile(&source(&named("is_a"), &named("x"), &json!({}))).is_err());
    }

    #[test]
    fn own_names_come_first() {
        let domain = registry(&[(Expression, "x", property("x")), (Expression, "through", named("x"))]);
        let own = json!({"x": property("y")});
        let compiled = DataSource::compile_in(&source(&json!({}), &named("x"), &own), &domain).unwrap();
        assert_eq!((cell(&compiled).as_deref(), compiled.uses(Expression, "x")), (Some("Y"), false));
        let through = DataSource::compile_in(&source(&json!({}), &named("through"), &own), &domain).unwrap();
        assert_eq!((cell(&through).as_deref(), through.uses(Expression, "through")), (Some("Y"), true));
        let own = json!({"z": named("through")});
        let through = DataSource::compile_in(&source(&json!({}), &named("z"), &own), &domain).unwrap();
        assert_eq!((cell(&through).as_deref(), through.uses(Expression, "x")), (Some("X"), true));
    }

    #[test]
    fn problems_are_of_those_who_use_a_part() {
        let domain = registry(&[
            (Expression, "fine", property("x")),
            (Expression, "broken", json!({"type": "property_nam"})),
            (Expression, "on_broken", json!({"type": "root_doc", "expression": named("broken")})),
            (Expression, "loop", json!({"type": "root_doc", "expression": named("back")})),
            (Expression, "back", named("loop")),
            (Expression, "null", json!(null)),
            (Filter, "with_filter", json!({"type": "not", "filter": named("other")})),
            (Filter, "other", is(&named("fine"), "a")),
        ]);
        let problem = |kind, name: &str| {
            let errors = domain.check(kind, name).unwrap_err();
            (errors.problems[0].pointer.clone(), errors.to_string())
        };
        assert_eq!(domain.check(Expression, "fine"), Ok(()));
        assert_eq!(domain.check(Filter, "other"), Ok(()));
        for (kind, name, pointer, message) in [
            (Expression, "broken", "/definition/type", "not an expression type"),
            (
                Expression,
                "on_broken",
                "/definition/expression/name",
                "named expression `broken` of the domain is not valid: /definition/type",
            ),
            (Expression, "loop", "/definition/expression/name", "`loop` refers to itself"),
            (Expression, "back", "/definition/name", "`back` refers to itself"),
            (Expression, "null", "", "`definition` is required"),
            (Expression, "none", "", "`definition` is required"),
            (Filter, "with_filter", "/definition/filter/name", "cannot be used inside"),
        ] {
            let (at, said) = problem(kind, name);
            assert_eq!(at, pointer, "{name}: {said}");
            assert!(said.contains(message), "{name}: {said}");
        }
        assert!(DataSource::compile_in(&source(&json!({}), &named("fine"), &json!({})), &domain).is_ok());
        let errors = DataSource::compile_in(&source(&json!({}), &named("on_broken"), &json!({})), &domain).unwrap_err();
        assert_eq!(errors.problems.len(), 1);
        assert_eq!(errors.problems[0].pointer, "/configured_indicators/0/expression/name");
    }

    #[test]
    fn only_another_definition_is_a_change() {
        let mut domain = registry(&[(Expression, "x", property("x"))]);
        assert!(!domain.put(Expression, "x", &json!({"definition": property("x"), "description": "new"})));
        assert!(domain.put(Expression, "x", &json!({"definition": property("y")})));
        assert!(domain.remove(Expression, "x") && !domain.remove(Expression, "x"));
    }
}
