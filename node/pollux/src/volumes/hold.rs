//! Work on a volume that no VM runs with: this node holds it for that time, fenced like a guest's owner.

use std::time::Duration;

use pollux_mirror::Limits;
use pollux_state::{
    Command, Outcome,
    id::{Generation, VolumeId},
    volume::Purpose,
};
use pollux_volume::{Volume, VolumeHandle};

use super::Volumes;

/// How long replicas may take to end in good order, in milliseconds. Without it they are compared by what their logs say.
const FINISH_MS_MAX: u64 = 2_000;

/// A volume that this node holds. Dropped, it stays held by this life of the daemon; [`Held::release`] gives it up.
pub(crate) struct Held {
    volumes: Volumes,
    id: VolumeId,
    generation: Generation,
    disk: Volume,
    handle: VolumeHandle,
}

impl Held {
    /// What to read and write.
    pub(crate) fn disk(&mut self) -> &mut Volume {
        &mut self.disk
    }

    /// What else can be wanted of it while it is polled.
    pub(crate) fn handle(&self) -> VolumeHandle {
        self.handle.clone()
    }

    /// Under which right.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Gives it up. `done`: the work is; an import that is not leaves half a disk, which no VM gets.
    pub(crate) async fn release(self, done: bool) -> Result<(), String> {
        let Self { volumes, id, generation, mut disk, handle: _ } = self;
        // That all replicas are equal is written down, if they are: the next user has nothing to copy.
        disk.finish(Duration::from_millis(FINISH_MS_MAX)).await;
        // First what writes, then the right to.
        drop(disk);
        let dropped = volumes.propose(Command::DropVolume { volume: id, expect: generation, done }).await;
        dropped.done().map(drop).map_err(|refusal| refusal.to_string())
    }
}

impl Volumes {
    /// Holds a volume, and brings it into use.
    pub(crate) async fn hold(&self, id: VolumeId, purpose: Purpose) -> Result<Held, String> {
        let gone = || format!("{id} is not in the cluster any more");
        let expect = self.state().volumes.get(&id).map(|it| it.generation).ok_or_else(gone)?;
        let incarnation = self.0.me.incarnation;
        let command = Command::HoldVolume { volume: id, expect, incarnation, purpose };
        let outcome = self.propose(command).await.done().map_err(|refusal| refusal.to_string())?;
        let Outcome::Owned(generation) = outcome else {
            return Err(format!("an odd answer to holding a volume: {outcome:?}"));
        };
        let mut applied = self.0.consensus.watch();
        // The leader knew it first.
        let known = applied.wait_for(|view| view.state.volumes.get(&id).is_none_or(|it| it.generation >= generation));
        let state = known.await.map_err(|_| "the daemon ends".to_owned())?.state.clone();
        let it = state.volumes.get(&id).filter(|it| it.generation == generation).ok_or_else(gone)?;
        match self.begin(&state, it, None, Limits::default()).await {
            Ok((disk, handle)) => Ok(Held { volumes: self.clone(), id, generation, disk, handle }),
            Err(error) => {
                self.propose(Command::DropVolume { volume: id, expect: generation, done: false }).await;
                Err(error.to_string())
            }
        }
    }

    /// Work that ends with the daemon at the latest.
    pub(crate) fn work(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(work);
    }
}
