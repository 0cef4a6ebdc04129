//! `related_doc`: a value from another document (ucr.md §2.7).

use schemas::{change::DocKind, doc::Doc};

use super::{Compile, Expr, Expression, stand_in};
use crate::{
    context::{Context, Relation},
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::{Name, Value},
};

/// CommCare's other document types that have a store.
const OTHER_TYPES: [&str; 9] = [
    "Application",
    "CommCareMultimedia",
    "Domain",
    "FixtureDataItem",
    "FixtureDataType",
    "Group",
    "LinkedApplication",
    "RemoteApp",
    "WebUser",
];

/// The relation that finds documents of a type by id; `None` for an unknown type.
pub(crate) fn relation_of(doc_type: &str) -> Option<Relation> {
    match doc_type {
        "CommCareCase" => Some(Relation::Document(DocKind::Case)),
        "XFormInstance" => Some(Relation::Document(DocKind::Form)),
        "CommCareUser" => Some(Relation::Document(DocKind::User)),
        "Location" | "SQLLocation" => Some(Relation::Document(DocKind::Location)),
        other if OTHER_TYPES.contains(&other) => Some(Relation::OtherDocument(other.into())),
        _ => None,
    }
}

/// Looks one document up by id, inside the root document's domain.
#[derive(Debug)]
pub(crate) struct Finder {
    relation: Relation,
    domain: Name,
}

impl Finder {
    pub(crate) fn new(relation: Relation) -> Self {
        Self { relation, domain: Name::new("domain") }
    }

    /// The document of that id in the reach of [`Related`](crate::Related); `None` for a falsy or unknown id.
    pub(crate) fn find_anywhere(&self, id: &Value<'_>, context: &mut Context<'_, '_>) -> Option<Doc> {
        match id {
            Value::Text(id) if !id.is_empty() => context.related.get(&self.relation, id).into_iter().next(),
            _ => None,
        }
    }

    /// As [`Finder::find_anywhere`], and the root document's domain must be its domain.
    pub(crate) fn find(&self, id: &Value<'_>, context: &mut Context<'_, '_>) -> Option<Doc> {
        let found = self.find_anywhere(id, context)?;
        let own = context.root.as_ref().and_then(|root| root.get(&self.domain)).unwrap_or(Value::Null);
        let theirs = Value::from_doc(found.clone()).get(&self.domain).unwrap_or(Value::Null);
        own.equals(&theirs).then_some(found)
    }
}

/// An expression on another document. That document is the root of a context of its own.
#[derive(Debug)]
pub(crate) struct RelatedDoc {
    finder: Finder,
    id: Expr,
    value: Expr,
}

impl Compile for RelatedDoc {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let relation = spec.text("related_doc_type", compiler).and_then(|doc_type| {
            let relation = relation_of(doc_type);
            if relation.is_none() {
                let message = format!("`{doc_type}` is not a document type that can be looked up");
                compiler.problem(&spec.at("related_doc_type"), message);
            }
            relation
        });
        let Some(relation) = relation else {
            return Self { finder: Finder::new(Relation::Document(DocKind::Case)), id: stand_in(), value: stand_in() };
        };
        let id = spec.expression("doc_id_expression", compiler);
        let demand = compiler.demand(relation.clone(), spec.raw("doc_id_expression"), spec.pointer());
        let value = compiler.inside(demand, |compiler| spec.expression("value_expression", compiler));
        Self { finder: Finder::new(relation), id, value }
    }
}

impl Expression for RelatedDoc {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let id = self.id.eval(item, context)?;
        if !id.is_truthy() {
            return Ok(Value::Null);
        }
        // A missing document is passed on as null: constants inside still have their value.
        let found = self.finder.find(&id, context).map_or(Value::Null, Value::from_doc);
        context.step()?;
        let mut inside = context.inside(Some(found.clone()));
        let value = self.value.eval(&found, &mut inside);
        context.steps = inside.steps;
        value
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.value.found_by()
    }
}
