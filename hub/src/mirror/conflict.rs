//! Conflicts: changes that did not go in because somebody else was first. They are kept whole until somebody looks, and stay in the record afterwards.

use std::{ops::ControlFlow, sync::Arc};

use cortex_wire::{
    limits,
    mirror::{
        entry::Entry,
        op::{self, Op},
        path::RelPath,
        tree::Tree,
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    MirrorError,
    edit::{Edit, Expect},
    workspace::{Head, Workspace},
};
use crate::{
    account::Actor,
    hub::Hub,
    record::{mirror::ConflictRecord, tables::CONFLICTS},
    store::{Order, ReadTx, Span, StoreError},
};

/// How a conflict ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// What the workspace holds stays.
    Mine,
    /// What was kept takes its place.
    Theirs,
    /// What was kept comes beside it, under another name.
    Both,
}

impl Take {
    fn name(self) -> &'static str {
        match self {
            Self::Mine => "mine",
            Self::Theirs => "theirs",
            Self::Both => "both",
        }
    }
}

impl ConflictRecord {
    /// Whether nobody has resolved it.
    pub fn is_open(&self) -> bool {
        self.resolution.is_empty()
    }

    /// What lost; `None`: nothing was kept.
    ///
    /// # Errors
    /// [`MirrorError::Damaged`].
    pub fn entry(&self) -> Result<Option<Entry>, MirrorError> {
        let Some(kept) = &self.kept else { return Ok(None) };
        let ops = op::unpack(kept, 1).map_err(|_| MirrorError::Damaged)?;
        Ok(ops.into_iter().find_map(|op| if let Op::Put { entry, .. } = op { Some(entry) } else { None }))
    }
}

/// Conflicts before a number, newest first, at most `limit`.
fn page(
    tx: &dyn ReadTx,
    session: cortex_wire::id::SessionId,
    before: Option<u64>,
    open_only: bool,
    limit: usize,
) -> Result<Vec<ConflictRecord>, StoreError> {
    let span = Span::under(session);
    let span = if let Some(before) = before { span.before((session, before)) } else { span };
    let mut found = Vec::new();
    CONFLICTS.visit(tx, &span, Order::Descending, |_, conflict| {
        if found.len() >= limit {
            return Ok(ControlFlow::Break(()));
        }
        if !open_only || conflict.is_open() {
            found.push(conflict);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// A name beside a path where nothing is: `notes (conflict 3).txt`.
fn beside(tree: &Tree, path: &RelPath, number: u64) -> Result<RelPath, MirrorError> {
    let name = path.name();
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    for attempt in 0..100 {
        let mark = if attempt == 0 { format!(" (conflict {number})") } else { format!(" (conflict {number}-{attempt})") };
        // A long name is cut at a character.
        let room = limits::PATH_COMPONENT_BYTES.saturating_sub(mark.len() + extension.len());
        let kept = stem.char_indices().take_while(|(at, character)| at + character.len_utf8() <= room).map(|(_, character)| character);
        let candidate = format!("{}{mark}{extension}", kept.collect::<String>());
        let parent = path.parent().unwrap_or_else(RelPath::root);
        let candidate = parent.join(&candidate).map_err(|error| MirrorError::Impossible(error.to_string()))?;
        if tree.get(&candidate).is_none() {
            return Ok(candidate);
        }
    }
    Err(MirrorError::Impossible(format!("there are too many copies beside `{path}`")))
}

impl Workspace {
    /// Conflicts before a number, newest first, at most `limit`.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn conflicts(
        &self,
        hub: &Hub,
        before: Option<u64>,
        open_only: bool,
        limit: usize,
    ) -> Result<Vec<ConflictRecord>, MirrorError> {
        let session = self.session;
        Ok(hub.db.read(move |tx| page(tx, session, before, open_only, limit)).await?)
    }

    /// Resolves a conflict; answers where the kept version is now, if it is anywhere.
    ///
    /// # Errors
    /// [`MirrorError`].
    pub async fn resolve(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        actor: &Actor,
        fence: Option<u64>,
        number: u64,
        take: Take,
    ) -> Result<(Arc<Head>, Option<RelPath>), MirrorError> {
        let session = self.session;
        let conflict = hub.db.read(move |tx| CONFLICTS.get(tx, &(session, number))).await?;
        let mut conflict = conflict.filter(ConflictRecord::is_open).ok_or(MirrorError::NoConflict(number))?;
        let (kept, path) = (conflict.entry()?, conflict.path.parse::<RelPath>().map_err(|_| MirrorError::Damaged)?);
        let at = match take {
            Take::Mine => None,
            Take::Theirs => Some(path),
            Take::Both => Some(beside(&self.head().tree, &path, number)?),
        };
        let edits = match (&at, kept) {
            (Some(path), Some(entry)) => {
                let expect = if take == Take::Both { Expect::Nothing } else { Expect::Any };
                vec![Edit::Put { path: path.clone(), expect, entry }]
            }
            _ => Vec::new(),
        };
        take.name().clone_into(&mut conflict.resolution);
        conflict.resolved_by = bytes::Bytes::copy_from_slice(actor.user.as_bytes());
        conflict.resolved_at_ms = hub.now_ms();
        let head = self.edit_and_settle(hub, actor, fence, &format!("resolve conflict {number}"), edits, vec![conflict]).await?;
        Ok((head, at))
    }
}
