//! The simple and the extended protocol over the engine.

use std::{fmt::Debug, sync::Arc};

use ::pgwire::{
    api::{
        ClientInfo, ClientPortalStore, Type,
        portal::{Format, Portal},
        query::{ExtendedQueryHandler, SimpleQueryHandler},
        results::{FieldInfo, Response, Tag},
        stmt::QueryParser,
        store::PortalStore,
    },
    error::{PgWireError, PgWireResult},
    messages::{PgWireBackendMessage, response::TransactionStatus},
    types::format::FormatOptions,
};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::{common::ParamValues, scalar::ScalarValue, sql::sqlparser::ast};
use datafusion_postgres::arrow_pg::datatypes::{df::deserialize_parameters_with_server_types, into_pg_type};
use futures::Sink;

use super::{command::Command, describe, failed, rows, session::Session};
use crate::{QueryError, engine::Prepared};

/// Answers the statements of one connection.
pub(super) struct Queries {
    session: Arc<Session>,
    parser: Arc<Parser>,
}

impl Queries {
    pub(super) fn new(session: Arc<Session>) -> Self {
        Self { parser: Arc::new(Parser { session: Arc::clone(&session) }), session }
    }

    /// Answers a command.
    fn command<C: ClientInfo>(&self, client: &C, command: &Command, format: &Format) -> Result<Response, QueryError> {
        let tag = |tag: &str| Ok(Response::Execution(Tag::new(tag)));
        match command {
            Command::Begin => Ok(Response::TransactionStart(Tag::new("BEGIN"))),
            Command::Commit if client.transaction_status() == TransactionStatus::Error => {
                Ok(Response::TransactionEnd(Tag::new("ROLLBACK")))
            }
            Command::Commit => Ok(Response::TransactionEnd(Tag::new("COMMIT"))),
            Command::Rollback => Ok(Response::TransactionEnd(Tag::new("ROLLBACK"))),
            Command::Set { name, value } => {
                self.session.set(name, value.as_deref())?;
                tag("SET")
            }
            Command::ResetAll => {
                self.session.reset();
                tag("RESET")
            }
            Command::Show(name) => Ok(Response::Query(rows::one_text(name, &self.session.show(name)?, format)?)),
            Command::Nothing(done) => tag(done),
        }
    }

    /// Runs one statement of the simple protocol.
    async fn simple<C: ClientInfo>(&self, client: &C, statement: ast::Statement) -> Result<Response, QueryError> {
        if let Some(command) = Command::of(&statement) {
            return self.command(client, &command, &Format::UnifiedText);
        }
        let scope = self.session.scope().await?;
        let plan = self.session.engine().plan(&scope, &statement)?;
        let answer = self.session.engine().run(&scope, plan, self.session.ask()).await?;
        let options = FormatOptions::from_client_metadata(client.metadata());
        Ok(Response::Query(rows::respond(answer, &Format::UnifiedText, Arc::new(options))?))
    }
}

#[async_trait]
impl SimpleQueryHandler for Queries {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statements = self.session.parse(query).map_err(failed)?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let mut responses = Vec::with_capacity(statements.len());
        for statement in statements {
            match self.simple(client, statement).await {
                Ok(response) => responses.push(response),
                // What came before it has been answered; what comes after it is not run.
                Err(error) => {
                    tracing::debug!(%error, "refused statement");
                    responses.push(Response::Error(describe(&error, "ERROR")));
                    break;
                }
            }
        }
        Ok(responses)
    }
}

/// A statement of the extended protocol after `Parse`.
#[derive(Clone, Debug)]
pub(super) enum Parsed {
    Command(Command),
    Query(Arc<Prepared>),
}

/// Reads the statements of the extended protocol.
pub(super) struct Parser {
    session: Arc<Session>,
}

impl Parser {
    async fn parse(&self, sql: &str) -> Result<Option<Parsed>, QueryError> {
        let mut statements = self.session.parse(sql)?;
        let Some(statement) = statements.pop() else { return Ok(None) };
        if !statements.is_empty() {
            return Err(QueryError::Syntax("cannot insert multiple commands into a prepared statement".to_owned()));
        }
        if let Some(command) = Command::of(&statement) {
            return Ok(Some(Parsed::Command(command)));
        }
        let scope = self.session.scope().await?;
        Ok(Some(Parsed::Query(Arc::new(Prepared::new(self.session.engine(), &scope, statement)?))))
    }
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Parsed;

    async fn parse_sql<C>(&self, _client: &C, sql: &str, _types: &[Option<Type>]) -> PgWireResult<Option<Parsed>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        self.parse(sql).await.map_err(failed)
    }

    fn get_parameter_types(&self, statement: &Parsed) -> PgWireResult<Vec<Type>> {
        match statement {
            Parsed::Command(_) => Ok(Vec::new()),
            Parsed::Query(prepared) => prepared.parameters().iter().map(wire_type).collect(),
        }
    }

    fn get_result_schema(&self, statement: &Parsed, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        let format = format.unwrap_or(&Format::UnifiedText);
        match statement {
            Parsed::Command(Command::Show(name)) => {
                rows::text_field(name, format).map(|field| vec![field]).map_err(failed)
            }
            Parsed::Command(_) => Ok(Vec::new()),
            Parsed::Query(prepared) => rows::fields(prepared.schema(), format, None).map_err(failed),
        }
    }
}

#[async_trait]
impl ExtendedQueryHandler for Queries {
    type Statement = Parsed;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::clone(&self.parser)
    }

    async fn do_query<C>(&self, client: &mut C, portal: &Portal<Parsed>, _max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Parsed>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let format = &portal.result_column_format;
        let prepared = match &portal.statement.statement {
            Parsed::Command(command) => return self.command(client, command, format).map_err(failed),
            Parsed::Query(prepared) => prepared,
        };
        let values = values(portal, prepared)?;
        let options = FormatOptions::from_client_metadata(client.metadata());
        let run = async {
            let scope = self.session.scope().await?;
            let answer = self.session.engine().run_prepared(&scope, prepared, values, self.session.ask()).await?;
            rows::respond(answer, format, Arc::new(options))
        };
        run.await.map(Response::Query).map_err(failed)
    }
}

/// What a client is asked to send; text where nothing says otherwise, as Postgres does.
fn wire_type(kind: &Option<DataType>) -> PgWireResult<Type> {
    kind.as_ref().map_or(Ok(Type::TEXT), into_pg_type)
}

/// The values bound to a portal, in the types that the client sent them in.
fn values(portal: &Portal<Parsed>, prepared: &Prepared) -> PgWireResult<Vec<ScalarValue>> {
    let kinds = prepared.parameters();
    if let Format::Individual(formats) = &portal.parameter_format
        && formats.len() != portal.parameter_len()
    {
        return Err(failed(QueryError::Parameter("there is not one format per parameter".to_owned())));
    }
    if portal.parameter_len() != kinds.len() {
        return Err(failed(QueryError::Parameter(format!(
            "the statement has {} parameters, {} values were bound",
            kinds.len(),
            portal.parameter_len()
        ))));
    }
    let inferred: Vec<_> = kinds.iter().map(Option::as_ref).collect();
    let wire = kinds.iter().map(wire_type).collect::<PgWireResult<Vec<_>>>()?;
    let wire: Vec<_> = wire.iter().map(Some).collect();
    match deserialize_parameters_with_server_types(portal, &inferred, &wire)? {
        ParamValues::List(values) => Ok(values.into_iter().map(|value| value.value).collect()),
        ParamValues::Map(_) => Err(failed(QueryError::Internal("parameters came by name".to_owned()))),
    }
}
