//! openraft's own storage suite over both kinds of store, and what it does not ask.

use openraft::{
    RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt},
    testing::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use super::{
    disk::{Change, FORMAT},
    memory::MemoryDisk,
    *,
};
use crate::types::{StorageError, TypeConfig};

struct InDirectory;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for InDirectory {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let directory = TempDir::new().unwrap();
        let opened =
            open(&Store::Dir { path: directory.path().to_owned(), known: None }, Rules::default(), Arc::default())
                .unwrap();
        Ok((directory, opened.log, opened.machine))
    }
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, ()> for InMemory {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError> {
        let opened = open(&Store::Memory(Arc::default()), Rules::default(), Arc::default()).unwrap();
        Ok(((), opened.log, opened.machine))
    }
}

#[test]
fn openraft_accepts_the_store_in_a_directory() {
    Suite::test_all(InDirectory).unwrap();
}

#[test]
fn openraft_accepts_the_store_in_memory() {
    Suite::test_all(InMemory).unwrap();
}

fn log_id(index: u64) -> crate::types::LogId {
    openraft::testing::log_id(1, 1, index)
}

async fn save(opened: &mut Opened, index: u64) {
    let entry: crate::types::Entry = openraft::testing::blank_ent(1, 1, index);
    opened.log.blocking_append([entry]).await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_loss_of_power_whatever_else_reached_the_disk() {
    for seed in 0..64_usize {
        let disk = Arc::new(MemoryDisk::new());
        let store = Store::Memory(Arc::clone(&disk));
        let mut opened = open(&store, Rules::default(), Arc::default()).unwrap();
        opened.log.save_vote(&openraft::Vote::new(3, 2)).await.unwrap();
        for index in 0..20 {
            save(&mut opened, index).await;
        }
        opened.log.save_committed(Some(log_id(10))).await.unwrap();
        opened.log.truncate(log_id(18)).await.unwrap();
        opened.log.purge(log_id(4)).await.unwrap();

        // Pages written after the last sync survive or not, at random.
        disk.power_loss_keeping(|page| (page * 31 + seed * 17) % 3 == 0);

        let mut again = open(&store, Rules::default(), Arc::default()).unwrap();
        assert_eq!(again.log.read_vote().await.unwrap(), Some(openraft::Vote::new(3, 2)));
        let state = again.log.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(4)), Some(log_id(17))));
        assert_eq!(again.log.try_get_log_entries(0..99).await.unwrap().len(), 13);
        assert_eq!(again.log.read_committed().await.unwrap(), Some(log_id(10)));
    }
}

#[tokio::test]
async fn a_disk_that_is_gone_fails_every_write_from_then_on() {
    let disk = Arc::new(MemoryDisk::new());
    let mut opened = open(&Store::Memory(Arc::clone(&disk)), Rules::default(), Arc::default()).unwrap();
    save(&mut opened, 0).await;

    disk.power_loss();

    assert!(opened.log.save_vote(&openraft::Vote::new(3, 2)).await.is_err());
    assert!(opened.log.truncate(log_id(0)).await.is_err());
}

#[tokio::test]
async fn a_closed_store_can_be_opened_again_at_once_and_refuses_late_writes() {
    let directory = TempDir::new().unwrap();
    let store = Store::Dir { path: directory.path().to_owned(), known: None };
    let mut opened = open(&store, Rules::default(), Arc::default()).unwrap();
    save(&mut opened, 0).await;
    opened.log.save_committed(Some(log_id(0))).await.unwrap();
    assert!(matches!(open(&store, Rules::default(), Arc::default()), Err(StoreError::Open { .. })), "two at once");

    opened.writer.close().await.unwrap();

    let mut again = open(&store, Rules::default(), Arc::default()).unwrap();
    assert_eq!(again.log.read_committed().await.unwrap(), Some(log_id(0)));
    assert!(opened.log.save_vote(&openraft::Vote::new(3, 2)).await.is_err());
}

#[tokio::test]
async fn an_older_snapshot_does_not_replace_a_newer_one() {
    let opened = open(&Store::Memory(Arc::default()), Rules::default(), Arc::default()).unwrap();
    let snapshot = |index: u64| Change::Snapshot { index, meta: vec![1], data: index.to_le_bytes().to_vec() };

    opened.writer.commit(snapshot(9)).await.unwrap();
    opened.writer.commit(snapshot(7)).await.unwrap();

    assert_eq!(opened.disk.snapshot().unwrap().unwrap().data, 9_u64.to_le_bytes());
}

#[test]
fn a_node_that_had_a_store_is_given_no_other() {
    let (mine, others) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let at = |path: &TempDir, known| Store::Dir { path: path.path().to_owned(), known };
    let first = Disk::open(&at(&mine, None)).unwrap().id();
    Disk::open(&at(&others, None)).unwrap();

    let again = Disk::open(&at(&mine, Some(first))).unwrap();
    assert_eq!((again.id(), first.to_string().parse()), (first, Ok(first)));
    drop(again);

    let exchanged = Disk::open(&at(&others, Some(first)));
    assert!(matches!(exchanged, Err(StoreError::NotOurs { .. })), "{exchanged:?}");
    std::fs::remove_file(mine.path().join("raft.redb")).unwrap();
    let gone = Disk::open(&at(&mine, Some(first)));
    assert!(matches!(gone, Err(StoreError::NotOurs { .. })), "{gone:?}");
    assert!(!mine.path().join("raft.redb").exists(), "and no empty one is made in its place");
}

#[test]
fn a_store_of_another_version_is_refused_by_its_number() {
    let directory = TempDir::new().unwrap();
    let store = Store::Dir { path: directory.path().to_owned(), known: None };
    Disk::open(&store).unwrap().set_format(FORMAT + 1).unwrap();

    let refused = Disk::open(&store);

    assert!(
        matches!(refused, Err(StoreError::Newer { found, known: FORMAT, .. }) if found == FORMAT + 1),
        "{refused:?}"
    );
    let older = Store::Dir { path: directory.path().join("older"), known: None };
    Disk::open(&older).unwrap().set_format(FORMAT - 1).unwrap();
    let refused = Disk::open(&older);
    assert!(
        matches!(refused, Err(StoreError::Older { found, known: FORMAT, .. }) if found == FORMAT - 1),
        "{refused:?}"
    );
}

#[test]
fn the_bytes_of_a_stored_value_do_not_change_unnoticed() {
    let entry: crate::types::Entry = openraft::testing::blank_ent(2, 3, 5);
    let golden = [
        1, // version
        2, 0, 0, 0, 0, 0, 0, 0, // term
        3, 0, 0, 0, 0, 0, 0, 0, // leader
        5, 0, 0, 0, 0, 0, 0, 0, // index
        0, 0, 0, 0, // blank
    ];

    assert_eq!(encode(&entry).unwrap(), golden);
    assert_eq!(decode::<crate::types::Entry>(&golden).unwrap().log_id, entry.log_id);
    assert!(decode::<crate::types::Entry>(&[2, 0]).unwrap_err().contains("version 2"));
}
