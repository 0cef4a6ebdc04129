//! Whether a submission is taken: how its sender is to authenticate, and what an unauthenticated demo may do
//! (forms-and-cases.md §2, §2.1).

use axum::http::StatusCode;
use schemas::{
    id::{CaseId, DomainId},
    port::{Permission, Principal},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::types::Type;

use super::{Refusal, refuse};
use crate::{
    casexml::referenced_case_ids,
    error::{DatabaseError, WriteError},
    http::{
        HttpState,
        caller::{self, Asked},
        envelope,
    },
    store::keys::{Keys, wanted},
    xform::ParsedForm,
};

/// User of demo and practice modes.
const DEMO_USER: &str = "demo_user";
/// Those whose cases a demo may touch.
const DEMO_OWNERS: [&str; 2] = [DEMO_USER, "demo_user_group_id"];

/// What the URL asks for besides.
#[derive(Debug, Deserialize)]
pub(super) struct Options {
    authtype: Option<String>,
    submit_mode: Option<String>,
}

impl Options {
    /// True if forms of other users than the demo user are to be ignored.
    pub(super) fn is_demo(&self) -> bool {
        self.submit_mode.as_deref() == Some("demo")
    }

    /// True if the sender says that there are no credentials.
    fn waives(&self) -> bool {
        self.is_demo() || self.authtype.as_deref() == Some("noauth")
    }
}

/// How a submission was let in.
#[derive(Debug)]
pub(super) enum Admission {
    /// By credentials.
    Caller(Principal),
    /// The domain asks for none.
    Open,
    /// By saying that it is a demo; what it may do is decided by [`demo_may`].
    Waived,
}

impl Admission {
    /// Authenticates the sender where the domain or the URL demands it.
    ///
    /// # Errors
    /// The response to send.
    pub(super) async fn of(
        state: &HttpState,
        domain: &DomainId,
        demanded: bool,
        options: &Options,
        asked: &Asked,
        permission: Permission,
    ) -> Result<Self, Refusal> {
        let wanted = match options.authtype.as_deref() {
            None => None,
            Some(name) => Some(caller::Scheme::of_authtype(name).ok_or_else(|| {
                let text = "authtype must be one of: basic, digest, noauth, api_key, oauth2";
                refuse(StatusCode::BAD_REQUEST, text)
            })?),
        };
        if !demanded {
            return Ok(Self::Open);
        }
        if options.waives() {
            return Ok(Self::Waived);
        }
        let caller = caller::submitter(state, domain, asked, wanted.flatten(), permission).await;
        caller.map(Self::Caller).map_err(Box::new)
    }

    /// Who sent it.
    pub(super) const fn caller(&self) -> Option<&Principal> {
        match self {
            Self::Caller(principal) => Some(principal),
            Self::Open | Self::Waived => None,
        }
    }

    /// As the form's document shows it.
    pub(super) fn context(&self, domain: &DomainId) -> Value {
        let kind = if matches!(self, Self::Waived) { "WaivedAuthContext" } else { "AuthContext" };
        json!({
            "doc_type": kind,
            "domain": domain,
            "user_id": self.caller().map(|caller| caller.user_id.as_str()),
            "authenticated": self.caller().is_some(),
        })
    }
}

/// True if the form's user is the demo user.
pub(super) fn is_demo_user(form: &ParsedForm) -> bool {
    form.meta.user_id.as_deref() == Some(DEMO_USER)
}

/// True if a form may come without credentials: it is of the demo user, and touches nobody else's cases.
///
/// # Errors
/// The response to send when the cases cannot be read.
pub(super) async fn demo_may(state: &HttpState, domain: &DomainId, form: &ParsedForm) -> Result<bool, Refusal> {
    if form.is_device_log {
        return Ok(true);
    }
    if !is_demo_user(form) {
        return Ok(false);
    }
    let Ok(blocks) = &form.case_blocks else { return Ok(true) };
    let demo = |owner: &Option<String>| owner.as_deref().is_none_or(|owner| DEMO_OWNERS.contains(&owner));
    let outside = blocks.iter().any(|block| {
        block.create.as_ref().is_some_and(|create| !demo(&create.user_id) || !demo(&create.owner_id))
            || block.update.as_ref().is_some_and(|update| !demo(&update.columns.owner_id))
    });
    if outside {
        return Ok(false);
    }
    let ledgers = form.ledger_changes.iter().map(|change| change.key.case_id.clone());
    let named = blocks.iter().map(|block| block.case_id.clone()).chain(referenced_case_ids(blocks)).chain(ledgers);
    let ids: Vec<CaseId> = named.collect();
    let ids: Keys<'_> = ids.iter().map(CaseId::as_str).collect();
    let [wanted_ids, shards] = ids.parameters();
    if ids.is_empty() {
        return Ok(true);
    }
    let found = async {
        let client = state.ingest.domains.pool(domain).await?.get().await?;
        let owners: Vec<&str> = DEMO_OWNERS.to_vec();
        let vacant: bool = client
            .query_typed_one(
                concat!(
                    "SELECT NOT EXISTS (SELECT 1 FROM ",
                    wanted!(),
                    " JOIN cases c ON c.shard = w.shard AND c.id = w.id \
                     WHERE domain <> $3 OR owner_id <> '' OR modified_by <> ALL($4))"
                ),
                &[
                    (wanted_ids, Type::TEXT_ARRAY),
                    (shards, Type::INT2_ARRAY),
                    (&domain.as_str(), Type::TEXT),
                    (&owners, Type::TEXT_ARRAY),
                ],
            )
            .await
            .and_then(|row| row.try_get(0))
            .map_err(DatabaseError::from)?;
        Ok::<bool, WriteError>(vacant)
    };
    found.await.map_err(|error| Box::new(envelope::refused(&error)))
}
