//! `indexed_case`, `get_subcases`, `get_case_forms`: along the edges of the case graph (ucr.md §2.7).

use schemas::{change::DocKind, doc::Doc};

use super::{Compile, Expr, Expression, related_doc::Finder};
use crate::{
    context::{Context, Relation},
    error::EvalError,
    facts::{DemandNo, Item},
    spec::{Compiler, Spec},
    value::{Name, Value},
};

/// The case that the first index of an identifier points at; null if there is none.
#[derive(Debug)]
pub(crate) struct IndexedCase {
    case: Expr,
    index: Box<str>,
    finder: Finder,
    indices: Name,
    identifier: Name,
    referenced_id: Name,
    demand: DemandNo,
}

impl Compile for IndexedCase {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let case = spec.expression("case_expression", compiler);
        let index = spec.optional_text("index", compiler).unwrap_or("parent");
        let key = serde_json::json!({"index": index});
        let item = Item::found_by(case.found_by());
        let demand = compiler.on(item, |compiler| {
            compiler.reads("indices");
            compiler.demand(Relation::Document(DocKind::Case), Some(&key), spec.pointer())
        });
        Self {
            case,
            demand,
            index: index.into(),
            finder: Finder::new(Relation::Document(DocKind::Case)),
            indices: Name::new("indices"),
            identifier: Name::new("identifier"),
            referenced_id: Name::new("referenced_id"),
        }
    }
}

impl Expression for IndexedCase {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let case = self.case.eval(item, context)?;
        let Some(Value::List(indices)) = case.get(&self.indices) else { return Ok(Value::Null) };
        let id = indices.iter().find_map(|index| match index.get(&self.identifier) {
            Some(Value::Text(identifier)) if *identifier == *self.index => index.get(&self.referenced_id),
            _ => None,
        });
        let Some(id) = id else { return Ok(Value::Null) };
        Ok(self.finder.find(&id, context).map_or(Value::Null, Value::from_doc))
    }

    fn found_by(&self) -> Option<DemandNo> {
        Some(self.demand)
    }
}

fn all<'a>(found: Vec<Doc>) -> Value<'a> {
    Value::list(found.into_iter().map(Value::from_doc).collect())
}

/// The cases that point at a case.
#[derive(Debug)]
pub(crate) struct Subcases {
    case_id: Expr,
    demand: DemandNo,
}

impl Compile for Subcases {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let case_id = spec.expression("case_id_expression", compiler);
        let demand = compiler.demand(Relation::Subcases, spec.raw("case_id_expression"), spec.pointer());
        Self { case_id, demand }
    }
}

impl Expression for Subcases {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::Text(id) = self.case_id.eval(item, context)? else { return Ok(all(Vec::new())) };
        Ok(all(if id.is_empty() { Vec::new() } else { context.related.get(&Relation::Subcases, &id) }))
    }

    fn found_by(&self) -> Option<DemandNo> {
        Some(self.demand)
    }
}

/// The forms that touched a case, all or those of some xmlns.
#[derive(Debug)]
pub(crate) struct CaseForms {
    case_id: Expr,
    namespaces: Vec<Box<str>>,
    xmlns: Name,
    demand: DemandNo,
}

impl Compile for CaseForms {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let case_id = spec.expression("case_id_expression", compiler);
        let demand = compiler.demand(Relation::FormsOfCase, spec.raw("case_id_expression"), spec.pointer());
        let namespaces: Vec<Box<str>> = spec.optional_texts("xmlns", compiler).into_iter().map(Box::from).collect();
        if !namespaces.is_empty() {
            compiler.reads_of(demand, &["xmlns"]);
        }
        Self { case_id, demand, namespaces, xmlns: Name::new("xmlns") }
    }
}

impl Expression for CaseForms {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::Text(id) = self.case_id.eval(item, context)? else { return Ok(all(Vec::new())) };
        if id.is_empty() {
            return Ok(all(Vec::new()));
        }
        let mut forms: Vec<Value<'a>> =
            context.related.get(&Relation::FormsOfCase, &id).into_iter().map(Value::from_doc).collect();
        if !self.namespaces.is_empty() {
            forms.retain(|form| match form.get(&self.xmlns) {
                Some(Value::Text(xmlns)) => self.namespaces.iter().any(|wanted| **wanted == *xmlns),
                _ => false,
            });
        }
        Ok(Value::list(forms))
    }

    fn found_by(&self) -> Option<DemandNo> {
        Some(self.demand)
    }
}
