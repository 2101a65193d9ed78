//! What whoever may open the data directory does without logging in, while the hub is stopped: accounts and tokens. The audit log shows it
//! under an id that no account has.

use cortex_wire::id::UserId;

use crate::{
    account::{AccountError, Actor, NewToken, NewUser, UserUpdate},
    hub::Hub,
    record::{Role, Scope, User},
};

/// Every scope there is.
pub const ALL_SCOPES: [Scope; 4] = [Scope::Read, Scope::Dispatch, Scope::Manage, Scope::Admin];

fn operator() -> Actor {
    Actor {
        user: UserId(uuid::Uuid::nil()),
        name: "operator".into(),
        role: Role::Admin,
        via: "cli".into(),
        token: None,
        scopes: ALL_SCOPES.into(),
        login: None,
    }
}

/// Makes an account.
///
/// # Errors
/// [`AccountError`].
pub async fn create_user(hub: &Hub, new: NewUser) -> Result<User, AccountError> {
    hub.create_user(&operator(), new).await
}

/// All accounts.
///
/// # Errors
/// [`AccountError`].
pub async fn users(hub: &Hub) -> Result<Vec<User>, AccountError> {
    hub.users(&operator()).await
}

/// Gives an account a new password; its logins end.
///
/// # Errors
/// [`AccountError`].
pub async fn reset_password(hub: &Hub, user: &User, password: String) -> Result<(), AccountError> {
    let update = UserUpdate { password: Some(password), ..UserUpdate::default() };
    hub.update_user(&operator(), user.id, update).await.map(drop)
}

/// Makes an API token for an account, with those of the scopes that its role allows; answers the token's text.
///
/// # Errors
/// [`AccountError`].
pub async fn create_token(hub: &Hub, user: &User, new: NewToken) -> Result<String, AccountError> {
    let actor = Actor { user: user.id, name: user.name.clone(), role: user.role, ..operator() };
    let scopes = new.scopes.into_iter().filter(|scope| actor.may(*scope)).collect();
    hub.create_token(&actor, NewToken { scopes, ..new }).await.map(|(_, text)| text)
}
