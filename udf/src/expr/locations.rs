//! `ancestor_location`, `location_type_name`, `location_parent_id`: the location hierarchy (ucr.md §2.7).

use schemas::{change::DocKind, doc::Doc};

use super::{Compile, Expr, Expression, related_doc::Finder};
use crate::{
    context::{Context, Relation},
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::{Name, Value},
};

/// Levels walked at most; a hierarchy that is deeper, or a ring, ends here.
const MAX_LEVELS: usize = 32;

/// Walks the hierarchy. Change records name a place's parent `parent_location_id` or `parent_id`, its type
/// `location_type` or `location_type_name`.
#[derive(Debug)]
struct Places {
    finder: Finder,
    parents: [Name; 2],
    types: [Name; 2],
}

fn first_text<'a>(place: &Value<'a>, names: &[Name]) -> Value<'a> {
    names
        .iter()
        .filter_map(|name| place.get(name))
        .find(|value| matches!(value, Value::Text(text) if !text.is_empty()))
        .unwrap_or(Value::Null)
}

impl Places {
    fn new() -> Self {
        Self {
            finder: Finder::new(Relation::Document(DocKind::Location)),
            parents: [Name::new("parent_location_id"), Name::new("parent_id")],
            types: [Name::new("location_type"), Name::new("location_type_name")],
        }
    }

    /// The original asks its location table without a second look at the domain; scoping is the caller's.
    fn find(&self, id: &Value<'_>, context: &mut Context<'_, '_>) -> Option<Doc> {
        self.finder.find_anywhere(id, context)
    }

    fn parent_of<'a>(&self, place: &Value<'a>) -> Value<'a> {
        first_text(place, &self.parents)
    }

    fn type_of<'a>(&self, place: &Value<'a>) -> Value<'a> {
        first_text(place, &self.types)
    }
}

/// Notes the demand for a location, and what is read of it.
fn demand(spec: &Spec<'_>, key: &str, reads: &[&str], compiler: &mut Compiler<'_>) -> DemandNo {
    let demand = compiler.demand(Relation::Document(DocKind::Location), spec.raw(key), spec.pointer());
    compiler.reads_of(demand, reads);
    demand
}

/// The nearest ancestor of a location type, itself excluded: the whole location or one property.
#[derive(Debug)]
pub(crate) struct AncestorLocation {
    places: Places,
    location_id: Expr,
    location_type: Expr,
    property: Option<Name>,
    demand: DemandNo,
}

impl Compile for AncestorLocation {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let location_id = spec.expression("location_id", compiler);
        let location_type = spec.expression("location_type", compiler);
        let property = spec.optional_text("location_property", compiler);
        let demand = demand(spec, "location_id", &["location_type", "parent_location_id"], compiler);
        compiler.reads_of(demand, property.as_slice());
        Self { places: Places::new(), location_id, location_type, property: property.map(Name::new), demand }
    }
}

impl Expression for AncestorLocation {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let mut id = self.location_id.eval(item, context)?;
        let wanted = self.location_type.eval(item, context)?;
        let mut own = true;
        for _ in 0..MAX_LEVELS {
            let Some(doc) = self.places.find(&id, context) else { return Ok(Value::Null) };
            let place = Value::from_doc(doc);
            if !own && self.places.type_of(&place).equals(&wanted) {
                return Ok(match &self.property {
                    Some(property) => place.get(property).unwrap_or(Value::Null),
                    None => place,
                });
            }
            own = false;
            id = self.places.parent_of(&place);
        }
        Ok(Value::Null)
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.property.is_none().then_some(self.demand)
    }
}

/// The type name of a location.
#[derive(Debug)]
pub(crate) struct LocationTypeName {
    places: Places,
    location_id: Expr,
}

impl Compile for LocationTypeName {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let location_id = spec.expression("location_id_expression", compiler);
        demand(spec, "location_id_expression", &["location_type"], compiler);
        Self { places: Places::new(), location_id }
    }
}

impl Expression for LocationTypeName {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let id = self.location_id.eval(item, context)?;
        let place = self.places.find(&id, context).map_or(Value::Null, Value::from_doc);
        Ok(self.places.type_of(&place))
    }
}

/// The id of a location's parent.
#[derive(Debug)]
pub(crate) struct LocationParentId {
    places: Places,
    location_id: Expr,
}

impl Compile for LocationParentId {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let location_id = spec.expression("location_id_expression", compiler);
        demand(spec, "location_id_expression", &["parent_location_id"], compiler);
        Self { places: Places::new(), location_id }
    }
}

impl Expression for LocationParentId {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let id = self.location_id.eval(item, context)?;
        let place = self.places.finder.find(&id, context).map_or(Value::Null, Value::from_doc);
        Ok(self.places.parent_of(&place))
    }
}
