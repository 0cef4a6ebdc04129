//! As whom Postgres runs: ourselves, unless we are root, which Postgres refuses.

use std::{
    io::Read,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
    process::Stdio,
};

use tokio::process::Command;

use super::PostgresError;

/// A system user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    /// User id of the processes.
    pub(super) uid: u32,
    /// The other user to change to, when we are root.
    switch_to: Option<Other>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    name: String,
    gid: u32,
}

/// Users to run Postgres as, the better first.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

impl Account {
    /// Chooses the user.
    ///
    /// # Errors
    /// [`PostgresError::NoAccount`]; [`PostgresError::Program`] if the system cannot say who we are.
    pub(super) async fn choose() -> Result<Self, PostgresError> {
        let uid = own_uid().await?;
        if uid != 0 {
            return Ok(Self { uid, switch_to: None });
        }
        let mut passwd = String::new();
        let path = Path::new("/etc/passwd");
        std::fs::File::open(path)
            .and_then(|file| file.take(1 << 20).read_to_string(&mut passwd))
            .map_err(PostgresError::file("read", path))?;
        let account = unprivileged(&passwd).ok_or(PostgresError::NoAccount)?;
        if let Some(other) = &account.switch_to {
            tracing::info!("running as root, which Postgres refuses: its processes run as user `{}`", other.name);
        }
        Ok(account)
    }

    /// A command that runs as this user, outside our process group (a Ctrl-C at the terminal is for us to handle) and
    /// in a directory that it can read.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").process_group(0).stdin(Stdio::null()).env("LC_ALL", "C");
        for name in ["PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGOPTIONS"] {
            command.env_remove(name);
        }
        if let Some(other) = &self.switch_to {
            command.uid(self.uid).gid(other.gid).env("HOME", "/").env("USER", &other.name);
        }
        command
    }

    /// Gives a file to this user.
    ///
    /// # Errors
    /// [`PostgresError::File`].
    pub(super) fn give(&self, path: &Path) -> Result<(), PostgresError> {
        match &self.switch_to {
            Some(other) => {
                chown(path, Some(self.uid), Some(other.gid)).map_err(PostgresError::file("change the owner of", path))
            }
            None => Ok(()),
        }
    }

    /// True if this user can pass through the directory.
    pub(super) async fn reaches(&self, directory: &Path) -> bool {
        if self.switch_to.is_none() {
            return true;
        }
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-c", "cd \"$1\"", "sh"]).arg(directory).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().await.is_ok_and(|status| status.success())
    }

    /// Refuses a directory that belongs to someone else.
    ///
    /// # Errors
    /// [`PostgresError::Owner`], or [`PostgresError::File`] if it cannot be looked at.
    pub(super) fn check_owner(&self, path: &Path) -> Result<(), PostgresError> {
        let owner = path.metadata().map_err(PostgresError::file("look at", path))?.uid();
        if owner == self.uid {
            Ok(())
        } else {
            Err(PostgresError::Owner { pgdata: path.to_owned(), owner, wanted: self.uid })
        }
    }
}

/// The user id of this process. The standard library does not say; `id` is part of every POSIX system.
async fn own_uid() -> Result<u32, PostgresError> {
    let failed = |message: String| PostgresError::Program { program: "id -u".to_owned(), message };
    let output = Command::new("id").arg("-u").output().await.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().map_err(|_| failed(format!("answered `{}`", text.trim())))
}

fn unprivileged(passwd: &str) -> Option<Account> {
    UNPRIVILEGED.iter().find_map(|wanted| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| name == wanted)?;
            let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
            let gid = fields.next()?.parse().ok()?;
            Some(Account { uid, switch_to: Some(Other { name: name.to_owned(), gid }) })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_is_preferred_to_nobody() {
        let nobody = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533::/:/bin/false\n";
        let both = format!("{nobody}postgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n");
        let chosen = |passwd: &str| unprivileged(passwd).map(|a| (a.uid, a.switch_to.map(|o| (o.name, o.gid))));
        assert_eq!(chosen(&both), Some((101, Some(("postgres".to_owned(), 104)))));
        assert_eq!(chosen(nobody), Some((65534, Some(("nobody".to_owned(), 65533)))));
        assert_eq!(chosen("root:x:0:0::/:/bin/sh\npostgres:x:0:0::/:/bin/sh\nbroken\n"), None);
    }
}
