//! Relays that administrators add and remove while the hub runs. Those of the configuration file are the operator's, and not touched here.

use cortex_wire::{id::RelayId, invite::RelayEndpoint, limits, text::clean};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    account::Actor,
    failure::{Failure, Kind, Refused},
    hub::{Hub, RelayStatus},
    record::{
        Scope, User,
        tables::{RELAYS, USERS},
    },
    store::{Order, Span, StoreError},
};

/// A relay, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRecord {
    /// Its key.
    pub id: RelayId,
    /// `host:port`.
    pub address: String,
    /// A label.
    pub region: String,
    /// When it was added.
    pub added_at_ms: i64,
}

impl From<RelayRecord> for RelayEndpoint {
    fn from(record: RelayRecord) -> Self {
        Self { address: record.address, id: record.id, region: record.region }
    }
}

/// Why a relay is not added or removed.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// It is there already.
    #[error("the hub has this relay already; remove it first to change its address")]
    Exists,
    /// The configuration file names it.
    #[error("this relay is in the hub's configuration; take it out there, and restart the hub")]
    Configured,
    /// There are as many as may be.
    #[error("a hub has at most {} relays", limits::HUB_RELAYS)]
    TooMany,
    /// Not allowed, not found, or the store.
    #[error(transparent)]
    Refused(#[from] Refused),
}

impl From<StoreError> for RelayError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error.into())
    }
}

impl Failure for RelayError {
    fn code(&self) -> &'static str {
        match self {
            Self::Exists => "relay_exists",
            Self::Configured => "relay_is_configured",
            Self::TooMany => "too_many_relays",
            Self::Refused(refused) => refused.code(),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Exists | Self::Configured | Self::TooMany => Kind::Conflict,
            Self::Refused(refused) => refused.kind(),
        }
    }
}

fn object(relay: RelayId) -> String {
    format!("relay:{relay}")
}

impl Hub {
    /// Those that were added, in the order in which they were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn added_relays(&self) -> Result<Vec<RelayEndpoint>, StoreError> {
        let mut relays = self.db.read(|tx| RELAYS.list(tx, &Span::all(), Order::Ascending, limits::HUB_RELAYS)).await?;
        relays.sort_by_key(|relay: &RelayRecord| relay.added_at_ms);
        Ok(relays.into_iter().map(RelayEndpoint::from).collect())
    }

    /// All relays of this hub as they are now, most wanted first.
    pub fn relays(&self) -> Vec<RelayStatus> {
        self.mesh().map(|mesh| mesh.relays()).unwrap_or_default()
    }

    /// Tells everybody who follows the hub's events that something about its relays is different; they look for themselves.
    pub(crate) async fn show_relays(&self) {
        if !self.feeds.has_followers() {
            return;
        }
        match self.db.read(|tx| USERS.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await {
            Ok(users) => {
                let users: Vec<User> = users;
                let users = users.into_iter().filter(|user| !user.disabled).map(|user| user.id).collect();
                self.feeds.tell_live(users, self.now_ms(), "relay", json!({}));
            }
            Err::<_, StoreError>(error) => tracing::warn!(%error, "could not show a change of the relays"),
        }
    }

    /// Adds a relay: the hub links to it, and its nodes hear of it. For administrators.
    ///
    /// # Errors
    /// [`RelayError`].
    pub async fn add_relay(&self, actor: &Actor, relay: RelayEndpoint) -> Result<RelayStatus, RelayError> {
        actor.must(Scope::Admin)?;
        let known = self.relays();
        if known.iter().any(|known| known.endpoint.id == relay.id) {
            return Err(RelayError::Exists);
        }
        if known.len() >= limits::HUB_RELAYS {
            return Err(RelayError::TooMany);
        }
        let relay = RelayEndpoint { region: clean(&relay.region, limits::NAME_BYTES), ..relay };
        let (added, mesh) = (relay.clone(), self.mesh().cloned());
        self.change(actor.subject(), move |change| {
            let row =
                RelayRecord { id: added.id, address: added.address.clone(), region: added.region.clone(), added_at_ms: change.now_ms };
            if RELAYS.get(change.tx, &row.id.to_string())?.is_some() {
                return Err(RelayError::Exists);
            }
            RELAYS.put(change.tx, &row.id.to_string(), &row)?;
            change.audit("relay.add", &object(row.id), row.address.as_bytes())?;
            change.then(move || {
                if let Some(mesh) = mesh {
                    mesh.add_relay(added);
                }
            });
            Ok(())
        })
        .await?;
        let status = self.relays().into_iter().find(|known| known.endpoint.id == relay.id);
        Ok(status.unwrap_or_else(|| RelayStatus::away(relay)))
    }

    /// Removes a relay that was added: its nodes move to another, and then the hub lets go of it. For administrators.
    ///
    /// # Errors
    /// [`RelayError`].
    pub async fn remove_relay(&self, actor: &Actor, relay: RelayId) -> Result<(), RelayError> {
        actor.must(Scope::Admin)?;
        let configured = self.relays().iter().any(|known| known.endpoint.id == relay && known.configured);
        let mesh = self.mesh().cloned();
        self.change(actor.subject(), move |change| {
            if RELAYS.get(change.tx, &relay.to_string())?.is_none() {
                return Err(if configured { RelayError::Configured } else { Refused::NotFound("relay").into() });
            }
            RELAYS.delete(change.tx, &relay.to_string())?;
            change.audit("relay.remove", &object(relay), b"")?;
            change.then(move || {
                if let Some(mesh) = mesh {
                    mesh.remove_relay(relay);
                }
            });
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, key};

    fn code<T>(outcome: Result<T, RelayError>) -> Option<&'static str> {
        outcome.err().map(|error| error.code())
    }

    #[tokio::test]
    async fn administrators_add_and_remove_relays_and_nobody_else() {
        let site = Site::new().await;
        let (ada, bob) = (site.admin().await, site.member("bob").await);
        let relay =
            |number: u16| RelayEndpoint { address: format!("relay{number}:443"), id: key(number).public().into(), region: "eu".into() };
        assert_eq!(code(site.hub.add_relay(&bob, relay(1)).await), Some("forbidden"));
        site.hub.add_relay(&ada, relay(1)).await.unwrap();
        assert_eq!(code(site.hub.add_relay(&ada, relay(1)).await), Some("relay_exists"));
        site.pass(1);
        site.hub.add_relay(&ada, relay(2)).await.unwrap();
        assert_eq!(code(site.hub.remove_relay(&bob, relay(1).id).await), Some("forbidden"));
        let site = site.restart().await;
        assert_eq!(site.hub.added_relays().await.unwrap(), [relay(1), relay(2)]);
        site.hub.remove_relay(&ada, relay(1).id).await.unwrap();
        assert_eq!(code(site.hub.remove_relay(&ada, relay(1).id).await), Some("not_found"));
        // The one that the mesh of this test knows is the configuration's.
        assert_eq!(code(site.hub.remove_relay(&ada, key(60_000).public().into()).await), Some("relay_is_configured"));
        assert_eq!(site.hub.added_relays().await.unwrap(), [relay(2)]);
    }
}
