//! From a statement's text to a stream of rows: parse, plan against one snapshot, run within the limits.
//!
//! Shared by every protocol. What is expensive to make (function registry, optimizer rules, memory pool) is made once; a
//! statement costs its planning.

mod prepared;
mod stream;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use datafusion::{
    catalog::SchemaProvider,
    common::{
        Result as PlanResult, ScalarValue,
        stats::Precision,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    config::Dialect,
    execution::{
        SessionState, SessionStateBuilder, TaskContext,
        memory_pool::GreedyMemoryPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::{Expr, LogicalPlan, Volatility, planner::TypePlanner},
    physical_plan::{StatisticsArgs, StatisticsContext, execute_stream},
    prelude::{SessionConfig, SessionContext},
    sql::{
        parser::Statement as DfStatement,
        planner::{ParserOptions, SqlToRel},
        sqlparser::{ast, dialect::PostgreSqlDialect, parser::Parser},
    },
};
use datafusion_postgres::datafusion_pg_catalog::{
    pg_catalog::{PgCatalogStaticTables, context::EmptyContextProvider, oid_type_planner::PgOidTypePlanner},
    setup_pg_catalog,
};
use schemas::{
    id::DomainId,
    port::{Clock, SystemClock, ViewReader},
    position::Position,
};
use tokio::{sync::Semaphore, time::Instant};

pub(crate) use self::{prepared::Prepared, stream::Answer};
use crate::{
    catalog::{Scope, pg},
    config::QueryConfig,
    error::QueryError,
    metrics::Running,
    session::Names,
};

/// How long a statement waits for its turn.
const TURN: Duration = Duration::from_secs(1);

/// Who asks, for how long, over which protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) protocol: &'static str,
    pub(crate) timeout: Duration,
    pub(crate) max_rows: usize,
}

/// Plans and runs statements.
pub(crate) struct Engine {
    views: Arc<dyn ViewReader>,
    config: QueryConfig,
    state: SessionState,
    types: Arc<dyn TypePlanner>,
    tasks: Arc<TaskContext>,
    turns: Arc<Semaphore>,
    pg_tables: OnceLock<Arc<PgCatalogStaticTables>>,
}

impl Engine {
    /// Makes the shared parts.
    ///
    /// # Errors
    /// [`QueryError::Internal`] if the library's own tables or functions cannot be set up.
    pub(crate) fn new(views: Arc<dyn ViewReader>, config: QueryConfig) -> Result<Self, QueryError> {
        let memory = GreedyMemoryPool::new(config.memory_limit_mib << 20);
        let runtime = Arc::new(RuntimeEnvBuilder::new().with_memory_pool(Arc::new(memory)).build()?);
        let state = base_state(&config, Arc::clone(&runtime))?;
        // The registry is only for plans that arrive serialised; leaving it empty saves a copy of every function.
        let tasks = Arc::new(TaskContext::new(
            None,
            "millrace".to_owned(),
            state.config().clone(),
            HashMap::default(),
            HashMap::default(),
            HashMap::default(),
            HashMap::default(),
            runtime,
        ));
        let turns = Arc::new(Semaphore::new(config.max_concurrent_statements.max(1)));
        let types = Arc::new(PgOidTypePlanner);
        Ok(Self { views, config, state, types, tasks, turns, pg_tables: OnceLock::new() })
    }

    pub(crate) const fn config(&self) -> &QueryConfig {
        &self.config
    }

    /// The snapshot a statement reads: the newest, or the first that shows the receipt.
    ///
    /// # Errors
    /// [`QueryError::Starting`] before the first complete snapshot, [`QueryError::Wait`].
    pub(crate) async fn scope(
        &self,
        domain: &DomainId,
        user: &Arc<str>,
        receipt: Option<Position>,
        pg_catalog: Option<Arc<dyn SchemaProvider>>,
    ) -> Result<Arc<Scope>, QueryError> {
        if !self.views.ready() {
            return Err(QueryError::Starting);
        }
        let snapshot = match receipt {
            Some(receipt) => self.views.wait_for(domain, receipt, self.config.default_wait()).await?,
            None => self.views.snapshot(),
        };
        let tables = snapshot.domains.get(domain).cloned().unwrap_or_default();
        Ok(Arc::new(Scope {
            snapshot,
            reader: Arc::clone(&self.views),
            domain: domain.clone(),
            user: Arc::clone(user),
            tables,
            now: SystemClock.now_micros(),
            stalled_after: i64::try_from(self.config.stalled_after_ms.saturating_mul(1000)).unwrap_or(i64::MAX),
            pg_catalog,
        }))
    }

    /// Postgres' own catalogue for one connection.
    ///
    /// # Errors
    /// [`QueryError::Internal`] if the library's tables cannot be read.
    pub(crate) fn pg_catalog(&self, domain: &DomainId) -> Result<Arc<dyn SchemaProvider>, QueryError> {
        let tables = match self.pg_tables.get() {
            Some(tables) => Arc::clone(tables),
            None => {
                let tables = Arc::new(PgCatalogStaticTables::try_new()?);
                Arc::clone(self.pg_tables.get_or_init(|| tables))
            }
        };
        Ok(pg::schema(tables, pg::DomainCatalog { views: Arc::clone(&self.views), domain: domain.clone() })?)
    }

    /// Parses one or more statements.
    ///
    /// # Errors
    /// [`QueryError::Syntax`], [`QueryError::TooLong`].
    pub(crate) fn parse(&self, sql: &str) -> Result<Vec<ast::Statement>, QueryError> {
        self.check_length(sql)?;
        Parser::parse_sql(&PostgreSqlDialect {}, sql).map_err(|error| QueryError::Syntax(error.to_string()))
    }

    /// Refuses statements longer than the limit.
    pub(crate) fn check_length(&self, sql: &str) -> Result<(), QueryError> {
        let limit = self.config.max_statement_bytes;
        if sql.len() > limit { Err(QueryError::TooLong { limit }) } else { Ok(()) }
    }

    /// Plans a query; parameters may be open.
    ///
    /// # Errors
    /// [`QueryError::ReadOnly`] for anything but a query, and whatever is wrong with its names and types.
    pub(crate) fn plan(&self, scope: &Arc<Scope>, statement: &ast::Statement) -> Result<LogicalPlan, QueryError> {
        check_read_only(statement)?;
        let names = Names { scope, state: &self.state, types: Some(Arc::clone(&self.types)) };
        let sql = &self.state.config_options().sql_parser;
        let options = ParserOptions {
            parse_float_as_decimal: sql.parse_float_as_decimal,
            enable_ident_normalization: sql.enable_ident_normalization,
            enable_options_value_normalization: sql.enable_options_value_normalization,
            support_varchar_with_length: sql.support_varchar_with_length,
            map_string_types_to_utf8view: sql.map_string_types_to_utf8view,
            collect_spans: sql.collect_spans,
            default_null_ordering: sql.default_null_ordering.as_str().into(),
        };
        let planner = SqlToRel::new_with_options(&names, options);
        let plan = planner.statement_to_plan(DfStatement::Statement(Box::new(statement.clone())))?;
        check_plan(&plan)?;
        Ok(plan)
    }

    /// Runs a query without parameters.
    ///
    /// # Errors
    /// Everything that can be known before the first row.
    pub(crate) async fn run(&self, scope: &Arc<Scope>, plan: LogicalPlan, ask: Ask) -> Result<Answer, QueryError> {
        let open = plan.get_parameter_names()?.len();
        if open > 0 {
            return Err(QueryError::Parameter(format!("the statement has {open} parameters, no values were given")));
        }
        self.start(scope, plan, false, ask).await
    }

    /// Runs a prepared query with its parameters.
    ///
    /// # Errors
    /// As [`Self::run`], and [`QueryError::ResultChanged`].
    pub(crate) async fn run_prepared(
        &self,
        scope: &Arc<Scope>,
        prepared: &Prepared,
        parameters: Vec<ScalarValue>,
        ask: Ask,
    ) -> Result<Answer, QueryError> {
        let (plan, optimized) = prepared.bind(self, scope, parameters)?;
        self.start(scope, plan, optimized, ask).await
    }

    async fn start(
        &self,
        scope: &Arc<Scope>,
        plan: LogicalPlan,
        optimized: bool,
        ask: Ask,
    ) -> Result<Answer, QueryError> {
        let mut running = Running::start(ask.protocol);
        let started = self.try_start(scope, plan, optimized, ask).await;
        match started {
            Ok(started) => Ok(Answer::new(started, running, ask)),
            Err(error) => {
                running.failed();
                Err(error)
            }
        }
    }

    async fn try_start(
        &self,
        scope: &Arc<Scope>,
        plan: LogicalPlan,
        optimized: bool,
        ask: Ask,
    ) -> Result<stream::Started, QueryError> {
        let deadline = Instant::now() + ask.timeout;
        let turn = Arc::clone(&self.turns).acquire_owned();
        let permit = match tokio::time::timeout(TURN.min(ask.timeout), turn).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) | Err(_) => return Err(QueryError::Busy { limit: self.config.max_concurrent_statements }),
        };
        let state = self.state_for(&plan)?;
        let plan = async {
            if optimized {
                state.query_planner().create_physical_plan(&plan, state.as_ref()).await
            } else {
                state.create_physical_plan(&plan).await
            }
        };
        let plan =
            tokio::time::timeout_at(deadline, plan).await.map_err(|_| QueryError::Timeout { after: ask.timeout })??;
        let statistics = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new())?;
        if let Precision::Exact(rows) = statistics.num_rows
            && rows > ask.max_rows
        {
            return Err(QueryError::TooManyRows { limit: ask.max_rows });
        }
        let stream = execute_stream(plan, Arc::clone(&self.tasks))?;
        tracing::debug!(domain = %scope.domain, protocol = ask.protocol, tick = scope.snapshot.moment.tick.0, "started statement");
        Ok((stream, permit, deadline))
    }

    /// The shared state, or a copy whose clock stands at this statement if the plan asks what time it is.
    fn state_for(&self, plan: &LogicalPlan) -> Result<Cow<'_, SessionState>, QueryError> {
        if !reads_clock(plan)? {
            return Ok(Cow::Borrowed(&self.state));
        }
        let mut state = self.state.clone();
        state.mark_start_execution();
        Ok(Cow::Owned(state))
    }
}

/// True if a function of the plan may answer differently in the next statement.
fn reads_clock(plan: &LogicalPlan) -> PlanResult<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                Ok(match part {
                    Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                        found = true;
                        TreeNodeRecursion::Stop
                    }
                    _ => TreeNodeRecursion::Continue,
                })
            })
        })
    })?;
    Ok(found)
}

fn base_state(config: &QueryConfig, runtime: Arc<RuntimeEnv>) -> Result<SessionState, QueryError> {
    let mut session =
        SessionConfig::new().with_target_partitions(config.partitions.max(1)).with_information_schema(true);
    session.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
    let context = SessionContext::new_with_config_rt(session, runtime);
    let catalog = context.state().config_options().catalog.default_catalog.clone();
    setup_pg_catalog(&context, &catalog, EmptyContextProvider).map_err(|error| QueryError::from(*error))?;
    Ok(SessionStateBuilder::new_from_existing(context.state()).build())
}

/// Lets only queries through; the statement's kind is named in the refusal.
fn check_read_only(statement: &ast::Statement) -> Result<(), QueryError> {
    use ast::Statement;
    match statement {
        Statement::Query(_)
        | Statement::ExplainTable { .. }
        | Statement::ShowTables { .. }
        | Statement::ShowColumns { .. }
        | Statement::ShowVariable { .. }
        | Statement::ShowFunctions { .. } => Ok(()),
        Statement::Explain { statement, .. } => check_read_only(statement),
        other => {
            let text = other.to_string();
            let words: Vec<&str> = text.split_whitespace().take(2).collect();
            let what = match words.as_slice() {
                [first @ ("CREATE" | "DROP" | "ALTER"), second] => format!("{first} {second}"),
                [first, ..] => (*first).to_owned(),
                [] => "an empty statement".to_owned(),
            };
            Err(QueryError::ReadOnly { what })
        }
    }
}

/// The same on the plan, which sees through `select … into` and the like.
fn check_plan(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        refused = match node {
            LogicalPlan::Ddl(ddl) => Some(ddl.name().to_owned()),
            LogicalPlan::Dml(dml) => Some(dml.op.to_string()),
            LogicalPlan::Copy(_) => Some("COPY".to_owned()),
            LogicalPlan::Statement(statement) => Some(statement.name().to_owned()),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        Ok(TreeNodeRecursion::Stop)
    })?;
    match refused {
        Some(what) => Err(QueryError::ReadOnly { what }),
        None => Ok(()),
    }
}
