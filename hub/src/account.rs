//! Users, and who acts.
//!
//! [`credential`] answers for login sessions and API tokens, `password` for the slow hash, `secret` for random texts. Random secrets are
//! stored as BLAKE3 hashes, passwords as Argon2id.

use cortex_runtime::clock::random;
use cortex_wire::id::UserId;
use subtle::ConstantTimeEq as _;

use crate::{
    change::Change,
    failure::{Failure, Kind, Refused},
    hub::Hub,
    record::{
        Digest, Role, Scope, SetupToken, User,
        tables::{SETUP, USER_NAMES, USERS},
    },
    store::{Order, ReadTx, Span, StoreError},
};

pub mod credential;
mod password;
mod secret;

pub use credential::{Login, Logins, NewToken, OpenLogin};

/// On whose behalf an operation is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Who.
    pub user: UserId,
    /// Their login name.
    pub name: String,
    /// What their account may do.
    pub role: Role,
    /// "ui", "api", "mcp", "demo".
    pub via: String,
    /// The API token they came with.
    pub token: Option<String>,
    /// How far that token reaches; every scope for a login session.
    pub scopes: Vec<Scope>,
    /// The login session they came with.
    pub(crate) login: Option<Digest>,
}

impl Actor {
    /// Whether account and token reach that far.
    pub fn may(&self, scope: Scope) -> bool {
        let by_role = match self.role {
            Role::Viewer => scope == Scope::Read,
            Role::Member => scope != Scope::Admin,
            Role::Admin => true,
        };
        by_role && self.scopes.contains(&scope)
    }

    /// Refuses whoever came with a token, whatever its scopes: that is a program, an AI perhaps, and some decisions are people's.
    ///
    /// # Errors
    /// [`Refused::Forbidden`].
    pub fn must_be_a_person(&self) -> Result<(), Refused> {
        if self.login.is_some() && self.token.is_none() && self.via != "mcp" {
            return Ok(());
        }
        Err(Refused::Forbidden("this is decided by a person who is logged in, never by a token"))
    }

    /// As the audit log names them.
    pub fn subject(&self) -> String {
        format!("user:{}", self.user)
    }

    /// Refuses unless account and token reach that far.
    ///
    /// # Errors
    /// [`Refused::Forbidden`].
    pub fn must(&self, scope: Scope) -> Result<(), Refused> {
        if self.may(scope) {
            return Ok(());
        }
        Err(Refused::Forbidden(match scope {
            Scope::Read => "this token may not read",
            Scope::Dispatch => "this account or token may not run tasks or write messages",
            Scope::Manage => "this account or token may not change nodes, invites, sessions or tokens",
            Scope::Admin => "this needs an administrator",
        }))
    }
}

/// Why an account operation failed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Name or password.
    #[error("name or password is wrong")]
    BadLogin,
    /// Cookie or token.
    #[error("the login or token is unknown, expired or revoked")]
    BadCredential,
    /// The setup token.
    #[error("the setup token is wrong; it is printed when the hub starts without users")]
    BadSetupToken,
    /// There is an administrator.
    #[error("this hub is already set up; log in")]
    AlreadySetUp,
    /// The name is in use.
    #[error("there is already a user {0:?}")]
    NameTaken(String),
    /// The last administrator.
    #[error("this is the last administrator; make another one first")]
    LastAdmin,
    /// Too many password checks wait.
    #[error("too many logins at once; try again in a moment")]
    Busy,
    /// Anything else.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for AccountError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for AccountError {
    fn code(&self) -> &'static str {
        match self {
            Self::BadLogin => "bad_login",
            Self::BadCredential => "bad_credential",
            Self::BadSetupToken => "bad_setup_token",
            Self::AlreadySetUp => "already_set_up",
            Self::NameTaken(_) => "name_taken",
            Self::LastAdmin => "last_admin",
            Self::Busy => "busy",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::BadLogin | Self::BadCredential | Self::BadSetupToken => Kind::Unauthenticated,
            Self::AlreadySetUp | Self::NameTaken(_) | Self::LastAdmin => Kind::Conflict,
            Self::Busy => Kind::TooMany,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

/// A user to be made.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// The login name.
    pub name: String,
    /// The first password.
    pub password: String,
    /// What they may do.
    pub role: Role,
}

/// Changes to a user.
#[derive(Debug, Clone, Default)]
pub struct UserUpdate {
    /// What they may do.
    pub role: Option<Role>,
    /// Shut out, or let in again.
    pub disabled: Option<bool>,
    /// A new password.
    pub password: Option<String>,
}

/// A login name as it is stored: lower case, and only what can be typed.
fn login_name(name: &str) -> Result<String, Refused> {
    let name = name.trim().to_lowercase();
    let typable = |c: char| c.is_ascii_alphanumeric() || "._-@+".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(typable) {
        Ok(name)
    } else {
        Err(Refused::Invalid("a login name has 1 to 64 letters, digits or . _ - @ +".into()))
    }
}

/// A user by login name.
pub(crate) fn find_user(tx: &dyn ReadTx, name: &str) -> Result<User, Refused> {
    let id = USER_NAMES.get(tx, login_name(name)?.as_str())?.ok_or(Refused::NotFound("user"))?;
    USERS.get(tx, &id)?.ok_or(Refused::NotFound("user"))
}

fn insert_user(change: &mut Change<'_>, name: String, role: Role, password_hash: String) -> Result<User, AccountError> {
    if USER_NAMES.get(change.tx, &name)?.is_some() {
        return Err(AccountError::NameTaken(name));
    }
    let user = User { id: UserId::new(change.now_ms, random()), name, role, password_hash, created_at_ms: change.now_ms, disabled: false };
    USERS.put(change.tx, &user.id, &user)?;
    USER_NAMES.put(change.tx, &user.name, &user.id)?;
    change.audit("user.create", &format!("user:{}", user.id), user.name.as_bytes())?;
    Ok(user)
}

fn anybody(tx: &dyn ReadTx) -> Result<bool, StoreError> {
    Ok(USERS.last(tx, &Span::all())?.is_some())
}

fn is_setup_token(tx: &dyn ReadTx, hash: Digest) -> Result<bool, StoreError> {
    Ok(SETUP.get(tx, "setup")?.is_some_and(|stored| stored.hash.0.ct_eq(&hash.0).into()))
}

impl Hub {
    /// Whether there is a user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_set_up(&self) -> Result<bool, StoreError> {
        self.db.read(anybody).await
    }

    /// A new one-time setup token, to be printed; `None` when the hub is set up. The one before is void.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn setup_token(&self) -> Result<Option<String>, StoreError> {
        self.db
            .write(|tx| {
                if anybody(tx)? {
                    return Ok(None);
                }
                let text = secret::fresh();
                SETUP.put(tx, "setup", &SetupToken { hash: secret::hash(&text) })?;
                Ok(Some(text))
            })
            .await
    }

    /// Makes the first administrator, and logs them in.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn setup(&self, token: &str, name: &str, password: &str, agent: &str) -> Result<Login, AccountError> {
        let name = login_name(name)?;
        let (hash, agent) = (secret::hash(token.trim()), agent.to_owned());
        let (set_up, fits) = self.db.read(move |tx| Ok::<_, StoreError>((anybody(tx)?, is_setup_token(tx, hash)?))).await?;
        if set_up {
            return Err(AccountError::AlreadySetUp);
        }
        if !fits {
            return Err(AccountError::BadSetupToken);
        }
        let password_hash = self.logins.passwords.hash(password).await?;
        self.change("hub".into(), move |change| {
            if anybody(change.tx)? {
                return Err(AccountError::AlreadySetUp);
            }
            if !is_setup_token(change.tx, hash)? {
                return Err(AccountError::BadSetupToken);
            }
            SETUP.delete(change.tx, "setup")?;
            let user = insert_user(change, name, Role::Admin, password_hash)?;
            let (secret, expires_at_ms) = credential::begin_login(change.tx, user.id, &agent, change.now_ms)?;
            Ok(Login { secret, user, expires_at_ms })
        })
        .await
    }

    /// Makes a user. For administrators.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_user(&self, actor: &Actor, new: NewUser) -> Result<User, AccountError> {
        actor.must(Scope::Admin)?;
        let name = login_name(&new.name)?;
        let password_hash = self.logins.passwords.hash(&new.password).await?;
        self.change(actor.subject(), move |change| insert_user(change, name, new.role, password_hash)).await
    }

    /// Changes a user. For administrators. A new password, and being shut out, end their login sessions.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn update_user(&self, actor: &Actor, id: UserId, update: UserUpdate) -> Result<User, AccountError> {
        actor.must(Scope::Admin)?;
        let password_hash = match &update.password {
            Some(password) => Some(self.logins.passwords.hash(password).await?),
            None => None,
        };
        let user = self
            .change(actor.subject(), move |change| {
                let mut user = USERS.get(change.tx, &id)?.ok_or(Refused::NotFound("user"))?;
                user.role = update.role.unwrap_or(user.role);
                user.disabled = update.disabled.unwrap_or(user.disabled);
                if user.disabled || password_hash.is_some() {
                    credential::end_logins(change.tx, id, None)?;
                }
                user.password_hash = password_hash.unwrap_or(user.password_hash);
                USERS.put(change.tx, &id, &user)?;
                let users = USERS.list(change.tx, &Span::all(), Order::Ascending, usize::MAX)?;
                if !users.iter().any(|user| user.role == Role::Admin && !user.disabled) {
                    return Err(AccountError::LastAdmin);
                }
                change.audit("user.update", &format!("user:{id}"), format!("{:?} {}", user.role, user.disabled).as_bytes())?;
                Ok(user)
            })
            .await?;
        self.logins.forget();
        Ok(user)
    }

    /// Sets the actor's own password; their other login sessions end.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn change_password(&self, actor: &Actor, old: &str, new: &str) -> Result<(), AccountError> {
        let user = self.user(actor.user).await?.ok_or(AccountError::BadCredential)?;
        let Some(login) = actor.login else {
            return Err(Refused::Forbidden("a password is changed by a person who is logged in, not by a token").into());
        };
        if !self.logins.passwords.verify(old, Some(user.password_hash.clone())).await? {
            return Err(AccountError::BadLogin);
        }
        let hash = self.logins.passwords.hash(new).await?;
        self.change(actor.subject(), move |change| {
            let now = USERS.get(change.tx, &user.id)?.filter(|now| now.password_hash == user.password_hash && !now.disabled);
            let user = User { password_hash: hash, ..now.ok_or(AccountError::BadLogin)? };
            USERS.put(change.tx, &user.id, &user)?;
            credential::end_logins(change.tx, user.id, Some(login))?;
            change.audit("user.password", &format!("user:{}", user.id), b"")?;
            Ok::<_, AccountError>(())
        })
        .await?;
        self.logins.forget();
        Ok(())
    }

    /// All users, in the order in which they were made. For administrators.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn users(&self, actor: &Actor) -> Result<Vec<User>, AccountError> {
        actor.must(Scope::Admin)?;
        Ok(self.db.read(|tx| USERS.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await?)
    }

    /// One user by id, for display.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        self.db.read(move |tx| USERS.get(tx, &id)).await
    }
}

#[cfg(test)]
mod tests;
