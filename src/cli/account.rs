//! `millrace domain | user | apikey …`: accounts, through ingest, beside a running server or without one.

use std::{fs::File, io::Read, process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use ingest::{Accounts, Ingest};
use schemas::{
    id::DomainId,
    port::{Permission, Secret},
};

use super::{ConfigArgs, say};
use crate::{assemble, config::Config, credentials, objects, postgres::Postgres, server};

/// Longest password that is read from standard input, in bytes.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// Manages domains.
#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// Create a domain with an administrator, whose password is printed once
    Create {
        /// Name: lower-case letters, digits, `-`, `_`, `.`
        name: DomainId,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Change a domain's settings; those that are not named stay
    Set {
        /// The domain
        name: DomainId,
        /// Whether every submission has to be authenticated
        #[arg(long, value_name = "BOOL")]
        secure_submissions: Option<bool>,
        /// Settings under CommCare's names that are on from now on; all others are off (comma-separated, may be empty)
        #[arg(long, value_delimiter = ',', num_args = 0.., value_name = "FLAG")]
        flags: Option<Vec<String>>,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// Manages web users.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Create a web user with access to a domain
    Create(CreateUser),
    /// Let a web user into a further domain, or change what they may do in one
    Join {
        /// User name
        username: String,
        /// The domain
        #[arg(long)]
        domain: DomainId,
        /// What the user may do there (comma-separated)
        #[arg(long, value_enum, value_delimiter = ',', default_value = "submit,read-data", value_name = "PERMISSION")]
        permission: Vec<PermissionName>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Take a web user out of a domain
    Leave {
        /// User name
        username: String,
        /// The domain
        #[arg(long)]
        domain: DomainId,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Set a web user's password
    Password {
        /// User name
        username: String,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// Arguments of `user create`.
#[derive(Debug, Args)]
pub(crate) struct CreateUser {
    /// User name
    username: String,
    /// Domain that the user may enter
    #[arg(long)]
    domain: DomainId,
    /// What the user may do there (comma-separated)
    #[arg(long, value_enum, value_delimiter = ',', default_value = "submit,read-data", value_name = "PERMISSION")]
    permission: Vec<PermissionName>,
    #[command(flatten)]
    password: PasswordArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Where a password comes from; never from an argument, which other users of the machine can read.
#[derive(Debug, Args)]
pub(crate) struct PasswordArgs {
    /// Read the password from standard input instead of making one
    #[arg(long)]
    password_stdin: bool,
}

/// Manages API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum ApikeyCommand {
    /// Create an API key, which is printed once
    Create {
        /// User whose key it is
        username: String,
        /// Only for this domain; otherwise for all of the user's domains
        #[arg(long)]
        domain: Option<DomainId>,
        /// What the key is for
        #[arg(long, default_value = "made at the command line")]
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// Manages bearer tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token that stands for a user, which is printed once
    Create {
        /// User whom the token stands for; a mobile worker's name in full
        username: String,
        /// Days until it ends; without, it does not
        #[arg(long)]
        days: Option<u32>,
        /// What the token is for
        #[arg(long, default_value = "made at the command line")]
        name: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// Something that a web user may do, as it is written at the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PermissionName {
    /// Submit forms
    Submit,
    /// Read data over SQL, REST and reports
    ReadData,
    /// Change report definitions
    EditReports,
    /// Write users and locations
    EditUsers,
    /// Archive, delete and rebuild forms and cases
    EditData,
    /// Change the domain's settings
    EditDomain,
}

impl From<PermissionName> for Permission {
    fn from(name: PermissionName) -> Self {
        match name {
            PermissionName::Submit => Self::Submit,
            PermissionName::ReadData => Self::ReadData,
            PermissionName::EditReports => Self::EditReports,
            PermissionName::EditUsers => Self::EditUsers,
            PermissionName::EditData => Self::EditData,
            PermissionName::EditDomain => Self::EditDomain,
        }
    }
}

/// Runs `millrace domain`.
///
/// # Errors
/// The store cannot be reached, or refuses.
pub(crate) async fn domain(command: DomainCommand) -> anyhow::Result<ExitCode> {
    let (name, config) = match command {
        DomainCommand::Create { name, config } => (name, config),
        DomainCommand::Set { name, secure_submissions, flags, config } => {
            let store = Store::open(&config).await?;
            let set = store.accounts.set_domain(&name, secure_submissions, flags).await;
            let set = store.close_with(set.map_err(Into::into)).await;
            set.with_context(|| format!("could not change domain `{name}`"))?;
            say(format_args!("domain    {name}\nA running server may take ten seconds to notice."));
            return Ok(ExitCode::SUCCESS);
        }
    };
    let store = Store::open(&config).await?;
    let made = create_domain(&store.accounts, &name).await;
    let made = store.close_with(made).await;
    let (new, password) = made.with_context(|| format!("could not create domain `{name}`"))?;
    say(format_args!("domain    {name}{}", if new { "" } else { " (existed)" }));
    match password {
        Some(password) => say(format_args!("user      admin@{name}\npassword  {}", password.0)),
        None => say(format_args!("user      admin@{name} (existed; `millrace user password` sets a new password)")),
    }
    Ok(ExitCode::SUCCESS)
}

async fn create_domain(accounts: &Accounts, name: &DomainId) -> anyhow::Result<(bool, Option<Secret>)> {
    let new = accounts.create_domain(name).await?;
    Ok((new, accounts.ensure_admin(name).await?))
}

/// Runs `millrace user`.
///
/// # Errors
/// The store cannot be reached, or refuses.
pub(crate) async fn user(command: UserCommand) -> anyhow::Result<ExitCode> {
    match command {
        UserCommand::Create(CreateUser { username, domain, permission, password, config }) => {
            let password = password.get()?;
            let permissions: Vec<Permission> = permission.into_iter().map(Permission::from).collect();
            let store = Store::open(&config).await?;
            let made = store.accounts.create_web_user(&username, &password.secret, &domain, &permissions).await;
            let made = store.close_with(made.map_err(Into::into)).await;
            let id = made.with_context(|| format!("could not create user `{username}`"))?;
            say(format_args!("user      {username}\nid        {id}"));
            password.show();
        }
        UserCommand::Join { username, domain, permission, config } => {
            let permissions: Vec<Permission> = permission.into_iter().map(Permission::from).collect();
            let store = Store::open(&config).await?;
            let joined = store.accounts.join(&username, &domain, &permissions).await;
            let joined = store.close_with(joined.map_err(Into::into)).await;
            joined.with_context(|| format!("could not let `{username}` into domain `{domain}`"))?;
            say(format_args!("user      {username}\ndomain    {domain}"));
        }
        UserCommand::Leave { username, domain, config } => {
            let store = Store::open(&config).await?;
            let left = store.accounts.leave(&username, &domain).await;
            let left = store.close_with(left.map_err(Into::into)).await;
            left.with_context(|| format!("could not take `{username}` out of domain `{domain}`"))?;
            say(format_args!(
                "user      {username}\nA running server may let them in for another `ingest.credential_seconds`."
            ));
        }
        UserCommand::Password { username, password, config } => {
            let password = password.get()?;
            let store = Store::open(&config).await?;
            let set = store.accounts.set_password(&username, &password.secret).await;
            let set = store.close_with(set.map_err(Into::into)).await;
            set.with_context(|| format!("could not set the password of `{username}`"))?;
            say(format_args!("user      {username}"));
            password.show();
            say("A running server may accept the old password for another `ingest.credential_seconds`.");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `millrace apikey`.
///
/// # Errors
/// The store cannot be reached, or refuses.
pub(crate) async fn apikey(command: ApikeyCommand) -> anyhow::Result<ExitCode> {
    let ApikeyCommand::Create { username, domain, name, config } = command;
    let store = Store::open(&config).await?;
    let made = store.accounts.create_api_key(&username, domain.as_ref(), &name).await;
    let made = store.close_with(made.map_err(Into::into)).await;
    let key = made.with_context(|| format!("could not create an API key of `{username}`"))?;
    say(format_args!("user      {username}\nkey       {}", key.0));
    Ok(ExitCode::SUCCESS)
}

/// Runs `millrace token`.
///
/// # Errors
/// The store cannot be reached, or refuses.
pub(crate) async fn token(command: TokenCommand) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create { username, days, name, config } = command;
    let store = Store::open(&config).await?;
    let made = store.accounts.create_token(&username, &name, days).await;
    let made = store.close_with(made.map_err(Into::into)).await;
    let token = made.with_context(|| format!("could not create a token of `{username}`"))?;
    say(format_args!("user      {username}\ntoken     {}", token.0));
    Ok(ExitCode::SUCCESS)
}

struct Password {
    secret: Secret,
    made_here: bool,
}

impl PasswordArgs {
    fn get(&self) -> anyhow::Result<Password> {
        if !self.password_stdin {
            return Ok(Password { secret: credentials::random_password(), made_here: true });
        }
        let mut text = String::new();
        std::io::stdin()
            .take(MAX_PASSWORD_BYTES)
            .read_to_string(&mut text)
            .context("could not read the password from standard input")?;
        let secret = text.trim_end_matches(['\n', '\r']).to_owned();
        anyhow::ensure!(!secret.is_empty(), "the password on standard input is empty");
        Ok(Password { secret: Secret(secret), made_here: false })
    }
}

impl Password {
    fn show(&self) {
        if self.made_here {
            say(format_args!("password  {}", self.secret.0));
        }
    }
}

/// The databases: those of a running server, or the private one started for the moment.
pub(super) struct Databases {
    /// With the address of the private Postgres, if that is used.
    pub(super) config: Config,
    postgres: Option<Postgres>,
    _lock: Option<File>,
}

impl Databases {
    pub(super) async fn reach(args: &ConfigArgs) -> anyhow::Result<Self> {
        let mut config = args.load()?;
        config.data_dir = server::prepare_data_dir(&config.data_dir)?;
        let (mut postgres, mut lock) = (None, None);
        if config.embedded_postgres() {
            if server::in_use(&config.data_dir) {
                config.ingest.database_url = Postgres::url_of_running(&config.data_dir).with_context(|| {
                    format!("the server in {} is still starting; try again", config.data_dir.display())
                })?;
            } else {
                lock = Some(server::lock(&config.data_dir).await?);
                let started = Postgres::start(&assemble::postgres_options(&config)).await?;
                config.ingest.database_url = started.url();
                postgres = Some(started);
            }
        }
        Ok(Self { config, postgres, _lock: lock })
    }

    pub(super) async fn leave(self) {
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
    }
}

/// The primary store: that of a running server, or opened for the moment.
pub(super) struct Store {
    accounts: Accounts,
    pub(super) ingest: Arc<Ingest>,
    databases: Databases,
}

impl Store {
    pub(super) async fn open(args: &ConfigArgs) -> anyhow::Result<Self> {
        let databases = Databases::reach(args).await?;
        let config = &databases.config;
        let blobs = objects::open(config)?;
        let ingest = assemble::open_ingest(config.ingest.clone(), blobs).await?;
        Ok(Self { accounts: ingest.accounts(), ingest, databases })
    }

    /// Closes the store, whatever came of the work.
    pub(super) async fn close_with<T>(self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        self.ingest.shutdown().await;
        self.databases.leave().await;
        done
    }
}
