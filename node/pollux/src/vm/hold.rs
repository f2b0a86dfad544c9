//! Places in a move, of a VM or of a volume's replica, at which a test can hold this daemon, so that a fault meets it in just that moment.
//!
//! Only in a build with the feature `holds`, which no released program has. A test makes a file named after the place in
//! `holds/` of the daemon's directory; a move that comes there makes `PLACE.reached` beside it and goes on when the file is
//! gone. Only the task that came there waits: the actor hears of cancellations, decisions and deaths meanwhile, as it would if
//! the network or the disk were slow.

/// A place in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The source is about to call the target.
    Connect,
    /// The source has sent a round, and has yet to say so.
    Round,
    /// The guest is paused at the source, and nothing of the last round was sent.
    Paused,
    /// Everything is at the target but the word that it is everything.
    Complete,
    /// The target has everything and is about to ask for the right to run it.
    Switchover,
    /// The target is about to load the device state.
    Load,
    /// The target has loaded, won, and is about to let the guest run.
    Run,
    /// The guest runs at the target, which is about to say so.
    Arrived,
    /// Who writes to a volume is about to call a replica that is not in sync.
    VolumeReach,
    /// A replica has everything, and who writes is about to say so.
    VolumeJoin,
    /// The replicas are about to be compared, before the old one goes.
    VolumeCompare,
    /// The old replica has left the set, and is about to be forgotten.
    VolumeEnd,
}

#[cfg(feature = "holds")]
mod held {
    use std::{
        fs,
        path::{Path, PathBuf},
        sync::OnceLock,
        time::Duration,
    };

    use super::Place;

    /// Between two looks whether the hold is over, in milliseconds.
    const LOOK_MS: u64 = 5;

    static DIR: OnceLock<PathBuf> = OnceLock::new();

    impl Place {
        const fn name(self) -> &'static str {
            match self {
                Self::Connect => "connect",
                Self::Round => "round",
                Self::Paused => "paused",
                Self::Complete => "complete",
                Self::Switchover => "switchover",
                Self::Load => "load",
                Self::Run => "run",
                Self::Arrived => "arrived",
                Self::VolumeReach => "volume-reach",
                Self::VolumeJoin => "volume-join",
                Self::VolumeCompare => "volume-compare",
                Self::VolumeEnd => "volume-end",
            }
        }
    }

    /// Looks for holds in `dir/holds`.
    pub fn look_in(dir: &Path) {
        // Set once, by the daemon's start.
        let _ = DIR.set(dir.join("holds"));
    }

    /// Waits here as long as a test wants it.
    pub async fn at(place: Place) {
        let Some(hold) = DIR.get().map(|dir| dir.join(place.name())) else { return };
        if !hold.exists() {
            return;
        }
        tracing::warn!(place = place.name(), "held by a test");
        // A test that cannot see that the place was reached fails by that.
        let _ = fs::write(hold.with_extension("reached"), "");
        while hold.exists() {
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
    }
}

#[cfg(not(feature = "holds"))]
mod held {
    use std::path::Path;

    use super::Place;

    /// This build holds nowhere.
    pub fn look_in(_: &Path) {}

    /// This build holds nowhere.
    pub async fn at(_: Place) {}
}

pub use held::{at, look_in};
