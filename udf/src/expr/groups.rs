//! `get_case_sharing_groups`, `get_reporting_groups`: the groups of a mobile worker (ucr.md §2.7).

use super::{Compile, Expr, Expression};
use crate::{
    context::{Context, Relation},
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::Value,
};

macro_rules! groups {
    ($($(#[$doc:meta])* $type:ident($relation:expr);)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $type {
            user_id: Expr,
            demand: DemandNo,
        }

        impl Compile for $type {
            fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
                let user_id = spec.expression("user_id_expression", compiler);
                Self { user_id, demand: compiler.demand($relation, spec.raw("user_id_expression"), spec.pointer()) }
            }
        }

        impl Expression for $type {
            fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
                Ok(Value::list(match self.user_id.eval(item, context)? {
                    Value::Text(id) if !id.is_empty() => {
                        context.related.get(&$relation, &id).into_iter().map(Value::from_doc).collect()
                    }
                    _ => Vec::new(),
                }))
            }

            fn found_by(&self) -> Option<DemandNo> {
                Some(self.demand)
            }
        }
    )*};
}

groups! {
    /// Groups whose members share cases.
    CaseSharingGroups(Relation::CaseSharingGroups);
    /// Groups that reports are filtered by.
    ReportingGroups(Relation::ReportingGroups);
}
