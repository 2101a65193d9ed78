//! Users, logins, API tokens, and who acts.

use cortex_wire::id::UserId;

use crate::{
    failure::{Failure, Kind, Refused},
    hub::Hub,
    record::{ApiToken, Role, Scope, User},
    store::StoreError,
};

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

/// A fresh login.
#[derive(Debug, Clone)]
pub struct Login {
    /// For the cookie. Shown once.
    pub secret: String,
    /// Who.
    pub user: User,
    /// Not good after this, however busy.
    pub expires_at_ms: i64,
}

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// A label.
    pub name: String,
    /// How far it reaches.
    pub scopes: Vec<Scope>,
    /// How long it is good; `None`: until it is revoked.
    pub expires_in_ms: Option<i64>,
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

/// Credentials seen lately, and the queue in front of the password hash.
#[derive(Debug, Default)]
pub struct Logins {}

impl Hub {
    /// Whether there is a user.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_set_up(&self) -> Result<bool, StoreError> {
        todo!()
    }

    /// A new one-time setup token, to be printed; `None` when the hub is set up. The one before is void.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn setup_token(&self) -> Result<Option<String>, StoreError> {
        todo!()
    }

    /// Makes the first administrator, and logs them in.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn setup(&self, token: &str, name: &str, password: &str, agent: &str) -> Result<Login, AccountError> {
        let _ = (token, name, password, agent);
        todo!()
    }

    /// Logs in with a password.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn login(&self, name: &str, password: &str, agent: &str) -> Result<Login, AccountError> {
        let _ = (name, password, agent);
        todo!()
    }

    /// Ends a login session; one that does not exist is fine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn logout(&self, secret: &str) -> Result<(), StoreError> {
        let _ = secret;
        todo!()
    }

    /// Who sent this cookie.
    ///
    /// # Errors
    /// [`AccountError::BadCredential`].
    pub async fn authenticate_session(&self, secret: &str) -> Result<Actor, AccountError> {
        let _ = secret;
        todo!()
    }

    /// Who sent this API token.
    ///
    /// # Errors
    /// [`AccountError::BadCredential`].
    pub async fn authenticate_token(&self, text: &str) -> Result<Actor, AccountError> {
        let _ = text;
        todo!()
    }

    /// Makes an API token for the actor. Its text is not stored.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_token(&self, actor: &Actor, new: NewToken) -> Result<(ApiToken, String), AccountError> {
        let _ = (actor, new);
        todo!()
    }

    /// The actor's tokens.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn tokens(&self, actor: &Actor) -> Result<Vec<ApiToken>, AccountError> {
        let _ = actor;
        todo!()
    }

    /// Revokes one of the actor's tokens.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn revoke_token(&self, actor: &Actor, id: &str) -> Result<(), AccountError> {
        let _ = (actor, id);
        todo!()
    }

    /// Makes a user. For administrators.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_user(&self, actor: &Actor, new: NewUser) -> Result<User, AccountError> {
        let _ = (actor, new);
        todo!()
    }

    /// Changes a user. For administrators.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn update_user(&self, actor: &Actor, id: UserId, update: UserUpdate) -> Result<User, AccountError> {
        let _ = (actor, id, update);
        todo!()
    }

    /// Sets the actor's own password; their other login sessions end.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn change_password(&self, actor: &Actor, old: &str, new: &str) -> Result<(), AccountError> {
        let _ = (actor, old, new);
        todo!()
    }

    /// All users. For administrators.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn users(&self, actor: &Actor) -> Result<Vec<User>, AccountError> {
        let _ = actor;
        todo!()
    }

    /// One user by id, for display.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        let _ = id;
        todo!()
    }
}
