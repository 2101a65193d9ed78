//! Login sessions and API tokens: made, recognised, revoked.
//!
//! Every request is authenticated, so what was looked up once stays in memory until any account changes. When a credential was last used
//! is written at most once a minute.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use cortex_wire::{id::UserId, limits, text::clean};
use data_encoding::HEXLOWER;
use subtle::ConstantTimeEq as _;

use super::{AccountError, Actor, password::Passwords, secret};
use crate::{
    failure::Refused,
    hub::{Hub, lock},
    record::{
        ApiToken, Digest, LoginSession, Scope, User,
        tables::{LOGINS, TOKENS, USER_NAMES, USERS},
    },
    store::{Order, ReadTx, Span, StoreError, WriteTx},
};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// A login session that nobody used for so long is over.
const IDLE_MS: i64 = 12 * HOUR_MS;
/// A login session is over after this, however busy.
const ABSOLUTE_MS: i64 = 14 * 24 * HOUR_MS;
/// Credentials kept in memory. Beyond it they are looked up again.
const KNOWN: usize = 10_000;
/// Tokens of one user.
const TOKENS_OF_USER: usize = 200;
const ALL_SCOPES: [Scope; 4] = [Scope::Read, Scope::Dispatch, Scope::Manage, Scope::Admin];

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

/// A browser in which an account is logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenLogin {
    /// Names it among the account's logins; not a secret.
    pub id: String,
    /// Since when, and what the browser calls itself.
    pub login: LoginSession,
    /// It is the one that asks.
    pub current: bool,
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

/// Credentials seen lately, and the queue in front of the password hash.
#[derive(Debug, Default)]
pub struct Logins {
    pub(super) passwords: Passwords,
    known: Mutex<HashMap<Digest, Known>>,
    /// Grows when any account changes: what was read before does not enter `known` after.
    generation: AtomicU64,
}

/// Which row a credential has.
#[derive(Debug, Clone)]
enum Row {
    Login(Digest),
    Token(String),
}

#[derive(Debug, Clone)]
struct Known {
    actor: Actor,
    row: Row,
    /// Not good after this.
    expires_at_ms: i64,
    last_used_at_ms: i64,
    last_written_at_ms: i64,
}

impl Known {
    fn is_good(&self, now_ms: i64) -> bool {
        let idle = matches!(self.row, Row::Login(_)) && now_ms - self.last_used_at_ms > IDLE_MS;
        now_ms <= self.expires_at_ms && !idle
    }
}

impl Logins {
    /// An account or credential has changed.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        lock(&self.known).clear();
    }

    fn recall(&self, hash: &Digest, now_ms: i64) -> Option<(Actor, Option<Row>)> {
        let mut known = lock(&self.known);
        let found = known.get_mut(hash)?;
        if !found.is_good(now_ms) {
            known.remove(hash);
            return None;
        }
        found.last_used_at_ms = now_ms;
        let due = now_ms - found.last_written_at_ms >= MINUTE_MS;
        if due {
            found.last_written_at_ms = now_ms;
        }
        Some((found.actor.clone(), due.then(|| found.row.clone())))
    }

    fn keep(&self, hash: Digest, found: Known, generation: u64) {
        let mut known = lock(&self.known);
        if generation == self.generation.load(Ordering::SeqCst) {
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(hash, found);
        }
    }
}

/// Makes a login session; answers the secret and when it ends at the latest.
pub(super) fn begin_login(tx: &mut dyn WriteTx, user: UserId, agent: &str, now_ms: i64) -> Result<(String, i64), StoreError> {
    let secret = secret::fresh();
    let agent = clean(agent, limits::TEXT_BYTES);
    LOGINS.put(tx, &secret::hash(&secret), &LoginSession { user, created_at_ms: now_ms, last_used_at_ms: now_ms, agent })?;
    Ok((secret, now_ms + ABSOLUTE_MS))
}

/// Ends the login sessions of a user, but for one.
pub(super) fn end_logins(tx: &mut dyn WriteTx, user: UserId, except: Option<Digest>) -> Result<(), StoreError> {
    remove_logins(tx, |hash, login| login.user == user && Some(hash) != except).map(drop)
}

/// Ends login sessions whose time is over.
pub(crate) fn sweep(tx: &mut dyn WriteTx, now_ms: i64) -> Result<(), StoreError> {
    remove_logins(tx, |_, login| is_over(login, now_ms)).map(drop)
}

fn is_over(login: &LoginSession, now_ms: i64) -> bool {
    now_ms - login.last_used_at_ms > IDLE_MS || now_ms - login.created_at_ms > ABSOLUTE_MS
}

/// Names a login to its owner, by the hash of its cookie.
fn login_id(hash: &[u8]) -> String {
    HEXLOWER.encode(&hash[..hash.len().min(8)])
}

/// How many they were.
fn remove_logins(tx: &mut dyn WriteTx, over: impl Fn(Digest, &LoginSession) -> bool) -> Result<usize, StoreError> {
    let mut hashes = Vec::new();
    LOGINS.visit(tx, &Span::all(), Order::Ascending, |key, login| {
        hashes.extend(<[u8; 32]>::try_from(key).map(Digest).ok().filter(|hash| over(*hash, &login)));
        Ok(ControlFlow::Continue(()))
    })?;
    hashes.iter().try_for_each(|hash| LOGINS.delete(tx, hash))?;
    Ok(hashes.len())
}

fn user_in_force(tx: &dyn ReadTx, id: UserId) -> Result<Option<User>, StoreError> {
    Ok(USERS.get(tx, &id)?.filter(|user| !user.disabled))
}

fn find_login(tx: &dyn ReadTx, hash: Digest) -> Result<Option<Known>, StoreError> {
    let Some(login) = LOGINS.get(tx, &hash)? else { return Ok(None) };
    let Some(user) = user_in_force(tx, login.user)? else { return Ok(None) };
    Ok(Some(Known {
        actor: Actor {
            user: user.id,
            name: user.name,
            role: user.role,
            via: "ui".into(),
            token: None,
            scopes: ALL_SCOPES.to_vec(),
            login: Some(hash),
        },
        row: Row::Login(hash),
        expires_at_ms: login.created_at_ms + ABSOLUTE_MS,
        last_used_at_ms: login.last_used_at_ms,
        last_written_at_ms: login.last_used_at_ms,
    }))
}

fn find_token(tx: &dyn ReadTx, id: &str, hash: Digest) -> Result<Option<Known>, StoreError> {
    let Some(token) = TOKENS.get(tx, id)? else { return Ok(None) };
    if !bool::from(token.hash.0.ct_eq(&hash.0)) {
        return Ok(None);
    }
    let Some(user) = user_in_force(tx, token.user)? else { return Ok(None) };
    let last_used = token.last_used_at_ms.unwrap_or(0);
    Ok(Some(Known {
        actor: Actor {
            user: user.id,
            name: user.name,
            role: user.role,
            via: "api".into(),
            token: Some(token.id.clone()),
            scopes: token.scopes,
            login: None,
        },
        row: Row::Token(token.id),
        expires_at_ms: token.expires_at_ms.unwrap_or(i64::MAX),
        last_used_at_ms: last_used,
        last_written_at_ms: last_used,
    }))
}

fn write_last_used(tx: &mut dyn WriteTx, row: &Row, now_ms: i64) -> Result<(), StoreError> {
    match row {
        Row::Login(hash) => match LOGINS.get(tx, hash)? {
            Some(login) => LOGINS.put(tx, hash, &LoginSession { last_used_at_ms: now_ms, ..login }),
            None => Ok(()),
        },
        Row::Token(id) => match TOKENS.get(tx, id)? {
            Some(token) => TOKENS.put(tx, id, &ApiToken { last_used_at_ms: Some(now_ms), ..token }),
            None => Ok(()),
        },
    }
}

impl Hub {
    /// Logs in with a password.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn login(&self, name: &str, password: &str, agent: &str) -> Result<Login, AccountError> {
        let name = super::login_name(name).unwrap_or_default();
        let user = self
            .db
            .read(move |tx| match USER_NAMES.get(tx, &name)? {
                Some(id) => user_in_force(tx, id),
                None => Ok(None),
            })
            .await?;
        let hash = user.as_ref().map(|user| user.password_hash.clone());
        let fits = self.logins.passwords.verify(password, hash).await?;
        let Some(user) = user.filter(|_| fits) else { return Err(AccountError::BadLogin) };
        let agent = agent.to_owned();
        self.change(format!("user:{}", user.id), move |change| {
            // The password may have been changed while it was being checked.
            let Some(user) = user_in_force(change.tx, user.id)?.filter(|now| now.password_hash == user.password_hash) else {
                return Err(AccountError::BadLogin);
            };
            let (secret, expires_at_ms) = begin_login(change.tx, user.id, &agent, change.now_ms)?;
            change.audit("user.login", &format!("user:{}", user.id), b"")?;
            Ok(Login { secret, user, expires_at_ms })
        })
        .await
    }

    /// Ends a login session; one that does not exist is fine.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn logout(&self, secret: &str) -> Result<(), StoreError> {
        let hash = secret::hash(secret);
        self.db.write(move |tx| LOGINS.delete(tx, &hash)).await?;
        self.logins.forget();
        Ok(())
    }

    /// The browsers in which the actor is logged in, the one used last first. For people.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn logins(&self, actor: &Actor) -> Result<Vec<OpenLogin>, Refused> {
        actor.must_be_a_person()?;
        let (user, own, now_ms) = (actor.user, actor.login, self.now_ms());
        let mut found = Vec::new();
        self.db
            .read(move |tx| {
                LOGINS.visit(tx, &Span::all(), Order::Ascending, |key, login| {
                    if login.user == user && !is_over(&login, now_ms) {
                        found.push(OpenLogin { id: login_id(key), current: own.is_some_and(|own| own.0[..] == *key), login });
                    }
                    Ok(ControlFlow::Continue(()))
                })?;
                found.sort_by_key(|open: &OpenLogin| std::cmp::Reverse((open.current, open.login.last_used_at_ms)));
                Ok(found)
            })
            .await
    }

    /// Logs the actor out of another browser. For people.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn end_login(&self, actor: &Actor, id: &str) -> Result<(), Refused> {
        let (actor, id) = (actor.clone(), id.to_owned());
        self.change(actor.subject(), move |change| {
            let user = actor.user;
            if remove_logins(change.tx, |hash, login| login.user == user && login_id(&hash.0) == id)? == 0 {
                return Err(Refused::NotFound("login"));
            }
            // After the look-up: what is not there answers the same to everybody. An error undoes the change.
            actor.must_be_a_person()?;
            change.audit("user.logout", &format!("user:{user}"), id.as_bytes())?;
            Ok(())
        })
        .await?;
        self.logins.forget();
        Ok(())
    }

    /// Who sent this cookie.
    ///
    /// # Errors
    /// [`AccountError::BadCredential`].
    pub async fn authenticate_session(&self, secret: &str) -> Result<Actor, AccountError> {
        let hash = secret::hash(secret);
        self.authenticate(hash, move |tx| find_login(tx, hash)).await
    }

    /// Who sent this API token.
    ///
    /// # Errors
    /// [`AccountError::BadCredential`].
    pub async fn authenticate_token(&self, text: &str) -> Result<Actor, AccountError> {
        let id = secret::token_id(text).ok_or(AccountError::BadCredential)?.to_owned();
        let hash = secret::hash(text);
        self.authenticate(hash, move |tx| find_token(tx, &id, hash)).await
    }

    async fn authenticate(
        &self,
        hash: Digest,
        find: impl FnOnce(&dyn ReadTx) -> Result<Option<Known>, StoreError> + Send + 'static,
    ) -> Result<Actor, AccountError> {
        let now_ms = self.now_ms();
        let recalled = match self.logins.recall(&hash, now_ms) {
            Some(recalled) => Some(recalled),
            None => {
                let generation = self.logins.generation.load(Ordering::SeqCst);
                let found = self.db.read(find).await?.filter(|found| found.is_good(now_ms));
                let found = found.ok_or(AccountError::BadCredential)?;
                let actor = found.actor.clone();
                self.logins.keep(hash, found, generation);
                self.logins.recall(&hash, now_ms).or(Some((actor, None)))
            }
        };
        let (actor, due) = recalled.ok_or(AccountError::BadCredential)?;
        if let Some(row) = due {
            let db = self.db.clone();
            tokio::spawn(async move {
                if let Err(error) = db.write(move |tx| write_last_used(tx, &row, now_ms)).await {
                    tracing::warn!(%error, "could not note when a credential was last used");
                }
            });
        }
        Ok(actor)
    }

    /// Makes an API token for the actor, who cannot give it more than they have. Its text is not stored.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn create_token(&self, actor: &Actor, new: NewToken) -> Result<(ApiToken, String), AccountError> {
        // A viewer changes nothing of the hub, but may let a program read for them.
        if actor.token.is_some() {
            actor.must(Scope::Manage)?;
        }
        let mut scopes = new.scopes;
        scopes.sort_unstable();
        scopes.dedup();
        if scopes.is_empty() {
            return Err(Refused::Invalid("a token needs at least one scope".into()).into());
        }
        if let Some(scope) = scopes.iter().find(|scope| !actor.may(**scope)) {
            actor.must(*scope)?;
        }
        if new.expires_in_ms.is_some_and(|life| life <= 0) {
            return Err(Refused::Invalid("a token's life must be longer than nothing".into()).into());
        }
        let name = clean(&new.name, limits::NAME_BYTES);
        let user = actor.user;
        self.change(actor.subject(), move |change| {
            let now_ms = change.now_ms;
            let mut mine = 0;
            TOKENS.visit(change.tx, &Span::all(), Order::Ascending, |_, token| {
                mine += usize::from(token.user == user);
                Ok(ControlFlow::Continue(()))
            })?;
            if mine >= TOKENS_OF_USER {
                return Err(Refused::Invalid(format!("there are {mine} tokens already; revoke some first")).into());
            }
            let (id, text) = secret::fresh_token();
            let token = ApiToken {
                id,
                user,
                name,
                scopes,
                hash: secret::hash(&text),
                created_at_ms: now_ms,
                expires_at_ms: new.expires_in_ms.map(|life| now_ms.saturating_add(life)),
                last_used_at_ms: None,
            };
            TOKENS.put(change.tx, &token.id, &token)?;
            change.audit("token.create", &format!("token:{}", token.id), token.name.as_bytes())?;
            Ok((token, text))
        })
        .await
    }

    /// The actor's tokens, newest first.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn tokens(&self, actor: &Actor) -> Result<Vec<ApiToken>, AccountError> {
        actor.must(Scope::Read)?;
        let user = actor.user;
        let mut tokens = self.db.read(|tx| TOKENS.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await?;
        tokens.retain(|token| token.user == user);
        tokens.sort_by_key(|token| std::cmp::Reverse(token.created_at_ms));
        Ok(tokens)
    }

    /// Revokes one of the actor's tokens.
    ///
    /// # Errors
    /// [`AccountError`].
    pub async fn revoke_token(&self, actor: &Actor, id: &str) -> Result<(), AccountError> {
        if actor.token.as_deref().is_some_and(|own| own != id) {
            actor.must(Scope::Manage)?;
        }
        let (user, id) = (actor.user, id.to_owned());
        self.change(actor.subject(), move |change| {
            TOKENS.get(change.tx, &id)?.filter(|token| token.user == user).ok_or(Refused::NotFound("token"))?;
            TOKENS.delete(change.tx, &id)?;
            change.audit("token.revoke", &format!("token:{id}"), b"")?;
            Ok::<_, AccountError>(())
        })
        .await?;
        self.logins.forget();
        Ok(())
    }
}
