//! Names of a statement to what they mean in a scope: the planner's view of tables and functions.
//!
//! Planning never copies the engine's state: tables come from the snapshot when they are named, functions from the shared
//! registry, and only the handful of functions that depend on the session are made here.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::{
    catalog::{TableFunctionArgs, cte_worktable::CteWorkTable},
    common::{
        DFSchema, DataFusionError, Result, ScalarValue, TableReference, config::ConfigOptions, plan_datafusion_err,
    },
    datasource::provider_as_source,
    execution::SessionState,
    logical_expr::{
        AggregateUDF, ColumnarValue, Expr, HigherOrderUDF, ScalarUDF, TableSource, Volatility, WindowUDF, create_udf,
        planner::{ContextProvider, ExprPlanner, RelationPlanner, TypePlanner},
        simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
};

use crate::catalog::{SEARCH_PATH, Scope};

/// What `version()` says; drivers look for the number behind `PostgreSQL`.
pub(crate) const SERVER_VERSION: &str = "16.6";

/// A scope beside the shared function registry.
pub(crate) struct Names<'a> {
    pub(crate) scope: &'a Arc<Scope>,
    pub(crate) state: &'a SessionState,
    pub(crate) types: Option<Arc<dyn TypePlanner>>,
}

impl Names<'_> {
    /// Functions whose answer depends on the session.
    fn session_function(&self, name: &str) -> Option<ScalarUDF> {
        let text = |value: &str| constant(name, ScalarValue::Utf8(Some(value.to_owned())), vec![]);
        match name {
            "current_database" | "current_catalog" => Some(text(self.scope.domain.as_str())),
            "current_schema" => SEARCH_PATH.first().map(|schema| text(schema)),
            "current_user" | "session_user" | "user" => Some(text(&self.scope.user)),
            "version" => Some(text(&format!("PostgreSQL {SERVER_VERSION} (Millrace {})", env!("CARGO_PKG_VERSION")))),
            "current_schemas" => {
                let schemas: Vec<ScalarValue> =
                    SEARCH_PATH.iter().map(|schema| ScalarValue::Utf8(Some((*schema).to_owned()))).collect();
                let list = ScalarValue::List(ScalarValue::new_list_nullable(&schemas, &DataType::Utf8));
                Some(constant(name, list, vec![DataType::Boolean]))
            }
            _ => None,
        }
    }
}

/// A function that always gives the same value.
fn constant(name: &str, value: ScalarValue, arguments: Vec<DataType>) -> ScalarUDF {
    let kind = match value.data_type() {
        DataType::List(_) => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
        kind => kind,
    };
    let function = move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(value.clone()));
    create_udf(name, arguments, kind, Volatility::Immutable, Arc::new(function))
}

impl ContextProvider for Names<'_> {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        let found = self.scope.find(&name).map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(provider_as_source(found))
    }

    fn get_table_function_source(&self, name: &str, arguments: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        let function = self.state.table_functions().get(name);
        let function = function.ok_or_else(|| plan_datafusion_err!("Invalid function '{name}'"))?;
        let context = SimplifyContext::builder()
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(context);
        let schema = DFSchema::empty();
        let arguments = arguments
            .into_iter()
            .map(|argument| simplifier.coerce(argument, &schema).and_then(|argument| simplifier.simplify(argument)))
            .collect::<Result<Vec<_>>>()?;
        let arguments = TableFunctionArgs::new(&arguments, self.state);
        Ok(provider_as_source(function.create_table_provider_with_args(arguments)?))
    }

    fn create_cte_work_table(&self, name: &str, schema: SchemaRef) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(CteWorkTable::new(name, schema))))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        self.state.expr_planners()
    }

    fn get_relation_planners(&self) -> &[Arc<dyn RelationPlanner>] {
        self.state.relation_planners()
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        self.types.clone()
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let own = self.session_function(name).map(Arc::new);
        own.or_else(|| self.state.scalar_functions().get(name).cloned())
    }

    fn get_higher_order_meta(&self, name: &str) -> Option<Arc<HigherOrderUDF>> {
        self.state.higher_order_functions().get(name).cloned()
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.state.aggregate_functions().get(name).cloned()
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.state.window_functions().get(name).cloned()
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        self.state.config_options()
    }

    fn udf_names(&self) -> Vec<String> {
        self.state.scalar_functions().keys().cloned().collect()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        self.state.higher_order_functions().keys().cloned().collect()
    }

    fn udaf_names(&self) -> Vec<String> {
        self.state.aggregate_functions().keys().cloned().collect()
    }

    fn udwf_names(&self) -> Vec<String> {
        self.state.window_functions().keys().cloned().collect()
    }
}
