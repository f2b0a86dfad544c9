//! The replicated state: entries in, outcomes out, a [`View`] for everybody to watch.
//!
//! Owned by openraft's state machine task. Readers hold the state by `Arc`, so applying a batch of entries copies it once
//! and publishes the copy; nobody ever sees half a batch of one entry.

use std::{io::Cursor, sync::Arc};

use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError, storage::RaftStateMachine};
use pollux_state::{Applied, ClusterState, Rules};
use tokio::sync::watch;

use super::{
    any, decode,
    disk::{Change, Disk, StoreError, StoredSnapshot},
    encode,
    writer::Writer,
};
use crate::types::{Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig};

/// What a node has applied. Equal `applied` means equal `state`, on whichever node.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Index of the last entry applied; 0 before the first.
    pub applied: u64,
    /// The state after it.
    pub state: Arc<ClusterState>,
}

/// The state machine.
pub(crate) struct StateMachine {
    disk: Arc<Disk>,
    writer: Writer,
    rules: Rules,
    state: Arc<ClusterState>,
    applied: Option<LogId>,
    membership: StoredMembership,
    view: watch::Sender<View>,
}

impl StateMachine {
    /// The state of the last snapshot, or the empty one.
    pub(super) fn load(
        disk: Arc<Disk>,
        writer: Writer,
        rules: Rules,
    ) -> Result<(Self, watch::Receiver<View>), StoreError> {
        let broken = |reason| StoreError::Io { what: "decoding the snapshot", reason };
        let (view, watched) = watch::channel(View::default());
        let mut machine = Self {
            writer,
            rules,
            state: Arc::default(),
            applied: None,
            membership: StoredMembership::default(),
            view,
            disk: Arc::clone(&disk),
        };
        if let Some(StoredSnapshot { meta, data }) = disk.snapshot()? {
            let meta: SnapshotMeta = decode(&meta).map_err(broken)?;
            let state: ClusterState = decode(&data).map_err(broken)?;
            machine.replace(&meta, state);
        }
        Ok((machine, watched))
    }

    fn replace(&mut self, meta: &SnapshotMeta, state: ClusterState) {
        self.state = Arc::new(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
    }

    fn publish(&self) {
        self.view.send_replace(View { applied: index(self.applied), state: Arc::clone(&self.state) });
    }
}

fn index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Option<Applied>>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        for Entry { log_id, payload } in entries {
            self.applied = Some(log_id);
            outcomes.push(match payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => {
                    Some(Arc::make_mut(&mut self.state).apply_with(&self.rules, log_id.index, &proposal))
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    None
                }
            });
        }
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder {
            writer: self.writer.clone(),
            state: Arc::clone(&self.state),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let failed = |error| StorageIOError::write_snapshot(Some(meta.signature()), any(error));
        let data = snapshot.into_inner();
        let state: ClusterState = decode(&data).map_err(failed)?;
        let encoded = encode(meta).map_err(failed)?;
        self.writer
            .commit(Change::Snapshot { index: index(meta.last_log_id), meta: encoded, data })
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), any(error)))?;
        self.replace(meta, state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let stored = self.disk.snapshot().map_err(|error| StorageIOError::read_snapshot(None, any(error)))?;
        let Some(StoredSnapshot { meta, data }) = stored else { return Ok(None) };
        let meta = decode(&meta).map_err(|error| StorageIOError::read_snapshot(None, any(error)))?;
        Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

/// The state at one moment, to be written as a snapshot while the machine goes on.
pub(crate) struct Builder {
    writer: Writer,
    state: Arc<ClusterState>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        // The same entries give the same bytes, so their position is all the name a snapshot needs.
        let snapshot_id = self.applied.map_or_else(|| "empty".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone(), snapshot_id };
        let failed = |error| StorageIOError::write_snapshot(Some(meta.signature()), any(error));
        let data = encode(&*self.state).map_err(failed)?;
        let encoded = encode(&meta).map_err(failed)?;
        self.writer
            .commit(Change::Snapshot { index: index(meta.last_log_id), meta: encoded, data: data.clone() })
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), any(error)))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
