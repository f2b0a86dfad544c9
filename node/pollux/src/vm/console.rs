//! What a VM's actor leaves open for its guest's console: who listens and types comes and goes without troubling it.
//!
//! A [`ConsolePort`] belongs to one console that is attached ([`crate::daemon`] serves it). It sees what the actor shows and
//! ends when the actor does; it holds nothing that the actor needs.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    actor::{Handle, Status},
    host::{Guest, Log},
};

/// Consoles that may be attached to one VM at the same time, whoever types.
pub const CONSOLES_MAX: u64 = 16;

/// The console of one VM on this node.
pub struct ConsolePort {
    handle: Handle,
}

/// Counts for as long as it lives.
pub struct Attached {
    count: Arc<watch::Sender<u64>>,
}

/// What may have changed of it.
pub struct Changes {
    guest: watch::Receiver<Option<Arc<dyn Guest>>>,
    status: watch::Receiver<Status>,
    written: Option<watch::Receiver<u64>>,
}

impl ConsolePort {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// What the guest wrote lately, here and before.
    #[must_use]
    pub fn log(&self) -> Log {
        self.handle.log()
    }

    /// The guest, if there is a machine for it.
    #[must_use]
    pub fn guest(&self) -> Option<Arc<dyn Guest>> {
        self.handle.guest.borrow().clone()
    }

    /// Counts one more that is attached; `None` if there are as many as there may be.
    #[must_use]
    pub fn attach(&self) -> Option<Attached> {
        let count = self.handle.attached.clone();
        let admitted = count.send_if_modified(|count| {
            let admitted = *count < CONSOLES_MAX;
            *count += u64::from(admitted);
            admitted
        });
        admitted.then_some(Attached { count })
    }

    /// How many are attached.
    #[must_use]
    pub fn attached(&self) -> watch::Receiver<u64> {
        self.handle.attached.subscribe()
    }

    /// For waiting.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes { guest: self.handle.guest.clone(), status: self.handle.status.clone(), written: None }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Changes {
    /// Everything up to now has been seen.
    pub fn mark(&mut self) {
        self.status.mark_unchanged();
        let written = self.guest.borrow_and_update().as_ref().map(|guest| guest.written());
        self.written = written;
    }

    /// Waits until the guest writes, another machine takes its place, or it runs or stands still. `false`: the actor has ended.
    pub async fn changed(&mut self) -> bool {
        let written = async {
            // A machine that writes no more is replaced, or the actor ends.
            let writes = match &mut self.written {
                Some(written) => written.changed().await.is_ok(),
                None => false,
            };
            if !writes {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = self.guest.changed() => changed.is_ok(),
            changed = self.status.changed() => changed.is_ok(),
            () = written => true,
        }
    }
}
