//! `property_name`, `property_path`, `identity`: reading the item (ucr.md §2.2).

use super::{Compile, Expr, Expression, compile, stand_in};
use crate::{
    coerce::DataType,
    context::Context,
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::{Name, Value},
};

#[derive(Debug)]
enum Property {
    Fixed(Name),
    Computed(Expr),
}

/// The item's value under a name; null if there is none or the item is no mapping.
#[derive(Debug)]
pub(crate) struct PropertyName {
    property: Property,
    datatype: Option<DataType>,
}

impl PropertyName {
    pub(crate) fn fixed(name: &str, datatype: Option<DataType>) -> Self {
        Self { property: Property::Fixed(Name::new(name)), datatype }
    }
}

impl Compile for PropertyName {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let property = match spec.required("property_name", compiler) {
            None => Property::Computed(stand_in()),
            Some(json) => match json.as_str() {
                Some(name) => {
                    compiler.reads(name);
                    Property::Fixed(Name::new(name))
                }
                None => Property::Computed(compile(json, &spec.at("property_name"), compiler)),
            },
        };
        Self { property, datatype: spec.optional_datatype(compiler) }
    }
}

impl Expression for PropertyName {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let value = match &self.property {
            Property::Fixed(name) => item.get(name),
            Property::Computed(name) => match (item, name.eval(item, context)?) {
                (Value::Map(map), Value::Text(name)) => map.get_text(&name),
                _ => None,
            },
        };
        coerced(value.unwrap_or(Value::Null), self.datatype)
    }

    fn property(&self) -> Option<&str> {
        match &self.property {
            Property::Fixed(name) if self.datatype.is_none() => Some(name.as_str()),
            _ => None,
        }
    }
}

/// The value at the end of a path of names.
#[derive(Debug)]
pub(crate) struct PropertyPath {
    path: Box<[Name]>,
    datatype: Option<DataType>,
}

impl PropertyPath {
    pub(crate) fn fixed(path: &[&str], datatype: Option<DataType>) -> Self {
        Self { path: path.iter().map(|name| Name::new(name)).collect(), datatype }
    }
}

impl Compile for PropertyPath {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let path = spec.texts("property_path", compiler);
        compiler.reads(path.join("."));
        Self::fixed(&path, spec.optional_datatype(compiler))
    }
}

impl Expression for PropertyPath {
    fn eval<'a>(&'a self, item: &Value<'a>, _: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let value = match item {
            Value::Map(map) => map.path(&self.path),
            _ => None,
        };
        coerced(value.unwrap_or(Value::Null), self.datatype)
    }
}

/// The item itself.
#[derive(Debug)]
pub(crate) struct Identity {
    demand: Option<DemandNo>,
}

impl Compile for Identity {
    fn compile(_: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self { demand: compiler.found_by() }
    }
}

impl Expression for Identity {
    fn eval<'a>(&'a self, item: &Value<'a>, _: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        Ok(item.clone())
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.demand
    }
}

/// Applies a datatype if there is one.
pub(crate) fn coerced(value: Value<'_>, datatype: Option<DataType>) -> Result<Value<'_>, EvalError> {
    match datatype {
        Some(datatype) => datatype.coerce(value),
        None => Ok(value),
    }
}
