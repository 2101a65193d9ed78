//! How many there are of what, for operators.

use std::collections::BTreeMap;

use cortex_wire::task::State;

use crate::{
    hub::Hub,
    presence::Reach,
    record::tables::NODES,
    store::{Order, Span, StoreError},
};

/// Counts over all users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes, by how they are there.
    pub nodes: BTreeMap<&'static str, u64>,
    /// Tasks that are not final, by state.
    pub open_tasks: BTreeMap<&'static str, u64>,
}

impl Hub {
    /// Counts what there is now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let mut counts = Counts::default();
        for reach in [Reach::Online, Reach::Degraded, Reach::Offline, Reach::Pending, Reach::Refused, Reach::Revoked] {
            counts.nodes.insert(name_of(reach), 0);
        }
        for state in State::ALL.into_iter().filter(|state| !state.is_final()) {
            counts.open_tasks.insert(state.name(), 0);
        }
        for node in self.db.read(|tx| NODES.list(tx, &Span::all(), Order::Ascending, usize::MAX)).await? {
            *counts.nodes.entry(name_of(self.presence.of(&node).state)).or_default() += 1;
        }
        for task in self.all_open_tasks().await?.into_iter().chain(self.pool_tasks().await?) {
            *counts.open_tasks.entry(task.state.name()).or_default() += 1;
        }
        Ok(counts)
    }
}

fn name_of(reach: Reach) -> &'static str {
    match reach {
        Reach::Online => "online",
        Reach::Degraded => "degraded",
        Reach::Offline => "offline",
        Reach::Pending => "pending",
        Reach::Refused => "refused",
        Reach::Revoked => "revoked",
    }
}
