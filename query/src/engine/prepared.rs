//! Prepared queries: parsed once, planned and optimised once per shape of their tables.
//!
//! Planning is nearly all of what a look-up costs (dataflow.md §1). A prepared query keeps its optimised plan with the
//! parameters still open. To run, the plan's tables are exchanged for those of the statement's snapshot and the parameters
//! are filled in; only the physical plan is made anew. If a table has changed its columns, key or index, or the plan reads
//! something other than live tables, it is planned again from the parsed statement.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::{
    common::{
        ParamValues, Result as PlanResult, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::{provider_as_source, source_as_provider},
    logical_expr::{Expr, LogicalPlan, TableScan},
    sql::sqlparser::ast,
};
use parking_lot::Mutex;
use schemas::table::Table;

use super::{Engine, reads_clock};
use crate::{catalog::Scope, error::QueryError, table::LiveTable};

/// A query whose text has been read.
#[derive(Debug)]
pub(crate) struct Prepared {
    statement: ast::Statement,
    /// Types of `$1`, `$2`, … where their place in the statement gives them one.
    parameters: Vec<Option<DataType>>,
    schema: SchemaRef,
    /// Guards nothing but the pointer: replaced when the tables have changed shape.
    reusable: Mutex<Option<Arc<LogicalPlan>>>,
}

impl Prepared {
    /// Plans a query and keeps what can be used again.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub(crate) fn new(engine: &Engine, scope: &Arc<Scope>, statement: ast::Statement) -> Result<Self, QueryError> {
        let plan = engine.plan(scope, &statement)?;
        let parameters = parameter_types(&plan)?;
        let schema = Arc::clone(plan.schema().inner());
        let reusable = Mutex::new(reusable(engine, &plan)?.map(Arc::new));
        Ok(Self { statement, parameters, schema, reusable })
    }

    /// Types of the parameters, `$1` first; `None` takes what is given.
    pub(crate) fn parameters(&self) -> &[Option<DataType>] {
        &self.parameters
    }

    /// Columns of the result.
    pub(crate) const fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The plan for a scope, and whether it is optimised already.
    ///
    /// # Errors
    /// [`QueryError::ResultChanged`] if the columns are no longer those promised, and as [`Engine::plan`].
    pub(crate) fn bind(
        &self,
        engine: &Engine,
        scope: &Arc<Scope>,
        values: Vec<ScalarValue>,
    ) -> Result<(LogicalPlan, bool), QueryError> {
        let values = self.coerce(values)?;
        let kept = self.reusable.lock().clone();
        if let Some(kept) = kept
            && let Some(plan) = exchange_tables(&kept, scope)?
        {
            return Ok((fill(plan, &values)?, true));
        }
        let plan = engine.plan(scope, &self.statement)?;
        let (now, then) = (plan.schema().inner().fields(), self.schema.fields());
        let same = |(now, then): (&arrow::datatypes::FieldRef, &arrow::datatypes::FieldRef)| {
            now.name() == then.name() && now.data_type() == then.data_type()
        };
        if now.len() != then.len() || !now.iter().zip(then).all(same) {
            return Err(QueryError::ResultChanged);
        }
        let fresh = reusable(engine, &plan)?;
        *self.reusable.lock() = fresh.map(Arc::new);
        Ok((fill(plan, &values)?, false))
    }

    /// The values as the types that the plan expects.
    fn coerce(&self, values: Vec<ScalarValue>) -> Result<Vec<ScalarValue>, QueryError> {
        if values.len() != self.parameters.len() {
            return Err(QueryError::Parameter(format!(
                "the statement has {} parameters, {} values were given",
                self.parameters.len(),
                values.len()
            )));
        }
        let cast = |(at, (value, kind)): (usize, (ScalarValue, &Option<DataType>))| {
            let Some(kind) = kind.as_ref().filter(|kind| **kind != value.data_type()) else { return Ok(value) };
            value.cast_to(kind).map_err(|error| {
                QueryError::Parameter(format!("could not read parameter ${} as {kind}: {}", at + 1, error.message()))
            })
        };
        values.into_iter().zip(&self.parameters).enumerate().map(cast).collect()
    }
}

fn fill(plan: LogicalPlan, values: &[ScalarValue]) -> Result<LogicalPlan, QueryError> {
    if values.is_empty() {
        return Ok(plan);
    }
    Ok(plan.replace_params_with_values(&ParamValues::from(values.to_vec()))?)
}

/// The types that parameters get from their place in the plan, `$1` first.
fn parameter_types(plan: &LogicalPlan) -> Result<Vec<Option<DataType>>, QueryError> {
    let mut found = plan.get_parameter_types()?;
    plan.apply_with_subqueries(|node| {
        // The library leaves these open.
        if let LogicalPlan::Limit(limit) = node {
            for number in [&limit.skip, &limit.fetch].into_iter().flatten() {
                note(&mut found, number, &DataType::Int64);
            }
        }
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                if let Expr::Cast(cast) = part {
                    note(&mut found, &cast.expr, cast.field.data_type());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let mut types = Vec::new();
    for (name, kind) in found {
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let Some(number) = number.filter(|number| (1..=usize::from(u16::MAX)).contains(number)) else {
            return Err(QueryError::Parameter(format!("`{name}` is not a parameter; write $1, $2, …")));
        };
        if types.len() < number {
            types.resize(number, None);
        }
        if let Some(slot) = types.get_mut(number - 1) {
            *slot = kind;
        }
    }
    Ok(types)
}

/// Gives a parameter a type if it has none.
fn note(found: &mut HashMap<String, Option<DataType>>, expression: &Expr, kind: &DataType) {
    if let Expr::Placeholder(placeholder) = expression
        && let Some(slot @ None) = found.get_mut(&placeholder.id)
    {
        *slot = Some(kind.clone());
    }
}

/// The optimised plan with open parameters, if it can serve other statements: it reads live tables only, and nothing in it
/// depends on when it was made.
fn reusable(engine: &Engine, plan: &LogicalPlan) -> Result<Option<LogicalPlan>, QueryError> {
    let explains = matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
    if explains || reads_clock(plan)? || !keeps(plan)? {
        return Ok(None);
    }
    // A parameter without a type cannot be optimised around; such plans are made when the values are known.
    Ok(engine.state.optimize(plan).ok())
}

/// True if the plan reads live tables only, and its limits are known: the optimiser works with the numbers.
fn keeps(plan: &LogicalPlan) -> PlanResult<bool> {
    let mut keeps = true;
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(scan) => keeps &= live(scan)?.is_some(),
            LogicalPlan::Limit(limit) => {
                let open = |number: &Option<Box<Expr>>| {
                    number.as_ref().is_some_and(|number| !matches!(**number, Expr::Literal(_, _)))
                };
                keeps &= !open(&limit.skip) && !open(&limit.fetch);
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(keeps)
}

fn live(scan: &TableScan) -> PlanResult<Option<Arc<Table>>> {
    let provider = source_as_provider(&scan.source)?;
    Ok(provider.downcast_ref::<LiveTable>().map(|table| Arc::clone(table.table())))
}

/// Points every scan at the scope's version of its table; `None` if one of them has another shape now.
fn exchange_tables(plan: &LogicalPlan, scope: &Arc<Scope>) -> Result<Option<LogicalPlan>, QueryError> {
    let mut fits = true;
    let exchanged = plan.clone().transform_down_with_subqueries(|node| {
        let LogicalPlan::TableScan(scan) = node else { return Ok(Transformed::no(node)) };
        let found = scope.find(&scan.table_name).ok();
        let now = found.as_ref().and_then(|found| found.downcast_ref::<LiveTable>());
        let same = match (live(&scan)?, now) {
            (Some(then), Some(now)) => same_shape(&then, now.table()),
            _ => false,
        };
        match found {
            Some(found) if same => {
                let source = provider_as_source(found);
                Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan })))
            }
            _ => {
                fits = false;
                Ok(Transformed::no(LogicalPlan::TableScan(scan)))
            }
        }
    })?;
    Ok(fits.then_some(exchanged.data))
}

/// True if plans made for one table hold for the other: same columns, and the same filters left to it.
fn same_shape(then: &Table, now: &Table) -> bool {
    (Arc::ptr_eq(&then.schema, &now.schema) || then.schema == now.schema)
        && (Arc::ptr_eq(&then.arrow, &now.arrow) || then.arrow == now.arrow)
        && then.stamp_column == now.stamp_column
        && then.index.is_some() == now.index.is_some()
}
