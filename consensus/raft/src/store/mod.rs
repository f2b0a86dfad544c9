//! What a node must not forget: its log, its vote, the last snapshot. And the state it rebuilds from them.
//!
//! ```text
//!   openraft core ---> LogStore ------+                    +--> redb (a file, or a MemoryDisk)
//!   openraft's state                  +--> Writer --> Disk |
//!   machine task  ---> StateMachine --+    (changes)       +<-- reads, in place
//!                          |
//!                          +--> watch<View>, what everybody else sees
//! ```
//! The state itself is only in memory. A restart loads the snapshot and applies the log up to the committed position; the
//! leader says what else is committed.

pub(crate) mod disk;
pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod memory;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::sync::Arc;

use openraft::AnyError;
use pollux_state::Rules;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use self::{
    disk::{Disk, Store, StoreError, StoreId},
    log::LogStore,
    machine::{StateMachine, View},
    writer::Writer,
};
use crate::propose::InFlight;

/// Version of every value in the store, its first byte. 0 is never written.
const VALUE_VERSION: u8 = 1;

/// The opened parts.
pub(crate) struct Opened {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) writer: Writer,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) id: StoreId,
    #[cfg(test)]
    disk: Arc<Disk>,
}

/// Opens a store, or makes an empty one.
pub(crate) fn open(store: &Store, rules: Rules, in_flight: Arc<InFlight>) -> Result<Opened, StoreError> {
    let disk = Arc::new(Disk::open(store)?);
    let writer = Writer::start(store, &disk)?;
    let log = LogStore::new(Arc::clone(&disk), writer.clone(), in_flight);
    let id = disk.id();
    let (machine, view) = StateMachine::load(Arc::clone(&disk), writer.clone(), rules)?;
    Ok(Opened {
        log,
        machine,
        writer,
        view,
        id,
        #[cfg(test)]
        disk,
    })
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = vec![VALUE_VERSION];
    bytes.extend(crate::encoding::encode_stored(value)?);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VALUE_VERSION, rest)) => crate::encoding::decode_stored(rest),
        Some((version, _)) => Err(format!("a value of version {version}, this pollux knows version {VALUE_VERSION}")),
        None => Err("an empty value".to_owned()),
    }
}

fn any(error: impl std::fmt::Display) -> AnyError {
    AnyError::error(error)
}
