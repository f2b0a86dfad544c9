//! Which VMs concern this node, and their actors.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pollux_link::{Peer, RecvStream, SendStream, To};
use pollux_state::{
    ClusterState,
    id::{NodeId, VmId, VolumeId},
};
use pollux_vm::{
    convergence::Sample,
    message::{Greeting, StreamGreeting},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    actor::{Actor, Handle, Mail, Status},
    console::ConsolePort,
    host::Log,
    incoming, sample,
};

/// How long the first stream of a move waits for this node to have applied the decision behind it.
const CATCH_UP_MS_MAX: u64 = 5_000;

/// The actors of this node.
#[derive(Clone)]
pub struct Vms {
    shared: Arc<Shared>,
    actors: Arc<Mutex<HashMap<VmId, Handle>>>,
    cancel: CancellationToken,
}

/// Does `vm` concern `node`: is it to start there, does it run there, does it move from or to there?
pub(super) fn concerns(state: &ClusterState, vm: VmId, node: NodeId) -> bool {
    state.vms.get(&vm).is_some_and(|vm| {
        let moving = vm.phase.moving().is_some_and(|(_, from, to)| from.node == node || to.node == node);
        moving || vm.home == node || vm.phase.owner().is_some_and(|owner| owner.node == node)
    })
}

impl Vms {
    /// Starts watching. The state this node has applied must be current.
    #[must_use]
    pub fn start(shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let vms = Self { shared, actors: Arc::default(), cancel: CancellationToken::new() };
        let watcher = vms.clone();
        let mut applied = vms.shared.consensus.watch();
        vms.shared.tasks.spawn(vms.cancel.clone().run_until_cancelled_owned(async move {
            loop {
                let state = applied.borrow_and_update().state.clone();
                let me = watcher.shared.me.node;
                state.vms.keys().filter(|vm| concerns(&state, **vm, me)).for_each(|vm| drop(watcher.ensure(*vm)));
                watcher.shared.changed();
                if applied.changed().await.is_err() {
                    return;
                }
            }
        }));
        vms
    }

    /// What the actor of `vm` shows, if there is one.
    #[must_use]
    pub fn status(&self, vm: VmId) -> Option<Status> {
        self.actors().get(&vm).map(|handle| handle.status.borrow().clone())
    }

    /// The volumes for which the guest of `vm` stands still here although it may run, each with why.
    #[must_use]
    pub fn troubles(&self, vm: VmId) -> Vec<(VolumeId, String)> {
        let guest = self.actors().get(&vm).and_then(|handle| handle.guest.borrow().clone());
        guest.map(|guest| guest.troubles()).unwrap_or_default()
    }

    /// What the firmware of `vm` has written here and no volume has taken for a while: which volume should, and what is wrong.
    #[must_use]
    pub fn unsaved(&self, vm: VmId) -> Option<(VolumeId, String)> {
        let guest = self.actors().get(&vm).and_then(|handle| handle.guest.borrow().clone());
        guest.and_then(|guest| guest.unsaved())
    }

    /// What the guest of `vm` wrote to its console.
    #[must_use]
    pub fn log(&self, vm: VmId) -> Option<Log> {
        self.actors().get(&vm).map(Handle::log)
    }

    /// What a move of `vm` to a node would meet, from a short look at the guest and the way there.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub async fn sample(&self, vm: VmId, to: &To) -> Result<Sample, String> {
        let guest = self.actors().get(&vm).and_then(|handle| handle.guest.borrow().clone());
        let guest = guest.ok_or("it does not run here any more")?;
        sample::take(&self.shared, guest, vm, to).await
    }

    /// The console of `vm`, if this node has an actor for it.
    #[must_use]
    pub fn console(&self, vm: VmId) -> Option<ConsolePort> {
        self.actors().get(&vm).cloned().map(ConsolePort::new)
    }

    /// Work for the users of its VMs, which ends with them.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.shared.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(work));
    }

    /// A source opened its control stream.
    pub async fn control(&self, peer: Peer, greeting: Greeting, send: SendStream, recv: RecvStream) {
        match self.expecting(greeting.vm, greeting.index).await {
            // An actor that ends refuses by ending.
            Some(handle) => drop(handle.post.send(Mail::Control { peer, greeting, send, recv }).await),
            None => {
                let Greeting { vm, generation, op, .. } = greeting;
                let span = tracing::error_span!("vm", %vm, generation = generation.0, operation = %op);
                span.in_scope(|| incoming::refuse(send, "no move of this VM is known here"));
            }
        }
    }

    /// A source opened a page stream.
    pub async fn pages(&self, peer: Peer, greeting: StreamGreeting, recv: RecvStream) {
        if let Some(handle) = self.expecting(greeting.vm, greeting.index).await {
            drop(handle.post.send(Mail::Pages { peer, greeting, recv }).await);
        }
    }

    /// The actor of a VM that concerns this node, once the node has applied the decision that a source has seen. The actor
    /// looks at decisions before its mail, so it knows of the move when it reads of the stream.
    async fn expecting(&self, vm: VmId, index: u64) -> Option<Handle> {
        let mut applied = self.shared.consensus.watch();
        let caught_up = applied.wait_for(|view| view.applied >= index);
        let view = tokio::time::timeout(Duration::from_millis(CATCH_UP_MS_MAX), caught_up).await;
        let state = view.ok()?.ok()?.state.clone();
        concerns(&state, vm, self.shared.me.node).then(|| self.ensure(vm))
    }

    /// Ends every machine of this node, and waits for it.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.actors().clear();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn ensure(&self, vm: VmId) -> Handle {
        let mut actors = self.actors();
        if let Some(handle) = actors.get(&vm)
            && !handle.post.is_closed()
        {
            return handle.clone();
        }
        let (actor, handle) = Actor::new(self.shared.clone(), vm);
        actors.insert(vm, handle.clone());
        drop(actors);
        let (vms, cancel) = (self.clone(), self.cancel.clone());
        self.shared.tasks.spawn(async move {
            actor.run(cancel).await;
            vms.ended(vm);
        });
        handle
    }

    /// An actor has ended. What was decided while it did may need another.
    fn ended(&self, vm: VmId) {
        self.actors().retain(|known, handle| *known != vm || !handle.post.is_closed());
        let state = self.shared.consensus.watch().borrow().state.clone();
        if !self.cancel.is_cancelled() && concerns(&state, vm, self.shared.me.node) {
            drop(self.ensure(vm));
        }
    }

    fn actors(&self) -> MutexGuard<'_, HashMap<VmId, Handle>> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
