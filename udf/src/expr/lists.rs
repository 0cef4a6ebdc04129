//! List expressions (ucr.md §2.6). Anything that is not a list counts as the empty one.

use std::cmp::Ordering;

use super::{Compile, Expr, Expression};
use crate::{
    context::Context,
    error::EvalError,
    facts::{DemandNo, Item},
    filter::Filter,
    python::Arithmetic,
    spec::{Compiler, Spec},
    value::{List, Value, compare::TypeError, sort::stable_sort},
};

/// The elements that pass a filter.
#[derive(Debug)]
pub(crate) struct FilterItems {
    items: Expr,
    filter: Filter,
}

impl Compile for FilterItems {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let items = spec.expression("items_expression", compiler);
        let element = Item::found_by(items.found_by());
        Self { items, filter: compiler.on(element, |compiler| spec.filter("filter_expression", compiler)) }
    }
}

impl Expression for FilterItems {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::List(items) = self.items.eval(item, context)? else { return Ok(Value::list(Vec::new())) };
        let mut kept = Vec::new();
        for element in items.iter() {
            context.step()?;
            if self.filter.test(&element, context)? {
                kept.push(element);
            }
        }
        Ok(Value::list(kept))
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.items.found_by()
    }
}

/// One value per element.
#[derive(Debug)]
pub(crate) struct MapItems {
    items: Expr,
    map: Expr,
}

impl Compile for MapItems {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let items = spec.expression("items_expression", compiler);
        let element = Item::found_by(items.found_by());
        Self { items, map: compiler.on(element, |compiler| spec.expression("map_expression", compiler)) }
    }
}

impl Expression for MapItems {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::List(items) = self.items.eval(item, context)? else { return Ok(Value::list(Vec::new())) };
        let mut values = Vec::with_capacity(items.len());
        for element in items.iter() {
            context.step()?;
            values.push(self.map.eval(&element, context)?);
        }
        Ok(Value::list(values))
    }
}

/// The elements by a key; nulls first, or last when descending. Keys without an order give the empty list.
#[derive(Debug)]
pub(crate) struct SortItems {
    items: Expr,
    key: Expr,
    descending: bool,
}

impl Compile for SortItems {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let descending = match spec.optional_text("order", compiler) {
            None | Some("ASC") => false,
            Some("DESC") => true,
            Some(other) => {
                compiler.problem(&spec.at("order"), format!("`{other}` is not an order (ASC or DESC)"));
                false
            }
        };
        let items = spec.expression("items_expression", compiler);
        let element = Item::found_by(items.found_by());
        Self { items, key: compiler.on(element, |compiler| spec.expression("sort_expression", compiler)), descending }
    }
}

impl Expression for SortItems {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::List(items) = self.items.eval(item, context)? else { return Ok(Value::list(Vec::new())) };
        let mut keyed = Vec::with_capacity(items.len());
        for element in items.iter() {
            context.step()?;
            keyed.push((self.key.eval(&element, context)?, element));
        }
        let sorted = stable_sort(keyed, &|(a, _), (b, _)| {
            let order = match (a.is_null(), b.is_null()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                (false, false) => a.compare(b)?.unwrap_or(Ordering::Equal),
            };
            Ok::<_, TypeError>(if self.descending { order.reverse() } else { order })
        });
        Ok(Value::list(sorted.unwrap_or_default().into_iter().map(|(_, element)| element).collect()))
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.items.found_by()
    }
}

/// The elements' elements; the empty list if one of them is no list.
#[derive(Debug)]
pub(crate) struct Flatten {
    items: Expr,
}

impl Compile for Flatten {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self { items: spec.expression("items_expression", compiler) }
    }
}

impl Expression for Flatten {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::List(items) = self.items.eval(item, context)? else { return Ok(Value::list(Vec::new())) };
        let mut flat = Vec::new();
        for element in items.iter() {
            let Value::List(inner) = element else { return Ok(Value::list(Vec::new())) };
            flat.extend(inner.iter());
        }
        Ok(Value::list(flat))
    }
}

#[derive(Clone, Copy, Debug)]
enum Aggregation {
    Sum,
    Count,
    Min,
    Max,
    First,
    Last,
}

const AGGREGATIONS: [(&str, Aggregation); 6] = [
    ("sum", Aggregation::Sum),
    ("count", Aggregation::Count),
    ("min", Aggregation::Min),
    ("max", Aggregation::Max),
    ("first_item", Aggregation::First),
    ("last_item", Aggregation::Last),
];

/// One value for all elements.
#[derive(Debug)]
pub(crate) struct ReduceItems {
    items: Expr,
    aggregation: Aggregation,
}

impl Compile for ReduceItems {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let items = spec.expression("items_expression", compiler);
        let name = spec.text("aggregation_fn", compiler).unwrap_or("count");
        let found = AGGREGATIONS.iter().find(|(known, _)| *known == name);
        if found.is_none() {
            let known: Vec<_> = AGGREGATIONS.iter().map(|(name, _)| *name).collect();
            let message = format!("`{name}` is not an aggregation (known: {})", known.join(", "));
            compiler.problem(&spec.at("aggregation_fn"), message);
        }
        Self { items, aggregation: found.map_or(Aggregation::Count, |(_, aggregation)| *aggregation) }
    }
}

impl Expression for ReduceItems {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let items = match self.items.eval(item, context)? {
            Value::List(items) => items,
            _ => List::Values([].into()),
        };
        Ok(match self.aggregation {
            Aggregation::Count => Value::Integer(i128::try_from(items.len()).unwrap_or(i128::MAX)),
            Aggregation::First => items.get(0).unwrap_or(Value::Null),
            Aggregation::Last => items.len().checked_sub(1).and_then(|last| items.get(last)).unwrap_or(Value::Null),
            Aggregation::Min => extreme(&items, Ordering::Less),
            Aggregation::Max => extreme(&items, Ordering::Greater),
            Aggregation::Sum => {
                let mut sum = Value::Integer(0);
                for element in items.iter() {
                    match Arithmetic::Add.apply(&sum, &element)? {
                        Some(more) => sum = more,
                        None => return Ok(Value::Null),
                    }
                }
                sum
            }
        })
    }

    fn found_by(&self) -> Option<DemandNo> {
        match self.aggregation {
            Aggregation::First | Aggregation::Last => self.items.found_by(),
            Aggregation::Sum | Aggregation::Count | Aggregation::Min | Aggregation::Max => None,
        }
    }
}

fn extreme<'a>(items: &List<'a>, wanted: Ordering) -> Value<'a> {
    let mut best: Option<Value<'a>> = None;
    for element in items.iter() {
        let better = match &best {
            // A single null is its own extreme; between two elements it is a type error.
            None => true,
            Some(best) => match element.compare(best) {
                Ok(order) => order == Some(wanted),
                Err(_) => return Value::Null,
            },
        };
        if better {
            best = Some(element);
        }
    }
    best.unwrap_or(Value::Null)
}
